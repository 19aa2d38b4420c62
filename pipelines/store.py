"""The one layer under lake and corpus: files below a root, in a folder on a disk or below a prefix of a bucket.

`at` gives the store of a root. What a reader sees is whole, always: on a disk a file appears by rename, in a bucket by
a single put. Names are relative to the root and use ``/``. Whatever goes wrong is an ``OSError``, as on a disk; bad
credentials and a bucket that is not there are an `InputError`, since each call would end in the same way.
"""

import contextlib
import functools
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, BinaryIO, Protocol

from soundlake.model.durable import make_folders, replace
from soundlake.model.errors import NO_LOCKS, InputError, storage_errors

# What buckets are known by; a root without a scheme is a folder.
SCHEMES = ("gs", "s3")


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


def is_bucket(root: str) -> bool:
    """Whether a path or URI names a place in a bucket."""
    return "://" in root and not root.startswith("file://")


@functools.lru_cache(maxsize=64)
def at(root: str) -> Store:
    """The store of a path or URI.

    Raises
    ------
    InputError
        If it is of a kind that is not known.
    """
    if not is_bucket(root):
        return Folder(os.path.abspath(root.removeprefix("file://")))
    if root.partition("://")[0] not in SCHEMES or not root.partition("://")[2].partition("/")[0]:
        raise InputError(f"cannot open {root}: name a folder, or a place in a bucket as s3://BUCKET/… or gs://BUCKET/…")
    from soundlake.pipelines.bucket import Bucket

    return Bucket(root.rstrip("/"))


@dataclass(frozen=True)
class Folder:
    """A store in a folder of this machine."""

    root: str

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def read(self, name: str) -> bytes:
        with open(self._path(name), "rb") as file:
            return file.read()

    def open(self, name: str, *, block: int = 8 << 20) -> BinaryIO:
        return open(self._path(name), "rb")

    def copy_to(self, name: str, target: IO[bytes]) -> None:
        with self.open(name) as source:
            shutil.copyfileobj(source, target, 4 << 20)

    @contextlib.contextmanager
    def create(self, name: str, *, durable: bool = True) -> Iterator[IO[bytes]]:
        target = self._path(name)
        folder = os.path.dirname(target)
        make_folders(folder) if durable else os.makedirs(folder, exist_ok=True)
        # Not a suffix of the name: a bundle's name may already be as long as names may be. New, so that no link which
        # somebody put there is followed; with the rights that the user's umask leaves.
        part = f"{folder}/.part-{secrets.token_hex(8)}"
        try:
            with open(part, "x+b") as file:
                yield file
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            replace(part, target) if durable else os.replace(part, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
            raise

    def exists(self, name: str) -> bool:
        return os.path.exists(self._path(name))

    def names(self, folder: str) -> list[str]:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return sorted(name for name in os.listdir(self._path(folder)) if not name.startswith("."))
        return []

    def below(self, folder: str, *, recursive: bool = True) -> Iterator[Info]:
        waiting = [folder]
        while waiting:
            inside = waiting.pop()
            try:
                with os.scandir(self._path(inside)) as found:
                    entries = sorted(found, key=lambda entry: entry.name)
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in entries:
                name = f"{inside}/{entry.name}" if inside else entry.name
                with contextlib.suppress(FileNotFoundError):
                    told, is_folder = entry.stat(), entry.is_dir()
                    yield Info(name, 0 if is_folder else told.st_size, told.st_mtime_ns, is_folder)
                    if is_folder and recursive and not entry.is_symlink():
                        waiting.append(name)

    def info(self, name: str) -> Info | None:
        try:
            told = os.stat(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Info(name, told.st_size, told.st_mtime_ns, stat.S_ISDIR(told.st_mode))

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def remove(self, folder: str) -> None:
        # Others may be at it, too: what is gone is gone.
        while os.path.isdir(self._path(folder)):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._path(folder))

    @contextlib.contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[Callable[[], None]]:
        """Keep other processes of this machine out; the kernel opens the lock of a killed one.

        On a file system without locks it does nothing, and the checks inside the block have to do.
        """
        import fcntl

        from soundlake.model.errors import TryLaterError

        path = self._path(f"{name}.lock")
        with storage_errors(path):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            handle = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError as error:
                raise TryLaterError(
                    f"another process has locked {self._path(name)}: run the same command later"
                ) from error
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    with storage_errors(path):
                        raise
            yield lambda: None  # the kernel takes it from no living process
        finally:
            os.close(handle)
