"""Job servers without a cluster: how they are found, what is said when they are not, and that none is left behind.

Java is stood in for by other programs, since what is tried is what soundlake makes of it: `make test-spark` has the
real ones.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from soundlake.model.errors import InputError, TryLaterError
from soundlake.pipelines.engine import job_server, worker_boot
from soundlake.pipelines.engine.job_server import CLUSTERS, JobServer, folders, need_cluster, smallest, telling
from soundlake.pipelines.engine.runners import beam_options

ROOT = Path(__file__).resolve().parents[2]
SPARK = CLUSTERS["SparkRunner"]

# Listens where it is told to, and answers nothing: gRPC calls that ready.
LISTENS = f"""#!{sys.executable}
import sys, time
from concurrent.futures import ThreadPoolExecutor
import grpc
(port,) = [word.partition("=")[2] for word in sys.argv if word.startswith("--job-port=")]
server = grpc.server(ThreadPoolExecutor(1))
server.add_insecure_port(f"localhost:{{port}}")
server.start()
print(*sys.argv[1:], flush=True)
time.sleep(600)
"""
DIES = """#!/bin/sh
echo "INFO starting"
echo "java.lang.UnsupportedClassVersionError: Main has been compiled by a more recent version"
echo "	at java.base/java.lang.ClassLoader.defineClass1(Native Method)"
exit 1
"""


@pytest.fixture
def jars(tmp_path: Path) -> Path:
    """A folder of jars, with another in it."""
    folder = tmp_path / "jars"
    (folder / "spark").mkdir(parents=True)
    (folder / "big.jar").write_bytes(b"12")
    (folder / "small.jar").write_bytes(b"1")
    (folder / "spark" / "smallest.jar").write_bytes(b"")
    return folder


def options(folder: Path, jars: Path, program: str, *given: str) -> Any:
    """Beam's options, with a program in Java's place."""
    java = folder / "java"
    java.write_text(program)
    java.chmod(0o755)
    line = ["--runner=SparkRunner", f"--spark_job_server_jar={jars}", f"--job_server_java_launcher={java}", *given]
    return beam_options(line).options


def test_a_folders_own_jars_come_before_those_of_its_folders(jars: Path) -> None:
    assert folders(SPARK, str(jars)) == [jars, jars / "spark"]
    assert smallest(SPARK, str(jars)) == str(jars / "small.jar")
    assert folders(SPARK, str(jars / "big.jar")) == [jars / "big.jar"]
    assert smallest(SPARK, str(jars / "big.jar")) == str(jars / "big.jar")


def test_without_jars_it_says_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, option in (("spark", "spark_job_server_jar"), ("flink", "flink_job_server_jar")):
        with pytest.raises(
            InputError, match=rf"{tmp_path}/soundlake/{name}.*`make {name}-jars`.*--{option}=PATH"
        ) as told:
            folders(CLUSTERS[f"{name.capitalize()}Runner"], None)
        assert "\n" not in str(told.value)
    with pytest.raises(InputError, match="make spark-jars"):
        beam_options(["--runner=SparkRunner", "--spark-master=spark://127.0.0.1:1"])


def test_without_java_it_says_so(tmp_path: Path, jars: Path) -> None:
    given = options(tmp_path, jars, DIES)
    (tmp_path / "java").unlink()
    with pytest.raises(InputError, match=r"there is no '.*/java'.*install Java"):
        JobServer(SPARK, given)


def test_one_that_dies_is_told_by_the_line_that_says_why(tmp_path: Path, jars: Path) -> None:
    with pytest.raises(InputError, match=r"Spark died: java\.lang\.UnsupportedClassVersionError: Main .* version$"):
        JobServer(SPARK, options(tmp_path, jars, DIES))


def test_one_that_listens_is_used_again_until_it_is_stopped(
    tmp_path: Path, jars: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = options(tmp_path, jars, LISTENS, "--job_server_jvm_properties=-Dspark.executor.memory=3g")
    try:
        first = job_server.endpoint(SPARK, given)
        assert job_server.endpoint(SPARK, given) == first
        assert job_server.death(first) is None
        (server,) = job_server._running.values()
        words = Path(server._log).read_text().split()
        # What a user sets comes behind ours, and wins.
        assert words.index("-Dspark.executor.memory=3g") > words.index(
            f"-Dspark.executor.extraClassPath={jars}/*:{jars}/spark/*"
        )
        assert "--spark-master-url=local[4]" in words
        server._process.kill()
        server._process.wait()
        assert "died" in str(job_server.death(first))
        assert job_server.endpoint(SPARK, given) != first
    finally:
        job_server.stop()
    assert not job_server._running
    assert capfd.readouterr().err.count(f"job server of Spark for local[4], from {jars}, ready at ") == 2


def _gone(pid: int) -> bool:
    """Whether a process ends within some seconds."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/usr/bin/setpriv").exists(), reason="needs setpriv, of util-linux")
def test_a_killed_client_leaves_no_server(tmp_path: Path, jars: Path) -> None:
    options(tmp_path, jars, LISTENS)
    client = f"""
import os, signal
from soundlake.pipelines.engine import job_server
from soundlake.pipelines.engine.runners import beam_options
given = ["--spark_job_server_jar={jars}", "--job_server_java_launcher={tmp_path}/java"]
engine = beam_options(["--runner=SparkRunner", *given])
server = job_server.JobServer(engine.cluster, engine.options)
print(server._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", client], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert _gone(int(done.stdout))


def test_who_does_not_answer_is_named(tmp_path: Path, jars: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_server, "FIND_SECONDS", 0.5)
    with pytest.raises(TryLaterError, match=r"spark://127\.0\.0\.1:1 \(Connection refused\): is it running\?"):
        JobServer(SPARK, options(tmp_path, jars, LISTENS, "--spark-master=spark://127.0.0.1:1"))
    with pytest.raises(TryLaterError, match=r"--job_endpoint=127\.0\.0\.1:1: is it running\?"):
        job_server.find("127.0.0.1:1")
    for master in ("local[2]", "yarn", "[auto]", "k8s://https://host:443"):
        need_cluster(master)
    for master in ("http://127.0.0.1:1", "127.0.0.1:1"):
        with pytest.raises(TryLaterError):
            need_cluster(master)


@pytest.mark.parametrize(
    ("log", "line"),
    [
        ("", "it said nothing"),
        ("INFO one\nINFO two\n", "INFO two"),
        ("ERROR no room\nINFO stopped\n\tat java.lang.Thread.run(Thread.java:840)\n", "ERROR no room"),
        (
            "java.io.IOException: a\nCaused by: java.net.BindException: b\n\tat c\n",
            "Caused by: java.net.BindException: b",
        ),
    ],
)
def test_the_telling_line(log: str, line: str) -> None:
    assert telling(log) == line


def test_a_worker_is_told_what_beams_own_starter_would_tell_it() -> None:
    from apache_beam.portability.api import beam_provision_api_pb2
    from apache_beam.runners.worker.sdk_worker_main import _load_pipeline_options

    info = beam_provision_api_pb2.ProvisionInfo(runner_capabilities=["one", "two"])
    info.pipeline_options["beam:option:job_name:v1"] = "extract"
    info.control_endpoint.url = "localhost:1"
    info.logging_endpoint.url = "localhost:2"
    found = worker_boot.environment("1-1", info)
    assert _load_pipeline_options(found.pop("PIPELINE_OPTIONS")) == {"job_name": "extract"}
    assert found == {
        "WORKER_ID": "1-1",
        "RUNNER_CAPABILITIES": "one two",
        "CONTROL_API_SERVICE_DESCRIPTOR": 'url: "localhost:1"\n',
        "LOGGING_API_SERVICE_DESCRIPTOR": 'url: "localhost:2"\n',
    }


def test_a_worker_ends_with_the_process_that_started_it() -> None:
    """As an executor that is killed: its worker waits for a service that never answers."""
    code = "from soundlake.pipelines.cli.program import script; script()"
    line = [sys.executable, "-c", code, "--id=1-1", "--provision_endpoint=127.0.0.1:1"]
    starter = f"import os, subprocess, sys, time\nprint(subprocess.Popen({line!r}).pid, flush=True)\ntime.sleep(600)\n"
    environment = os.environ | {worker_boot.WORKER: "1"}
    with subprocess.Popen(
        [sys.executable, "-c", starter], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        # It has begun to wait: Beam is loaded.
        deadline = time.monotonic() + 60
        while "grpc" not in Path(f"/proc/{worker}/maps").read_text() and time.monotonic() < deadline:
            time.sleep(0.05)
        parent.kill()
    assert _gone(worker)


def test_the_job_server_for_deployment_is_of_the_locked_beam() -> None:
    (locked,) = re.findall(
        r"^apache-beam(?:\[\w+\])?==([\d.]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE
    )
    for name in ("spark",):
        assert f"<beam.version>{locked}</beam.version>" in (ROOT / "infra" / name / "pom.xml").read_text()
