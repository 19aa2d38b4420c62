"""The lake: where everything lies, on a disk or a bucket; whole writes only.

A `Lake` is a root and nothing else, so that it travels to workers as it is. Names are relative to the root and use
``/``; `pipelines.storage.store` knows how files are kept there.
"""

import contextlib
import json
import os
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, BinaryIO
from urllib.parse import unquote_to_bytes

from soundlake.model.errors import InputError, storage_errors
from soundlake.model.paths import checked_id, inside, regular
from soundlake.pipelines.lake.stages import stage
from soundlake.pipelines.storage import opening
from soundlake.pipelines.storage.secrecy import refuse_secrets
from soundlake.pipelines.storage.store import Store, is_bucket

FORMAT_VERSION = 1
# Keyed digests of what the lake has forgotten (`pipelines.lake.forgotten`).
FORGOTTEN = "forgotten.json"
# What a lake holds at its root. ``lake.json``, too: another process may make the same lake at the same time.
OWN = ("features", FORGOTTEN, "forgotten.lock", "lake.json", "models", "runs", "tables")


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
