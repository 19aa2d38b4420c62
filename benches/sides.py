"""Sides of a comparison in processes of their own, each on its own cores, started and warm before the clock runs.

A side is made by a function of a module: its arguments are texts, and it returns the job, which may return what is to
be done after the clock has stopped, such as to remove what was written.
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

# Bare loops that free what they took ask the system for it anew each time, unless glibc is told to keep it.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "536870912", "MALLOC_MMAP_THRESHOLD_": "536870912"}

Job = Callable[[], Callable[[], Any] | None]


def processes(session: int) -> Iterator[str]:
    """The folders in /proc of a session's processes."""
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.getsid(int(name)) == session:
                yield f"/proc/{name}"


def processor_seconds(session: int) -> dict[str, float]:
    """Seconds of processors that each process of a session has taken so far."""
    tick, found = os.sysconf("SC_CLK_TCK"), {}
    for folder in processes(session):
        with contextlib.suppress(OSError), open(f"{folder}/stat") as file:
            found[folder] = sum(map(int, file.read().rpartition(")")[2].split()[11:13])) / tick
    return found


class Side:
    """A process that waits until it is told to do its job once more.

    Parameters
    ----------
    maker : str
        ``module:function``, which gives the job.
    arguments : str
        For the function.
    cores : sequence of int
        Where the process and all that it starts may run.
    environment : mapping of str to str
        On top of this process's own.
    """

    def __init__(
        self, maker: str, *arguments: str, cores: Sequence[int], environment: Mapping[str, str] | None = None
    ) -> None:
        # No file as its main module: processes that it starts would import that anew.
        program = "from benches.sides import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, ",".join(map(str, cores)), maker, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": str(len(cores)), "LANCE_LOG": "error"} | dict(environment or {}),
            start_new_session=True,  # what it starts can be told from all others
            text=True,
        )
        self.session = self._process.pid
        self.expect("ready")

    def tell(self) -> None:
        """Start the job."""
        assert self._process.stdin is not None
        print("go", file=self._process.stdin, flush=True)

    def expect(self, word: str) -> None:
        """Wait until the process says so."""
        assert self._process.stdout is not None
        said = self._process.stdout.readline().strip()
        if said != word:
            raise SystemExit(f"a side of the comparison failed: {said or 'see above'}")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def together(*sides: Side) -> tuple[float, float]:
    """Seconds until all of these sides, started at the same time, have done their jobs: by the wall, of processors."""
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
    """Each side, or several at once, in turn: seconds by the wall, and of processors, a number a round."""
    wall: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, several in sides.items():
            seconds, taken = together(*several)
            wall[name].append(seconds)
            processor[name].append(taken)
    return wall, processor


def serve() -> None:
    """The process of a `Side`."""
    logging.basicConfig(level=logging.ERROR)  # as the command line has it
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
