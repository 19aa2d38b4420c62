"""The lake: where everything lies, on a disk or a bucket; whole writes only; a manifest of every run.

A `Lake` is a root and nothing else, so that it travels to workers as it is. Names are relative to the root and use
``/``; `pipelines.storage.store` knows how files are kept there.
"""

import contextlib
import json
import os
import secrets
import shlex
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import IO, Any, BinaryIO
from urllib.parse import unquote_to_bytes

from soundlake.model.errors import InputError, TryLaterError, storage_errors
from soundlake.model.paths import checked_id, inside, regular
from soundlake.pipelines.display import stage
from soundlake.pipelines.storage import opening
from soundlake.pipelines.storage.secrecy import refuse_secrets, without_secrets
from soundlake.pipelines.storage.store import Store, is_bucket

FORMAT_VERSION = 1
# Keyed digests of what the lake has forgotten (`pipelines.forgotten`).
FORGOTTEN = "forgotten.json"
# What a lake holds at its root. ``lake.json``, too: another process may make the same lake at the same time.
OWN = ("features", FORGOTTEN, "forgotten.lock", "lake.json", "models", "runs", "tables")
# Runs whose manifests are looked at.
LAST_RUNS = 50
# Begins the note on an error that the manifest of its run tells about, too.
MANIFEST = "told in the lake's runs/"


@dataclass(frozen=True)
class Lake:
    """A directory or bucket prefix that holds features, models and tables.

    Attributes
    ----------
    root : str
        An absolute path, or a URI such as ``s3://bucket/lake``.
    """

    root: str

    @classmethod
    def at(cls, root: str) -> "Lake":
        """The lake at `root`; a relative path is made absolute, ``~`` is the home folder, ``file://`` is taken off.

        Raises
        ------
        InputError
            If it names nothing, is not UTF-8, or a URI holds a password.
        """
        refuse_secrets(root)
        if root.startswith("file://"):
            root = os.fsdecode(unquote_to_bytes(root.removeprefix("file://")))
        elif root.startswith("~"):  # a shell leaves it in --lake=~/lake
            root = os.path.expanduser(root)
        if not root:
            raise InputError("--lake is empty: name a folder, or a bucket's prefix")
        try:
            root.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the lake's path {root} is not UTF-8, which Lance needs: choose another") from error
        return cls(root.rstrip("/") if "://" in root else os.path.abspath(root))

    @property
    def is_local(self) -> bool:
        """Whether the lake is a folder that this machine mounts."""
        return not is_bucket(self.root)

    @property
    def store(self) -> Store:
        """Its files."""
        return opening.at(self.root)

    def command(self, words: str) -> str:
        """A command line for this lake, such as ``soundlake encode --lake '/my lake'``, for messages to name."""
        return f"soundlake {words} --lake {shlex.quote(self.root)}"

    def uri(self, name: str) -> str:
        """The full path or URI of a name in the lake."""
        return f"{self.root}/{name}"

    def path(self, name: str) -> str:
        """`uri` of a name that may come from a file of the lake: every access to the lake's files goes through here.

        Raises
        ------
        InputError
            If it leads out of the lake: by its parts, or by a link on the way.
        """
        return inside(self.root, name, on_disk=self.is_local)

    # Names. A new kind of thing in the lake gets its line here, and nowhere else.

    @staticmethod
    def spec(spec_id: str) -> str:
        """Folder of a spec's features."""
        return f"features/{checked_id(spec_id, 'spec')}"

    @staticmethod
    def shard(spec_id: str, bundle: str) -> str:
        """A bundle's TFRecord file."""
        return f"{Lake.spec(spec_id)}/shards/{checked_id(bundle, 'bundle')}.tfrecord"

    @staticmethod
    def outcome(spec_id: str, bundle: str) -> str:
        """What became of a bundle's segments; its presence means that the bundle is done."""
        return f"{Lake.spec(spec_id)}/outcomes/{checked_id(bundle, 'bundle')}.parquet"

    @staticmethod
    def ledger(spec_id: str) -> str:
        """The ledger's Lance dataset."""
        return f"{Lake.spec(spec_id)}/ledger.lance"

    @staticmethod
    def table(model_id: str) -> str:
        """The Lance table of a model's embeddings."""
        return f"tables/{checked_id(model_id, 'model')}.lance"

    def ledger_uri(self, spec_id: str) -> str:
        """Where the ledger lies."""
        return self.path(Lake.ledger(spec_id))

    def table_uri(self, model_id: str) -> str:
        """Where a table lies."""
        return self.path(Lake.table(model_id))

    @staticmethod
    def totals(model_id: str) -> str:
        """What encode said of a table."""
        return f"tables/{checked_id(model_id, 'model')}.json"

    @staticmethod
    def staging(model_id: str) -> str:
        """Folder of what encode has made for a table and not committed yet."""
        return f"tables/{checked_id(model_id, 'model')}.staged"

    @staticmethod
    def staged(model_id: str, version: int, piece: str) -> str:
        """Says that a piece of work is done, on the way from a version of the table to the next."""
        return f"{Lake.staging(model_id)}/{version}/{checked_id(piece, 'piece')}.json"

    # Files.

    def read(self, name: str) -> bytes:
        """A whole small file; ``FileNotFoundError`` if there is none."""
        path = self.path(name)
        if self.is_local:
            regular(path)
        return self.store.read(name)

    def open(self, name: str, *, block: int = 8 << 20) -> BinaryIO:
        """A file to read from, seekable; of one in a bucket `block` bytes are fetched at a time."""
        path = self.path(name)
        if self.is_local:
            regular(path)
        return self.store.open(name, block=block)

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write a file whole, or not at all; see `create`."""
        with self.create(name, durable=durable) as file:
            file.write(data)

    @contextlib.contextmanager
    def create(self, name: str, *, durable: bool = True) -> Iterator[IO[bytes]]:
        """A file to write, not yet visible; it appears whole when the block ends without an exception.

        Its `name` is a local path: another process may write it, too. If not `durable`, a power cut may undo it: for
        what nobody needs after one.
        """
        with storage_errors(self.path(name)), self.store.create(name, durable=durable) as file:
            yield file

    def remove(self, folder: str) -> None:
        """Remove a folder and all in it, if it is there."""
        with storage_errors(self.path(folder)):
            self.store.remove(folder)

    def exists(self, name: str) -> bool:
        """Whether a file or folder of this name is there."""
        self.path(name)
        return self.store.exists(name)

    def names(self, folder: str) -> list[str]:
        """Sorted base names in a folder, without those still being written; empty if there is no such folder."""
        self.path(folder)
        return self.store.names(folder)

    @contextlib.contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[Callable[[], None]]:
        """Keep other processes out of the same block, those of other machines if the lake is in a bucket.

        The lock of a killed one opens by itself. It keeps order and no more: what is done under it has to be right
        where it does not hold, or ask again right before: what is yielded raises `TryLaterError` once it is lost.
        """
        self.path(f"{name}.lock")
        with contextlib.ExitStack() as held:
            with stage("waiting for another command that uses the lake"):
                still_held = held.enter_context(self.store.locked(name, wait=wait))
            yield still_held

    # The lake itself.

    def initialise(self) -> None:
        """Make the lake if there is none.

        Raises
        ------
        InputError
            If the place cannot be written, holds other things, or is a lake of a newer format.
        """
        with storage_errors(self.uri("lake.json")):
            if not self.exists("lake.json"):
                strangers = [name for name in self.names("") if name not in OWN]
                if strangers:
                    raise InputError(
                        f"{self.root} is not a lake and has other files ({strangers[0]!r}): name an empty folder"
                    )
                self.write("lake.json", json.dumps({"format_version": FORMAT_VERSION}).encode() + b"\n")
        self.check()

    def check(self) -> None:
        """Raise `InputError` unless this is a lake that this version reads."""
        try:
            with storage_errors(self.uri("lake.json")):
                data = self.read("lake.json")
        except InputError as error:
            if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise
            raise InputError(f"there is no lake at {self.root}; make one with: {self.command('run AUDIO')}") from error
        try:
            version = json.loads(data)["format_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.uri('lake.json')} is damaged: {error}") from error
        if version != FORMAT_VERSION:
            todo = "make a new lake from the corpus"
            if isinstance(version, int) and version > FORMAT_VERSION:
                todo = "update soundlake"
            raise InputError(
                f"the lake {self.root} has format {version!r}, this soundlake reads {FORMAT_VERSION}: {todo}"
            )


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
