"""The memory of forgotten recordings: keyed digests, by which an extract leaves recordings out.

``forgotten.json`` contains a random key and HMAC-SHA256 digests, and nothing else. Whoever has a recording or its name
can check whether the lake has forgotten it. Nobody can read the forgotten names or contents from the file.
`pipelines.upkeep.forget` adds to it.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

from soundlake.model.errors import InputError
from soundlake.pipelines.lake.lake import FORGOTTEN, Lake
from soundlake.pipelines.storage.bucket import Bucket

_SETS = ("names", "recordings", "files", "former")


@dataclass(frozen=True)
class Memory:
    """The content of ``forgotten.json``.

    Attributes
    ----------
    key : str
        Random key, hexadecimal.
    names : frozenset of str
        Digests of uris. A file with such a uri is left out, whatever its content.
    recordings : frozenset of str
        Digests of recording_ids. Such content is left out, whatever its name.
    files : frozenset of str
        Digests of a uri with its size and time of change, of files with forgotten content. They are not read again.
    former : frozenset of str
        Digests of uris that forgotten content had. A label for such a uri is not reported as a label without a file.
    """

    key: str
    names: frozenset[str] = frozenset()
    recordings: frozenset[str] = frozenset()
    files: frozenset[str] = frozenset()
    former: frozenset[str] = frozenset()

    def name(self, uri: str) -> str:
        """The digest of a uri."""
        return self._digest("name", uri)

    def recording(self, recording_id: str) -> str:
        """The digest of a recording_id."""
        return self._digest("recording", recording_id)

    def file(self, uri: str, size: int, mtime_ns: int) -> str:
        """The digest of a listed file: of its uri, size and time of change."""
        return self._digest("file", uri, size, mtime_ns)

    def is_former(self, uri: str) -> bool:
        """Whether a uri, or content that had this uri, was forgotten."""
        return bool(self.names or self.former) and self.name(uri) in self.names | self.former

    def _digest(self, *values: Any) -> str:
        return hmac.digest(bytes.fromhex(self.key), json.dumps(values).encode(), hashlib.sha256).hex()

    def known(self, uri: str, size: int, mtime_ns: int) -> set[str]:
        """The digests of the memory that match a listed file: by its uri alone, or by uri, size and time of change."""
        if not (self.names or self.files):
            return set()
        return {self.name(uri)} & self.names | {self.file(uri, size, mtime_ns)} & self.files

    def holds(self, *, uri: str | None = None, recording_id: str | None = None) -> bool:
        """Whether a uri or a recording_id is forgotten."""
        return (uri is not None and bool(self.names) and self.name(uri) in self.names) or (
            recording_id is not None and bool(self.recordings) and self.recording(recording_id) in self.recordings
        )

    def __bool__(self) -> bool:
        return bool(self.names or self.recordings)

    @property
    def mark(self) -> str:
        """A digest that changes when more is forgotten, or when something forgotten is allowed again."""
        text = json.dumps([sorted(self.names), sorted(self.recordings)])
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def of(cls, lake: Lake) -> "Memory":
        """Read the memory of a lake; nothing is forgotten where there is no such file.

        Raises
        ------
        InputError
            If the file is damaged. Without it an extract would bring back forgotten recordings.
        """
        return _read(lake)[0]


def _read(lake: Lake) -> tuple[Memory, Any]:
    """Read the memory of a lake and, in a bucket, the version of its file."""
    version = None
    try:
        if lake.is_local:
            data = lake.read(FORGOTTEN)
        else:
            data, version = cast(Bucket, lake.store).read_version(FORGOTTEN)
    except (FileNotFoundError, NotADirectoryError):
        return Memory(secrets.token_hex(32)), None
    try:
        content = json.loads(data)
        sets = {name: frozenset(map(str, content[name])) for name in _SETS}
        bytes.fromhex(content["key"])
        return Memory(content["key"], **sets), version
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{lake.uri(FORGOTTEN)} is damaged ({error}): restore it from a copy; without it an extract would bring "
            "back what was forgotten"
        ) from error


def change(lake: Lake, changed: Callable[[Memory], Memory]) -> Memory:
    """Change the memory of a lake; no concurrent change is lost.

    Parameters
    ----------
    lake : Lake
    changed : callable
        Takes the present memory and returns the new one. It may be called more than once.

    Returns
    -------
    Memory
        The new memory.
    """
    with lake.locked(FORGOTTEN.removesuffix(".json")):
        while True:
            before, version = _read(lake)
            after = changed(before)
            if after == before or not (after or before):
                return after
            data = json.dumps(
                {name: sorted(getattr(after, name)) for name in _SETS} | {"key": after.key},
                indent=1,
                sort_keys=True,
            ).encode()
            if lake.is_local:
                lake.write(FORGOTTEN, data + b"\n")
                return after
            if cast(Bucket, lake.store).swap(FORGOTTEN, data + b"\n", version) is not None:
                return after


def with_files(memory: Memory, digests: Iterable[str]) -> Memory:
    """A memory with more digests of files that hold forgotten content."""
    return replace(memory, files=memory.files | set(digests))


def without(memory: Memory, digests: Iterable[str]) -> Memory:
    """A memory without some digests, of any kind."""
    dropped = set(digests)
    return replace(memory, **{name: getattr(memory, name) - dropped for name in _SETS})
