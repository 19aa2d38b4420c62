"""How far a pipeline is: workers leave a small file for each piece that is done, the command line adds them up.

It looks at the lake and asks no runner, so it tells the same of a pipeline in this process and of one on a cluster.
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

# Seconds between two looks; and between two words of a worker about files that it lists or probes.
LOCAL_LOOK, REMOTE_LOOK, TALLY = 0.5, 15.0, 2.0
# What workers say before it is known how much there is to do.
SURVEY = LISTED, PROBED = "files listed", "files probed"


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
        self._work_began = time.monotonic()
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
        if self.first is None and "work" in self.numbers:
            self.first = dict(self.numbers)

    def report(self, stage: Stage) -> None:
        """Say how far it is: what was listed and probed until it is known how much there is to do."""
        numbers = {name: value for name, value in self.numbers.items() if " " not in name}
        work, audio_s = numbers.pop("work", 0.0), numbers.pop("audio_s", 0.0)
        if self._expected is None:
            survey = [f"{self.numbers[name]:.0f} {name}" for name in SURVEY if name in self.numbers]
            stage(stage.name, note=", ".join(survey) or "listing")
            return
        said = [f"{value:.0f} {name}" for name, value in sorted(numbers.items())]
        if audio_s:
            seconds = max(time.monotonic() - self._work_began, 1e-3)
            said += [f"{audio_s / 3600:.2f} h of sound", f"{audio_s / seconds:.0f} x real time"]
        if stage.total is None:
            stage(stage.name, 0.0, self._expected)
        stage(stage.name, work, self._expected, ", ".join(said))


class Tally:
    """Adds up what a worker goes through, and says so now and then.

    Parameters
    ----------
    progress : Progress or None
        None where nobody is told.
    name : str
        One of `SURVEY`.
    """

    def __init__(self, progress: Progress | None, name: str) -> None:
        self._progress, self._name = progress, name
        self._count, self._last = 0, time.monotonic()

    def add(self) -> None:
        """One more."""
        self._count += 1
        if time.monotonic() - self._last >= TALLY:
            self.tell()

    def tell(self) -> None:
        """Say how many there were since the last time."""
        if self._progress is not None and self._count:
            self._progress.tell(secrets.token_hex(8), {self._name: self._count})
        self._count, self._last = 0, time.monotonic()


@contextlib.contextmanager
def watching(progress: Progress, *, verb: str) -> Iterator[Watch]:
    """Show how far a run is, under the name `verb` (`pipelines.lake.stages`)."""
    watch, over = Watch(progress), threading.Event()
    look = LOCAL_LOOK if progress.lake.is_local else REMOTE_LOOK
    with stage(verb) as shown:

        def watch_on() -> None:
            while not over.wait(look):
                with contextlib.suppress(OSError, TryLaterError, ValueError):
                    watch.look()
                watch.report(shown)

        watcher = threading.Thread(target=watch_on, daemon=True)
        watcher.start()
        try:
            yield watch
        finally:
            over.set()
            watcher.join()
