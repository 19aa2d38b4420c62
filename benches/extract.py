"""The whole extract pipeline compared with the same functions in a bare loop, on one core; and two workers with one.

`python -m benches.extract` · about five minutes

The loop probes each file, computes its digest, plans the same bundles, and writes their windows as records: one
process, no Beam, no separate process for decoders, no ledger, no sync to the disk. Both sides are warm before the clock
starts: modules are imported, and the server that decoders are forked from is running. The pipeline's time includes its
construction, the comparison with an empty ledger, and the commit.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from benches.harness import faster, figure, pin, report
from benches.sides import KEEP_MEMORY, Side, in_turn
from soundlake.model.features.log_mel import PRESETS

SPEC = PRESETS["general"]
FILES, ROUNDS = 200, 3


def pipeline(corpus: str, warm: str, folder: str, workers: str, *beam: str) -> Callable[[], Callable[[], None]]:
    """The job of a side: extract `corpus` into a new lake in `folder`, with Beam's options `beam`."""
    from soundlake.pipelines import commands
    from soundlake.pipelines.lake.lake import Lake

    def extract(audio: str) -> str:
        lake = tempfile.mkdtemp(dir=folder)
        result = commands.extract(Lake.at(lake), audio, spec=SPEC, workers=int(workers), beam=beam)
        assert result["done"] == result["listed"], result
        return lake

    def job() -> Callable[[], None]:
        lake = extract(corpus)
        return lambda: shutil.rmtree(lake)

    shutil.rmtree(extract(warm))
    return job


def loop(corpus: str, warm: str, folder: str, part: str, parts: str) -> Callable[[], Callable[[], None]]:
    """The job of a side: extract every `parts`-th file of `corpus`, from the `part`-th on, to shards in `folder`."""
    from soundlake.model.features.records import Record, encode, write_framed
    from soundlake.pipelines.audio.reading import Probe, probe
    from soundlake.pipelines.extract import plan
    from soundlake.pipelines.extract.windows import SegmentWindows

    def bundles(found: dict[str, tuple[str, Probe, int]]) -> Iterator[tuple[plan.Segment, ...]]:
        """Bundles as the pipeline plans them."""
        segments = [s for name, (_, head, size) in found.items() for s in plan.segments(name, head, size, SPEC)]
        total = sum(segment.windows for segment in segments)
        buckets: dict[int, list[plan.Segment]] = {}
        for segment in segments:
            buckets.setdefault(plan.bucket_of(segment, total), []).append(segment)
        for bucket in buckets.values():
            yield from plan.pack(bucket, total)

    def extract(paths: list[str]) -> str:
        shards = tempfile.mkdtemp(dir=folder)
        probed = {}
        for path in paths:
            head = probe(path)
            with open(path, "rb") as file:
                probed[hashlib.file_digest(file, "sha256").hexdigest()] = path, head, os.path.getsize(path)
        for bundle in bundles(probed):
            with open(f"{shards}/{plan.bundle_id(SPEC, bundle)}.tfrecord", "wb") as shard:
                for segment in bundle:
                    path, head, _ = probed[segment.recording_id]
                    cut = SegmentWindows(path, head, SPEC, first=segment.first, count=segment.count)
                    for window, valid_frames, values in cut:
                        if values.any():
                            write_framed(shard, encode(Record(segment.recording_id, window, valid_frames, values)))
        return shards

    def files(folder: str) -> list[str]:
        # Sorted by format first, so that each part gets equally many files of each format.
        return sorted(map(str, Path(folder).iterdir()), key=lambda path: (Path(path).suffix, path))

    def job() -> Callable[[], None]:
        shards = extract(files(corpus)[int(part) :: int(parts)])
        return lambda: shutil.rmtree(shards)

    shutil.rmtree(extract(files(warm)))
    return job


def main() -> None:
    """Measure all sides in turn; print and write the table."""
    from benches import corpora

    cores = pin(2)
    if len(cores) < 2:
        print("one core only: the speed-up of two workers says nothing here")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = corpora.mixed(folder / "corpus", count=FILES)
        corpora.mixed(folder / "warm", count=20, seconds=5)
        inputs = str(folder / "corpus"), str(folder / "warm"), name
        sides = {
            "one": [Side("benches.extract:pipeline", *inputs, "1", cores=cores[:1])],
            "loop": [Side("benches.extract:loop", *inputs, "0", "1", cores=cores[:1], environment=KEEP_MEMORY)],
            "two": [Side("benches.extract:pipeline", *inputs, "2", cores=cores)],
            "halves": [
                Side("benches.extract:loop", *inputs, str(part), "2", cores=cores, environment=KEEP_MEMORY)
                for part in range(2)
            ],
            "roomy": [Side("benches.extract:pipeline", *inputs, "1", cores=cores)],
        }
        wall, processor = in_turn(sides, rounds=ROUNDS)
        for side in (side for several in sides.values() for side in several):
            side.close()
    gained = [a / b for a, b in zip(wall["one"], wall["two"], strict=True)]
    control = [a / b for a, b in zip(wall["loop"], wall["halves"], strict=True)]
    figures = [
        faster("pipeline, part of the bare loop's rate", wall["loop"], wall["one"], least=0.9),
        faster("    by time of processors", processor["loop"], processor["one"], note="whatever else runs beside"),
        figure("two workers on two cores, times one on one", gained, least=1.7, note="or the next but one"),
        figure("    two bare processes, times one", control, note="the control"),
        figure("    part of the control", [a / b for a, b in zip(gained, control, strict=True)], least=0.9),
        faster("two workers, times one, both on two cores", wall["roomy"], wall["two"]),
        faster("    bare loop's time of processors, part of theirs", processor["loop"], processor["two"]),
        figure("pipeline, one core, times real time", [seconds / taken for taken in wall["one"]]),
    ]
    report("extract", f"Extract, {FILES} files, {seconds / 3600:.1f} h, mostly 44.1 kHz stereo", figures)


if __name__ == "__main__":
    main()
