"""Memory growth of a piece of work in a separate process."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any


def megabytes(line: str) -> float:
    """Memory of this process from the kernel: ``"VmRSS"`` for now, ``"VmHWM"`` for the peak."""
    with open("/proc/self/status") as status:
        return next(int(text.split()[1]) for text in status if text.startswith(line)) / 1024


class Grown:
    """Peak growth of this process inside the block, in megabytes above its memory at the start."""

    def __enter__(self) -> "Grown":
        Path("/proc/self/clear_refs").write_text("5")
        self._before = megabytes("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        self.megabytes = megabytes("VmHWM") - self._before


def apart(work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function of a module in a new process, so that its memory is measured alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments, **named).result()
