"""How much memory a piece of work takes: in a process of its own, above what that held before."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def megabytes(line: str) -> float:
    """What the kernel says of this process's memory: ``"VmRSS"`` now, ``"VmHWM"`` at most."""
    with open("/proc/self/status") as status:
        return next(int(found.split()[1]) for found in status if found.startswith(line)) / 1024


class Grown:
    """Megabytes that this process grows by at most inside the block, beyond what it held at its beginning."""

    def __enter__(self) -> "Grown":
        Path("/proc/self/clear_refs").write_text("5")
        self._before = megabytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.megabytes = megabytes("VmHWM") - self._before


def apart(work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function of a module in a fresh process, whose memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments, **named).result()
