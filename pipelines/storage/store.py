"""The storage layer under lake and corpus: files below a root, in a folder on a disk or below a prefix of a bucket.

`pipelines.storage.opening.at` returns the store of a root. Readers see only whole files: on a disk a file appears by
rename, in a bucket by a single put. Names are relative to the root and use ``/``. Errors are ``OSError``, as on a disk.
Bad credentials and a missing bucket are an `InputError`, since every call would fail in the same way.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Protocol

# A version of an object in a bucket, in the form that a conditional put takes.
Token = dict[str, Any]


@dataclass(frozen=True)
class Info:
    """A file or folder below a root.

    Attributes
    ----------
    name : str
        Path relative to the root.
    size : int
        Bytes.
    changed_ns : int
        Time of the last write, nanoseconds since 1970; 0 for a folder of a bucket, which has no time.
    is_folder : bool
    """

    name: str
    size: int
    changed_ns: int
    is_folder: bool = False


class Store(Protocol):
    """The operations that folders and buckets share."""

    @property
    def root(self) -> str:
        """Path or URI of the store."""

    def read(self, name: str) -> bytes:
        """Read a whole small file; raise ``FileNotFoundError`` if it does not exist."""

    def open(self, name: str, *, block: int = 8 << 20) -> BinaryIO:
        """Open a file for reading, seekable; from a bucket, `block` bytes are fetched at a time."""

    def copy_to(self, name: str, target: IO[bytes]) -> None:
        """Write the content of a file to a local file."""

    def create(self, name: str, *, durable: bool = True) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open a file for writing. Readers see it, whole, once the block ends without an exception.

        Its `name` is a local path, so another process can write it, too. If not `durable`, a power cut may undo the
        write.
        """

    def exists(self, name: str) -> bool:
        """Whether a file or folder of this name exists."""

    def names(self, folder: str) -> list[str]:
        """Sorted base names of the entries of a folder, without hidden ones; empty if there is no such folder."""

    def below(self, folder: str, *, recursive: bool = True) -> Iterator[Info]:
        """Yield the files below a folder, in listing order, and the folders that are known; none if it is missing."""

    def info(self, name: str) -> Info | None:
        """The current state of a file, or of a folder on a disk; None if it does not exist."""

    def delete(self, name: str) -> None:
        """Remove a file if it exists."""

    def remove(self, folder: str) -> None:
        """Remove a folder and everything in it, if it exists."""

    def locked(self, name: str, *, wait: bool = True) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Lock out other processes for the length of the block.

        Without `wait`, raise `TryLaterError` if another process holds the lock. Yields a function that raises
        `TryLaterError` once the lock is lost; only a lock in a bucket can be lost.
        """


class Versioned(Protocol):
    """The additional operations of a bucket: write a file only if nobody else has written it meanwhile."""

    @property
    def root(self) -> str:
        """URI of the store."""

    def read_version(self, name: str) -> tuple[bytes, Token]:
        """Read a whole small file, and the version of it that was read."""

    def swap(self, name: str, data: bytes, before: Token | None) -> Token | None:
        """Write a file if its version is still `before`, or if it still does not exist where `before` is None."""


def is_bucket(root: str) -> bool:
    """Whether a path or URI names a place in a bucket."""
    return "://" in root and not root.startswith("file://")
