"""The files of a corpus: list them, convert between uris and paths, and provide a file locally.

A uri is the absolute path, or the full URI in a bucket. A local name that is not UTF-8 becomes a percent-encoded
``file://`` URI, since no table can store it unchanged.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

from soundlake.model.errors import PASSING, InputError, storage_errors
from soundlake.pipelines.storage import opening
from soundlake.pipelines.storage.secrecy import refuse_secrets
from soundlake.pipelines.storage.store import Store, is_bucket

# Endings of files that often lie beside audio but are never audio: these are left out. All other files are listed, and
# the decoder judges by their content.
OTHER = frozenset(
    [
        ".cfg",
        ".csv",
        ".css",
        ".doc",
        ".docx",
        ".flo",
        ".gif",
        ".htm",
        ".html",
        ".ini",
        ".jpeg",
        ".jpg",
        ".js",
        ".json",
        ".jsonl",
        ".log",
        ".m3u",
        ".m3u8",
        ".md",
        ".md5",
        ".npy",
        ".npz",
        ".parquet",
        ".pdf",
        ".pkl",
        ".png",
        ".ppt",
        ".py",
        ".rst",
        ".sfz",
        ".sh",
        ".sha1",
        ".sha256",
        ".svg",
        ".textgrid",
        ".tif",
        ".tiff",
        ".toml",
        ".tsv",
        ".txt",
        ".xls",
        ".xlsx",
        ".xml",
        ".yaml",
        ".yml",
        ".zip",
        ".tar",
        ".gz",
        ".tgz",
        ".bz2",
        ".xz",
        ".7z",
        ".rar",
    ]
)

# Name of the partition of the files that lie directly in the corpus's folder. The other partitions are its subfolders,
# by name.
LOOSE = "."


@dataclass(frozen=True)
class Entry:
    """A listed file.

    Attributes
    ----------
    size, mtime_ns : int
        Bytes, and nanoseconds since 1970; -1 where the system does not report them.
    """

    size: int
    mtime_ns: int


def corpus_root(audio: str, *, may_be_gone: bool = False) -> str:
    """The uri of a corpus from the command line, checked.

    Raises
    ------
    InputError
        If there is no such folder (unless `may_be_gone`), if it may not be read, or if a URI contains a password.
    """
    refuse_secrets(audio)
    if not audio:
        raise InputError("the corpus path is empty: name a folder, such as . for the current one")
    if audio.startswith("file://"):
        audio = os.fsdecode(unquote_to_bytes(audio.removeprefix("file://")))
    if "://" in audio:
        return audio.rstrip("/")
    root = os.path.abspath(os.path.expanduser(audio))
    if not os.path.isdir(root) and not (may_be_gone and not os.path.exists(root)):
        reason = "it is a file: name the folder that holds it" if os.path.exists(root) else "there is no such folder"
        raise InputError(f"cannot read the corpus {audio}: {reason}")
    if os.path.exists(root) and not os.access(root, os.R_OK | os.X_OK):
        raise InputError(f"cannot read the corpus {audio}: no permission")
    return uri_of(os.fsencode(root))


def uri_of(path: bytes) -> str:
    """The uri of a local path."""
    try:
        return path.decode()
    except UnicodeDecodeError:
        return "file://" + quote_from_bytes(path)


def local_path(uri: str) -> bytes | None:
    """The local path of a uri; None for a uri in a bucket."""
    if uri.startswith("file://"):
        return unquote_to_bytes(uri.removeprefix("file://"))
    return None if "://" in uri else os.fsencode(uri)


def _left_out(name: bytes) -> bool:
    return name.startswith(b".") or os.path.splitext(name)[1].decode("ascii", "replace").lower() in OTHER


def partition_of(uri: str, root: str) -> str | None:
    """The partition of a corpus to which a file belongs; None if it is not a file of the corpus."""
    path, start = local_path(uri), local_path(root)
    whole, top = (os.fsencode(uri), os.fsencode(root)) if path is None or start is None else (path, start)
    if not whole.startswith(top + b"/"):
        return None
    first, slash, _ = whole[len(top) + 1 :].partition(b"/")
    return os.fsdecode(first) if slash else LOOSE


def in_partition(uri: str, root: str, partition: str | None) -> bool:
    """Whether a file belongs to a partition of a corpus; always True if `partition` is None, the whole corpus."""
    return partition is None or partition_of(uri, root) == partition


def partitions(root: str) -> list[str]:
    """The sorted partitions of a corpus: its folders by name, and `LOOSE` if files lie beside them.

    Every file that `listing` yields is in exactly one partition, by `in_partition`.
    """
    start = local_path(root)
    names = set()
    if start is None:
        with storage_errors(root):
            for info in opening.at(root).below("", recursive=False):
                if not info.is_folder:
                    names |= set() if _left_out(info.name.encode()) else {LOOSE}
                elif not info.name.startswith("."):
                    names.add(info.name)
        return sorted(names)
    with storage_errors(root), os.scandir(start) as entries:
        for entry in entries:
            if not entry.is_dir():
                names |= set() if _left_out(entry.name) else {LOOSE}
            elif not entry.name.startswith(b"."):
                names.add(os.fsdecode(entry.name))
    return sorted(names)


def listing(root: str, partition: str | None = None) -> Iterator[tuple[str, Entry] | None]:
    """Yield the files of a corpus or of one of its partitions, as (uri, entry); None for each file left out by name.

    Links to folders are followed, but each real folder only once, so a link to a parent folder ends. Hidden names are
    left out. A folder that may not be read is yielded as an entry with size -1, which becomes a rejection.
    """
    if is_bucket(root):
        yield from _remote_listing(root, partition)
        return
    start = local_path(root)
    assert start is not None
    if not os.path.isdir(start):
        # The corpus is gone. Whether the ledger may be emptied is checked later, when all files are counted.
        return
    waiting, seen = [start], {os.path.realpath(start)}
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            if error.errno in PASSING:
                # Otherwise its files would seem to be gone, and would be removed from the ledger.
                with storage_errors(os.fsdecode(folder)):
                    raise
            yield uri_of(folder), Entry(-1, -1)
            continue
        for entry in entries:
            try:
                is_folder = entry.is_dir()
            except OSError:
                is_folder = False
            # The partition selects among the entries of the corpus's own folder; deeper files come with their folder.
            if folder == start and partition not in (None, os.fsdecode(entry.name) if is_folder else LOOSE):
                continue
            if is_folder:
                real = os.path.realpath(entry.path)
                if entry.name.startswith(b".") or real in seen:
                    continue
                # A link to a folder inside the corpus: that folder is listed under its own name, so skip the link.
                if entry.is_symlink() and real.startswith(os.path.realpath(start) + b"/"):
                    continue
                seen.add(real)
                waiting.append(entry.path)
            elif _left_out(entry.name):
                yield None
            else:
                try:
                    info = entry.stat()
                    yield uri_of(entry.path), Entry(info.st_size, info.st_mtime_ns)
                except OSError:
                    yield uri_of(entry.path), Entry(-1, -1)


def _remote_listing(root: str, partition: str | None = None) -> Iterator[tuple[str, Entry] | None]:
    """`listing` for a bucket."""
    under = "" if partition in (None, LOOSE) else str(partition)
    with storage_errors(root):
        for info in opening.at(root).below(under, recursive=partition != LOOSE):
            *folders, name = info.name.split("/")
            if info.is_folder or any(folder.startswith(".") for folder in folders):
                continue
            if _left_out(name.encode()):
                yield None
            else:
                yield f"{root}/{info.name}", Entry(info.size, info.changed_ns)


def _placed(uri: str) -> tuple[Store, str]:
    """The store of a uri's folder, and the name of the file in it."""
    path = local_path(uri)
    folder, _, name = (uri if path is None else os.fsdecode(os.path.abspath(path))).rpartition("/")
    return opening.at(folder or "/"), name


def is_file(uri: str) -> bool:
    """Whether a file of this uri exists; False for a folder."""
    store, name = _placed(uri)
    with storage_errors(uri):
        info = store.info(name)
    return info is not None and not info.is_folder


def read_whole(uri: str) -> bytes:
    """Read a whole small file, such as a label file."""
    store, name = _placed(uri)
    with storage_errors(uri):
        return store.read(name)


@contextlib.contextmanager
def at_hand(uri: str) -> Iterator[bytes | str]:
    """Provide a local path of a recording; from a bucket it is copied to a temporary file for the length of the block.

    Raises
    ------
    OSError
        If the recording cannot be copied.
    TryLaterError
        If the bucket does not answer.
    """
    path = local_path(uri)
    if path is not None:
        yield path
        return
    store, name = _placed(uri)
    with tempfile.NamedTemporaryFile(prefix="soundlake-") as copy:
        store.copy_to(name, copy)
        copy.flush()
        yield copy.name
