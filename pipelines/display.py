"""What this process is doing and how far it is, on stderr: a bar on a terminal, a line every half minute elsewhere.

`at_work` covers a whole command, so that no part of it can be silent for long; the parts say by `stage` what they are.
"""

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

# Seconds: between two lines, so that no log is silent for 30; before a bar appears; between two looks.
LINE, DELAY, LOOK = 25.0, 0.5, 0.25

_lock = threading.RLock()
# The stages that are under way, each a part of the one before it. The last one is shown.
_stages: list["Stage"] = []
_display: "Display | None" = None


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
        with _lock:
            # What came before the total was known, such as a listing, tells nothing about the speed of what follows.
            begins = name != self.name or (self.total is None and total is not None)
            if begins:
                self._began, self._first = time.monotonic(), done
            self.name, self.done, self.total, self.note = name, done, total, note
            if begins and _display is not None:
                _display.show()

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
    with _lock:
        _stages.append(found)
        if _display is not None:
            _display.show()
    try:
        yield found
    finally:
        with _lock:
            _stages.remove(found)


def _own_stderr() -> TextIO:
    """Stderr for the display alone: `pipelines.quiet` turns the process's own away while TensorFlow is imported."""
    try:
        return os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding, errors="backslashreplace")
    except (OSError, io.UnsupportedOperation):
        return sys.stderr


class Display:
    """The last of the stages, on stderr."""

    def __init__(self) -> None:
        self._stream = _own_stderr()
        self._began = self._last = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        self._on_terminal = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        while not self._over.wait(LOOK):
            with _lock:
                if not self._over.is_set():
                    self.show()

    def show(self) -> None:
        """Show how far it is now: paint the bar, or write a line if one is due. Under the lock."""
        now = time.monotonic()
        if self._on_terminal:
            if self._bar is None and now - self._began >= DELAY:
                self._bar = _bar(self._stream)
                self._task = self._bar.add_task("", total=None)
                self._bar.start()
            if self._bar is not None:
                shown, share = _stages[-1], _stages[-1].share
                self._bar.update(self._task, description=shown.line(), completed=share or 0.0)
                # Rich takes None for "as it was".
                self._bar.tasks[0].total = None if share is None else 1.0
                self._bar.refresh()
        elif now - self._last >= LINE:
            self._last = now
            # Nobody may look any more.
            with contextlib.suppress(OSError, ValueError):
                print(f"soundlake: {_stages[-1].line()}", file=self._stream, flush=True)

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the bar away while a message is written."""
        with _lock:
            if self._bar is None:
                yield
                return
            self._bar.stop()
            try:
                yield
            finally:
                self._bar.start()

    def end(self) -> None:
        """Take the bar away for good."""
        with _lock:
            self._over.set()
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
        self._watcher.join()
        if self._stream is not sys.stderr:
            with contextlib.suppress(OSError):
                self._stream.close()


def _bar(stream: TextIO) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    # Lines of others come by `hidden`: what rich does for them would break long ones, and send stdout's to stderr.
    return Progress(
        SpinnerColumn(),
        BarColumn(bar_width=16),
        TextColumn("{task.description}", markup=False),
        console=Console(file=stream),
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )


@contextlib.contextmanager
def at_work(name: str) -> Iterator[None]:
    """Show on stderr, to the end of the block or to `end`, what is being done.

    Parameters
    ----------
    name : str
        What the whole is called: shown where no `stage` says more.
    """
    global _display
    if sys.stderr is None:  # closed from the beginning
        yield
        return
    with stage(name):
        _display = Display()
        try:
            yield
        finally:
            end()


def end() -> None:
    """The work is done and the answer begins: show nothing any more."""
    global _display
    with _lock:
        ended, _display = _display, None
    if ended is not None:
        ended.end()


def hidden() -> contextlib.AbstractContextManager[None]:
    """The time to write a message: no bar is in its way."""
    with _lock:
        return contextlib.nullcontext() if _display is None else _display.hidden()
