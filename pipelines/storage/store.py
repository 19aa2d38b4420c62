"""The one layer under lake and corpus: files below a root, in a folder on a disk or below a prefix of a bucket.

`pipelines.storage.opening.at` gives the store of a root. What a reader sees is whole, always: on a disk a file appears
by rename, in a bucket by a single put. Names are relative to the root and use ``/``. Whatever goes wrong is an
``OSError``, as on a disk; bad credentials and a bucket that is not there are an `InputError`, since each call would end
in the same way.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Protocol

# A version of an object in a bucket, as the conditional put wants it back.
Token = dict[str, Any]


@dataclass(frozen=True)
class Info:
    """A file or folder below a root.

    Attributes
    ----------
    name : str
        Below the root.
    size : int
        Bytes.
    changed_ns : int
        Of its last write, nanoseconds since 1970; 0 for a folder of a bucket, which has no time.
    is_folder : bool
    """

    name: str
    size: int
    changed_ns: int
    is_folder: bool = False


class Store(Protocol):
    """What a folder and a bucket can do."""

    @property
    def root(self) -> str:
        """A path, or a URI."""

    def read(self, name: str) -> bytes:
        """A whole small file; ``FileNotFoundError`` if there is none."""

    def open(self, name: str, *, block: int = 8 << 20) -> BinaryIO:
        """A file to read from, seekable; of one in a bucket `block` bytes are fetched at a time."""

    def copy_to(self, name: str, target: IO[bytes]) -> None:
        """Write a file's content to a local one."""

    def create(self, name: str, *, durable: bool = True) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A file to write, not yet visible; it appears whole when the block ends without an exception.

        Its `name` is a local path: another process may write it, too. If not `durable`, a power cut may undo it.
        """

    def exists(self, name: str) -> bool:
        """Whether a file or folder of this name is there."""

    def names(self, folder: str) -> list[str]:
        """Sorted base names in a folder, without hidden ones; empty if there is no such folder."""

    def below(self, folder: str, *, recursive: bool = True) -> Iterator[Info]:
        """All files in a folder, as they are listed, and the folders that are known; none if it is not there."""

    def info(self, name: str) -> Info | None:
        """A file as it is now, or a folder of a disk; None if there is none."""

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""

    def remove(self, folder: str) -> None:
        """Remove a folder and all in it, if it is there."""

    def locked(self, name: str, *, wait: bool = True) -> contextlib.AbstractContextManager[Callable[[], None]]:
        """Keep others out of the same block; who does not `wait` gets a `TryLaterError` if another is in it.

        Yields what raises `TryLaterError` once the lock is lost, as one in a bucket can be.
        """


class Versioned(Protocol):
    """What a bucket can do beside: write a file only if nobody else has."""

    @property
    def root(self) -> str:
        """A URI."""

    def read_version(self, name: str) -> tuple[bytes, Token]:
        """A whole small file, and which version of it this is."""

    def swap(self, name: str, data: bytes, before: Token | None) -> Token | None:
        """Write a file if it still is the version that was read, or still is not there for None."""


def is_bucket(root: str) -> bool:
    """Whether a path or URI names a place in a bucket."""
    return "://" in root and not root.startswith("file://")
