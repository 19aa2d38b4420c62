"""The planner on a hundred million files, as a stream and bucket by bucket, as on workers.

`python -m benches.planner` · 100 million rows: an hour on one core, 3 GB of disk; `--rows 1000000`: two minutes

Rows are numbers (`benches.rows`). Soundlake's own code processes them: segments, the bucket of each, bundles and their
names (`pipelines.extract.plan`), and the joins before that (`benches.joining`). No process has the whole listing in
memory. Data that a runner would shuffle is on disk as numbers, and is sorted for a share of the buckets at a time. Of
the joins, a few buckets of full size are run, and their elements are encoded to count their bytes.

A smaller number of rows is planned three times, with different pieces, orders and shares: the sums of all bundle names
must be equal. `--twice` does this with all rows, too.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benches import joining, rows
from benches.growth import apart, megabytes
from benches.harness import Figure, pin, report
from benches.joining import Told
from soundlake.model.features.log_mel import PRESETS
from soundlake.pipelines.extract import plan
from soundlake.pipelines.extract.plan import Segment

SPEC = PRESETS["general"]
ROWS, FEWER = 100_000_000, 1_000_000
CHUNK = 100_000
# Number of buckets of the joins that are run.
JOINED = 4
# A segment on disk: its bucket, the number of its row, its place in the recording, and its windows.
PLACED = np.dtype([("bucket", "u4"), ("row", "u4"), ("first", "u4"), ("count", "i4"), ("windows", "u4")])
MODULUS = 2**128


def windows_by_hand(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Windows of rows by an independent formula: it gives the total before planning, and the plan must match it."""
    samples = np.ceil(rows.seconds(numbers) * SPEC.sample_rate)
    frames = 1 + samples // SPEC.hop_length
    return (1 + np.maximum(0, np.ceil((frames - SPEC.window_frames) / SPEC.window_step))).astype(np.int64)


def chunks(count: int, size: int, seed: int) -> Iterator[npt.NDArray[np.uint64]]:
    """Yield the numbers of all rows in pieces: in order for seed 0, otherwise pieces and rows are shuffled."""
    firsts = list(range(0, count, size))
    random.Random(seed).shuffle(firsts) if seed else None
    for first in firsts:
        numbers = np.arange(first, min(first + size, count), dtype=np.uint64)
        yield np.random.default_rng(seed).permutation(numbers) if seed else numbers


def placed(numbers: npt.NDArray[np.uint64], total: int) -> tuple[npt.NDArray[Any], float]:
    """Segments of rows with the bucket of each, and the processor seconds of their planning."""
    names, headers = rows.ids(numbers), rows.headers(numbers)
    fields: list[int] = []
    began = time.process_time()
    for number, name, (probe, size) in zip(numbers.tolist(), names, headers, strict=True):
        for segment in plan.segments(name, probe, size, SPEC):
            _, first, length = segment.key()
            fields += (plan.bucket_of(segment, total), number, first, length, segment.windows)
    spent = time.process_time() - began
    table = np.array(fields, np.int64).reshape(-1, len(PLACED))
    elements = np.empty(len(table), PLACED)
    for column, name in enumerate(PLACED.names or ()):
        elements[name] = table[:, column]
    return elements, spent


def packed(elements: npt.NDArray[Any], total: int, found: "Found") -> None:
    """Pack each bucket of a share separately; `elements` contains all elements of these buckets."""
    elements = elements[np.argsort(elements["bucket"], kind="stable")]
    names = rows.ids(elements["row"].astype(np.uint64))
    borders = np.flatnonzero(np.diff(elements["bucket"])) + 1
    firsts, lasts = [0, *borders.tolist()], [*borders.tolist(), len(elements)]
    table = list(zip(names, *(elements[name].tolist() for name in ("first", "count", "windows")), strict=True))
    began = time.process_time()
    for first, last in zip(firsts, lasts, strict=True):
        bucket = [Segment(name, at, None if n < 0 else n, windows) for name, at, n, windows in table[first:last]]
        for bundle in plan.pack(bucket, total):
            found.take(plan.bundle_id(SPEC, bundle), bundle)
    found.seconds += time.process_time() - began
    found.segments.append(np.subtract(lasts, firsts))


class Found:
    """Totals of a plan: the sum of the names of all bundles, and their sizes."""

    def __init__(self) -> None:
        self.names, self.seconds = 0, 0.0
        self._windows: list[int] = []
        self._lengths: list[int] = []
        self.windows: list[npt.NDArray[Any]] = []
        self.lengths: list[npt.NDArray[Any]] = []
        self.segments: list[npt.NDArray[Any]] = []

    def take(self, name: str, bundle: tuple[Segment, ...]) -> None:
        """Add a bundle to the totals."""
        self.names = (self.names + int(name, 16)) % MODULUS
        self._windows.append(sum(segment.windows for segment in bundle))
        self._lengths.append(len(bundle))

    def fold(self) -> None:
        """Convert the bundles since the last call to arrays, which need less memory."""
        self.windows.append(np.array(self._windows, np.uint32))
        self.lengths.append(np.array(self._lengths, np.uint32))
        self._windows, self._lengths = [], []


def planned(count: int, total: int, folder: str, *, size: int, shares: int, seed: int) -> dict[str, Any]:
    """Plan all rows once; to be called in a separate process.

    Parameters
    ----------
    count, total : int
        Number of rows, and of all their windows.
    folder : str
        For the data that a runner would shuffle.
    size, shares, seed : int
        Rows per piece; number of shares of the buckets; seed of the order, 0 for the order of the rows.
    """
    began, spent, segments, windows = time.perf_counter(), 0.0, 0, 0
    buckets = plan.buckets(total)
    files = [open(Path(folder, str(share)), "w+b") for share in range(shares)]  # noqa: SIM115
    for numbers in chunks(count, size, seed):
        elements, took = placed(numbers, total)
        spent, segments, windows = spent + took, segments + len(elements), windows + int(elements["windows"].sum())
        share = elements["bucket"].astype(np.uint64) * np.uint64(shares) // np.uint64(buckets)
        elements = elements[np.argsort(share, kind="stable")]
        for number, part in enumerate(np.split(elements, np.searchsorted(np.sort(share), np.arange(1, shares)))):
            files[number].write(part.tobytes())
    assert windows == total, f"{windows} windows planned, {total} there"
    totals = Found()
    for file in files:
        file.seek(0)
        elements = np.frombuffer(file.read(), PLACED)
        file.close()
        Path(file.name).unlink()
        if len(elements):
            packed(np.random.default_rng(seed).permutation(elements) if seed else elements, total, totals)
        totals.fold()
    bundles, lengths, in_bucket = (np.concatenate(part) for part in (totals.windows, totals.lengths, totals.segments))
    assert int(lengths.sum()) == segments, "segments in bundles are not those that were cut"
    return {
        "digest": f"{totals.names:032x}",
        "bundles": len(bundles),
        "buckets": buckets,
        "segments": segments,
        "segments a bucket": _spread(in_bucket),
        "windows a bundle": _spread(bundles),
        "segments a bundle": _spread(lengths),
        "longer than a bundle": int((bundles > plan.bundle_windows(total)).sum()),
        "fill": float(bundles[bundles <= plan.bundle_windows(total)].mean() / plan.bundle_windows(total)),
        "cut and place, us a row": spent / count * 1e6,
        "pack and name, us a row": totals.seconds / count * 1e6,
        "seconds": time.perf_counter() - began,
        "peak MB": megabytes("VmHWM"),
    }


def _spread(values: npt.NDArray[Any]) -> dict[str, float]:
    return {"mean": float(values.mean()), "median": float(np.median(values)), "most": float(values.max())}


def bucket_sizes(count: int) -> npt.NDArray[np.int64]:
    """Number of rows in each bucket of the join by uri."""
    from soundlake.pipelines.engine import joins

    sizes = np.zeros(joins.BUCKETS, np.int64)
    for numbers in chunks(count, CHUNK, 0):
        buckets = [joins._bucketed((rows.uri(number), b""), 0)[0] for number in numbers.tolist()]
        sizes += np.bincount(buckets, minlength=joins.BUCKETS)
    return sizes


def main() -> None:
    """Measure; print and write the table."""
    from soundlake.pipelines.engine import joins

    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--twice", action="store_true", help="all rows a second time, in another order")
    parser.add_argument("--folder", default=None, help="for what a runner would shuffle: 25 bytes a row")
    call = parser.parse_args()
    count = call.rows
    pin(1)
    total = total_windows(count)
    hours = sum(float(rows.seconds(numbers).sum()) for numbers in chunks(count, CHUNK * 10, 0)) / 3600
    told(f"{count:,} rows, {hours:,.0f} hours, {total:,} windows")
    size = min(count, -(-count // joins.BUCKETS))
    several = [apart(joining.bucket, i * size, size) for i in range(JOINED)]
    told(f"a bucket of each join: {several}")
    with tempfile.TemporaryDirectory(dir=call.folder) as folder:
        once = apart(planned, count, total, folder, size=CHUNK, shares=256, seed=0)
        told(f"all rows: {once}")
        fewer = min(count, FEWER)
        few = total_windows(fewer)
        orders = [
            apart(planned, fewer, few, folder, size=size, shares=shares, seed=seed)
            for size, shares, seed in ((CHUNK, 64, 0), (7_919, 5, 1), (50_021, 99, 2))
        ]
        told(f"{fewer:,} rows in three orders: {orders}")
        again = [once]
        if call.twice:
            again.append(apart(planned, count, total, folder, size=77_777, shares=199, seed=3))
            told(f"all rows again: {again[1]}")
    sizes = bucket_sizes(count)
    title = f"The planner: {count:,} files, {hours:,.0f} hours, one core"
    report("planner", title, figures(several, again, orders, sizes, total))


def told(what: str) -> None:
    """Print progress with the time, since the whole bench takes an hour."""
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


def total_windows(count: int) -> int:
    """Number of windows of all rows."""
    return sum(int(windows_by_hand(numbers).sum()) for numbers in chunks(count, CHUNK * 10, 0))


def figures(
    several: list[Told],
    full: list[dict[str, Any]],
    orders: list[dict[str, Any]],
    sizes: npt.NDArray[np.int64],
    total: int,
) -> list[Figure]:
    """The lines of the table."""

    def of(what: str, values: list[float], note: str = "", *, met: bool | None = None, target: str = "") -> Figure:
        return Figure(what, float(np.median(values)), min(values), max(values), target, met, note)

    first, lines = several[0], []
    for what in first.microseconds:
        lines.append(of(f"{what}, µs a file", [run.microseconds[what] for run in several]))
    for what in ("cut and place", "pack and name"):
        lines.append(of(f"plan alone: {what}, µs a file", [run[f"{what}, us a row"] for run in full], "all rows"))
    for what in first.bytes:
        lines.append(of(f"bytes a file, {what}", [run.bytes[what] for run in several]))
    for what in first.megabytes:
        lines.append(of(f"MB a bucket, {what}", [run.megabytes[what] for run in several], f"{first.rows:,} files"))
    once = full[0]
    in_bucket, windows = once["segments a bucket"], once["windows a bundle"]
    note = f"most {in_bucket['most'] * several[0]['bytes a work'] / 1e3:.0f} kB"
    same = all(len({(run["digest"], run["bundles"]) for run in runs}) == 1 for runs in (orders, full))
    return [
        *lines,
        of("files a bucket of a join", sizes.tolist()),
        of("windows", [total]),
        of("segments", [once["segments"]]),
        of("buckets", [once["buckets"]]),
        of("segments a bucket", [in_bucket["mean"]], f"median {in_bucket['median']:.0f}, {note}"),
        of("    the largest", [in_bucket["most"]]),
        of("bundles", [once["bundles"]]),
        of("windows a bundle", [windows["mean"]], f"median {windows['median']:.0f}, most {windows['most']:.0f}"),
        of("    how full", [once["fill"]], f"of {plan.bundle_windows(total)}, without those that are longer"),
        of("    longer than that", [once["longer than a bundle"]], "one segment that cannot be cut"),
        of("segments a bundle", [once["segments a bundle"]["mean"]], f"most {once['segments a bundle']['most']:.0f}"),
        of("the same bundles in every order", [float(same)], once["digest"], met=same, target="= 1"),
        of("seconds, all rows once", [run["seconds"] for run in full]),
        of("MB of the process that planned all", [run["peak MB"] for run in full]),
    ]


if __name__ == "__main__":
    main()
