"""Repair: read every shard that the ledger names, and rebuild damaged or missing ones from the recordings.

A shard is restored byte for byte, under its name, from the outcomes that were written beside it. If a recording that
the ledger no longer names cannot be found, the others go into a new bundle, and their ledger rows name that bundle.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput

from soundlake.model.errors import InputError, TryLaterError
from soundlake.model.features.log_mel import FeatureSpec
from soundlake.model.features.records import DamagedShardError, read_framed
from soundlake.pipelines.audio.isolation import sandbox
from soundlake.pipelines.audio.reading import Probe, Rejected, probe
from soundlake.pipelines.corpus.files import at_hand
from soundlake.pipelines.engine.runners import Concurrently, Engine, run_pipeline
from soundlake.pipelines.extract import plan
from soundlake.pipelines.extract.account import Candidate, Work, packed
from soundlake.pipelines.extract.bundle import make_bundle, read_outcomes, restore_shard
from soundlake.pipelines.extract.pipeline import summarise
from soundlake.pipelines.extract.plan import Segment
from soundlake.pipelines.lake import fragments, ledger
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.ledger import DONE, Row
from soundlake.pipelines.lake.progress import Progress
from soundlake.pipelines.lake.runs import Run


class _ReadRows(beam.DoFn):
    """(bundle, packed recording_id, uri, size, mtime_ns and bundles) of each recording, from a ledger fragment."""

    def __init__(self, uri: str, version: int) -> None:
        self.uri, self.version = uri, version

    def process(self, fragment: int) -> Iterator[tuple[str, bytes]]:
        columns = ["recording_id", "uri", "size", "mtime_ns", "bundles"]
        part = fragments.of(self.uri, self.version, fragment)
        for batch in part.to_batches(columns=columns, filter=f"status = '{DONE}'"):
            for row in batch.to_pylist():
                for bundle in row["bundles"]:
                    yield bundle, packed([row[name] for name in columns])


def damage(lake: Lake, spec_id: str, bundle: str) -> str | None:
    """A description of the damage of a bundle's shard; None if it is intact."""
    try:
        with lake.open(Lake.shard(spec_id, bundle)) as file:
            records = sum(1 for _ in read_framed(file))
    except FileNotFoundError:
        return "it is missing"
    except DamagedShardError as error:
        return str(error)
    # In a file that was cut between two records, no checksum fails.
    outcomes = read_outcomes(lake, spec_id, bundle)
    expected = records if outcomes is None else sum(row["windows"] for row in outcomes)
    return None if records == expected else f"it holds {records} of {expected} records"


def _file_of(recording_id: str, files: Iterable[Candidate]) -> Candidate | None:
    """The first of some files that still holds a recording, by its digest; with its header."""
    for file in files:
        try:
            with at_hand(file.uri) as path:
                with sandbox() as box:
                    header: Probe = box.call(probe, path, stage="probe")
                with open(path, "rb") as data:
                    if hashlib.file_digest(data, "sha256").hexdigest() == recording_id:
                        return replace(file, probe=header)
        except (Rejected, FileNotFoundError, NotADirectoryError, PermissionError):
            continue
    return None


def _segments(
    lake: Lake, spec: FeatureSpec, bundle: str, found: dict[str, Candidate], bundles: dict[str, list[str]]
) -> Iterator[Segment]:
    """The segments of a bundle whose outcomes are lost: those of its recordings that no other bundle has."""
    others = {name for names in bundles.values() for name in names} - {bundle}
    elsewhere = {
        (row["recording_id"], row["first"], row["count"])
        for other in sorted(others)
        for row in read_outcomes(lake, spec.spec_id, other) or ()
    }
    for recording_id, file in sorted(found.items()):
        assert file.probe is not None
        for segment in plan.segments(recording_id, file.probe, file.size, spec):
            if segment.key() not in elsewhere:
                yield segment


def mend(element: tuple[str, Iterable[bytes]], lake: Lake, spec: FeatureSpec, progress: Progress) -> Iterator[Any]:
    """Check a bundle; rebuild it if it is damaged.

    Yields
    ------
    dict
        ``bundle``, ``damage``, and the result: ``moved_to``, the new bundle (the same one if it was restored byte for
        byte), or ``lost``, a uri of the ledger that no longer holds its recording; nothing was done then.
    """
    bundle, rows = element
    problem = damage(lake, spec.spec_id, bundle)
    yield TaggedOutput("counts", ("shards", 1))
    progress.tell(bundle, {"work": 1, "shards": 1, "damaged": problem is not None})
    if problem is None:
        return
    named: dict[str, list[Candidate]] = {}
    bundles: dict[str, list[str]] = {}
    for recording_id, uri, size, mtime_ns, row_bundles in sorted(map(json.loads, rows)):
        named.setdefault(recording_id, []).append(Candidate(uri, size, mtime_ns))
        bundles[recording_id] = row_bundles
    outcomes = read_outcomes(lake, spec.spec_id, bundle)
    kept = [row for row in outcomes or () if row["windows"]]
    candidates = {row["recording_id"]: [Candidate(row["uri"], row["size"], row["mtime_ns"])] for row in kept}
    for recording_id, files in named.items():
        candidates[recording_id] = files + candidates.get(recording_id, [])
    files_found = {recording_id: _file_of(recording_id, files) for recording_id, files in candidates.items()}
    present = {recording_id: file for recording_id, file in files_found.items() if file is not None}
    lost = sorted(files[0].uri for recording_id, files in named.items() if recording_id not in present)
    result: dict[str, Any] = {"bundle": bundle, "damage": problem}
    if lost:
        yield result | {"lost": lost[0]}
        return
    if kept and len(present) == len(candidates):
        restore_shard(lake, spec, bundle, [(_work(row, present), row) for row in kept])
        yield result | {"moved_to": bundle}
        return
    alive = {recording_id: present[recording_id] for recording_id in named}
    if kept:
        works = [_work(row, present) for row in kept if row["recording_id"] in alive]
    else:
        segments = sorted(_segments(lake, spec, bundle, alive, bundles), key=Segment.key)
        works = [Work(segment, (alive[segment.recording_id],)) for segment in segments]
    new_outcomes = make_bundle(lake, spec, works)
    yield result | {"moved_to": new_outcomes[0]["bundle"], "recordings": sorted(alive)}


def _work(row: Row, there: dict[str, Candidate]) -> Work:
    count = None if row["count"] < 0 else row["count"]
    segment = Segment(row["recording_id"], row["first"], count, row["expected"])
    return Work(segment, (there[row["recording_id"]],))


def build(pipeline: beam.Pipeline, lake: Lake, spec: FeatureSpec, known: Any, *, run: Run, threads: int = 1) -> None:
    """Apply all steps of repair to a pipeline; its result is ``repair.json`` in the run's folder."""
    progress = Progress(lake, run.folder)
    mended = (
        pipeline
        | "ledger fragments" >> beam.Create(fragments.numbers(known))
        | "read ledger" >> beam.ParDo(_ReadRows(lake.ledger_uri(spec.spec_id), int(known.version)))
        | "by bundle" >> beam.GroupByKey()
        | "mend"
        >> beam.ParDo(
            Concurrently(functools.partial(mend, lake=lake, spec=spec, progress=progress), threads)
        ).with_outputs("counts", main="mended")
    )
    texts = mended.mended | "as text" >> beam.Map(json.dumps)
    summarise(pipeline, [mended.counts], lake=lake, name=f"{run.folder}/repair.json", mended=texts)


def repair(lake: Lake, spec: FeatureSpec, *, run: Run, engine: Engine) -> dict[str, Any]:
    """Check all shards of a spec, and rebuild the damaged ones.

    Returns
    -------
    dict
        Number of ``shards`` checked; ``damaged``, a list of the results of `mend`.

    Raises
    ------
    InputError
        If a recording of a damaged shard is not where the ledger has it; all other shards are repaired.
    TryLaterError
        If the ledger changed meanwhile, and rows have to name another bundle.
    """
    known = ledger.open_for_writing(lake, spec.spec_id)
    if known is None:
        return {"shards": 0, "damaged": []}
    run_pipeline(functools.partial(build, lake=lake, spec=spec, known=known, run=run, threads=engine.threads), engine)
    summary = json.loads(lake.read(f"{run.folder}/repair.json"))
    mended = [json.loads(text) for text in summary["mended"]]
    moved = {
        result["bundle"]: result for result in mended if result.get("moved_to", result["bundle"]) != result["bundle"]
    }
    if moved:
        _rename(lake, spec.spec_id, known, moved)
    lost = [result for result in mended if "lost" in result]
    if lost:
        shard = lake.uri(Lake.shard(spec.spec_id, lost[0]["bundle"]))
        raise InputError(
            f"{len(lost)} of {len(mended)} damaged shards cannot be rebuilt, {shard} among them: {lost[0]['lost']} is "
            "missing or has changed since it was extracted; extract its corpus first"
        )
    return {"shards": summary["counts"].get("shards", 0), "damaged": mended}


def _rename(lake: Lake, spec_id: str, known: Any, moved: dict[str, Any]) -> None:
    """Make one commit: rows of recordings that went into another bundle name it."""
    uri, version = lake.ledger_uri(spec_id), int(known.version)
    rows: list[Row] = []
    dropped: list[tuple[int, str | None]] = []
    for number in fragments.numbers(known):
        changed = [
            row | {"bundles": sorted(_new_name(name, row, moved) for name in row["bundles"])}
            for batch in fragments.of(uri, version, number).to_batches(filter=f"status = '{DONE}'")
            for row in batch.to_pylist()
            if not moved.keys().isdisjoint(row["bundles"])
        ]
        if changed:
            rows += changed
            dropped.append(fragments.drop((number, [row["uri"] for row in changed]), uri, version, "uri"))
    with lake.locked(f"{Lake.spec(spec_id)}/ledger"):
        written = ledger.write_rows(lake, spec_id, rows)
        if fragments.commit(uri, version, ledger.SCHEMA, written, dropped) is None:
            raise TryLaterError(f"another run changed the ledger of {lake.root} meanwhile: run the same command again")


def _new_name(name: str, row: Row, moved: dict[str, Any]) -> str:
    result = moved.get(name)
    return result["moved_to"] if result is not None and row["recording_id"] in result["recordings"] else name
