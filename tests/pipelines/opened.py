"""Every file of a lake, opened with a reader of its own kind that is not ours: what a thorough search would read."""

import base64
import io
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from lance.file import LanceFileReader
from pyarrow import parquet


def records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Records of a TFRecord file with their offsets, by the format's own description; a cut one as far as it goes."""
    at = 0
    while at + 12 <= len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        yield at, data[at + 12 : at + 12 + size]
        at += size + 16


def example(data: bytes) -> dict[str, Any]:
    """Features of a ``tf.train.Example``, by TensorFlow."""
    import tensorflow as tf

    feature = tf.train.Example.FromString(data).features.feature
    return {name: (one.bytes_list.value or one.int64_list.value)[0] for name, one in feature.items()}


def _cells(table: pa.Table) -> Iterator[bytes]:
    """Texts of a table as they are, and the numbers of vectors as float32."""
    for column in table.columns:
        if pa.types.is_fixed_size_list(column.type):
            for chunk in column.chunks:
                yield chunk.flatten().to_numpy(zero_copy_only=False).astype("<f4").tobytes()
        else:
            yield "\n".join(map(str, column.to_pylist())).encode(errors="surrogateescape")


def _texts(value: Any) -> Iterator[bytes]:
    if isinstance(value, str):
        yield value.encode(errors="surrogatepass")
    elif isinstance(value, dict):
        for item in value.items():
            yield from _texts(list(item))
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)


def _inside(path: Path, data: bytes) -> Iterator[bytes]:
    name = str(path)
    if "/shards/" in name:
        for _, record in records(data):
            try:
                for value in example(record).values():
                    yield value if isinstance(value, bytes) else b""
            except Exception:
                yield record
    elif ".lance/data/" in name or ("/_indices/" in name and path.suffix in (".idx", ".lance")):
        # All rows of the file, those that a deletion file takes out, too.
        yield from _cells(LanceFileReader(name).read_all().to_table())
    elif path.suffix == ".parquet":
        yield from _cells(parquet.read_table(io.BytesIO(data)))
    elif path.suffix in (".npy", ".npz"):
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
        for array in loaded.values() if path.suffix == ".npz" else [loaded]:
            yield array.tobytes()
            yield array.astype(array.dtype.newbyteorder()).tobytes()
    elif path.suffix == ".html":
        for media in re.findall(rb"base64,([A-Za-z0-9+/=]+)", data):
            yield base64.b64decode(media)
    elif path.suffix == ".json":
        yield from _texts(json.loads(data))


def files(lake: Path) -> Iterator[tuple[Path, list[bytes]]]:
    """Each file of a lake: its bytes, and what its reader makes of them."""
    for path in sorted(lake.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            try:
                yield path, [data, *_inside(path, data)]
            except (OSError, ValueError, RuntimeError):
                yield path, [data]  # half written


def versions(lake: Path) -> Iterator[tuple[Path, list[bytes]]]:
    """Each version of each Lance dataset, read with its deleted rows."""
    for path in sorted(lake.rglob("*.lance")):
        if path.is_dir():
            for one in lance.dataset(path).versions():
                rows = lance.dataset(path, version=one["version"]).scanner(include_deleted_rows=True, with_row_id=True)
                yield path, list(_cells(rows.to_table()))


def holding(lake: Path, needles: dict[str, list[bytes]]) -> dict[str, set[str]]:
    """Which needles are in which files, by kind of needle: names of files in the lake."""
    found: dict[str, set[str]] = {kind: set() for kind in needles}
    for path, contents in [*files(lake), *versions(lake)]:
        name = str(path.relative_to(lake))
        contents = [*contents, name.encode()]
        for kind, some in needles.items():
            if any(needle in content for needle in some for content in contents):
                found[kind].add(name)
    return found
