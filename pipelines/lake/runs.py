"""Runs: each command leaves a manifest in the lake, whether it succeeds, fails or is interrupted."""

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

# Number of runs whose manifests are read.
LAST_RUNS = 50
# Beginning of the note on an error that the manifest of its run also contains.
MANIFEST = "told in the lake's runs/"


@dataclass
class Run:
    """One execution of a command: its id, and the manifest that it leaves."""

    lake: Lake
    run_id: str
    manifest: dict[str, Any]

    @classmethod
    def begin(cls, lake: Lake, command: str, settings: dict[str, Any]) -> "Run":
        """Begin a run; the result in its manifest is ``failed`` until the run ends otherwise."""
        started = datetime.now(UTC)
        run_id = f"{started:%Y%m%dT%H%M%SZ}-{command}-{secrets.token_hex(3)}"
        manifest = {"run_id": run_id, "command": command, "settings": without_secrets(settings), "versions": versions()}
        return cls(lake, run_id, manifest | {"started": started.isoformat(timespec="seconds"), "result": "failed"})

    @property
    def folder(self) -> str:
        """Folder of the lake for the run's temporary files; it is removed at the end."""
        return f"runs/{self.run_id}"

    def end(self, result: str) -> bool:
        """Write the manifest and remove the folder; storage errors are suppressed, so that they hide no earlier error.

        Returns
        -------
        bool
            Whether the manifest was written.
        """
        elapsed = datetime.now(UTC) - datetime.fromisoformat(self.manifest["started"])
        self.manifest |= {"result": result, "seconds": self.manifest.get("seconds", elapsed.total_seconds())}
        with contextlib.suppress(OSError, InputError, TryLaterError):
            self.lake.remove(self.folder)
            text = json.dumps(self.manifest, indent=1, sort_keys=True)
            self.lake.write(f"runs/{self.run_id}.json", text.encode() + b"\n")
            return True
        return False


class HandedOver(Exception):
    """A pipeline was saved for a service that starts it later: the run goes on, and ends, without this process.

    This is no error. It is raised where the pipeline would have run, since the steps after it would have no input.
    """


def versions() -> dict[str, str]:
    """Versions of soundlake and of the packages on which its results depend."""
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
    installed = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


def interrupted(error: BaseException | None) -> bool:
    """Whether an error is Ctrl-C or was caused by it: Beam, for example, wraps the errors of steps in its own."""
    # Beam raises an error from an older one whose context is that same error: such a chain is a circle.
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def forgotten_meanwhile(lake: Lake) -> TryLaterError:
    """The error to raise if recordings were forgotten while a command worked on them."""
    return TryLaterError(f"recordings of the lake {lake.root} were forgotten meanwhile: run the same command again")


def _forgotten(lake: Lake) -> Any:
    """The digests of forgotten names and recordings, for comparison; None without any, or if reading them fails."""
    with contextlib.suppress(OSError, ValueError, TypeError, InputError, TryLaterError):
        content = json.loads(lake.read(FORGOTTEN))
        return content.get("names"), content.get("recordings")
    return None


@contextlib.contextmanager
def run_manifest(lake: Lake, command: str, settings: dict[str, Any]) -> Iterator[Run]:
    """Record a command: write ``runs/RUN_ID.json`` when it ends, also after a failure, then with the traceback."""
    run, began, before = Run.begin(lake, command, settings), time.monotonic(), _forgotten(lake)

    def end(result: str) -> bool:
        run.manifest["seconds"] = round(time.monotonic() - began, 3)
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
            # The command's input is gone. The error may name forgotten recordings, so it is not recorded.
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
    """Yield the manifests of successful runs of some commands, the newest first, from the last `LAST_RUNS` runs."""
    names = [name for name in lake.names("runs") if name.endswith(".json")]
    for name in [n for n in reversed(names) if any(f"-{command}-" in n for command in commands)][:LAST_RUNS]:
        try:
            manifest = json.loads(lake.read(f"runs/{name}"))
        except (OSError, ValueError):
            continue
        parts = (
            [manifest, *(manifest.get(key) for key in ("settings", "counts"))] if isinstance(manifest, dict) else [None]
        )
        if all(isinstance(part, dict) for part in parts) and manifest.get("result") == "done":
            yield manifest


def last_step(run: Run, committed: Callable[[], dict[str, Any] | None], note: Callable[[dict[str, Any]], None]) -> None:
    """Finish a run on a worker, where usually the driver does it; a worker cannot plan the run again.

    Parameters
    ----------
    run : Run
        The run; it is ended here.
    committed : callable
        Commits the results of the pipeline (`pipelines.extract.finish.extract` or `pipelines.encode.finish.encode`),
        and returns the totals; None if another run was faster.
    note : callable
        Records the totals in the manifest.

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
    """The error to raise if other runs were faster at every try."""
    return TryLaterError(
        f"other runs keep changing the lake {lake.root}: run the same command again when they are done"
    )
