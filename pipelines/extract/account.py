"""Files and the ledger: whether a file is known, new, changed or a copy of known content, and its row in the ledger.

Pure functions of one file or recording. Values that cross a shuffle are packed into a few bytes, since the local
engine holds shuffles in memory: JSON lists, in the order of the fields.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any

from soundlake.model.features.log_mel import FeatureSpec
from soundlake.pipelines.audio.reading import DECODER_VERSION, Probe
from soundlake.pipelines.audio.recording import TRANSIENT
from soundlake.pipelines.extract import plan
from soundlake.pipelines.extract.plan import Segment
from soundlake.pipelines.lake import ledger
from soundlake.pipelines.lake.ledger import DONE, REJECTED, Row

# Columns of a ledger row that describe the content of a file, whatever its name.
CONTENT = ["recording_id", "status", "stage", "reason", "detail", "container", "codec", "sample_rate", "channels"]
CONTENT += ["claimed_s", "duration_s", "windows", "silent_windows", "bundles", "decoder", "notes"]

# Columns that decide whether a ledger row still describes a file.
KNOWN = ["recording_id", "corpus", "size", "mtime_ns", "reason", "label", "group", "decoder"]


# Made once: `json.dumps` makes an encoder for each call, which takes as long as the encoding.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_DECODER = json.JSONDecoder()


def packed(values: Sequence[Any]) -> bytes:
    """A list of plain values as bytes."""
    return _ENCODER.encode(values).encode()


@dataclass(frozen=True)
class Candidate:
    """A file without an up-to-date row in the ledger.

    Attributes
    ----------
    uri : str
    size, mtime_ns : int
        As listed; -1 where the system gives none.
    label, group : str or None
    before : str or None
        The reason for which the ledger rejects the file, if the same file is only tried again.
    replaces : int or None
        The fragment of the ledger that holds the file's old row.
    probe : Probe or None
        The contents of its header, once they were read.
    """

    uri: str
    size: int
    mtime_ns: int
    label: str | None = None
    group: str | None = None
    before: str | None = None
    replaces: int | None = None
    probe: Probe | None = None

    def values(self) -> list[Any]:
        """The fields as plain values, for `of`."""
        return [*_FILE(self), None if self.probe is None else _HEADER(self.probe)]

    @classmethod
    def of(cls, values: Sequence[Any]) -> "Candidate":
        """The inverse of `values`."""
        uri, size, mtime_ns, label, group, before, replaces, header = values
        return cls(uri, size, mtime_ns, label, group, before, replaces, None if header is None else Probe(*header))

    def row(self, corpus: str) -> Row:
        """The part of a ledger row that describes the file and its header, and the fragment of its old row."""
        row = ledger.row(uri=self.uri, corpus=corpus, size=self.size, mtime_ns=self.mtime_ns)
        row |= {"label": self.label, "group": self.group, ledger.REPLACES: self.replaces}
        header = self.probe
        if header is not None:
            row |= {"container": header.container, "codec": header.codec, "channels": header.channels}
            row["sample_rate"] = header.sample_rate
            row["claimed_s"] = header.claimed_frames / header.sample_rate if header.claimed_frames else None
        return row

    def rejection(self, corpus: str, *, stage: str, reason: str, detail: str) -> Row:
        """The ledger row of a file that could not be read."""
        row = self.row(corpus) | {"status": REJECTED, "stage": stage, "reason": reason, "detail": detail}
        return row | {"bundles": [], "decoder": DECODER_VERSION}


# Plain values of a candidate without its header, and of a header. `dataclasses.astuple` would copy all values, at ten
# times the cost.
_FILE = attrgetter(*(field.name for field in fields(Candidate) if field.name != "probe"))
_HEADER = attrgetter(*(field.name for field in fields(Probe)))


@dataclass(frozen=True)
class Work:
    """A segment to extract.

    Attributes
    ----------
    segment : Segment
    files : tuple of Candidate
        Files that hold its recording; the first is decoded. For a recording of one segment these are all its files. A
        recording of several segments has only the first here; its files wait elsewhere for all its segments.
    outcome : dict or None
        Its outcome, if another finished bundle has it already.
    """

    segment: Segment
    files: tuple[Candidate, ...]
    outcome: Row | None = None

    @property
    def probe(self) -> Probe:
        """The header of its recording."""
        header = self.files[0].probe
        assert header is not None
        return header

    def packed(self) -> bytes:
        """The work as bytes, for `unpacked`."""
        segment = self.segment
        place = [segment.recording_id, segment.first, segment.count, segment.windows]
        return packed([place, [candidate.values() for candidate in self.files], self.outcome])

    @staticmethod
    def segment_of(data: bytes) -> Segment:
        """The segment of a packed work, read without the rest: planning needs no more."""
        return Segment(*_DECODER.raw_decode(data.decode(), 1)[0])

    @classmethod
    def unpacked(cls, data: bytes) -> "Work":
        """The inverse of `packed`."""
        place, files, outcome = json.loads(data)
        return cls(Segment(*place), tuple(Candidate.of(values) for values in files), outcome)


def recognise(
    found: Sequence[Candidate], known: Sequence[Row], corpus: str, *, retried: frozenset[str] = TRANSIENT
) -> list[Row]:
    """Rows of files whose content the ledger has under any name; none if the content is new."""
    content = [row for row in known if row["reason"] not in retried]
    if not content:
        return []
    first = min(content, key=lambda row: row["uri"])
    return [candidate.row(corpus) | {name: first[name] for name in CONTENT} for candidate in found]


def cut(recording_id: str, found: Sequence[Candidate], left: Sequence[Row], spec: FeatureSpec) -> list[Work]:
    """The segments of a new recording, each with its outcome if a finished bundle of a killed run holds it."""
    first = found[0]
    assert first.probe is not None
    # The same segment may be in two such bundles. Either would do; the first by name is taken.
    done = {(row["first"], row["count"]): row for row in sorted(left, key=lambda row: row["bundle"], reverse=True)}
    segments = list(plan.segments(recording_id, first.probe, first.size, spec))
    files = tuple(found if len(segments) == 1 else found[:1])
    return [Work(segment, files, done.get(segment.key()[1:])) for segment in segments]


def settle(
    recording_id: str, found: Sequence[Candidate], outcomes: Sequence[Row], spec: FeatureSpec, corpus: str
) -> list[Row]:
    """Ledger rows of one new recording, from the outcomes of its segments: one for each file that holds it.

    Raises
    ------
    RuntimeError
        If a segment has no outcome, or more than one: the run must not commit.
    """
    if not found:
        raise RuntimeError(f"recording {recording_id} has outcomes and no file: records were lost on the way")
    first = found[0]
    assert first.probe is not None
    wanted = sorted(s.key() for s in plan.segments(recording_id, first.probe, first.size, spec))
    parts = sorted(outcomes, key=lambda o: o["first"])
    existing = [(recording_id, o["first"], o["count"]) for o in parts]
    if wanted != existing:
        lost = sorted(set(wanted) ^ set(existing)) or existing
        raise RuntimeError(f"{first.uri}: {len(lost)} segments are not accounted for, the first is {lost[0]}")
    windows, silent = sum(o["windows"] for o in parts), sum(o["silent_windows"] for o in parts)
    content: Row = {"recording_id": recording_id, "status": DONE, "windows": windows, "silent_windows": silent}
    # An earlier run that was killed may have left outcomes of an older decoder.
    content["decoder"] = min(o["decoder"] or 1 for o in parts)
    content["duration_s"] = max(o["samples"] for o in parts) / spec.sample_rate
    bad = next((o for o in parts if o["status"] == REJECTED), None)
    if bad is not None:
        content |= {name: bad[name] for name in ("status", "stage", "reason", "detail")}
    elif windows == 0:
        content |= {"status": REJECTED, "stage": "features", "reason": "silent"}
        content["detail"] = f"{content['duration_s']:.3f} s, {first.probe.channels} channels"
    else:
        notes = set(first.probe.notes).union(*(o["notes"] or [] for o in parts))
        claimed_s = first.row(corpus)["claimed_s"]
        if ledger.is_other_length(claimed_s, content["duration_s"]):
            notes.add("other-length")
        content["notes"] = sorted(notes) or None
    content["bundles"] = sorted({o["bundle"] for o in parts if o["windows"]}) if content["status"] == DONE else []
    return [replace(candidate, probe=first.probe).row(corpus) | content for candidate in found]
