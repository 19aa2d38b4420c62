"""Runs: each command leaves a manifest in the lake, however it ends."""

import contextlib
import json
import secrets
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from soundlake.model.errors import InputError, TryLaterError
from soundlake.pipelines.lake.lake import FORGOTTEN, Lake
from soundlake.pipelines.storage.secrecy import without_secrets

# Runs whose manifests are looked at.
LAST_RUNS = 50
# Begins the note on an error that the manifest of its run tells about, too.
MANIFEST = "told in the lake's runs/"


@dataclass
class Run:
    """One execution of a command: an id, and the manifest that it leaves."""

    lake: Lake
    run_id: str
    manifest: dict[str, Any]

    @classmethod
    def begin(cls, lake: Lake, command: str, settings: dict[str, Any]) -> "Run":
        """A run that begins now; its manifest says that it failed until something else is known."""
        started = datetime.now(UTC)
        run_id = f"{started:%Y%m%dT%H%M%SZ}-{command}-{secrets.token_hex(3)}"
        told = {"run_id": run_id, "command": command, "settings": without_secrets(settings), "versions": versions()}
        return cls(lake, run_id, told | {"started": started.isoformat(timespec="seconds"), "result": "failed"})

    @property
    def folder(self) -> str:
        """Folder of the lake for what the run needs while it goes on; it is removed at the end."""
        return f"runs/{self.run_id}"

    def end(self, result: str) -> bool:
        """Write the manifest and remove the folder; a full disk does not hide the error that it caused.

        Returns
        -------
        bool
            Whether the manifest is written.
        """
        took = datetime.now(UTC) - datetime.fromisoformat(self.manifest["started"])
        self.manifest |= {"result": result, "seconds": self.manifest.get("seconds", took.total_seconds())}
        with contextlib.suppress(OSError, InputError, TryLaterError):
            self.lake.remove(self.folder)
            text = json.dumps(self.manifest, indent=1, sort_keys=True)
            self.lake.write(f"runs/{self.run_id}.json", text.encode() + b"\n")
            return True
        return False


class HandedOver(Exception):
    """A pipeline was written down for a service that starts it later: the run goes on, and ends, without this process.

    Not an error. Raised where the pipeline would have run, since nothing after that has anything to work with.
    """


def versions() -> dict[str, str]:
    """Versions of soundlake and of what its results depend on."""
    names = (
        "soundlake",
        "apache-beam",
        "keras",
        "tensorflow",
        "numpy",
        "librosa",
        "soundfile",
        "soxr",
        "av",
        "pylance",
    )
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def interrupted(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C, or comes of it: Beam, for one, makes another error of what a step raises."""
    # Beam raises an error of an older one that it was the context of: such a chain goes round.
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def forgotten_meanwhile(lake: Lake) -> TryLaterError:
    """What to say if something was forgotten while a command worked on it."""
    return TryLaterError(f"recordings of the lake {lake.root} were forgotten meanwhile: run the same command again")


def _forgotten(lake: Lake) -> Any:
    """What a lake has forgotten, for comparison; None if nothing, or if it cannot be read now."""
    with contextlib.suppress(OSError, ValueError, TypeError, InputError, TryLaterError):
        found = json.loads(lake.read(FORGOTTEN))
        return found.get("names"), found.get("recordings")
    return None


@contextlib.contextmanager
def run_manifest(lake: Lake, command: str, settings: dict[str, Any]) -> Iterator[Run]:
    """Record a command: ``runs/RUN_ID.json`` is written when it ends, however it ends, traceback included."""
    run, clock, before = Run.begin(lake, command, settings), time.monotonic(), _forgotten(lake)

    def end(result: str) -> bool:
        run.manifest["seconds"] = round(time.monotonic() - clock, 3)
        return run.end(result)

    try:
        yield run
    except HandedOver:
        raise
    except BaseException as error:
        if interrupted(error):
            end("interrupted")
            raise
        if isinstance(error, Exception) and _forgotten(lake) != before:
            # What it read is gone. And the error may name what was forgotten: it is not written down.
            later = forgotten_meanwhile(lake)
            run.manifest["error"] = str(later)
            end("failed")
            raise later from error
        run.manifest |= {"error": str(error), "traceback": traceback.format_exc()}
        if end("failed"):
            error.add_note(f"{MANIFEST}{run.run_id}.json")
        raise
    end("done")


def manifests(lake: Lake, *commands: str) -> Iterator[dict[str, Any]]:
    """Manifests of runs that ended well, of some commands, the newest first; the last few runs only."""
    names = [name for name in lake.names("runs") if name.endswith(".json")]
    for name in [n for n in reversed(names) if any(f"-{command}-" in n for command in commands)][:LAST_RUNS]:
        try:
            found = json.loads(lake.read(f"runs/{name}"))
        except (OSError, ValueError):
            continue
        parts = [found, *(found.get(key) for key in ("settings", "counts"))] if isinstance(found, dict) else [None]
        if all(isinstance(part, dict) for part in parts) and found.get("result") == "done":
            yield found


def last_step(run: Run, committed: Callable[[], dict[str, Any] | None], note: Callable[[dict[str, Any]], None]) -> None:
    """What the driver does else, on a worker; it cannot plan again.

    Parameters
    ----------
    run : Run
        Ended here.
    committed : callable
        Commits what the pipeline has left: `pipelines.extract.finish.extract` or `pipelines.encode.finish.encode`.
    note : callable
        Keeps the totals in the manifest.

    Raises
    ------
    TryLaterError
        If another run was faster.
    """
    totals = committed()
    if totals is None:
        raise others(run.lake)
    note(totals)
    run.end("done")


def others(lake: Lake) -> TryLaterError:
    """What to say if other runs were faster, each time."""
    return TryLaterError(
        f"other runs keep changing the lake {lake.root}: run the same command again when they are done"
    )
