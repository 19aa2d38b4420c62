"""A store in a folder of this machine."""

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, BinaryIO

from soundlake.model.durable import make_folders, replace
from soundlake.model.errors import NO_LOCKS, TryLaterError, storage_errors
from soundlake.pipelines.storage.store import Info


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
        # The part's name does not extend the target's name: a bundle's name may already have the greatest length that
        # the file system allows. The part is always a new file ("x"), so that no planted link is followed. Its
        # permissions follow the user's umask.
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
            current = waiting.pop()
            try:
                with os.scandir(self._path(current)) as listing:
                    entries = sorted(listing, key=lambda entry: entry.name)
            except (FileNotFoundError, NotADirectoryError):
                continue
            for entry in entries:
                name = f"{current}/{entry.name}" if current else entry.name
                with contextlib.suppress(FileNotFoundError):
                    status, is_folder = entry.stat(), entry.is_dir()
                    yield Info(name, 0 if is_folder else status.st_size, status.st_mtime_ns, is_folder)
                    if is_folder and recursive and not entry.is_symlink():
                        waiting.append(name)

    def info(self, name: str) -> Info | None:
        try:
            status = os.stat(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Info(name, status.st_size, status.st_mtime_ns, stat.S_ISDIR(status.st_mode))

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(name))

    def remove(self, folder: str) -> None:
        # Other processes may remove files here at the same time: skip a file that is gone, and try again.
        while os.path.isdir(self._path(folder)):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._path(folder))

    @contextlib.contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[Callable[[], None]]:
        """Lock out other processes of this machine; the kernel releases the lock of a killed process.

        On a file system without locks this does nothing, and the checks inside the block must suffice.
        """
        import fcntl

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
            yield lambda: None  # never raises: the kernel takes the lock from no living process
        finally:
            os.close(handle)
