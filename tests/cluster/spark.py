"""A master and workers of Spark on loopback, from what `infra/fetch.sh spark` has put into the cache."""

import json
import os
import signal
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from soundlake.pipelines.engine import job_server
from tests.cluster.processes import ancestors, command_line, wait_for
from tests.system.lakes import MARK, ROOT

HOME = job_server.cache("spark").parent / "cluster" / "pyspark"
# Short lives: what Java compiles in its second round, and a collector with threads, would not pay.
SHORT = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
WORKER = "org.apache.spark.deploy.worker.Worker"
EXECUTOR = "CoarseGrainedExecutorBackend"


class Standalone:
    """Spark's own cluster: a master and workers of one core each.

    Parameters
    ----------
    folder : Path
        For logs, of all processes and of what applications do.
    """

    def __init__(self, folder: Path) -> None:
        self.mark = f"{MARK}=spark-{os.getpid()}"
        self.folder = folder
        self.events = folder / "events"
        self.events.mkdir()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._java("org.apache.spark.deploy.master.Master", "--port", "0", "--webui-port", "0", name="master")
        self.url, self._pages = wait_for(self._addresses, seconds=120)

    def _addresses(self) -> tuple[str, str] | None:
        log = (self.folder / "master").read_text()
        found = [word for word in log.split() if word.startswith(("spark://", "http://"))]
        return (found[0], found[-1]) if "I have been elected leader" in log else None

    def _java(self, *words: str, name: str) -> None:
        environment = {
            # What Spark's own scripts set.
            "SPARK_HOME": str(HOME),
            "SPARK_SCALA_VERSION": "2.12",
            "SPARK_LOCAL_IP": "127.0.0.1",
            # This tree, wherever the environment was installed from.
            "PYTHONPATH": str(ROOT),
            MARK: self.mark.partition("=")[2],
        }
        with open(self.folder / name, "wb") as log:
            line = [
                "java",
                *job_server.JAVA_17,
                "-Xmx256m",
                *SHORT.split(),
                "-cp",
                f"{HOME}/jars/*",
                words[0],
                "--host",
                "127.0.0.1",
            ]
            self._processes.append(
                subprocess.Popen(
                    [*line, *words[1:]], env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
                )
            )

    def add_workers(self, count: int) -> None:
        """Start workers, and wait until the master knows them."""
        there = self.workers()
        for number in range(len(self._processes), len(self._processes) + count):
            where = ["--work-dir", str(self.folder / "work"), "--webui-port", "0"]
            self._java(WORKER, "--cores", "1", "--memory", "1500m", *where, self.url, name=f"worker-{number}")
        wait_for(lambda: self.workers() == there + count, seconds=120)

    def state(self) -> dict[str, Any]:
        """What the master's page says."""
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{self._pages}/json/") as answer:
            return dict(json.loads(answer.read()))

    def workers(self) -> int:
        """Workers that the master believes in."""
        return sum(worker["state"] == "ALIVE" for worker in self.state()["workers"])

    def holders(self, pid: int) -> tuple[int, int, int] | None:
        """Worker, executor and Python worker above a process of this cluster; None if it is of none."""
        above = ancestors(pid)
        found = [next((one for one in above if name in command_line(one)), 0) for name in (WORKER, EXECUTOR)]
        if not all(found):
            return None
        return found[0], found[1], above[above.index(found[1]) - 1]

    def told(self) -> list[dict[str, Any]]:
        """Spark's own log of events, of the newest application."""
        newest = max(self.events.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return [json.loads(line) for line in newest.read_text().splitlines()]

    def stop(self) -> None:
        """End all of it, workers before the master."""
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 20
        for process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
