"""Stages: the current work of this process and its progress, for display (`pipelines.cli.display`)."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

lock = threading.RLock()
# The stages that are under way, each a part of the stage before it.
under_way: list["Stage"] = []
# Called under the lock when a stage begins; None without a listener.
_listener: Callable[[], None] | None = None


def listen(listener: Callable[[], None] | None) -> None:
    """Set the function that is called, under `lock`, whenever a stage begins; None removes it."""
    global _listener
    with lock:
        _listener = listener


def _changed() -> None:
    if _listener is not None:
        _listener()


def duration(seconds: float) -> str:
    """A number of seconds in hours, minutes and seconds, as text."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Stage:
    """A part of the work; a call updates its progress, with the parameters of `model.reports.Report`."""

    def __init__(self, name: str) -> None:
        self.name, self.note, self.done = name, "", 0.0
        self.total: float | None = None
        self._began, self._first = time.monotonic(), 0.0

    def __call__(self, name: str, done: float = 0.0, total: float | None = None, note: str = "") -> None:
        with lock:
            # Work before the total is known, such as a listing, does not predict the speed of the work after it.
            begins = name != self.name or (self.total is None and total is not None)
            if begins:
                self._began, self._first = time.monotonic(), done
            self.name, self.done, self.total, self.note = name, done, total, note
            if begins:
                _changed()

    @property
    def share(self) -> float | None:
        """The finished share of the work, 0 to 1; None if the total is unknown."""
        return min(1.0, self.done / self.total) if self.total else None

    def line(self) -> str:
        """The name, share, note and remaining time in one line; without a total, the elapsed time."""
        share, seconds = self.share, time.monotonic() - self._began
        parts = [] if share is None else [f"{share:4.0%}"]
        parts += [self.note] if self.note else []
        if share is None or not self.total:
            parts.append(f"{duration(seconds)} so far")
        elif self._first < self.done < self.total:
            parts.append(f"{duration(seconds * (self.total - self.done) / (self.done - self._first))} left")
        return f"{self.name}: {', '.join(parts)}"


@contextlib.contextmanager
def stage(name: str) -> Iterator[Stage]:
    """Show a stage until the block ends; yields the `Stage`, to be called with its progress.

    Parameters
    ----------
    name : str
        A name that users understand, such as ``"writing the report"``.
    """
    begun = Stage(name)
    with lock:
        under_way.append(begun)
        _changed()
    try:
        yield begun
    finally:
        with lock:
            under_way.remove(begun)
