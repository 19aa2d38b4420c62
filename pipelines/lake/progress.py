"""The progress of a pipeline: workers leave a small file for each finished piece, and the command line adds them up.

It reads the lake and asks no runner, so it works alike for a pipeline in this process and for one on a cluster.
"""

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from soundlake.model.errors import TryLaterError
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.stages import Stage, stage

# Seconds between two reads of the lake (on a disk, in a bucket), and between two reports of a worker about the files
# that it lists or probes.
LOCAL_LOOK, REMOTE_LOOK, TALLY = 0.5, 15.0, 2.0
# Keys of the counts that workers report before the total work is known.
SURVEY = LISTED, PROBED = "files listed", "files probed"


@dataclass(frozen=True)
class Progress:
    """The place where the pieces of a run report their work.

    Attributes
    ----------
    lake : Lake
    folder : str
        Folder of the run in the lake.
    """

    lake: Lake
    folder: str

    def expect(self, work: int) -> int:
        """Record the total work of the run, in the unit of ``work``; returns it unchanged."""
        self.lake.write(f"{self.folder}/expected.json", json.dumps({"work": work}).encode(), durable=False)
        return work

    def tell(self, piece: str, numbers: dict[str, float]) -> None:
        """Record the finished work of a piece: ``work``, and further numbers to show.

        A number whose name contains a space is added up, but shown only if it is in `SURVEY`.
        """
        self.lake.write(f"{self.folder}/done/{piece}.json", json.dumps(numbers).encode(), durable=False)


class Watch:
    """Adds up the reports of the pieces of a run."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._seen: set[str] = set()
        self._expected: float | None = None
        self._work_began = time.monotonic()
        self.numbers: dict[str, float] = {}
        # The sums after the first reports with ``work``: enough to estimate the rest.
        self.first: dict[str, float] | None = None

    def look(self) -> None:
        """Read the reports that are new since the last call."""
        lake, folder = self._progress.lake, self._progress.folder
        if self._expected is None:
            with contextlib.suppress(FileNotFoundError):
                self._expected = json.loads(lake.read(f"{folder}/expected.json"))["work"]
                self._work_began = time.monotonic()
        for name in set(lake.names(f"{folder}/done")) - self._seen:
            # The file is gone if the run has ended and removed its folder.
            with contextlib.suppress(FileNotFoundError):
                for key, value in json.loads(lake.read(f"{folder}/done/{name}")).items():
                    self.numbers[key] = self.numbers.get(key, 0) + value
                self._seen.add(name)
        if self.first is None and "work" in self.numbers:
            self.first = dict(self.numbers)

    def report(self, stage: Stage) -> None:
        """Pass the progress to a stage: the numbers of listed and probed files until the total work is known."""
        numbers = {name: value for name, value in self.numbers.items() if " " not in name}
        work, audio_s = numbers.pop("work", 0.0), numbers.pop("audio_s", 0.0)
        if self._expected is None:
            survey = [f"{self.numbers[name]:.0f} {name}" for name in SURVEY if name in self.numbers]
            stage(stage.name, note=", ".join(survey) or "listing")
            return
        notes = [f"{value:.0f} {name}" for name, value in sorted(numbers.items())]
        if audio_s:
            seconds = max(time.monotonic() - self._work_began, 1e-3)
            notes += [f"{audio_s / 3600:.2f} h of sound", f"{audio_s / seconds:.0f} x real time"]
        if stage.total is None:
            stage(stage.name, 0.0, self._expected)
        stage(stage.name, work, self._expected, ", ".join(notes))


class Tally:
    """Counts the files that a worker goes through, and reports the count every `TALLY` seconds.

    Parameters
    ----------
    progress : Progress or None
        None for no reports.
    name : str
        One of `SURVEY`.
    """

    def __init__(self, progress: Progress | None, name: str) -> None:
        self._progress, self._name = progress, name
        self._count, self._last = 0, time.monotonic()

    def add(self) -> None:
        """Count one more file."""
        self._count += 1
        if time.monotonic() - self._last >= TALLY:
            self.tell()

    def tell(self) -> None:
        """Report the number of files since the last report."""
        if self._progress is not None and self._count:
            self._progress.tell(secrets.token_hex(8), {self._name: self._count})
        self._count, self._last = 0, time.monotonic()


@contextlib.contextmanager
def watching(progress: Progress, *, verb: str) -> Iterator[Watch]:
    """Show the progress of a run during the block, as a stage with the name `verb` (`pipelines.lake.stages`)."""
    watch, run_over = Watch(progress), threading.Event()
    look = LOCAL_LOOK if progress.lake.is_local else REMOTE_LOOK
    with stage(verb) as shown:

        def watch_on() -> None:
            while not run_over.wait(look):
                with contextlib.suppress(OSError, TryLaterError, ValueError):
                    watch.look()
                watch.report(shown)

        watcher = threading.Thread(target=watch_on, daemon=True)
        watcher.start()
        try:
            yield watch
        finally:
            run_over.set()
            watcher.join()
