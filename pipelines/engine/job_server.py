"""Beam's job servers: the Java programs that take a pipeline and run it on Spark or Flink.

This process starts one for its pipelines, from a shaded jar or a folder of jars, and stops it at the end. Or it uses a
server that runs already, named by ``--job_endpoint``. The output of a server goes to a file. If the server dies, the
error message quotes the last line of that file that gives a reason.
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

# Spark and Flink access Java packages that Java 17 closes by default.
OPENED = (
    *("java.lang", "java.lang.invoke", "java.lang.reflect", "java.io", "java.net", "java.nio", "java.util"),
    *("java.util.concurrent", "java.util.concurrent.atomic"),
    *("sun.nio.ch", "sun.nio.cs", "sun.security.action", "sun.util.calendar"),
)
JAVA_17 = tuple(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in OPENED)

# Beam's options for the start of a server.
SERVER_OPTIONS = (
    "job_port",
    "artifact_port",
    "expansion_port",
    "artifacts_dir",
    "job_server_java_launcher",
    "job_server_jvm_properties",
)

# The start of a server takes seconds; on a busy machine, a minute.
START_SECONDS = 180.0
# Timeout for the answer of a running server, or of a cluster.
FIND_SECONDS = 15.0
# Before it stops, a server withdraws its jobs from the cluster.
STOP_SECONDS = 20.0


@dataclass(frozen=True)
class Cluster:
    """A kind of cluster, and the job server for it.

    Attributes
    ----------
    name : str
        As in ``make NAME-jars``; also the name of the cache folder that this command fills.
    main : str
        The Java class to start.
    master : str
        Beam's option for the address of the cluster, without dashes.
    jars : str
        Beam's option for the path of the job server, without dashes.
    on_workers : bool
        Whether the server's class path goes before that of the cluster's workers. Otherwise they would load Spark's
        own Guava, which is older than Beam's.
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
    """The class path of a job server: one jar, or folders of jars in order.

    Parameters
    ----------
    cluster : Cluster
    given : str or None
        A jar, or a folder of jars and of folders of jars; the jars of the latter come after its own. By default the
        cache.

    Raises
    ------
    InputError
        If there is no jar.
    """
    path = Path(given).absolute() if given else cache(cluster.name)
    if path.is_file():
        return [path]
    with_jars = [folder for folder in (path, *sorted(path.glob("*"))) if any(folder.glob("*.jar"))]
    if not with_jars:
        raise InputError(
            f"there is no job server for {cluster.name.capitalize()} at {path}: `make {cluster.name}-jars` in the "
            f"repository of soundlake fetches it; or name a jar or a folder of jars by --{cluster.jars}=PATH, or a "
            "server that runs by --job_endpoint=HOST:PORT"
        )
    return with_jars


def smallest(cluster: Cluster, given: str | None) -> str:
    """The path of a job server's smallest jar, from the first of its `folders`."""
    first = folders(cluster, given)[0]
    return str(min([first] if first.is_file() else first.glob("*.jar"), key=lambda jar: jar.stat().st_size))


def command(cluster: Cluster, options: Any, *, port: int, folder: str) -> list[str]:
    """The command line that starts a job server.

    Parameters
    ----------
    cluster : Cluster
    options : apache_beam.options.pipeline_options.PipelineOptions
    port : int
        The port that the server listens on.
    folder : str
        For files that clients upload to the server.

    Raises
    ------
    InputError
        If there is no Java, or no jar.
    """
    values = options.get_all_options()
    java = shutil.which(values["job_server_java_launcher"])
    if java is None:
        raise InputError(
            f"there is no {values['job_server_java_launcher']!r}, and the job server of {cluster.name.capitalize()} is "
            "a Java program: install Java 11 or 17 (on Debian: apt install openjdk-17-jre-headless), or name it by "
            "--job_server_java_launcher=PATH"
        )
    jars = folders(cluster, values[cluster.jars])
    path = ":".join(str(jar) if jar.is_file() else f"{jar}/*" for jar in jars)
    properties = list(JAVA_17)
    if cluster.on_workers:
        properties += [
            f"-Dspark.executor.extraClassPath={path}",
            # Not extraJavaOptions: users may set that one themselves.
            f"-Dspark.executor.defaultJavaOptions={' '.join(JAVA_17)}",
        ]
    return [
        java,
        *properties,
        *values["job_server_jvm_properties"],
        "-cp",
        path,
        cluster.main,
        "--job-host=localhost",
        f"--job-port={port}",
        f"--artifact-port={values['artifact_port']}",
        f"--expansion-port={values['expansion_port']}",
        f"--artifacts-dir={values['artifacts_dir'] or folder}",
        f"--{cluster.master.replace('_', '-')}={values[cluster.master]}",
    ]


def telling(log: str) -> str:
    """The line of a Java program's log that best explains a failure: its last error, else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip() and not line.startswith(("\tat ", "    at "))]
    errors = [line for line in lines if re.search(r"\b(\w+(Error|Exception)\b|ERROR\b|FATAL\b|SEVERE\b)", line)]
    return (errors or lines or ["it said nothing"])[-1][:300]


def need_cluster(master: str) -> None:
    """Raise `TryLaterError` if nothing answers at a master's ``HOST:PORT``; other forms of a master are not checked."""
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
            command_line = command(cluster, options, port=port, folder=self._folder)
            need_cluster(master)
            self.endpoint = f"localhost:{port}"
            self._log = os.path.join(self._folder, "log")
            # Where setpriv exists, the system stops the server if this process is killed.
            setpriv = shutil.which("setpriv")
            with open(self._log, "wb") as log:
                self._process = subprocess.Popen(
                    [setpriv, "--pdeathsig", "TERM", *command_line] if setpriv else command_line,
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
        """An error message if the server has died; None if it runs."""
        if self._process.poll() is None:
            return None
        return f"the job server of {self._cluster.name.capitalize()} died: {telling(self._read())}"

    def stop(self) -> None:
        """Stop the server and the jobs that it runs."""
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


# The servers of this process, by their options. They are kept: `run` has two pipelines, and a start takes seconds.
_running: dict[tuple[Any, ...], JobServer] = {}


def endpoint(cluster: Cluster, options: Any) -> str:
    """The address of this process's job server; the server is started if it does not run, and ends with the process."""
    values = options.get_all_options()
    key = tuple(str(values[name]) for name in (cluster.master, cluster.jars, *SERVER_OPTIONS))
    if key in _running and _running[key].died() is not None:
        _running.pop(key).stop()
    if key not in _running:
        atexit.register(stop)
        _running[key] = JobServer(cluster, options)
    return _running[key].endpoint


def death(at: str) -> str | None:
    """An error message if this process started the job server at an endpoint and the server has died; None if not."""
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
    """The options that the job server at ``HOST:PORT`` accepts, each with its dashes."""
    import grpc
    from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

    with grpc.insecure_channel(at) as channel:
        service = beam_job_api_pb2_grpc.JobServiceStub(channel)
        request = beam_job_api_pb2.DescribePipelineOptionsRequest()
        response = service.DescribePipelineOptions(request, wait_for_ready=True, timeout=FIND_SECONDS)
    return {f"--{option.name}" for option in response.options}


def stop() -> None:
    """Stop the job servers that this process has started."""
    while _running:
        _running.popitem()[1].stop()
