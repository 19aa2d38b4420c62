"""Joins of small values by key, with little memory for each key.

The local engine holds shuffles in memory, and Beam's own ``CoGroupByKey`` costs it about a kilobyte a key. Here the
shuffle has only a few hundred keys, whatever the number of files: the real keys are hashed into buckets. The worker
that receives a bucket groups its values by the real keys.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam

# With a hundred million files, a bucket holds two hundred thousand of them: 100 MB.
BUCKETS = 512


def _bucketed(element: tuple[str, bytes], source: int) -> tuple[int, bytes]:
    key, value = element
    name = key.encode()
    digest = hashlib.blake2b(name, digest_size=8).digest()
    bucket = int.from_bytes(digest, "big") % BUCKETS
    return bucket, b"".join((source.to_bytes(1, "big"), len(name).to_bytes(4, "big"), name, value))


class _Regroup(beam.DoFn):
    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def process(self, element: tuple[int, Iterable[bytes]]) -> Iterator[tuple[str, dict[str, list[bytes]]]]:
        # The values stay packed until a key's turn: a bucket is the largest part of a corpus that a worker holds.
        by_name: dict[bytes, list[bytes]] = {}
        for data in element[1]:
            by_name.setdefault(data[5 : 5 + int.from_bytes(data[1:5], "big")], []).append(data)
        for name, parts in by_name.items():
            values: dict[str, list[bytes]] = {source: [] for source in self.names}
            for data in parts:
                values[self.names[data[0]]].append(data[5 + len(name) :])
            yield name.decode(), values


def joined(label: str, sources: Mapping[str, Any]) -> Any:
    """Join PCollections of (str, bytes) by key.

    Parameters
    ----------
    label : str
        Prefix of the names of the steps.
    sources : mapping of str to PCollection
        At most 256.

    Returns
    -------
    PCollection of (str, dict of str to list of bytes)
        A key, and the list of its values in each source, by the name of the source.
    """
    parts = [
        source | f"{label}: {name}" >> beam.Map(_bucketed, number).with_output_types(tuple[int, bytes])
        for number, (name, source) in enumerate(sources.items())
    ]
    return (
        parts
        | f"{label}: all" >> beam.Flatten()
        | f"{label}: gather" >> beam.GroupByKey()
        | f"{label}: regroup" >> beam.ParDo(_Regroup(list(sources)))
    )
