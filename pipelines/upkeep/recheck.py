"""Recheck: decode again the files that an older decoder read, and take in windows that are different now.

ledger rows that an older decoder made ▶ recordings, by the bundle that holds them ▶ decode, compare with the stored
windows ▶ same: the rows record it | different: the windows go into new bundles ▶ one commit for each round

A file that an older decoder rejected before its content was known has no windows to compare: extract itself reads it
again.
"""

import contextlib
import functools
import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, BinaryIO

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import TaggedOutput

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import FeatureSpec
from soundlake.model.features.records import Record, decode, read_framed
from soundlake.pipelines.audio import isolation
from soundlake.pipelines.audio.isolation import sandbox
from soundlake.pipelines.audio.reading import Rejected, probe
from soundlake.pipelines.audio.recording import TRANSIENT
from soundlake.pipelines.corpus.files import at_hand, in_partition
from soundlake.pipelines.encode.encoder import read_shard
from soundlake.pipelines.engine.joins import joined
from soundlake.pipelines.engine.runners import Concurrently, Engine, run_pipeline
from soundlake.pipelines.extract import account, plan
from soundlake.pipelines.extract.account import Candidate, Work, packed
from soundlake.pipelines.extract.bundle import begun, write_bundle
from soundlake.pipelines.extract.pipeline import ATTEMPTS, Keep, summarise
from soundlake.pipelines.extract.windows import write_segment
from soundlake.pipelines.lake import fragments, ledger
from soundlake.pipelines.lake.forgotten import Memory
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.ledger import DONE, REPLACES, Row
from soundlake.pipelines.lake.progress import Progress
from soundlake.pipelines.lake.runs import Run, others
from soundlake.pipelines.upkeep import erasure

# Windows of a round. The ledger is committed after each round: a killed call loses no more than one round.
ROUND_WINDOWS = 256 * plan.MAX_BUNDLE_WINDOWS
# Steps of the stored 16 bits, 0.0004 nats each, that windows may differ by: another processor rounds differently, but
# another decoder differs by more.
ROUNDING = 4
# Reasons of rejections that mean that there is no such file; they do not depend on a decoder.
_NO_FILE = TRANSIENT | {"link-loop", "directory", "named-pipe", "device"}

# Columns that are read from a ledger row; the others are computed again.
COLUMNS = ["recording_id", "uri", "corpus", "size", "mtime_ns", "status", "reason", "label", "group", "bundles"]

# Window → where it is stored: a bundle, and the byte in its shard.
Places = dict[int, tuple[str, int]]


class _ReadOlder(beam.DoFn):
    """(recording_id, fragment and row) of files that an older decoder read, from one fragment of the ledger."""

    def __init__(self, uri: str, version: int) -> None:
        self.uri, self.version = uri, version

    def process(self, fragment: int) -> Iterator[tuple[str, bytes]]:
        where = f"recording_id IS NOT NULL AND {ledger.OLDER}"
        for row in ledger.read(fragments.of(self.uri, self.version, fragment), COLUMNS, where=where):
            if row["reason"] not in TRANSIENT:
                yield row["recording_id"], packed([fragment, *row.values()])


class _Choose(beam.DoFn):
    """Recordings of a corpus that have their turn, by the first bundle that holds them: so its shard is read once."""

    def __init__(self, corpus: str, partition: str | None, turn: tuple[int, int]) -> None:
        self.corpus, self.partition, self.turn = corpus, partition, turn

    def process(self, element: tuple[str, Mapping[str, list[bytes]]]) -> Iterator[tuple[str, bytes]]:
        recording_id, joined = element
        rows = [_row(values) for values in map(json.loads, joined["older"])]
        bundles = ledger.one_place(row["bundles"] for row in rows)
        unit = bundles[0] if bundles else recording_id[:2]
        mine = (row["corpus"] == self.corpus and in_partition(row["uri"], self.corpus, self.partition) for row in rows)
        if int(unit[:8], 16) % self.turn[1] == self.turn[0] and any(mine):
            yield unit, packed(sorted(rows, key=lambda row: row["uri"]))


def _row(values: list[Any]) -> Row:
    fragment, *columns = values
    return dict(zip(COLUMNS, columns, strict=True)) | {REPLACES: fragment}


def _candidates(rows: Sequence[Row]) -> list[Candidate]:
    return [
        Candidate(row["uri"], row["size"], row["mtime_ns"], row["label"], row["group"], replaces=row[REPLACES])
        for row in rows
    ]


def _read_again(recording_id: str, files: Sequence[Candidate]) -> tuple[Candidate, Rejected | None] | None:
    """The first of some files that holds a recording, either probed or with its rejection; None if none holds it."""
    for file in files:
        rejected = None
        try:
            with at_hand(file.uri) as path:
                try:
                    with sandbox() as box:
                        candidate = replace(file, probe=box.call(probe, path, stage="probe"))
                except Rejected as error:
                    candidate, rejected = file, error
                    if error.reason in _NO_FILE:
                        continue
                with open(path, "rb") as data:
                    if hashlib.file_digest(data, "sha256").hexdigest() == recording_id:
                        return candidate, rejected
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
    return None


def _stored(lake: Lake, spec: FeatureSpec, bundles: Iterable[str]) -> dict[str, Places]:
    """The places of the windows of each recording in some bundles; windows behind damage are left out."""
    places: dict[str, Places] = {}
    for bundle in sorted(set(bundles)):
        with contextlib.suppress(InputError):
            for record, offset in read_shard(lake, spec, bundle):
                places.setdefault(record.recording_id, {})[record.window] = bundle, offset
    return places


def _compared(lake: Lake, spec: FeatureSpec, works: Sequence[Work], stored: Places) -> list[Row] | None:
    """Outcomes of a recording's segments if its windows match the stored ones; None if they do not.

    Raises
    ------
    Rejected
        As decoding raises it.
    """
    outcomes, seen = [], 0
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(at_hand(works[0].files[0].uri))
        box = stack.enter_context(sandbox())
        scratch = stack.enter_context(tempfile.NamedTemporaryFile(prefix="soundlake-"))
        shards: dict[str, BinaryIO] = {}
        for work in works:
            result, _ = box.call(write_segment, scratch.name, 0, path, work.probe, spec, work.segment, stage="decode")
            with open(scratch.name, "rb") as file:
                for data in read_framed(file):
                    record = decode(data, window_frames=spec.window_frames, n_mels=spec.n_mels)
                    if record.window not in stored:
                        return None
                    bundle, offset = stored[record.window]
                    if bundle not in shards:
                        shards[bundle] = stack.enter_context(lake.open(Lake.shard(spec.spec_id, bundle)))
                    shards[bundle].seek(offset)
                    before = decode(
                        next(read_framed(shards[bundle])), window_frames=spec.window_frames, n_mels=spec.n_mels
                    )
                    if not _alike(record, before):
                        return None
            seen += result["windows"]
            outcomes.append(begun(work) | {"status": DONE, "bundle": ""} | result)
    return outcomes if seen == len(stored) else None


def _alike(record: Record, before: Record) -> bool:
    difference = np.abs(record.values.astype(np.int32) - before.values)
    return record.valid_frames == before.valid_frames and int(difference.max()) <= ROUNDING


def recheck_unit(
    element: tuple[str, Iterable[bytes]], lake: Lake, spec: FeatureSpec, corpus: str, progress: Progress
) -> Iterator[Any]:
    """Decode the recordings of a unit again.

    Yields
    ------
    dict
        Ledger rows that replace the older ones, for every file of a recording. With tags: counts of files that are
        ``same``, ``different`` or ``unreachable``, and uris of unreachable recordings.
    """
    unit, parts = element
    recordings = sorted(map(json.loads, parts), key=lambda rows: rows[0]["recording_id"])
    stored = _stored(lake, spec, (bundle for rows in recordings for row in rows for bundle in row["bundles"]))
    counts = {"same": 0, "different": 0, "unreachable": 0}
    fresh: list[tuple[list[Row], list[Candidate], list[Work]]] = []
    for rows in recordings:
        recording_id = rows[0]["recording_id"]
        # Files of this corpus come first: they are most likely at hand, and the first file that can be read is decoded.
        files = sorted(_candidates(rows), key=lambda file: not file.uri.startswith(f"{corpus}/"))
        again = _read_again(recording_id, files)
        if again is None:
            counts["unreachable"] += len(rows)
            yield TaggedOutput("unreachable", files[0].uri)
            continue
        file, rejected = again
        files = [file, *(other for other in files if other.uri != file.uri)]
        if rejected is not None:
            values = {"stage": rejected.stage, "reason": rejected.reason, "detail": rejected.detail}
            counts["same" if rows[0]["reason"] == rejected.reason else "different"] += len(rows)
            yield from _of_rows(
                rows, [other.rejection(corpus, **values) | {"recording_id": recording_id} for other in files]
            )
            continue
        assert file.probe is not None
        works = [Work(segment, (file,)) for segment in plan.segments(recording_id, file.probe, file.size, spec)]
        outcomes = None
        if rows[0]["status"] == DONE:
            bundles = ledger.one_place(row["bundles"] for row in rows)
            places = {window: place for window, place in stored.get(recording_id, {}).items() if place[0] in bundles}
            with contextlib.suppress(Rejected, OSError):
                outcomes = _compared(lake, spec, works, places)
        if outcomes is None:
            fresh.append((rows, files, works))
            continue
        counts["same"] += len(rows)
        settled = account.settle(recording_id, files, outcomes, spec, corpus)
        yield from _of_rows(rows, [row | {"bundles": bundles} for row in settled])
    yield from _decoded(lake, spec, corpus, fresh, counts)
    progress.tell(unit, {"work": 1, "files": sum(map(len, recordings)), "different": counts["different"]})
    for item in counts.items():
        yield TaggedOutput("counts", item)


def _decoded(
    lake: Lake,
    spec: FeatureSpec,
    corpus: str,
    fresh: Sequence[tuple[list[Row], list[Candidate], list[Work]]],
    told: dict[str, int],
) -> Iterator[Any]:
    """Decode recordings into new bundles, which a killed call leaves for the next; yield their ledger rows."""
    works = {work.segment: work for _, _, of_recording in fresh for work in of_recording}
    outcomes: dict[str, list[Row]] = {}
    for bundle in plan.pack(works, 32 * plan.MAX_BUNDLE_WINDOWS):
        for outcome in write_bundle(lake, spec, [works[segment] for segment in bundle]):
            outcomes.setdefault(outcome["recording_id"], []).append(outcome)
    for rows, files, _ in fresh:
        recording_id = rows[0]["recording_id"]
        if any(outcome["reason"] in TRANSIENT for outcome in outcomes[recording_id]):
            told["unreachable"] += len(rows)
            yield TaggedOutput("unreachable", files[0].uri)
            continue
        settled = account.settle(recording_id, files, outcomes[recording_id], spec, corpus)
        same = rows[0]["reason"] is not None and settled[0]["reason"] == rows[0]["reason"]
        told["same" if same else "different"] += len(rows)
        yield from _of_rows(rows, settled)


def _of_rows(before: Sequence[Row], after: Sequence[Row]) -> Iterator[Row]:
    """New rows with the corpora of the old ones: a recording may lie in several corpora."""
    corpora = {row["uri"]: row["corpus"] for row in before}
    for row in after:
        yield row | {"corpus": corpora[row["uri"]]}


def build(
    pipeline: beam.Pipeline,
    lake: Lake,
    spec: FeatureSpec,
    corpus: str,
    known: Any,
    *,
    partition: str | None,
    turn: tuple[int, int],
    run: Run,
    threads: int = 1,
) -> None:
    """Apply one round of recheck to a pipeline; its result is ``recheck.json`` in the run's folder."""
    progress = Progress(lake, run.folder)
    uri, version = lake.ledger_uri(spec.spec_id), int(known.version)
    older = (
        pipeline
        | "ledger fragments" >> beam.Create(fragments.numbers(known))
        | "read ledger" >> beam.ParDo(_ReadOlder(uri, version))
    )
    checked = (
        joined("by recording", {"older": older})
        | "choose" >> beam.ParDo(_Choose(corpus, partition, turn))
        | "by bundle" >> beam.GroupByKey()
        | "recheck"
        >> beam.ParDo(
            Concurrently(
                functools.partial(recheck_unit, lake=lake, spec=spec, corpus=corpus, progress=progress), threads
            )
        )
        .with_outputs("counts", "unreachable", main="rows")
        .with_resource_hints(min_ram=isolation.RAM)
    )
    written, replaced, _ = checked.rows | "keep rows" >> Keep(lake, spec.spec_id)
    dropped = replaced | "by fragment" >> beam.GroupByKey() | "drop" >> beam.Map(fragments.drop, uri, version, "uri")
    lists = {"fragments": written, "dropped": dropped, "unreachable": checked.unreachable}
    summarise(pipeline, [checked.counts], lake=lake, name=f"{run.folder}/recheck.json", **lists)


def recheck(
    lake: Lake, spec: FeatureSpec, corpus: str, *, partition: str | None, run: Run, engine: Engine
) -> dict[str, Any]:
    """Decode again the files of a corpus that an older decoder read; windows that are the same stay where they are.

    Returns
    -------
    dict
        Numbers of files that are the ``same`` or ``different``, and of ``unreachable`` ones, whose content is not where
        the ledger has it, with an ``example`` (None if there is none).

    Raises
    ------
    TryLaterError
        If other runs change the ledger again and again; rounds that were committed before stay.
    """
    totals: dict[str, Any] = {"same": 0, "different": 0, "unreachable": 0, "example": None}
    known = ledger.open_for_writing(lake, spec.spec_id)
    if known is None or not known.count_rows(ledger.OLDER):
        return totals
    windows = sum(row["windows"] or 0 for row in ledger.read(known, ["windows"], where=ledger.OLDER))
    rounds = 1 + windows // ROUND_WINDOWS
    for number in range(rounds):
        summary = _round(lake, spec, corpus, partition=partition, turn=(number, rounds), run=run, engine=engine)
        for name in ("same", "different", "unreachable"):
            totals[name] += summary["counts"].get(name, 0)
        totals["example"] = min([*summary["unreachable"], *filter(None, [totals["example"]])], default=None)
    return totals


def _round(
    lake: Lake,
    spec: FeatureSpec,
    corpus: str,
    *,
    partition: str | None,
    turn: tuple[int, int],
    run: Run,
    engine: Engine,
) -> dict[str, Any]:
    """Run one pipeline, and make one commit."""
    uri = lake.ledger_uri(spec.spec_id)
    for attempt in range(ATTEMPTS):
        planned = erasure.mark_swept(lake, spec.spec_id, again=attempt > 0)
        known = ledger.open_for_writing(lake, spec.spec_id)
        pipeline = functools.partial(
            build,
            lake=lake,
            spec=spec,
            corpus=corpus,
            known=known,
            partition=partition,
            turn=turn,
            run=run,
            threads=engine.threads,
        )
        run_pipeline(pipeline, engine)
        summary: dict[str, Any] = json.loads(lake.read(f"{run.folder}/recheck.json"))
        if not summary["fragments"]:
            return summary
        with lake.locked(f"{Lake.spec(spec.spec_id)}/ledger"):
            # As in `finish.extract`: recordings forgotten meanwhile must not come back.
            if Memory.of(lake).mark == planned and fragments.commit(
                uri, int(known.version), ledger.SCHEMA, summary["fragments"], summary["dropped"]
            ):
                return summary
    raise others(lake)
