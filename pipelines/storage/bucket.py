"""A store in a bucket, by obstore. Lance uses the same library below it (Rust's object_store).

Both read the clouds' own environment variables. `lance_options` gives Lance the settings that these variables lack; it
passes no secret. A request that fails is sent again (`pipelines.storage.patience`). Before a conditional put is sent
again, the object is read: the first put may have succeeded and only its answer was lost. The second put would then be
refused because of the first.
"""

import contextlib
import functools
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO, Any, BinaryIO, cast

from soundlake.pipelines.storage import patience
from soundlake.pipelines.storage.lease import held
from soundlake.pipelines.storage.patience import patiently
from soundlake.pipelines.storage.store import Info, Token

# Bytes of one part of an upload in parts, and of one read request of a long file.
BLOCK = 8 << 20
# Retries that the library makes by itself before `patiently` retries.
TRIES = 3

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def lance_options(uri: str) -> dict[str, str] | None:
    """Lance's storage options for a bucket, besides the environment variables; None for a folder."""
    if "://" not in uri:
        return None
    options = {"timeout": f"{patience.REQUEST_S:g}s", "connect_timeout": "5s", "allow_http": "true"}
    return options | {"client_max_retries": str(2 * TRIES), "client_retry_timeout": str(round(patience.REQUEST_S))}


@functools.lru_cache(maxsize=64)
def _client(scheme: str, bucket: str) -> Any:
    from obstore.store import from_url

    # Only addresses that begin with http:// are used without encryption, such as a server on loopback.
    client: Any = {"timeout": f"{patience.REQUEST_S:g}s", "connect_timeout": "5s", "allow_http": True}
    backoff: Any = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2}
    retry: Any = {"max_retries": TRIES, "retry_timeout": timedelta(seconds=patience.REQUEST_S), "backoff": backoff}
    return from_url(f"{scheme}://{bucket}", client_options=client, retry_config=retry)


def _info(meta: Any, start: int) -> Info:
    changed_ns = (meta["last_modified"] - _EPOCH) // timedelta(microseconds=1) * 1000
    return Info(meta["path"][start:], meta["size"], changed_ns)


@dataclass(frozen=True)
class Bucket:
    """A store below a prefix of a bucket.

    Attributes
    ----------
    root : str
        ``s3://BUCKET/PREFIX`` or ``gs://BUCKET/PREFIX``.
    """

    root: str

    @property
    def _store(self) -> Any:
        scheme, _, rest = self.root.partition("://")
        return patiently(self.root, lambda: _client(scheme, rest.partition("/")[0]))

    def _key(self, name: str) -> str:
        prefix = self.root.partition("://")[2].partition("/")[2]
        return "/".join(part for part in (prefix, name) if part)

    def _try(self, name: str, call: Callable[[Any, str], Any]) -> Any:
        store, key = self._store, self._key(name)
        return patiently(f"{self.root}/{name}", lambda: call(store, key))

    def read(self, name: str) -> bytes:
        return self.read_version(name)[0]

    def read_version(self, name: str) -> tuple[bytes, Token]:
        """Read a whole small file, and the version of it that was read."""
        import obstore

        def get(store: Any, key: str) -> tuple[bytes, Token]:
            answer = obstore.get(store, key)
            return bytes(answer.bytes()), _token(answer.meta)

        return cast(tuple[bytes, Token], self._try(name, get))

    def open(self, name: str, *, block: int = BLOCK) -> BinaryIO:
        import obstore

        meta = self._try(name, obstore.head)
        return io.BufferedReader(_Reader(self, name, meta), block)

    def copy_to(self, name: str, target: IO[bytes]) -> None:
        """Write the content of a file to a local file."""
        import obstore

        def get(store: Any, key: str) -> tuple[Any, bytes | None]:
            answer = obstore.get(store, key)
            # A short file is read at once. The answer for a long file is dropped: it is read in blocks, which can be
            # requested again one by one.
            return answer.meta, bytes(answer.bytes()) if answer.meta["size"] <= BLOCK else None

        meta, data = self._try(name, get)
        if data is not None:
            target.write(data)
            return
        reader = _Reader(self, name, meta)
        while data := reader.read(BLOCK):
            target.write(data)

    def range(self, name: str, meta: Any, begin: int, end: int) -> bytes:
        """Read the bytes `begin` to `end` of a file, in the version that `meta` describes."""
        import obstore

        options: Any = {"range": (begin, end), "if_match": meta["e_tag"]}
        return bytes(self._try(name, lambda store, key: obstore.get(store, key, options=options).bytes()))

    @contextlib.contextmanager
    def create(self, name: str, *, durable: bool = True) -> Iterator[IO[bytes]]:
        with tempfile.NamedTemporaryFile(prefix="soundlake-") as spool:
            yield spool
            spool.flush()
            self.send(name, spool.name)

    def send(self, name: str, path: str) -> None:
        """Upload a local file. Readers see nothing of an upload in parts before its last part has arrived."""
        import obstore

        def put(store: Any, key: str) -> None:
            with open(path, "rb") as file:
                obstore.put(store, key, file, chunk_size=BLOCK, max_concurrency=4)

        self._try(name, put)

    def swap(self, name: str, data: bytes, before: Token | None) -> Token | None:
        """Write a file if its version is still `before`, or if it still does not exist where `before` is None.

        Returns
        -------
        dict or None
            The new version; None if the file now has another writer's content. That writer was first, or it wrote after
            this put, whose answer was lost. A caller that must tell these cases apart looks for its own mark in the
            content. No two writers may write the same `data`.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, NotModifiedError, PreconditionError

        def put(store: Any, key: str) -> Token | None:
            mode: Any = "create" if before is None else before
            try:
                return _token(obstore.put(store, key, data, mode=mode, use_multipart=False))
            except (AlreadyExistsError, NotModifiedError, PreconditionError, FileNotFoundError):
                unanswered = None
            except BaseError as error:
                unanswered = error
            # The put may have succeeded, with its answer lost. Then the next try is refused because of this put.
            current = self._found(name)
            if current is not None and current[0] == data:
                return current[1]
            if unanswered is not None and (None if current is None else current[1]) == before:
                raise unanswered
            return None

        return cast("Token | None", self._try(name, put))

    def _found(self, name: str) -> tuple[bytes, Token] | None:
        try:
            return self.read_version(name)
        except FileNotFoundError:
            return None

    def exists(self, name: str) -> bool:
        return self.info(name) is not None or next(self.below(name), None) is not None

    def names(self, folder: str) -> list[str]:
        base_names = (info.name.rpartition("/")[2] for info in self.below(folder, recursive=False))
        return sorted(name for name in base_names if not name.startswith("."))

    def below(self, folder: str, *, recursive: bool = True) -> Iterator[Info]:
        import obstore

        prefix, start = self._key(folder) or None, len(self._key("x")) - 1
        if recursive:
            metas = self._listed(folder, prefix)
        else:
            level = self._try(folder, lambda store, _: obstore.list_with_delimiter(store, prefix))
            metas = iter(level["objects"])
            yield from (Info(path[start:], 0, 0, is_folder=True) for path in level["common_prefixes"])
        for meta in metas:
            info = _info(meta, start)
            # A console marks an empty folder with an object of 0 bytes whose name ends in a slash. The listing gives
            # that name without the slash, and no object has this name.
            if info.size or self.info(info.name) is not None:
                yield info

    def _listed(self, folder: str, prefix: str | None) -> Iterator[Any]:
        """List the objects below a prefix, page by page; a listing that breaks off resumes after the last name."""
        import obstore

        pages: Any = None
        last: str | None = None

        def page(store: Any, _: str) -> Any:
            nonlocal pages
            if pages is None:
                pages = obstore.list(store, prefix, offset=last, chunk_size=1000)
            try:
                return next(pages, None)
            except Exception:
                pages = None
                raise

        while metas := self._try(folder, page):
            last = metas[-1]["path"]
            yield from metas

    def info(self, name: str) -> Info | None:
        import obstore

        if not self._key(name):
            return None
        try:
            return _info(self._try(name, obstore.head), len(self._key("x")) - 1)
        except FileNotFoundError:
            return None

    def delete(self, name: str) -> None:
        import obstore

        with contextlib.suppress(FileNotFoundError):
            self._try(name, obstore.delete)

    def remove(self, folder: str) -> None:
        import obstore

        names = [info.name for info in self.below(folder)]
        for first in range(0, len(names), 1000):
            keys = [self._key(name) for name in names[first : first + 1000]]
            with contextlib.suppress(FileNotFoundError):
                patiently(f"{self.root}/{folder}", functools.partial(obstore.delete, self._store, keys))

    @contextlib.contextmanager
    def locked(self, name: str, *, wait: bool = True) -> Iterator[Callable[[], None]]:
        """Lock out other processes by a lease (`pipelines.storage.lease`); the lease of a killed process expires."""
        with held(self, f"{name}.lock", wait=wait) as still_held:
            yield still_held


def _token(meta: Any) -> Token:
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}


class _Reader(io.RawIOBase):
    """A file in a bucket, read by ranges. Every range comes from the version that the file had when it was opened."""

    def __init__(self, bucket: Bucket, name: str, meta: Any) -> None:
        self._bucket, self._name, self._meta, self._at = bucket, name, meta, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._meta["size"]}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._meta["size"])
        if end <= self._at:
            return 0
        data = self._bucket.range(self._name, self._meta, self._at, end)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
