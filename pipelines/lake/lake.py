"""The lake: the names of everything in it, on a disk or in a bucket; files are only written whole.

A `Lake` consists of its root alone, so it is cheap to send to workers. Names are relative to the root and use ``/``;
`pipelines.storage.store` reads and writes the files.
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
# Keyed digests of forgotten recordings (`pipelines.lake.forgotten`).
FORGOTTEN = "forgotten.json"
# The names at the root of a lake. ``lake.json`` is among them: another process may make the same lake at the same time.
OWN = ("features", FORGOTTEN, "forgotten.lock", "lake.json", "models", "runs", "tables")


@dataclass(frozen=True)
class Lake:
    """A folder or bucket prefix with features, models and tables.

    Attributes
    ----------
    root : str
        An absolute path, or a URI such as ``s3://bucket/lake``.
    """

    root: str

    @classmethod
    def at(cls, root: str) -> "Lake":
        """The lake at `root`: relative paths are made absolute, ``~`` is the home folder, ``file://`` is removed.

        Raises
        ------
        InputError
            If `root` is empty, is not UTF-8, or is a URI with a password.
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
        """Whether the lake is a folder on this machine, not a bucket prefix."""
        return not is_bucket(self.root)

    @property
    def store(self) -> Store:
        """The store with the lake's files."""
        return opening.at(self.root)

    def command(self, words: str) -> str:
        """A command line for this lake, such as ``soundlake encode --lake '/my lake'``, for use in messages."""
        return f"soundlake {words} --lake {shlex.quote(self.root)}"

    def uri(self, name: str) -> str:
        """The full path or URI of a name in the lake."""
        return f"{self.root}/{name}"

    def path(self, name: str) -> str:
        """`uri` of a name, checked: names may come from files of the lake. Every access to the lake's files calls this.

        Raises
        ------
        InputError
            If the name leads out of the lake, by its parts or by a link on the way.
        """
        return inside(self.root, name, on_disk=self.is_local)

    # Names. The name of every kind of file or folder in the lake is defined here, and nowhere else.

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
        """The file with the outcomes of a bundle's segments; if it exists, the bundle is done."""
        return f"{Lake.spec(spec_id)}/outcomes/{checked_id(bundle, 'bundle')}.parquet"

    @staticmethod
    def ledger(spec_id: str) -> str:
        """The Lance dataset of the ledger."""
        return f"{Lake.spec(spec_id)}/ledger.lance"

    @staticmethod
    def table(model_id: str) -> str:
        """The Lance table of a model's embeddings."""
        return f"tables/{checked_id(model_id, 'model')}.lance"

    def ledger_uri(self, spec_id: str) -> str:
        """The full path or URI of the ledger."""
        return self.path(Lake.ledger(spec_id))

    def table_uri(self, model_id: str) -> str:
        """The full path or URI of a table."""
        return self.path(Lake.table(model_id))

    @staticmethod
    def totals(model_id: str) -> str:
        """The file with the totals of the last encode of a table."""
        return f"tables/{checked_id(model_id, 'model')}.json"

    @staticmethod
    def staging(model_id: str) -> str:
        """Folder of the results that encode has made for a table but has not committed yet."""
        return f"tables/{checked_id(model_id, 'model')}.staged"

    @staticmethod
    def staged(model_id: str, version: int, piece: str) -> str:
        """The file of a finished piece of work, on the way from one version of the table to the next."""
        return f"{Lake.staging(model_id)}/{version}/{checked_id(piece, 'piece')}.json"

    # Files.

    def read(self, name: str) -> bytes:
        """Read a whole small file; raise ``FileNotFoundError`` if it does not exist."""
        path = self.path(name)
        if self.is_local:
            regular(path)
        return self.store.read(name)

    def open(self, name: str, *, block: int = 8 << 20) -> BinaryIO:
        """Open a file for reading, seekable; from a bucket, `block` bytes are fetched at a time."""
        path = self.path(name)
        if self.is_local:
            regular(path)
        return self.store.open(name, block=block)

    def write(self, name: str, data: bytes, *, durable: bool = True) -> None:
        """Write a file, whole or not at all; see `create`."""
        with self.create(name, durable=durable) as file:
            file.write(data)

    @contextlib.contextmanager
    def create(self, name: str, *, durable: bool = True) -> Iterator[IO[bytes]]:
        """Open a file for writing. Readers see it, whole, once the block ends without an exception.

        Its `name` is a local path, so another process can write it, too. If not `durable`, a power cut may undo the
        write; this suits files that nobody needs after one.
        """
        with storage_errors(self.path(name)), self.store.create(name, durable=durable) as file:
            yield file

    def remove(self, folder: str) -> None:
        """Remove a folder and everything in it, if it exists."""
        with storage_errors(self.path(folder)):
            self.store.remove(folder)

    def exists(self, name: str) -> bool:
        """Whether a file or folder of this name exists."""
        self.path(name)
        return self.store.exists(name)

    def names(self, folder: str) -> list[str]:
        """Sorted base names in a folder, without files still being written; empty if there is no such folder."""
        self.path(folder)
        return self.store.names(folder)

    @contextlib.contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[Callable[[], None]]:
        """Lock out other processes for the length of the block; of other machines, too, if the lake is in a bucket.

        The lock of a killed process ends by itself. A lock can be lost, so it only orders the work. The code under it
        must be correct without it, or must check it right before a write: the yielded function raises `TryLaterError`
        once the lock is lost.
        """
        self.path(f"{name}.lock")
        with contextlib.ExitStack() as stack:
            with stage("waiting for another command that uses the lake"):
                still_held = stack.enter_context(self.store.locked(name, wait=wait))
            yield still_held

    # The lake itself.

    def initialise(self) -> None:
        """Create the lake if there is none.

        Raises
        ------
        InputError
            If the place cannot be written, contains other files, or is a lake of another format.
        """
        with storage_errors(self.uri("lake.json")):
            if not self.exists("lake.json"):
                foreign = [name for name in self.names("") if name not in OWN]
                if foreign:
                    raise InputError(
                        f"{self.root} is not a lake and has other files ({foreign[0]!r}): name an empty folder"
                    )
                self.write("lake.json", json.dumps({"format_version": FORMAT_VERSION}).encode() + b"\n")
        self.check()

    def check(self) -> None:
        """Raise `InputError` unless this is a lake that this version of soundlake reads."""
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
            remedy = "make a new lake from the corpus"
            if isinstance(version, int) and version > FORMAT_VERSION:
                remedy = "update soundlake"
            raise InputError(
                f"the lake {self.root} has format {version!r}, this soundlake reads {FORMAT_VERSION}: {remedy}"
            )
