"""Beam's job servers: the Java programs that take a pipeline and run it on Spark or Flink.

One is started for the pipelines of this process, from a shaded jar or a folder of jars, and stopped at the end; or one
that runs already is found by ``--job_endpoint``. What a server writes goes to a file, and a server that dies is told
by the last line of it that says why.
"""

import atexit
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soundlake.model.errors import InputError, TryLaterError

# Spark and Flink look into packages of Java that Java 17 keeps shut.
OPENED = (
    *("java.lang", "java.lang.invoke", "java.lang.reflect", "java.io", "java.net", "java.nio", "java.util"),
    *("java.util.concurrent", "java.util.concurrent.atomic"),
    *("sun.nio.ch", "sun.nio.cs", "sun.security.action", "sun.util.calendar"),
)
JAVA_17 = tuple(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED)

# Beam's options that a server is started with.
SERVER_OPTIONS = (
    "job_port",
    "artifact_port",
    "expansion_port",
    "artifacts_dir",
    "job_server_java_launcher",
    "job_server_jvm_properties",
)

# A server that starts takes seconds; on a machine with much else to do, a minute.
START_SECONDS = 180.0
# To find one that runs, or a cluster.
FIND_SECONDS = 15.0
# A server that is told to stop takes its jobs back from the cluster first.
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Cluster:
    """What kind of cluster a job server speaks to.

    Attributes
    ----------
    name : str
        As in ``make NAME-jars``, and the folder of the cache that it fills.
    main : str
        The class that is started.
    master : str
        Beam's option that says where the cluster is, without dashes.
    jars : str
        Beam's option that says where the job server is, without dashes.
    on_workers : bool
        Whether the server's class path goes before that of the cluster's workers: Spark's own Guava, older than
        Beam's, would else be found first.
    """

    name: str
    main: str
    master: str
    jars: str
    on_workers: bool = False


CLUSTERS = {
    "SparkRunner": Cluster(
        "spark",
        "org.apache.beam.runners.spark.SparkJobServerDriver",
        "spark_master_url",
        "spark_job_server_jar",
        on_workers=True,
    ),
    "FlinkRunner": Cluster(
        "flink", "org.apache.beam.runners.flink.FlinkJobServerDriver", "flink_master", "flink_job_server_jar"
    ),
}


def cache(name: str) -> Path:
    """The folder that ``make NAME-jars`` fills with a job server."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "soundlake" / name / "job-server"


def folders(cluster: Cluster, given: str | None) -> list[Path]:
    """Where a job server's jars are: a jar, or folders of jars, in the order of the class path.

    Parameters
    ----------
    cluster : Cluster
    given : str or None
        A jar, or a folder of jars and of folders of jars, which come behind its own; by default the cache.

    Raises
    ------
    InputError
        If there is no jar.
    """
    path = Path(given).absolute() if given else cache(cluster.name)
    if path.is_file():
        return [path]
    found = [folder for folder in (path, *sorted(path.glob("*"))) if any(folder.glob("*.jar"))]
    if not found:
        raise InputError(
            f"there is no job server for {cluster.name.capitalize()} at {path}: `make {cluster.name}-jars` in the "
            f"repository of soundlake fetches it; or name a jar or a folder of jars by --{cluster.jars}=PATH, or a "
            "server that runs by --job_endpoint=HOST:PORT"
        )
    return found


def smallest(cluster: Cluster, given: str | None) -> str:
    """The smallest of a job server's jars; see `folders`."""
    first = folders(cluster, given)[0]
    return str(min([first] if first.is_file() else first.glob("*.jar"), key=lambda jar: jar.stat().st_size))


def command(cluster: Cluster, options: Any, *, port: int, folder: str) -> list[str]:
    """The command line of a job server.

    Parameters
    ----------
    cluster : Cluster
    options : apache_beam.options.pipeline_options.PipelineOptions
    port : int
        Where it is to listen.
    folder : str
        For what clients hand over to it.

    Raises
    ------
    InputError
        If there is no Java, or no jar.
    """
    found = options.get_all_options()
    java = shutil.which(found["job_server_java_launcher"])
    if java is None:
        raise InputError(
            f"there is no {found['job_server_java_launcher']!r}, and the job server of {cluster.name.capitalize()} is "
            "a Java program: install Java 11 or 17 (on Debian: apt install openjdk-17-jre-headless), or name it by "
            "--job_server_java_launcher=PATH"
        )
    jars = folders(cluster, found[cluster.jars])
    path = ":".join(str(jar) if jar.is_file() else f"{jar}/*" for jar in jars)
    properties = list(JAVA_17)
    if cluster.on_workers:
        properties += [
            f"-Dspark.executor.extraClassPath={path}",
            # Not extraJavaOptions: those stay a user's own.
            f"-Dspark.executor.defaultJavaOptions={' '.join(JAVA_17)}",
        ]
    return [
        java,
        *properties,
        *found["job_server_jvm_properties"],
        "-cp",
        path,
        cluster.main,
        "--job-host=localhost",
        f"--job-port={port}",
        f"--artifact-port={found['artifact_port']}",
        f"--expansion-port={found['expansion_port']}",
        f"--artifacts-dir={found['artifacts_dir'] or folder}",
        f"--{cluster.master.replace('_', '-')}={found[cluster.master]}",
    ]


def telling(log: str) -> str:
    """The line of a Java program's log that says best what went wrong: its last error, else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith(("\tat ", "    at "))]
    errors = [line for line in lines if re.search(r"\b(\w+(Error|Exception)\b|ERROR\b|FATAL\b|SEVERE\b)", line)]
    return (errors or lines or ["it said nothing"])[-1][:300]


def need_cluster(master: str) -> None:
    """Raise `TryLaterError` if nobody answers at a master's ``HOST:PORT``; other masters are not looked at."""
    for host, port in re.findall(r"^(?:spark://|https?://)?([\w.-]+|\[[\da-fA-F:]+\]):(\d+)$", master):
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=FIND_SECONDS).close()
        except OSError as error:
            raise TryLaterError(f"no master answers at {master} ({error.strerror or error}): is it running?") from error


class JobServer:
    """A job server that this process has started.

    Parameters
    ----------
    cluster : Cluster
    options : apache_beam.options.pipeline_options.PipelineOptions

    Raises
    ------
    InputError
        If there is no Java or no jar, or the server does not start.
    TryLaterError
        If the cluster does not answer.
    """

    def __init__(self, cluster: Cluster, options: Any) -> None:
        from apache_beam.utils.subprocess_server import pick_port

        self._cluster = cluster
        master = options.get_all_options()[cluster.master]
        self._folder = tempfile.mkdtemp(prefix="soundlake-job-server-")
        try:
            (port,) = pick_port(options.get_all_options()["job_port"])
            line = command(cluster, options, port=port, folder=self._folder)
            need_cluster(master)
            self.endpoint = f"localhost:{port}"
            self._log = os.path.join(self._folder, "log")
            # A killed client leaves no server behind, where the system can see to it.
            bound = shutil.which("setpriv")
            with open(self._log, "wb") as log:
                self._process = subprocess.Popen(
                    [bound, "--pdeathsig", "TERM", *line] if bound else line,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            began = time.monotonic()
            self._wait()
        except BaseException:
            self.stop()
            raise
        jars = options.get_all_options()[cluster.jars] or cache(cluster.name)
        _tell(
            f"job server of {cluster.name.capitalize()} for {master}, from {jars}, "
            f"ready at {self.endpoint} after {time.monotonic() - began:.1f} s"
        )

    def _wait(self) -> None:
        import grpc

        with grpc.insecure_channel(self.endpoint) as channel:
            ready = grpc.channel_ready_future(channel)
            for _ in range(round(START_SECONDS / 0.2)):
                with contextlib.suppress(grpc.FutureTimeoutError):
                    ready.result(timeout=0.2)
                    return
                if (died := self.died()) is not None:
                    raise InputError(died)
        raise InputError(f"the job server does not answer after {START_SECONDS:g} s: {telling(self._read())}")

    def _read(self) -> str:
        with contextlib.suppress(OSError):
            return Path(self._log).read_text(errors="replace")
        return ""

    def died(self) -> str | None:
        """What to tell people if the server is no more; None if it runs."""
        if self._process.poll() is None:
            return None
        return f"the job server of {self._cluster.name.capitalize()} died: {telling(self._read())}"

    def stop(self) -> None:
        """End the server, and with it what it runs."""
        process = getattr(self, "_process", None)
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def _tell(line: str) -> None:
    print(f"soundlake: {line}", file=sys.stderr)


# Those of this process, by what it was started with: `run` has two pipelines, and a start takes seconds.
_running: dict[tuple[Any, ...], JobServer] = {}


def endpoint(cluster: Cluster, options: Any) -> str:
    """Where a job server of this process listens; it is started unless it runs, and ends with the process."""
    found = options.get_all_options()
    key = tuple(str(found[name]) for name in (cluster.master, cluster.jars, *SERVER_OPTIONS))
    if key in _running and _running[key].died() is not None:
        _running.pop(key).stop()
    if key not in _running:
        atexit.register(stop)
        _running[key] = JobServer(cluster, options)
    return _running[key].endpoint


def death(at: str) -> str | None:
    """What to tell people if the job server at an endpoint was started by this process and is no more."""
    return next((server.died() for server in _running.values() if server.endpoint == at), None)


def find(at: str) -> None:
    """Raise `TryLaterError` if no job server answers at ``HOST:PORT``."""
    import grpc

    with grpc.insecure_channel(at) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=FIND_SECONDS)
        except grpc.FutureTimeoutError as error:
            raise TryLaterError(f"no job server answers at --job_endpoint={at}: is it running?") from error


def options_of(at: str) -> set[str]:
    """The options that the job server at ``HOST:PORT`` knows, each with its dashes."""
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    with grpc.insecure_channel(at) as channel:
        service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        request = beam_job_api_pb2.DescribePipelineOptionsRequest()
        found = service.DescribePipelineOptions(request, wait_for_ready=True, timeout=FIND_SECONDS)
    return {f"--{option.name}" for option in found.options}


def stop() -> None:
    """End the job servers that this process has started."""
    while _running:
        _running.popitem()[1].stop()
