"""Join small things by key, with little memory for each.

Beam's own ``CoGroupByKey`` costs the local engine, which holds shuffles in memory, about a kilobyte a key. Here a
shuffle sees a few hundred keys, whatever the number of files: digests of the real keys, cut short. What shares one is
put in order by whoever gets it.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam

# A hundred million files give a bucket two hundred thousand of them: 100 MB.
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
        # As they came, whatever the number of sources: a bucket is the most that a worker holds of a corpus.
        found: dict[bytes, list[bytes]] = {}
        for data in element[1]:
            found.setdefault(data[5 : 5 + int.from_bytes(data[1:5], "big")], []).append(data)
        for name, parts in found.items():
            values: dict[str, list[bytes]] = {source: [] for source in self.names}
            for data in parts:
                values[self.names[data[0]]].append(data[5 + len(name) :])
            yield name.decode(), values


def joined(label: str, sources: Mapping[str, Any]) -> Any:
    """Join PCollections of (str, bytes) by key.

    Parameters
    ----------
    label : str
        What the steps are called.
    sources : mapping of str to PCollection
        At most 256.

    Returns
    -------
    PCollection of (str, dict of str to list of bytes)
        A key, and its values by the name of the source; every source has a list.
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
