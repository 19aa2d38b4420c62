"""How far a pipeline is: workers leave a small file for each piece that is done, the command line adds them up.

It looks at the lake and asks no runner, so it tells the same of a pipeline in this process and of one on a cluster.
"""

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from model.errors import TryLaterError
from pipelines.lake import Lake
from pipelines.messages import duration
from pipelines.terminal import say as tell_line

# Seconds between two looks; and between two lines where stderr is no terminal.
LOCAL_LOOK, REMOTE_LOOK, LINE = 0.5, 15.0, 30.0


@dataclass(frozen=True)
class Progress:
    """Where the pieces of a run say what they did.

    Attributes
    ----------
    lake : Lake
    folder : str
        Of the run, in the lake.
    """

    lake: Lake
    folder: str

    def expect(self, work: int) -> int:
        """Say how much there is to do, in the measure of ``work``; gives it back."""
        self.lake.write(f"{self.folder}/expected.json", json.dumps({"work": work}).encode(), durable=False)
        return work

    def tell(self, piece: str, numbers: dict[str, float]) -> None:
        """Say what a piece did: ``work``, and whatever is to be shown; a name with a space in it is only added up."""
        self.lake.write(f"{self.folder}/done/{piece}.json", json.dumps(numbers).encode(), durable=False)


class Watch:
    """Adds up what the pieces of a run said."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._seen: set[str] = set()
        self._expected: float | None = None
        self._began = self._work_began = time.monotonic()
        self.numbers: dict[str, float] = {}
        # What the first pieces said: enough for a guess at the rest.
        self.first: dict[str, float] | None = None

    def look(self) -> None:
        """Read what came since the last look."""
        lake, folder = self._progress.lake, self._progress.folder
        if self._expected is None:
            with contextlib.suppress(FileNotFoundError):
                self._expected = json.loads(lake.read(f"{folder}/expected.json"))["work"]
                self._work_began = time.monotonic()
        for name in set(lake.names(f"{folder}/done")) - self._seen:
            # Gone when the run has ended and swept its folder.
            with contextlib.suppress(FileNotFoundError):
                for key, value in json.loads(lake.read(f"{folder}/done/{name}")).items():
                    self.numbers[key] = self.numbers.get(key, 0) + value
                self._seen.add(name)
        if self.first is None and self._seen:
            self.first = dict(self.numbers)

    @property
    def share(self) -> float | None:
        """Of the work, what is done; None before it is known how much there is."""
        return min(1.0, self.numbers.get("work", 0) / self._expected) if self._expected else None

    def line(self, verb: str) -> str:
        """What is to be shown, in one line."""
        share, now = self.share, time.monotonic()
        if share is None:
            return f"{verb}: listing, {now - self._began:.0f} s"
        seconds = max(now - self._work_began, 1e-3)
        found = dict(self.numbers)
        found.pop("work", None)
        found = {name: value for name, value in found.items() if " " not in name}
        audio = found.pop("audio_s", 0.0)
        said = [f"{share:4.0%}", *(f"{value:.0f} {name}" for name, value in sorted(found.items()))]
        if audio:
            said += [f"{audio / 3600:.2f} h of sound", f"{audio / seconds:.0f} x real time"]
        if 0 < share < 1:
            said.append(f"{duration(seconds * (1 - share) / share)} left")
        return f"{verb}: {', '.join(said)}"


@contextlib.contextmanager
def watching(progress: Progress, *, verb: str) -> Iterator[Watch]:
    """Show on stderr how far a run is: a bar on a terminal, else a line now and then."""
    watch, over = Watch(progress), threading.Event()
    look = LOCAL_LOOK if progress.lake.is_local else REMOTE_LOOK
    with _shown(verb) as show:

        def watch_on() -> None:
            while not over.wait(look):
                with contextlib.suppress(OSError, TryLaterError, ValueError):
                    watch.look()
                show(watch)

        watcher = threading.Thread(target=watch_on, daemon=True)
        watcher.start()
        try:
            yield watch
        finally:
            over.set()
            watcher.join()


@contextlib.contextmanager
def _shown(verb: str) -> Iterator[Any]:
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as Bar

        columns = SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.description}")
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(f"{verb} …", total=None)

            def show(watch: Watch) -> None:
                share = watch.share
                total = None if share is None else 1.0
                bar.update(task, description=watch.line(verb), total=total, completed=share or 0.0)

            yield show
        return
    last = time.monotonic()

    def say(watch: Watch) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE:
            last = time.monotonic()
            tell_line(f"soundlake: {watch.line(verb)}")

    yield say
