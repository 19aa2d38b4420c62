"""Sides of a comparison in separate processes, each on its own cores, started and warm before the clock starts.

A side is made by a function of a module. Its arguments are strings, and it returns the job. The job may return a
function to run after the clock has stopped, for example to remove its output.
"""

import contextlib
import importlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# With these settings glibc keeps freed memory. Otherwise a bare loop would request it from the system again each time.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "536870912", "MALLOC_MMAP_THRESHOLD_": "536870912"}

Job = Callable[[], Callable[[], Any] | None]


def processes(session: int) -> Iterator[str]:
    """Yield the folders in /proc of a session's processes."""
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.getsid(int(name)) == session:
                yield f"/proc/{name}"


def processor_seconds(session: int) -> dict[str, float]:
    """Processor seconds of each process of a session so far."""
    tick, seconds = os.sysconf("SC_CLK_TCK"), {}
    for folder in processes(session):
        with contextlib.suppress(OSError), open(f"{folder}/stat") as file:
            seconds[folder] = sum(map(int, file.read().rpartition(")")[2].split()[11:13])) / tick
    return seconds


class Side:
    """A process that runs its job once for each request.

    Parameters
    ----------
    maker : str
        ``module:function``, which returns the job.
    arguments : str
        Arguments of the function.
    cores : sequence of int
        Cores that the process and its children may use.
    environment : mapping of str to str
        Added to this process's environment.
    """

    def __init__(
        self, maker: str, *arguments: str, cores: Sequence[int], environment: Mapping[str, str] | None = None
    ) -> None:
        # The main module must not be a file: child processes would import it again.
        program = "from benches.sides import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, ",".join(map(str, cores)), maker, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": str(len(cores)), "LANCE_LOG": "error"} | dict(environment or {}),
            start_new_session=True,  # its children are recognised by the session
            text=True,
        )
        self.session = self._process.pid
        self.expect("ready")

    def tell(self) -> None:
        """Start the job."""
        assert self._process.stdin is not None
        print("go", file=self._process.stdin, flush=True)

    def expect(self, word: str) -> None:
        """Wait for a line with this word from the process."""
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().strip()
        if answer != word:
            raise SystemExit(f"a side of the comparison failed: {answer or 'see above'}")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def together(*sides: Side) -> tuple[float, float]:
    """Run the jobs of several sides at the same time; return wall-clock seconds and processor seconds."""
    before = sum(sum(processor_seconds(side.session).values()) for side in sides)
    began = time.perf_counter()
    for side in sides:
        side.tell()
    for side in sides:
        side.expect("done")
    seconds = time.perf_counter() - began
    taken = sum(sum(processor_seconds(side.session).values()) for side in sides) - before
    for side in sides:
        side.expect("ready")
    return seconds, taken


def in_turn(sides: Mapping[str, Sequence[Side]], *, rounds: int) -> tuple[Mapping[str, list[float]], ...]:
    """Run each entry of `sides` in turn; return wall-clock and processor seconds, one number per round."""
    wall: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, several in sides.items():
            seconds, taken = together(*several)
            wall[name].append(seconds)
            processor[name].append(taken)
    return wall, processor


def serve() -> None:
    """Main function of the process of a `Side`."""
    logging.basicConfig(level=logging.ERROR)  # as in the command line
    cores, maker, *arguments = sys.argv[1:]
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    module, name = maker.split(":")
    job: Job = getattr(importlib.import_module(module), name)(*arguments)
    print("ready", flush=True)
    for _ in sys.stdin:
        after = job()
        print("done", flush=True)
        if after is not None:
            after()
        print("ready", flush=True)
