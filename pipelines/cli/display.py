"""Progress of this process on stderr: a bar on a terminal, a line about every half minute elsewhere.

`at_work` covers a whole command, so that no part of it can be silent for long; each part reports its name by `stage`.
"""

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

from soundlake.pipelines.lake import stages

# Seconds: between two lines, so that no log is silent for 30; before a bar appears; between two updates.
LINE, DELAY, LOOK = 25.0, 0.5, 0.25

_display: "Display | None" = None


def _own_stderr() -> TextIO:
    """Stderr for the display alone: `learning.quiet` redirects that of the process while TensorFlow is imported."""
    try:
        return os.fdopen(os.dup(sys.stderr.fileno()), "w", encoding=sys.stderr.encoding, errors="backslashreplace")
    except (OSError, io.UnsupportedOperation):
        return sys.stderr


class Display:
    """Shows the current stage, the last one begun, on stderr."""

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
            with stages.lock:
                if not self._over.is_set():
                    self.show()

    def show(self) -> None:
        """Show the current progress: update the bar, or write a line if one is due. The caller holds the lock."""
        now = time.monotonic()
        if self._on_terminal:
            if self._bar is None and now - self._began >= DELAY:
                self._bar = _bar(self._stream)
                self._task = self._bar.add_task("", total=None)
                self._bar.start()
            if self._bar is not None:
                shown, share = stages.under_way[-1], stages.under_way[-1].share
                self._bar.update(self._task, description=shown.line(), completed=share or 0.0)
                # In `update`, Rich takes None for "unchanged".
                self._bar.tasks[0].total = None if share is None else 1.0
                self._bar.refresh()
        elif now - self._last >= LINE:
            self._last = now
            # Stderr may be closed by now.
            with contextlib.suppress(OSError, ValueError):
                print(f"soundlake: {stages.under_way[-1].line()}", file=self._stream, flush=True)

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Remove the bar while a message is written."""
        with stages.lock:
            if self._bar is None:
                yield
                return
            self._bar.stop()
            try:
                yield
            finally:
                self._bar.start()

    def end(self) -> None:
        """Remove the bar for good."""
        with stages.lock:
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

    # Other output is printed under `hidden`: Rich's redirection would break long lines, and send stdout's to stderr.
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
    """Show progress on stderr until the block ends or `end` is called.

    Parameters
    ----------
    name : str
        Name of the whole, shown while no more specific `stage` is active.
    """
    global _display
    if sys.stderr is None:  # closed from the start
        yield
        return
    with stages.stage(name):
        _display = Display()
        stages.listen(_display.show)
        try:
            yield
        finally:
            end()


def end() -> None:
    """Stop showing progress: the work is done, and the answer is printed next."""
    global _display
    with stages.lock:
        ended, _display = _display, None
        stages.listen(None)
    if ended is not None:
        ended.end()


def hidden() -> contextlib.AbstractContextManager[None]:
    """A context in which a message can be written, without the bar in its way."""
    with stages.lock:
        return contextlib.nullcontext() if _display is None else _display.hidden()
