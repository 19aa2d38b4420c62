"""A bundle: decode its segments into one shard, and write down what became of each."""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from model.features import FeatureSpec
from model.records import Record, encode, write_framed
from pipelines import plan
from pipelines.audio import Probe, Rejected
from pipelines.corpus import at_hand
from pipelines.lake import Lake
from pipelines.ledger import DONE, REJECTED, Row
from pipelines.plan import Segment
from pipelines.windows import SegmentWindows

OUTCOMES = pa.schema(
    [
        ("recording_id", pa.string()),
        ("uri", pa.string()),
        ("first", pa.int64()),
        ("count", pa.int64()),  # -1: to the end
        ("status", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("windows", pa.int64()),
        ("silent_windows", pa.int64()),
        ("samples", pa.int64()),  # at the spec's rate, from the recording's start to where reading stopped
    ]
)


@dataclass(frozen=True)
class Work:
    """A segment, and where a file with its recording lies."""

    segment: Segment
    uri: str
    probe: Probe


class _NothingKept(Exception):
    """Leaves the block that writes a shard, so that no empty one appears."""


def write_bundle(lake: Lake, spec: FeatureSpec, works: Sequence[Work]) -> list[Row]:
    """Decode a bundle's segments into its shard, and tell what became of each.

    Parameters
    ----------
    lake, spec : Lake, FeatureSpec
    works : sequence of Work
        In the bundle's order.

    Returns
    -------
    list of dict
        Rows of `OUTCOMES`, read back if the bundle was done before.
    """
    from pyarrow import parquet

    bundle = plan.bundle_id(spec, [work.segment for work in works])
    name = Lake.outcome(spec.spec_id, bundle)
    if lake.exists(name):
        before = parquet.read_table(io.BytesIO(lake.read(name)), schema=OUTCOMES).to_pylist()
        if not any(outcome["reason"] in plan.TRANSIENT for outcome in before):
            return before
    outcomes: list[Row] = []
    with contextlib.suppress(_NothingKept), lake.create(Lake.shard(spec.spec_id, bundle)) as shard:
        for work in works:
            outcomes.append(_write_segment(shard, work, spec))
        if shard.tell() == 0:
            raise _NothingKept
    sink = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(outcomes, schema=OUTCOMES), sink)
    lake.write(name, sink.getvalue())
    return outcomes


def _write_segment(shard: Any, work: Work, spec: FeatureSpec) -> Row:
    """Append a segment's windows to the shard; a rejection takes back what was appended."""
    segment = work.segment
    outcome: Row = {"recording_id": segment.recording_id, "uri": work.uri, "first": segment.first}
    outcome |= {"count": -1 if segment.count is None else segment.count, "status": DONE}
    outcome |= {"windows": 0, "silent_windows": 0, "samples": 0}
    start = shard.tell()
    try:
        with at_hand(work.uri) as path:
            cut = SegmentWindows(path, work.probe, spec, first=segment.first, count=segment.count)
            for window, valid_frames, values in cut:
                # Digital silence has nothing to learn or to find, and recorders pad with hours of it.
                if not values.any():
                    outcome["silent_windows"] += 1
                    continue
                write_framed(shard, encode(Record(segment.recording_id, window, valid_frames, values)))
                outcome["windows"] += 1
            outcome["samples"] = cut.samples
    except Rejected as error:
        shard.seek(start)
        shard.truncate()
        outcome |= {"status": REJECTED, "stage": error.stage, "reason": error.reason, "detail": error.detail}
        outcome |= {"windows": 0, "silent_windows": 0}
    return outcome
