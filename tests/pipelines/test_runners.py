"""Options after `--`: the local engine by default, Beam's own otherwise, and a clear word on a wrong one."""

import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import DirectOptions, PortableOptions, SparkRunnerOptions, StandardOptions
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from soundlake.model.errors import InputError, TryLaterError
from soundlake.pipelines.engine.runners import Concurrently, _worker_error, beam_options, run_pipeline
from soundlake.pipelines.engine.worker_boot import WORKER


@pytest.mark.parametrize("given", [[], ["--runner=DirectRunner"], ["--runner=FnApiRunner"]])
def test_local_by_default(given: list[str]) -> None:
    engine = beam_options(given, workers=3)
    assert engine.options.view_as(StandardOptions).runner == "FnApiRunner"
    direct = engine.options.view_as(DirectOptions)
    assert (direct.direct_running_mode, direct.direct_num_workers) == ("in_memory", 1)
    assert engine.threads == 3


def test_what_is_given_stays() -> None:
    engine = beam_options(["--direct_num_workers=2", "--direct_running_mode=multi_processing"])
    direct = engine.options.view_as(DirectOptions)
    assert (direct.direct_running_mode, direct.direct_num_workers) == ("multi_processing", 2)
    assert engine.threads == 1
    portable = beam_options(["--runner=PortableRunner", "--job_endpoint=localhost:8099"])
    assert portable.options.view_as(StandardOptions).runner == "PortableRunner"


@pytest.fixture
def jars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a job server for Spark in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "soundlake" / "spark" / "job-server"
    folder.mkdir(parents=True)
    (folder / "one.jar").touch()
    return folder


@pytest.mark.parametrize("name", ["spark-master", "spark_master_url"])
def test_a_master_is_all_that_spark_needs(jars: Path, name: str) -> None:
    engine = beam_options(["--runner=SparkRunner", f"--{name}=spark://host:7077"])
    assert engine.cluster is not None
    assert engine.cluster.name == "spark"
    assert not engine.local
    assert engine.options.view_as(SparkRunnerOptions).spark_master_url == "spark://host:7077"
    portable = engine.options.view_as(PortableOptions)
    assert portable.environment_type == "PROCESS"
    program = json.loads(portable.environment_config)
    assert program == {"command": sysconfig.get_path("scripts") + "/soundlake", "env": {WORKER: "1"}}
    assert int(portable.environment_cache_millis) > 0
    assert f"--files_to_stage={jars}/one.jar" in engine.options._flags


@pytest.mark.parametrize(
    "own",
    [
        ["--environment_type=DOCKER", "--environment_config=registry/soundlake"],
        ["--environment_type=EXTERNAL", "--environment_options=external_service_address=localhost:50000"],
        ["--environment_type=LOOPBACK"],
    ],
)
def test_how_workers_start_can_be_told(jars: Path, own: list[str]) -> None:
    flags = ["--runner=SparkRunner", "--environment_cache_millis=7", "--files_to_stage=/x.jar", *own]
    assert beam_options(flags).options._flags == flags


def test_a_job_server_that_runs_needs_no_jars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    engine = beam_options(["--runner=SparkRunner", "--job_endpoint=localhost:8099"])
    assert engine.options.view_as(PortableOptions).job_endpoint == "localhost:8099"
    assert not engine.asked


def test_an_option_may_be_the_job_servers_own(jars: Path) -> None:
    engine = beam_options(["--runner=SparkRunner", "--no_such_option=1", "--bundle_size=2"])
    assert engine.asked == ("--bundle_size", "--no_such_option")


def test_the_mode_that_loses_records_is_refused() -> None:
    with pytest.raises(InputError, match="multi_threading loses records"):
        beam_options(["--direct_running_mode=multi_threading", "--direct_num_workers=2"])


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_concurrently_gives_what_a_flat_map_gives(threads: int) -> None:
    with TestPipeline(runner="FnApiRunner") as pipeline:
        out = (
            pipeline
            | beam.Create(range(37))
            | beam.ParDo(Concurrently(_each_and_odd, threads)).with_outputs("odd", main="all")
        )
        assert_that(out.all, equal_to([i // 2 for i in range(74)]), label="all")
        assert_that(out.odd, equal_to(list(range(1, 37, 2))), label="odd")


def _each_and_odd(number: int) -> Iterator[Any]:
    yield number
    yield number
    if number % 2:
        yield beam.pvalue.TaggedOutput("odd", number)


@pytest.mark.parametrize("given", ["--no-such-option=1", "folder", "-x"])
def test_a_wrong_option_is_named(given: str) -> None:
    with pytest.raises(InputError, match=given.split("=")[0]):
        beam_options([given])


@pytest.mark.parametrize("kind", [InputError, TryLaterError])
def test_a_workers_error_is_itself_again(kind: type[Exception]) -> None:
    def fail(_: int) -> None:
        raise kind("the shard /x/y is damaged: delete it")

    with pytest.raises(kind, match=r"^the shard /x/y is damaged: delete it$"):
        run_pipeline(lambda p: p | beam.Create([1]) | beam.Map(fail), beam_options([], workers=1))


JAVA = """java.lang.RuntimeException: Error received from SDK harness: Traceback (most recent call last):
  File "apache_beam/runners/common.py", line 1498, in process
soundlake.model.errors.{kind}: {message} [while running 'encode']
During handling of the above exception, another exception occurred:
{kind}: {message} [while running 'encode']

	at java.base/java.lang.Thread.run(Thread.java:840)
"""


@pytest.mark.parametrize("kind", [InputError, TryLaterError])
def test_a_workers_error_comes_through_java(kind: type[Exception]) -> None:
    error = RuntimeError(JAVA.format(kind=kind.__name__, message="the shard /x/y is damaged: delete it"))
    found = _worker_error(error, "localhost:1")
    assert type(found) is kind
    assert str(found) == "the shard /x/y is damaged: delete it"


def test_a_cluster_that_fails_is_told_in_one_line() -> None:
    stopped = "java.lang.IllegalStateException: Cannot call methods on a stopped SparkContext.\nMade at:\n\na.B(C)"
    found = _worker_error(RuntimeError(stopped), "localhost:1")
    assert isinstance(found, TryLaterError)
    assert re.match(r"the cluster gave up: .*stopped SparkContext\.; finished work is kept", str(found))
    nothing = 'java.io.IOException: Cannot run program "/opt/soundlake": error=2, No such file\n\tat java'
    with pytest.raises(InputError, match="workers of the cluster have no /opt/soundlake: install"):
        raise _worker_error(RuntimeError(nothing), "localhost:1")
    # A fault of ours stays one.
    ours = RuntimeError(JAVA.format(kind="KeyError", message="'x'").replace("soundlake.model.errors.", ""))
    assert _worker_error(ours, "localhost:1") is ours


def test_any_other_error_stays_what_it_is() -> None:
    error = RuntimeError("ValueError: x")
    assert _worker_error(error) is error
