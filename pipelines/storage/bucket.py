"""A store in a bucket, by obstore: the library below it (Rust's object_store) is the one that Lance works with, too.

Both read the clouds' own environment variables; `lance_options` hands Lance what they do not say, and no secret. A
request that fails is sent again (`pipelines.storage.patience`). What was sent with a condition is looked at before: its
answer may have been lost, and it would be refused for what it has done itself.
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

# Of what is sent in parts, one part; of a long file, what one request reads.
BLOCK = 8 << 20
# Tries that the library makes by itself before `patiently` comes in.
TRIES = 3

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def lance_options(uri: str) -> dict[str, str] | None:
    """What Lance needs to know of a bucket beside the environment; None for a folder."""
    if "://" not in uri:
        return None
    options = {"timeout": f"{patience.REQUEST_S:g}s", "connect_timeout": "5s", "allow_http": "true"}
    return options | {"client_max_retries": str(2 * TRIES), "client_retry_timeout": str(round(patience.REQUEST_S))}


@functools.lru_cache(maxsize=64)
def _client(scheme: str, bucket: str) -> Any:
    from obstore.store import from_url

    # Without encryption goes what is given as http://, such as a server on loopback, and nothing else.
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
        """A whole small file, and which version of it this is."""
        import obstore

        def get(store: Any, key: str) -> tuple[bytes, Token]:
            found = obstore.get(store, key)
            return bytes(found.bytes()), _token(found.meta)

        return cast(tuple[bytes, Token], self._try(name, get))

    def open(self, name: str, *, block: int = BLOCK) -> BinaryIO:
        import obstore

        meta = self._try(name, obstore.head)
        return io.BufferedReader(_Reader(self, name, meta), block)

    def copy_to(self, name: str, target: IO[bytes]) -> None:
        """Write a file's content to a local one."""
        import obstore

        def get(store: Any, key: str) -> tuple[Any, bytes | None]:
            found = obstore.get(store, key)
            # A short one at once; else the answer is dropped, and comes in blocks that can be asked for again.
            return found.meta, bytes(found.bytes()) if found.meta["size"] <= BLOCK else None

        meta, data = self._try(name, get)
        if data is not None:
            target.write(data)
            return
        reader = _Reader(self, name, meta)
        while data := reader.read(BLOCK):
            target.write(data)

    def range(self, name: str, meta: Any, begin: int, end: int) -> bytes:
        """Bytes of a file, of the version that `meta` is of."""
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
        """Write a local file's content, whole: of parts nothing is seen before the last is there."""
        import obstore

        def put(store: Any, key: str) -> None:
            with open(path, "rb") as file:
                obstore.put(store, key, file, chunk_size=BLOCK, max_concurrency=4)

        self._try(name, put)

    def swap(self, name: str, data: bytes, before: Token | None) -> Token | None:
        """Write a file if it still is the version that was read, or still is not there for None.

        Returns
        -------
        dict or None
            The new version; None if what is there now is another's: it was first, or it came after this one, whose
            answer was lost. Who has to know which looks for a mark of its own in what is there. No two writers may
            write the same `data`.
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
            # It may have been done, and its answer lost; then the next try is refused for what this one wrote.
            found = self._found(name)
            if found is not None and found[0] == data:
                return found[1]
            if unanswered is not None and (None if found is None else found[1]) == before:
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
        found = (info.name.rpartition("/")[2] for info in self.below(folder, recursive=False))
        return sorted(name for name in found if not name.startswith("."))

    def below(self, folder: str, *, recursive: bool = True) -> Iterator[Info]:
        import obstore

        prefix, start = self._key(folder) or None, len(self._key("x")) - 1
        if recursive:
            found = self._listed(folder, prefix)
        else:
            level = self._try(folder, lambda store, _: obstore.list_with_delimiter(store, prefix))
            found = iter(level["objects"])
            yield from (Info(path[start:], 0, 0, is_folder=True) for path in level["common_prefixes"])
        for meta in found:
            told = _info(meta, start)
            # The mark that a console leaves of an empty folder is listed without its slash, and nothing has its name.
            if told.size or self.info(told.name) is not None:
                yield told

    def _listed(self, folder: str, prefix: str | None) -> Iterator[Any]:
        """Objects below a prefix, page by page; a listing that breaks off goes on after the last name that came."""
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

        while found := self._try(folder, page):
            last = found[-1]["path"]
            yield from found

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
        """Keep others out by a lease (`pipelines.storage.lease`); that of a killed one ends by itself."""
        with held(self, f"{name}.lock", wait=wait) as still_held:
            yield still_held


def _token(meta: Any) -> Token:
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}


class _Reader(io.RawIOBase):
    """A file in a bucket, read by ranges of the version that it had when it was opened."""

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
