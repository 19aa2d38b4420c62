"""What this process is doing and how far it is: stages, for whoever shows them (`pipelines.cli.display`)."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

lock = threading.RLock()
# The stages that are under way, each a part of the one before it.
under_way: list["Stage"] = []
# Called under the lock when a stage begins; None where nobody looks.
_listener: Callable[[], None] | None = None


def listen(listener: Callable[[], None] | None) -> None:
    """Have `listener` called, under `lock`, whenever a stage begins; None ends that."""
    global _listener
    with lock:
        _listener = listener


def _changed() -> None:
    if _listener is not None:
        _listener()


def duration(seconds: float) -> str:
    """Seconds in words."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Stage:
    """A part of the work; called, it takes what `model.reports.Report` says."""

    def __init__(self, name: str) -> None:
        self.name, self.note, self.done = name, "", 0.0
        self.total: float | None = None
        self._began, self._first = time.monotonic(), 0.0

    def __call__(self, name: str, done: float = 0.0, total: float | None = None, note: str = "") -> None:
        with lock:
            # What came before the total was known, such as a listing, tells nothing about the speed of what follows.
            begins = name != self.name or (self.total is None and total is not None)
            if begins:
                self._began, self._first = time.monotonic(), done
            self.name, self.done, self.total, self.note = name, done, total, note
            if begins:
                _changed()

    @property
    def share(self) -> float | None:
        """Of the work, what is done; None where nobody knows."""
        return min(1.0, self.done / self.total) if self.total else None

    def line(self) -> str:
        """All of it in one line."""
        share, seconds = self.share, time.monotonic() - self._began
        said = [] if share is None else [f"{share:4.0%}"]
        said += [self.note] if self.note else []
        if share is None or not self.total:
            said.append(f"{duration(seconds)} so far")
        elif self._first < self.done < self.total:
            said.append(f"{duration(seconds * (self.total - self.done) / (self.done - self._first))} left")
        return f"{self.name}: {', '.join(said)}"


@contextlib.contextmanager
def stage(name: str) -> Iterator[Stage]:
    """Say what is being done from here on to the end of the block; call what it gives to say how far it is.

    Parameters
    ----------
    name : str
        In the words of a user, such as ``"writing the report"``.
    """
    found = Stage(name)
    with lock:
        under_way.append(found)
        _changed()
    try:
        yield found
    finally:
        with lock:
            under_way.remove(found)
