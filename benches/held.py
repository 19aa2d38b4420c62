"""Memory and time that a single process needs per file or per bundle: bytes and microseconds of each.

`python -m benches.held` · about five minutes

Ledgers of synthetic rows (`benches.rows`) are written and committed by soundlake's own functions. Then every step that
reads a whole ledger in one process is measured: the input of training, its splits, the totals of `status`. Each step
runs in a new process. The figure is the peak growth with the large ledger minus that with the small one, so the fixed
cost of a reader cancels out. `docs/scale.md` contains the numbers for a hundred million files.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benches import rows
from benches.growth import Grown, apart
from benches.harness import Figure, pin, report
from soundlake.model.features.log_mel import PRESETS

SPEC = PRESETS["general"]
ROWS, PART, RECORDINGS_A_BUNDLE, PIECES = 1_000_000, 5, 40, 5_000


def filled(lake: str, first: int, count: int) -> list[str]:
    """Fragments of a ledger with synthetic rows, written as workers write them."""
    from soundlake.pipelines.extract import plan
    from soundlake.pipelines.extract.pipeline import PART_ROWS
    from soundlake.pipelines.lake import ledger
    from soundlake.pipelines.lake.lake import Lake

    numbers = np.arange(first, first + count, dtype=np.uint64)
    pending, written = [], []
    for number, name, (probe, size) in zip(numbers.tolist(), rows.ids(numbers), rows.headers(numbers), strict=True):
        seconds = (probe.claimed_frames or 0) / probe.sample_rate
        bundle = f"{number // RECORDINGS_A_BUNDLE:032x}"
        row = ledger.row(uri=rows.uri(number), corpus="s3://a-large-corpus/audio", recording_id=name, size=size)
        row |= {"mtime_ns": 1_790_000_000_000_000_000 + number, "status": ledger.DONE, "container": probe.container}
        row |= {"codec": probe.codec, "sample_rate": probe.sample_rate, "channels": probe.channels}
        row |= {"claimed_s": seconds, "duration_s": seconds, "windows": plan.believed_windows(probe, size, SPEC)}
        row |= {"silent_windows": 0, "bundles": [bundle], "group": f"speaker-{number % 100_000:06d}"}
        pending.append(row)
        if len(pending) == PART_ROWS or number == first + count - 1:
            written += ledger.write_rows(Lake.at(lake), SPEC.spec_id, pending)
            pending = []
    return written


def committed(lake: str, count: int) -> dict[str, float]:
    """Write and commit `count` rows; return seconds of the commit, and bytes."""
    from soundlake.pipelines.lake import fragments, ledger
    from soundlake.pipelines.lake.lake import Lake

    where, step = Lake.at(lake), 100_000
    written = [text for at in range(0, count, step) for text in filled(lake, at, min(step, count - at))]
    uri = where.ledger_uri(SPEC.spec_id)
    began = time.perf_counter()
    fragments.commit(uri, 0, ledger.SCHEMA, written, [])
    seconds = time.perf_counter() - began
    size = {name: sum(p.stat().st_size for p in Path(uri, name).iterdir()) for name in ("data", "_versions")}
    return {
        "fragments": len(written),
        "summary.json": sum(len(json.dumps(text)) + 2 for text in written),
        "seconds": seconds,
        "data": size["data"],
        "manifest": size["_versions"],
    }


def reading(lake: str, what: str) -> tuple[float, float]:
    """Megabytes and seconds that one process needs to read the whole ledger for one purpose."""
    from soundlake.model.features import splits
    from soundlake.pipelines.lake import ledger
    from soundlake.pipelines.lake.lake import Lake

    def open_ledger() -> Any:
        return ledger.open_ledger(Lake.at(lake), SPEC.spec_id)

    def split() -> Callable[[], Any]:
        _, groups = ledger.training_input(open_ledger())
        return lambda: splits.assign(groups)

    work = {
        "training's bundles and groups": lambda: lambda: ledger.training_input(open_ledger()),
        "splits": split,
        "totals of status": lambda: lambda: ledger.summary(open_ledger()),
        "partitions": lambda: lambda: ledger.partitions(open_ledger(), "s3://a-large-corpus/audio"),
    }[what]()
    began = time.perf_counter()
    with Grown() as grown:
        held = work()
    del held
    return grown.megabytes, time.perf_counter() - began


PURPOSES = (
    "training's bundles and groups",
    "splits",
    "totals of status",
    "partitions",
)


def labels(folder: str, count: int) -> tuple[float, float]:
    """Megabytes and seconds to read a label file of `count` rows."""
    from soundlake.pipelines.corpus.labels import read_labels

    path = Path(folder, "labels.csv")
    with open(path, "w") as file:
        file.write("uri,label,group\n")
        file.writelines(f"{rows.uri(number)},dog,speaker-{number % 1000}\n" for number in range(count))
    began = time.perf_counter()
    with Grown() as grown:
        held = read_labels(str(path), folder)
    del held
    return grown.megabytes, time.perf_counter() - began


def pieces(lake: str, count: int) -> dict[str, float]:
    """Seconds of each look at the progress of a run, and of reading the reports of encode's pieces one by one."""
    from soundlake.pipelines.lake.lake import Lake
    from soundlake.pipelines.lake.progress import Progress, Watch

    where = Lake.at(lake)
    progress = Progress(where, "runs/one")
    for number in range(count):
        progress.tell(f"{number:032x}", {"files": 40, "rejected": 0, "audio_s": 4000.0, "work": 4096})
    watch, seconds = Watch(progress), []
    for _ in range(2):
        began = time.perf_counter()
        watch.look()
        seconds.append(time.perf_counter() - began)
    began = time.perf_counter()
    for number in range(count):
        json.loads(where.read(f"runs/one/done/{number:032x}.json"))
    return {"first look": seconds[0], "look": seconds[1], "read": time.perf_counter() - began}


def main() -> None:
    """Measure; print and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=ROWS)
    count = parser.parse_args().rows
    # Otherwise Lance logs for each fragment that there is no dataset yet.
    os.environ |= {"LANCE_LOG": "error", "TF_CPP_MIN_LOG_LEVEL": "3"}
    pin(1)
    sizes = [count // PART, count]

    def figure(what: str, found: list[tuple[float, float]]) -> Figure:
        """Bytes and microseconds per file, from (megabytes, seconds) of the small and the large ledger."""
        more = sizes[1] - sizes[0]
        value, seconds = ((found[1][i] - found[0][i]) / more for i in (0, 1))
        line = Figure(what, value * 2**20, value * 2**20, value * 2**20, note=f"{seconds * 1e6:.2f} µs each")
        print(line.what, f"{line.value:.1f}", line.note, flush=True)
        return line

    with tempfile.TemporaryDirectory() as folder:
        lakes = [f"{folder}/{size}" for size in sizes]
        results = [apart(committed, lake, size) for lake, size in zip(lakes, sizes, strict=True)]
        figures = [
            figure(text, [(result[name] / 2**20, result["seconds"]) for result in results])
            for name, text in (
                ("data", "ledger, on disk"),
                ("manifest", "ledger's manifest, before compaction"),
                ("summary.json", "names of new fragments, in the driver"),
            )
        ]
        for what in PURPOSES:
            figures.append(figure(what, [apart(reading, lake, what) for lake in lakes]))
        figures.append(figure("label file, on one worker", [apart(labels, folder, size) for size in sizes]))
        took = apart(pieces, lakes[0], PIECES)
    for what, text in (
        ("first look", "watching a run: a bundle once, µs"),
        ("look", "watching a run: a bundle, each look, µs"),
        ("read", "encode's commit: what a piece said, µs"),
    ):
        value = took[what] / PIECES * 1e6
        figures.append(Figure(text, value, value, value, note="on a disk; in a bucket a request"))
    report("held", f"Bytes a file that one process holds, {count:,} files", figures)


if __name__ == "__main__":
    main()
