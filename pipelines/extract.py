"""Extract: corpus → log-mel shards and ledger, as one Beam pipeline.

list ▶ compare with the ledger ▶ probe ▶ recognise known content ▶ plan bundles ▶ decode, log-mel, write ▶ ledger rows

Only names and numbers cross a shuffle, never sound. Workers write whole files; the driver makes one commit.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import AsDict, AsList, AsSingleton, TaggedOutput

from model.errors import InputError
from model.features import FeatureSpec
from pipelines import ledger, plan
from pipelines.audio import Probe, Rejected, probe
from pipelines.bundle import Work, write_bundle
from pipelines.corpus import Entry, at_hand, listing, read_labels
from pipelines.lake import Lake, Run
from pipelines.ledger import DONE, GONE, REJECTED, Row, fragment_of
from pipelines.runners import run_pipeline

# Columns of a ledger row that tell about the bytes, whatever the file is called.
CONTENT = [
    "recording_id",
    "status",
    "stage",
    "reason",
    "detail",
    "container",
    "codec",
    "sample_rate",
    "channels",
    "claimed_s",
    "duration_s",
    "windows",
    "silent_windows",
    "bundles",
]


@dataclass(frozen=True)
class Candidate:
    """A file to probe or, probed, to extract."""

    uri: str
    entry: Entry
    label: str | None
    group: str | None
    probe: Probe | None = None


def settle(
    found: Sequence[Candidate], outcomes: Sequence[Row], recording_id: str, spec: FeatureSpec, corpus: str
) -> Iterator[Row]:
    """Ledger rows of one new recording, from what became of its segments: one for each file that holds it.

    Raises
    ------
    RuntimeError
        If a segment has no outcome: the run must not commit.
    """
    first = found[0]
    assert first.probe is not None
    wanted = {s.key() for s in plan.segments(recording_id, first.probe, first.entry.size, spec)}
    by_key = {(recording_id, o["first"], o["count"]): o for o in outcomes}
    if wanted != set(by_key):
        lost = sorted(wanted - set(by_key)) or sorted(set(by_key) - wanted)
        raise RuntimeError(f"{first.uri}: {len(lost)} segments are not accounted for, the first is {lost[0]}")
    parts = [by_key[key] for key in sorted(by_key)]
    windows, silent = sum(o["windows"] for o in parts), sum(o["silent_windows"] for o in parts)
    content: Row = {"recording_id": recording_id, "status": DONE, "windows": windows, "silent_windows": silent}
    content["duration_s"] = max(o["samples"] for o in parts) / spec.sample_rate
    bad = next((o for o in parts if o["status"] == REJECTED), None)
    if bad is not None:
        content |= {name: bad[name] for name in ("status", "stage", "reason", "detail")}
    elif windows == 0:
        content |= {"status": REJECTED, "stage": "features", "reason": "silent"}
        content["detail"] = f"{content['duration_s']:.3f} s, {first.probe.channels} channels"
    content["bundles"] = sorted({o["bundle"] for o in parts if o["windows"]}) if content["status"] == DONE else []
    for candidate in found:
        yield _row(candidate, corpus) | content


def _row(candidate: Candidate, corpus: str) -> Row:
    """The part of a ledger row that tells about a file, its header included."""
    found = candidate.probe
    row = ledger.row(uri=candidate.uri, corpus=corpus, size=candidate.entry.size, mtime_ns=candidate.entry.mtime_ns)
    row |= {"label": candidate.label, "group": candidate.group}
    if found is not None:
        row |= {"container": found.container, "codec": found.codec, "channels": found.channels}
        row["sample_rate"] = found.sample_rate
        row["claimed_s"] = found.claimed_frames / found.sample_rate if found.claimed_frames else None
    return row


class _Compare(beam.DoFn):
    """What a listed file is to the ledger: known, to be probed, or, where no file is left, gone."""

    def __init__(self, corpus: str) -> None:
        self.corpus = corpus

    def process(self, element: tuple[str, Mapping[str, Iterable[Any]]]) -> Iterator[Any]:
        uri, joined = element
        entry, row, labels = (next(iter(joined[name]), None) for name in ("listed", "known", "labels"))
        if entry is None:
            if row is not None and row["corpus"] == self.corpus:
                yield TaggedOutput("rows", row | {"status": GONE})
            elif row is None:
                yield TaggedOutput("counts", ("labels without a file", 1))
            return
        yield TaggedOutput("counts", ("listed", 1))
        labels = labels or {"label": None, "group": None}
        if row is not None and plan.is_known(entry, row):
            now = row | labels | {"corpus": self.corpus}
            if now != row:
                yield TaggedOutput("rows", now)
            else:
                yield TaggedOutput("counts", ("unchanged", 1))
        else:
            yield Candidate(uri, entry, labels["label"], labels["group"])


class _Probe(beam.DoFn):
    """Read a file's header and digest: (recording_id, candidate), or a ledger row that rejects it."""

    def __init__(self, corpus: str) -> None:
        self.corpus = corpus

    def process(self, candidate: Candidate) -> Iterator[Any]:
        try:
            with at_hand(candidate.uri) as path:
                # First: it refuses what is no regular file, and to read a pipe waits for ever.
                found = probe(path)  # type: ignore[arg-type]
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
        except Rejected as error:
            row = _row(candidate, self.corpus) | {"status": REJECTED, "stage": error.stage, "reason": error.reason}
            yield TaggedOutput("rows", row | {"detail": error.detail, "bundles": []})
        except OSError as error:
            row = _row(candidate, self.corpus) | {"status": REJECTED, "stage": "probe", "reason": "unreadable"}
            yield TaggedOutput("rows", row | {"detail": error.strerror or type(error).__name__, "bundles": []})
        else:
            yield digest, Candidate(candidate.uri, candidate.entry, candidate.label, candidate.group, found)


class _Recognise(beam.DoFn):
    """Content that the ledger knows under another name gets its row without decoding; the rest is new."""

    def __init__(self, corpus: str) -> None:
        self.corpus = corpus

    def process(self, element: tuple[str, Mapping[str, Iterable[Any]]]) -> Iterator[Any]:
        recording_id, joined = element
        found = sorted(joined["found"], key=lambda candidate: candidate.uri)
        known = [row for row in joined["known"] if row["reason"] not in plan.TRANSIENT]
        if not found:
            return
        if known:
            content = min(known, key=lambda row: row["uri"])
            for candidate in found:
                yield TaggedOutput("rows", _row(candidate, self.corpus) | {name: content[name] for name in CONTENT})
        else:
            yield recording_id, found


class _ReadLedger(beam.DoFn):
    """Rows of one fragment of the ledger, at a pinned version."""

    def __init__(self, uri: str, version: int) -> None:
        self.uri, self.version = uri, version

    def process(self, fragment: int) -> Iterator[Row]:
        for batch in fragment_of(self.uri, self.version, fragment).to_batches():
            yield from batch.to_pylist()


class _WriteBundle(beam.DoFn):
    def __init__(self, lake: Lake, spec: FeatureSpec) -> None:
        self.lake, self.spec = lake, spec

    def process(self, works: tuple[Work, ...]) -> Iterator[tuple[str, Row]]:
        bundle = plan.bundle_id(self.spec, [work.segment for work in works])
        for outcome in write_bundle(self.lake, self.spec, works):
            yield outcome["recording_id"], outcome | {"bundle": bundle}


class _Settle(beam.DoFn):
    def __init__(self, spec: FeatureSpec, corpus: str) -> None:
        self.spec, self.corpus = spec, corpus

    def process(self, element: tuple[str, Mapping[str, Iterable[Any]]]) -> Iterator[Row]:
        recording_id, joined = element
        found = next(iter(joined["new"]))
        yield from settle(found, list(joined["outcomes"]), recording_id, self.spec, self.corpus)


def _cut(element: tuple[str, list[Candidate]], spec: FeatureSpec) -> Iterator[Work]:
    recording_id, found = element
    first = found[0]
    assert first.probe is not None
    for segment in plan.segments(recording_id, first.probe, first.entry.size, spec):
        yield Work(segment, first.uri, first.probe)


def _pack(element: tuple[int, Iterable[Work]], total: int) -> Iterator[tuple[Work, ...]]:
    works = {work.segment: work for work in element[1]}
    for packed in plan.pack(works, total):
        yield tuple(works[segment] for segment in packed)


def _summarise(_: Any, counts: Mapping[str, int], parts: Iterable[str], lake: Lake, name: str) -> None:
    lake.write(name, json.dumps({"counts": dict(counts), "parts": sorted(parts)}, sort_keys=True).encode())


def _kind(row: Row) -> tuple[str, int]:
    return ("rows " + row["status"], 1)


def build(pipeline: beam.Pipeline, lake: Lake, spec: FeatureSpec, corpus: str, *, labels: str | None, run: Run) -> None:
    """Apply the whole of extract to a pipeline; its result is ``summary.json`` in the run's folder."""
    before = ledger.open_ledger(lake, spec.spec_id)
    fragments = [] if before is None else [fragment.fragment_id for fragment in before.get_fragments()]
    version = 0 if before is None else int(before.version)
    tags = ("rows", "counts")

    listed = (
        pipeline
        | "corpus" >> beam.Create([corpus])
        | "list" >> beam.FlatMap(listing)
        | "left out or listed" >> beam.ParDo(_Split()).with_outputs("counts", main="listed")
    )
    known = (
        pipeline
        | "ledger fragments" >> beam.Create(fragments)
        | "read ledger" >> beam.ParDo(_ReadLedger(lake.ledger_uri(spec.spec_id), version))
    )
    named = (
        pipeline
        | "label file" >> beam.Create([] if labels is None else [labels])
        | "read labels" >> beam.FlatMap(read_labels, corpus)
    )
    compared = (
        {"listed": listed.listed, "known": known | "by uri" >> beam.Map(lambda row: (row["uri"], row)), "labels": named}
        | "join by uri" >> beam.CoGroupByKey()
        | "compare" >> beam.ParDo(_Compare(corpus)).with_outputs(*tags, main="candidates")
    )
    probed = (
        compared.candidates
        | "spread files" >> beam.Reshuffle()
        | "probe" >> beam.ParDo(_Probe(corpus)).with_outputs("rows", main="found")
    )
    contents = known | "with content" >> beam.FlatMap(
        lambda row: [(row["recording_id"], row)] if row["recording_id"] else []
    )
    recognised = (
        {"found": probed.found, "known": contents}
        | "join by content" >> beam.CoGroupByKey()
        | "recognise" >> beam.ParDo(_Recognise(corpus)).with_outputs("rows", main="new")
    )
    works = recognised.new | "cut" >> beam.FlatMap(_cut, spec)
    total = AsSingleton(
        works | "weigh" >> beam.Map(lambda work: work.segment.windows) | "total" >> beam.CombineGlobally(sum)
    )
    outcomes = (
        works
        | "bucket" >> beam.Map(lambda work, n: (plan.bucket_of(work.segment.recording_id, n), work), total)
        | "gather buckets" >> beam.GroupByKey()
        | "pack" >> beam.FlatMap(_pack, total)
        | "spread bundles" >> beam.Reshuffle()
        | "write bundles" >> beam.ParDo(_WriteBundle(lake, spec))
    )
    settled = (
        {"new": recognised.new, "outcomes": outcomes}
        | "join outcomes" >> beam.CoGroupByKey()
        | "settle" >> beam.ParDo(_Settle(spec, corpus))
    )
    rows = (compared.rows, probed.rows, recognised.rows, settled) | "all rows" >> beam.Flatten()
    parts = (
        rows
        | "batch rows" >> beam.BatchElements(min_batch_size=4096, max_batch_size=65_536)
        | "write rows" >> beam.Map(lambda batch: ledger.write_part(lake, run.folder, batch))
    )
    counts = (
        (listed.counts, compared.counts, rows | "kinds" >> beam.Map(_kind))
        | "all counts" >> beam.Flatten()
        | "count" >> beam.CombinePerKey(sum)
    )
    (
        pipeline
        | "end" >> beam.Create([None])
        | "summarise"
        >> beam.Map(_summarise, AsDict(counts), AsList(parts), lake=lake, name=f"{run.folder}/summary.json")
    )


class _Split(beam.DoFn):
    def process(self, found: tuple[str, Entry] | None) -> Iterator[Any]:
        if found is None:
            yield TaggedOutput("counts", ("left out", 1))
        else:
            yield found


def extract(
    lake: Lake,
    spec: FeatureSpec,
    corpus: str,
    *,
    labels: str | None,
    run: Run,
    options: Any,
    allow_empty: bool = False,
) -> dict[str, Any]:
    """Bring the lake's features of a corpus up to date.

    Parameters
    ----------
    lake, spec : Lake, FeatureSpec
    corpus : str
        From `pipelines.corpus.corpus_root`.
    labels : str or None
        A label file, from `pipelines.corpus.find_labels`.
    run : Run
        Its folder takes the rows until they are committed.
    options : PipelineOptions
        From `pipelines.runners.beam_options`.
    allow_empty : bool
        Whether a corpus that held files may hold none now, and all of them leave the ledger.

    Returns
    -------
    dict
        ``listed``, ``left_out``, ``unchanged``, ``done``, ``rejected``, ``gone``: files of this run; and the
        ``ledger_version``, newer than before only if a row changed.

    Raises
    ------
    InputError
        If the corpus is empty now and was not before; nothing is committed then.
    RuntimeError
        If files listed and files accounted for differ; nothing is committed then.
    """
    spec_name = f"{Lake.spec(spec.spec_id)}/spec.json"
    if not lake.exists(spec_name):
        lake.write(spec_name, spec.canonical_json().encode() + b"\n")
    run_pipeline(lambda p: build(p, lake, spec, corpus, labels=labels, run=run), options)
    summary = json.loads(lake.read(f"{run.folder}/summary.json"))
    counts = summary["counts"]
    totals = {name: counts.get(name, 0) for name in ("listed", "unchanged")}
    totals |= {name: counts.get(f"rows {name}", 0) for name in (DONE, REJECTED, GONE)}
    totals |= {"left_out": counts.get("left out", 0), "labels_without_file": counts.get("labels without a file", 0)}
    if totals["listed"] != totals["unchanged"] + totals[DONE] + totals[REJECTED]:
        raise RuntimeError(f"files listed and accounted for differ, nothing was committed: {totals}")
    # A disk that is not mounted looks like this, and must not empty the ledger, and the table after it.
    if totals[GONE] and not totals["listed"] and not allow_empty:
        raise InputError(
            f"the corpus {corpus} is empty now, and the ledger knows {totals[GONE]} files of it: is it mounted? "
            "If they are to leave the ledger, add --allow-empty"
        )
    if summary["parts"]:
        version = ledger.commit(lake, spec.spec_id, summary["parts"])
    else:
        before = ledger.open_ledger(lake, spec.spec_id)
        version = 0 if before is None else int(before.version)
    return totals | {"ledger_version": version}
