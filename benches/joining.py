"""One bucket of each of extract's joins, through the pipeline's own steps: what a worker has of a large corpus at once.

Used by `python -m benches.planner`. Rows are numbers (`benches.rows`); which ones share a bucket changes nothing.
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
# As long as in a run: rows of the outcomes and of the ledger, of a recording in one bundle.
OUTCOME: Any = dict.fromkeys(OUTCOMES.names) | {"recording_id": "0" * 64, "uri": rows.uri(0), "status": ledger.DONE}
OUTCOME |= {"size": 10**9, "mtime_ns": MTIME_NS, "first": 5120, "count": 512, "expected": 512, "windows": 512}
OUTCOME |= {"probe": json.dumps([*rows.WAV[:4], 10**9, *rows.WAV[4:6]]), "samples": 90_000_000, "bundle": "0" * 32}
CONTENT: Any = {"recording_id": "0" * 64, "status": ledger.DONE, "container": "WAV", "codec": "PCM_16"}
CONTENT |= {"sample_rate": 44_100, "channels": 2, "claimed_s": 134.123456789, "duration_s": 134.123456789}
CONTENT |= {"windows": 131, "silent_windows": 0, "bundles": ["0" * 32], "uri": rows.uri(0)}


@dataclass
class Told:
    """What is known of a bucket: by its step microseconds of the processor, bytes that cross a shuffle, megabytes."""

    rows: int
    microseconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, float] = field(default_factory=dict)
    megabytes: dict[str, float] = field(default_factory=dict)
    work: float = 0.0

    def timed(self, what: str, made: Iterable[Any]) -> list[Any]:
        """All that an iterable makes, and how long it takes for each row."""
        began = time.process_time()
        found = list(made)
        self.microseconds[what] = (time.process_time() - began) / self.rows * 1e6
        return found

    def held(self, what: str, elements: list[bytes], step: Callable[[list[bytes]], Iterator[Any]]) -> None:
        """What a worker holds while a bucket goes through a step; elements are its own, as they come to a worker."""
        with Grown() as grown:
            for _ in step([bytes(bytearray(element)) for element in elements]):
                pass
        self.megabytes[what] = grown.megabytes


def _through(names: tuple[str, ...], step: Any) -> Callable[[list[bytes]], Iterator[Any]]:
    regroup = joins._Regroup(names)
    return lambda elements: (out for one in regroup.process((0, elements)) for out in step.process(one))


def _listed(uris: list[str], headers: list[tuple[Probe, int]]) -> Iterator[bytes]:
    for uri, (_, size) in zip(uris, headers, strict=True):
        yield joins._bucketed((uri, account.packed([size, MTIME_NS])), 0)[1]


def _found(candidates: list[Candidate], names: dict[str, tuple[str, Probe]]) -> Iterator[bytes]:
    """As `pipelines.extract.survey.probe_file` tells them, and without reading anything."""
    for one in candidates:
        name, probe = names[one.uri]
        yield joins._bucketed((name, account.packed(replace(one, before=None, probe=probe).values())), 0)[1]


def _known(uris: list[str], names: list[str], headers: list[tuple[Probe, int]]) -> Iterator[bytes]:
    for uri, name, (_, size) in zip(uris, names, headers, strict=True):
        row = [7, uri, name, CORPUS, size, MTIME_NS, None, None, None]
        yield joins._bucketed((uri, account.packed(row)), 1)[1]


def bucket(first: int, count: int) -> Told:
    """One bucket of each join, of `count` rows from the `first` on: all of them new, then all of them known."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    names, headers = rows.ids(numbers), rows.headers(numbers)
    uris = [rows.uri(number) for number in numbers.tolist()]
    compare = _through(("listed", "known", "labels", "left"), survey._Compare(CORPUS, None, TRANSIENT))
    recognise = _through(("found", "known", "left"), survey._Recognise(SPEC, CORPUS, TRANSIENT))
    told = Told(count)

    listed = told.timed("list", _listed(uris, headers))
    told.bytes["by uri: listed"] = sum(map(len, listed)) / count
    told.held("by uri, new", listed, compare)
    candidates = [one for one in told.timed("compare, new", compare(listed)) if isinstance(one, Candidate)]
    probes = {uri: (name, probe) for uri, name, (probe, _) in zip(uris, names, headers, strict=True)}
    found = told.timed("found", _found(candidates, probes))
    told.bytes["by content: found"] = sum(map(len, found)) / count
    told.held("by content, new", found, recognise)
    outputs = told.timed("recognise and cut", recognise(found))

    works = [one for one in outputs if isinstance(one, bytes)]
    told.work = sum(map(len, works)) / len(works)
    told.bytes["by bucket: works"] = sum(map(len, works)) / count
    told.timed("weigh", map(survey.weight, works))
    told.timed("place", (plan.bucket_of(Work.segment_of(one), 10**10) for one in works))
    told.timed("unpack", map(Work.unpacked, works))
    # A recording of many segments waits for what became of each of them.
    long = sum(len(one.value[1]) + 69 for one in outputs if getattr(one, "tag", None) == "long")
    parts = sum(Work.segment_of(one).key()[1:] != plan.WHOLE for one in works)
    told.bytes["by recording: outcomes"] = (long + parts * (len(account.packed(OUTCOME)) + 69)) / count

    known = list(_known(uris, names, headers))
    told.bytes["by uri: known"] = sum(map(len, known)) / count
    told.held("by uri, known", listed + known, compare)
    counted = told.timed("compare, known", compare(listed + known))
    unchanged = sum(one.value == ("unchanged", 1) for one in counted)
    assert unchanged == count, f"{unchanged} of {count} files are unchanged"
    content = [7, *(CONTENT.get(name) for name in [*account.CONTENT, "uri"])]
    told.bytes["by content: known"] = len(account.packed(content)) + 69
    return told
