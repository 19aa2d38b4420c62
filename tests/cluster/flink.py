"""A session cluster of Flink on loopback, from what `infra/fetch.sh flink` has put into the cache."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from apache_beam.utils.subprocess_server import pick_port

from soundlake.pipelines.engine import job_server
from tests.cluster.processes import ancestors, wait_for
from tests.system.lakes import MARK, ROOT

HOME = job_server.cache("flink").parent / "cluster" / "pyflink" / "lib"
SLOTS = 2
# What Flink's own scripts compute from the size of a machine.
MEMORY = {
    "taskmanager.cpu.cores": str(SLOTS),
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.task.heap.size": "384m",
    "taskmanager.memory.task.off-heap.size": "128m",
    "taskmanager.memory.managed.size": "128m",
    "taskmanager.memory.network.min": "256m",
    "taskmanager.memory.network.max": "256m",
    "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "128m",
    "taskmanager.memory.jvm-overhead.max": "128m",
}
# To a log, and not with the colours of a terminal.
LOGGING = """
rootLogger.level = INFO
rootLogger.appenderRef.out.ref = out
appender.out.name = out
appender.out.type = CONSOLE
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %-5p %c{1} - %m%n
"""


def class_path() -> str:
    """Flink's distribution and, as infra/flink/README.md has it, the modules of Beam that come without a Flink."""
    beam = [
        jar
        for jar in sorted((job_server.cache("flink")).glob("*.jar"))
        if not jar.name.startswith(("flink-", "slf4j-", "beam-runners-flink-1.19-job-server"))
    ]
    return ":".join([f"{HOME}/*", *map(str, beam)])


class Session:
    """A JobManager and TaskManagers of two slots each, with infra/flink/config.yaml.

    Parameters
    ----------
    folder : Path
        For logs and all that Flink keeps on a disk.
    """

    def __init__(self, folder: Path) -> None:
        self.mark = f"{MARK}=flink-{os.getpid()}"
        self.folder = folder
        shutil.copy(ROOT / "infra" / "flink" / "config.yaml", folder)
        (folder / "log4j.properties").write_text(LOGGING)
        (rest, rpc) = pick_port(None, None)
        self.master = f"localhost:{rest}"
        self._common = {
            "rest.address": "localhost",
            "rest.bind-address": "localhost",
            "rest.port": str(rest),
            "jobmanager.rpc.address": "localhost",
            "jobmanager.rpc.port": str(rpc),
            "jobmanager.bind-host": "localhost",
            "taskmanager.host": "localhost",
            "taskmanager.bind-host": "localhost",
            "io.tmp.dirs": str(folder),
            # A TaskManager that is no more is missed after some seconds; of a machine with much to do that is not one.
            "heartbeat.interval": "2000",
            "heartbeat.timeout": "60000",
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._java("jobmanager", "entrypoint.StandaloneSessionClusterEntrypoint", {})
        wait_for(self._answers, seconds=120)

    def _answers(self) -> bool:
        assert self._processes["jobmanager"].poll() is None, (self.folder / "jobmanager").read_text()[-2000:]
        with contextlib.suppress(OSError):
            return bool(self.get("/overview"))
        return False

    def _java(self, name: str, main: str, settings: dict[str, str]) -> None:
        line = ["java", *job_server.JAVA_17, "-Xmx512m", f"-Dlog4j.configurationFile={self.folder}/log4j.properties"]
        line += ["-cp", class_path(), f"org.apache.flink.runtime.{main}", "--configDir", str(self.folder)]
        for key, value in (self._common | settings).items():
            line += ["-D", f"{key}={value}"]
        # This tree, wherever the environment was installed from.
        environment = {"PYTHONPATH": str(ROOT), MARK: self.mark.partition("=")[2]}
        with open(self.folder / name, "wb") as log:
            self._processes[name] = subprocess.Popen(
                line, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
            )

    def add_taskmanagers(self, count: int) -> None:
        """Start TaskManagers, and wait until the JobManager knows them."""
        there = len(self.taskmanagers())
        for number in range(len(self._processes), len(self._processes) + count):
            own = {"taskmanager.resource-id": f"tm-{number}", "taskmanager.numberOfTaskSlots": str(SLOTS)}
            self._java(f"tm-{number}", "taskexecutor.TaskManagerRunner", MEMORY | own)
        wait_for(lambda: len(self.taskmanagers()) == there + count, seconds=120)

    def get(self, path: str) -> Any:
        """An answer of Flink's REST interface."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://{self.master}{path}", timeout=30) as answer:
            return json.load(answer)

    def taskmanagers(self) -> set[str]:
        """Names of the TaskManagers that the JobManager believes in."""
        return {one["id"] for one in self.get("/taskmanagers")["taskmanagers"]}

    def holder(self, pid: int) -> str | None:
        """The TaskManager above a process; None if it is of none."""
        above = ancestors(pid)
        return next((name for name, process in self._processes.items() if process.pid in above), None)

    def kill(self, name: str) -> None:
        """SIGKILL to a TaskManager alone: what it has started is not told."""
        self._processes[name].kill()
        self._processes[name].wait()

    def newest(self) -> dict[str, Any]:
        """The job that was submitted last."""
        jobs = self.get("/jobs/overview")["jobs"]
        return dict(self.get(f"/jobs/{max(jobs, key=lambda job: job['start-time'])['jid']}"))

    def steps(self, job: dict[str, Any], words: str) -> list[dict[str, Any]]:
        """The steps of a job with some words in their names, each with its subtasks as they are now."""
        found = [one["id"] for one in job["vertices"] if re.search(rf"\b{words}\b", one["name"])]
        return [dict(self.get(f"/jobs/{job['jid']}/vertices/{vertex}")) for vertex in found]

    def failures(self, job: dict[str, Any]) -> list[dict[str, Any]]:
        """What failed of a job, and was started again or not."""
        return list(self.get(f"/jobs/{job['jid']}/exceptions")["exceptionHistory"]["entries"])

    def stop(self) -> None:
        """End all of it, TaskManagers before the JobManager."""
        for process in reversed(self._processes.values()):
            process.terminate()
        deadline = time.monotonic() + 20
        for process in self._processes.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
