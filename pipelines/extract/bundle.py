"""Bundles: decode segments into one shard, and record the outcome of each."""

import contextlib
import errno
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, replace

import pyarrow as pa

from soundlake.model.errors import OF_THE_MACHINE, InputError, number_of
from soundlake.model.features.log_mel import FeatureSpec
from soundlake.pipelines.audio.isolation import Sandbox, sandbox
from soundlake.pipelines.audio.reading import DECODER_VERSION, Rejected
from soundlake.pipelines.audio.recording import TRANSIENT
from soundlake.pipelines.corpus.files import at_hand
from soundlake.pipelines.extract import plan
from soundlake.pipelines.extract.account import Work
from soundlake.pipelines.extract.windows import write_segment
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.ledger import DONE, REJECTED, Row

OUTCOMES = pa.schema(
    [
        ("recording_id", pa.string()),
        ("uri", pa.string()),  # of the file that was decoded; so are size, mtime_ns and probe
        ("size", pa.int64()),
        ("mtime_ns", pa.int64()),
        ("probe", pa.string()),  # JSON of `pipelines.audio.reading.Probe`, in the order of its fields
        ("first", pa.int64()),
        ("count", pa.int64()),  # -1: to the end
        ("expected", pa.int64()),  # windows according to the header
        ("status", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("windows", pa.int64()),
        ("silent_windows", pa.int64()),
        ("samples", pa.int64()),  # at the spec's rate, from the recording's start to where reading stopped
        ("decoder", pa.int32()),  # `audio.DECODER_VERSION`; null for 1, and files of that version lack it
        ("notes", pa.list_(pa.string())),  # keys of `audio.NOTES` that decoding found; files of version 1 lack it
    ]
)


class _NothingKept(Exception):
    """Raised to leave the block that writes a shard, so that no empty shard appears."""


def read_outcomes(lake: Lake, spec_id: str, bundle: str) -> list[Row] | None:
    """The outcomes of a bundle's segments; None if the bundle is not done, or its file of outcomes is damaged.

    Returns
    -------
    list of dict
        Rows of `OUTCOMES` in the bundle's order, and ``bundle``.
    """
    from pyarrow import parquet

    try:
        data = lake.read(Lake.outcome(spec_id, bundle))
        rows = parquet.read_table(io.BytesIO(data), schema=OUTCOMES).to_pylist()
    except (pa.ArrowException, OSError) as error:
        # A missing or damaged file is made again. If the system cannot read it just now, its state is unknown.
        if number_of(error) not in (None, errno.ENOENT):
            raise
        return None
    return [row | {"bundle": bundle} for row in rows]


def write_bundle(
    lake: Lake,
    spec: FeatureSpec,
    works: Sequence[Work],
    *,
    again: Callable[[Row], bool] = lambda row: row["reason"] in TRANSIENT,
    spent: Callable[[Work, Row], None] = lambda work, row: None,
) -> list[Row]:
    """Decode a bundle's segments into its shard, and return the outcome of each.

    If the bundle was done before, its outcomes are read back. If not, segments that another finished bundle holds stay
    there, and the rest becomes a bundle of its own: nothing is decoded twice because a plan changed after a kill.

    Parameters
    ----------
    lake, spec : Lake, FeatureSpec
    works : sequence of Work
        In the bundle's order.
    again : callable
        Whether to decode the segment of an earlier outcome again, and the whole bundle with it.
    spent : callable
        Called with each segment that was decoded, and its outcome, ``cpu_s`` included.

    Returns
    -------
    list of dict
        Rows of `OUTCOMES`, each with its ``bundle``, in the order of `works`.
    """
    bundle = plan.bundle_id(spec, [work.segment for work in works])
    before = read_outcomes(lake, spec.spec_id, bundle)
    if before is not None and not any(again(row) for row in before):
        return before
    kept = {work.segment: work.outcome for work in works if work.outcome is not None and not again(work.outcome)}
    if not kept:
        return make_bundle(lake, spec, works, spent=spent)
    rest = [replace(work, outcome=None) for work in works if work.segment not in kept]
    fresh = write_bundle(lake, spec, rest, again=again, spent=spent) if rest else []
    kept |= {work.segment: row for work, row in zip(rest, fresh, strict=True)}
    return [kept[work.segment] for work in works]


def make_bundle(
    lake: Lake, spec: FeatureSpec, works: Sequence[Work], *, spent: Callable[[Work, Row], None] = lambda work, row: None
) -> list[Row]:
    """`write_bundle`, but decode all segments, whatever exists already."""
    bundle = plan.bundle_id(spec, [work.segment for work in works])
    outcomes: list[Row] = []
    with contextlib.suppress(_NothingKept), lake.create(Lake.shard(spec.spec_id, bundle)) as shard, sandbox() as box:
        for work, outcome in _written(box, shard.name, works, spec):
            spent(work, outcome)
            outcomes.append(outcome)
        if not any(outcome["windows"] for outcome in outcomes):
            raise _NothingKept
    write_outcomes(lake, spec.spec_id, bundle, outcomes)
    return [{name: row[name] for name in OUTCOMES.names} | {"bundle": bundle} for row in outcomes]


def restore_shard(lake: Lake, spec: FeatureSpec, bundle: str, kept: Sequence[tuple[Work, Row]]) -> None:
    """Write a shard again, from the segments that gave windows and their outcomes at that time.

    Raises
    ------
    InputError
        If a segment gives another result than it gave then, for example by another version of a decoder.
    """
    with lake.create(Lake.shard(spec.spec_id, bundle)) as shard, sandbox() as box:
        written = _written(box, shard.name, [work for work, _ in kept], spec)
        for (work, outcome), (_, before) in zip(written, kept, strict=True):
            now = outcome["windows"], outcome["reason"] or DONE
            if now != (before["windows"], DONE):
                raise InputError(
                    f"the shard {lake.uri(Lake.shard(spec.spec_id, bundle))} cannot be rebuilt as it was: "
                    f"{work.files[0].uri} gives {now[0]} windows now ({now[1]}), and gave {before['windows']}; if an "
                    f"older version of soundlake read it, run: {lake.command('extract AUDIO --recheck')}"
                )


def write_outcomes(lake: Lake, spec_id: str, bundle: str, outcomes: Sequence[Row]) -> None:
    """Write the outcomes of a bundle's segments; from then on the bundle is done."""
    from pyarrow import parquet

    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(list(outcomes), schema=OUTCOMES), sink)
    lake.write(Lake.outcome(spec_id, bundle), sink.getvalue())


def _written(box: Sandbox, part: str, works: Sequence[Work], spec: FeatureSpec) -> Iterator[tuple[Work, Row]]:
    """Append segments to a shard, one after the other; yield each with its outcome."""
    end = 0
    # The segments of a long recording follow each other, so a recording in a bucket is fetched once for all of them.
    for uri, group in itertools.groupby(works, key=lambda work: work.files[0].uri):
        with contextlib.ExitStack() as stack:
            try:
                path = stack.enter_context(at_hand(uri))
            except OSError as error:
                if error.errno in OF_THE_MACHINE:
                    raise
                rejected = Rejected("decode", "unreadable", detail=str(error))
                yield from ((work, _rejection(work, rejected)) for work in group)
                continue
            for work in group:
                outcome, end = _write_work(box, part, end, work, path, spec)
                yield work, outcome


def begun(work: Work) -> Row:
    """The outcome of a segment with only those values that are known before decoding."""
    segment, file = work.segment, work.files[0]
    outcome: Row = dict.fromkeys(OUTCOMES.names) | {"recording_id": segment.recording_id, "uri": file.uri}
    outcome |= {"size": file.size, "mtime_ns": file.mtime_ns, "probe": json.dumps(astuple(work.probe))}
    outcome |= {"first": segment.first, "count": segment.key()[2], "expected": segment.windows}
    return outcome | {"decoder": DECODER_VERSION}


def _rejection(work: Work, error: Rejected) -> Row:
    outcome = begun(work) | {"status": REJECTED, "stage": error.stage, "reason": error.reason}
    return outcome | {"detail": error.detail, "windows": 0, "silent_windows": 0, "samples": 0, "cpu_s": 0.0}


def _write_work(box: Sandbox, part: str, end: int, work: Work, path: str | bytes, spec: FeatureSpec) -> tuple[Row, int]:
    """Append a segment's windows to the shard; if the segment is rejected, cut the shard back."""
    try:
        result, after = box.call(write_segment, part, end, path, work.probe, spec, work.segment, stage="decode")
        return begun(work) | {"status": DONE} | result, after
    except Rejected as error:
        os.truncate(part, end)
        return _rejection(work, error), end
