"""One bucket of each of extract's joins in the pipeline's own steps: a worker's share of a large corpus at one time.

Used by `python -m benches.planner`. Rows are numbers (`benches.rows`); it does not matter which rows share a bucket.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from benches import rows
from benches.growth import Grown
from soundlake.model.features.log_mel import PRESETS
from soundlake.pipelines.audio.reading import Probe
from soundlake.pipelines.audio.recording import TRANSIENT
from soundlake.pipelines.engine import joins
from soundlake.pipelines.extract import account, plan, survey
from soundlake.pipelines.extract.account import Candidate, Work
from soundlake.pipelines.extract.bundle import OUTCOMES
from soundlake.pipelines.lake import ledger

SPEC = PRESETS["general"]
CORPUS, MTIME_NS = "s3://a-large-corpus/audio", 1_790_000_000_000_000_000
# Rows of the outcomes and of the ledger for a recording in one bundle, as long as in a real run.
OUTCOME: Any = dict.fromkeys(OUTCOMES.names) | {"recording_id": "0" * 64, "uri": rows.uri(0), "status": ledger.DONE}
OUTCOME |= {"size": 10**9, "mtime_ns": MTIME_NS, "first": 5120, "count": 512, "expected": 512, "windows": 512}
OUTCOME |= {"probe": json.dumps([*rows.WAV[:4], 10**9, *rows.WAV[4:6]]), "samples": 90_000_000, "bundle": "0" * 32}
CONTENT: Any = {"recording_id": "0" * 64, "status": ledger.DONE, "container": "WAV", "codec": "PCM_16"}
CONTENT |= {"sample_rate": 44_100, "channels": 2, "claimed_s": 134.123456789, "duration_s": 134.123456789}
CONTENT |= {"windows": 131, "silent_windows": 0, "bundles": ["0" * 32], "uri": rows.uri(0)}


@dataclass
class Told:
    """Measurements of a bucket: microseconds of the processor, bytes per row in a shuffle, and megabytes, by step."""

    rows: int
    microseconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, float] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)
    work: float = 0.0

    def timed(self, what: str, made: Iterable[Any]) -> list[Any]:
        """List the elements of an iterable, and record the time per row."""
        began = time.process_time()
        elements = list(made)
        self.microseconds[what] = (time.process_time() - began) / self.rows * 1e6
        return elements

    def held(self, what: str, elements: list[bytes], step: Callable[[list[bytes]], Iterator[Any]]) -> None:
        """Record the memory of a bucket in a step; elements are copied, as they arrive at a worker."""
        with Grown() as grown:
            for _ in step([bytes(bytearray(element)) for element in elements]):
                pass
        self.megabytes[what] = grown.megabytes


def _through(names: tuple[str, ...], step: Any) -> Callable[[list[bytes]], Iterator[Any]]:
    regroup = joins._Regroup(names)
    return lambda elements: (output for group in regroup.process((0, elements)) for output in step.process(group))


def _listed(uris: list[str], headers: list[tuple[Probe, int]]) -> Iterator[bytes]:
    for uri, (_, size) in zip(uris, headers, strict=True):
        yield joins._bucketed((uri, account.packed([size, MTIME_NS])), 0)[1]


def _found(candidates: list[Candidate], names: dict[str, tuple[str, Probe]]) -> Iterator[bytes]:
    """The output of `pipelines.extract.survey.probe_file`, without reading any file."""
    for candidate in candidates:
        name, probe = names[candidate.uri]
        yield joins._bucketed((name, account.packed(replace(candidate, before=None, probe=probe).values())), 0)[1]


def _known(uris: list[str], names: list[str], headers: list[tuple[Probe, int]]) -> Iterator[bytes]:
    for uri, name, (_, size) in zip(uris, names, headers, strict=True):
        row = [7, uri, name, CORPUS, size, MTIME_NS, None, None, None]
        yield joins._bucketed((uri, account.packed(row)), 1)[1]


def bucket(first: int, count: int) -> Told:
    """Measure one bucket of each join, of `count` rows from the `first` on: first all new, then all known."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    names, headers = rows.ids(numbers), rows.headers(numbers)
    uris = [rows.uri(number) for number in numbers.tolist()]
    compare = _through(("listed", "known", "labels", "left"), survey._Compare(CORPUS, None, TRANSIENT))
    recognise = _through(("found", "known", "left"), survey._Recognise(SPEC, CORPUS, TRANSIENT))
    stats = Told(count)

    listed = stats.timed("list", _listed(uris, headers))
    stats.bytes["by uri: listed"] = sum(map(len, listed)) / count
    stats.held("by uri, new", listed, compare)
    candidates = [item for item in stats.timed("compare, new", compare(listed)) if isinstance(item, Candidate)]
    probes = {uri: (name, probe) for uri, name, (probe, _) in zip(uris, names, headers, strict=True)}
    probed = stats.timed("found", _found(candidates, probes))
    stats.bytes["by content: found"] = sum(map(len, probed)) / count
    stats.held("by content, new", probed, recognise)
    outputs = stats.timed("recognise and cut", recognise(probed))

    works = [item for item in outputs if isinstance(item, bytes)]
    stats.work = sum(map(len, works)) / len(works)
    stats.bytes["by bucket: works"] = sum(map(len, works)) / count
    stats.timed("weigh", map(survey.weight, works))
    stats.timed("place", (plan.bucket_of(Work.segment_of(item), 10**10) for item in works))
    stats.timed("unpack", map(Work.unpacked, works))
    # A recording of many segments waits for the outcomes of all of them.
    long_bytes = sum(len(item.value[1]) + 69 for item in outputs if getattr(item, "tag", None) == "long")
    parts = sum(Work.segment_of(item).key()[1:] != plan.WHOLE for item in works)
    stats.bytes["by recording: outcomes"] = (long_bytes + parts * (len(account.packed(OUTCOME)) + 69)) / count

    known = list(_known(uris, names, headers))
    stats.bytes["by uri: known"] = sum(map(len, known)) / count
    stats.held("by uri, known", listed + known, compare)
    counted = stats.timed("compare, known", compare(listed + known))
    unchanged = sum(item.value == ("unchanged", 1) for item in counted)
    assert unchanged == count, f"{unchanged} of {count} files are unchanged"
    content = [7, *(CONTENT.get(name) for name in [*account.CONTENT, "uri"])]
    stats.bytes["by content: known"] = len(account.packed(content)) + 69
    return stats
