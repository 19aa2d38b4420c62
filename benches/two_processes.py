"""Two processes compared with one: soundlake's workers, Beam's workers, and the limit of the machine.

`python -m benches.two_processes` · about ten minutes

Soundlake uses `--workers 2`: one process with two threads, which wait for two decoders, each a child process. Beam uses
`--direct_running_mode=multi_processing --direct_num_workers=2`: two workers, each with a child process for decoding.
The control runs the same functions in two plain processes without Beam, each with half of the files: no pipeline can
gain more than these. One worker always has one core, two workers have two, and a ratio compares runs that follow each
other.

Beam starts its workers again for each pipeline, which takes the same time for any corpus. So a corpus of one short file
is measured, too, and Beam's gain is reported with this start and without it.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benches.extract import SPEC
from benches.harness import figure, pin, report
from benches.sides import KEEP_MEMORY, Side, in_turn

FILES, ROUNDS = 150, 3


def beam(workers: int) -> tuple[str, str]:
    """Beam's options for workers in separate processes."""
    return "--direct_running_mode=multi_processing", f"--direct_num_workers={workers}"


def _ratios(slow: Sequence[float], fast: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(slow, fast, strict=True)]


def _less(whole: Sequence[float], start: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(whole, start, strict=True)]


def main() -> None:
    """Measure all sides in turn; print and write the table."""
    from benches import corpora

    cores = pin(2)
    if len(cores) < 2:
        raise SystemExit("one core only: the speed-up of two processes says nothing here")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = corpora.mixed(folder / "corpus", count=FILES)
        corpora.mixed(folder / "short", count=1, seconds=1)
        corpus, short = str(folder / "corpus"), str(folder / "short")

        def plain(part: int, parts: int) -> Side:
            arguments = corpus, short, name, str(part), str(parts)
            return Side("benches.extract:loop", *arguments, cores=cores[:parts], environment=KEEP_MEMORY)

        def pipeline(audio: str, workers: int, *options: str) -> Side:
            return Side("benches.extract:pipeline", audio, short, name, str(workers), *options, cores=cores[:workers])

        sides = {
            "plain 1": [plain(0, 1)],
            "plain 2": [plain(0, 2), plain(1, 2)],
            "own 1": [pipeline(corpus, 1)],
            "own 2": [pipeline(corpus, 2)],
            "beam 1": [pipeline(corpus, 1, *beam(1))],
            "beam 2": [pipeline(corpus, 2, *beam(2))],
            "start 1": [pipeline(short, 1, *beam(1))],
            "start 2": [pipeline(short, 2, *beam(2))],
        }
        wall, _ = in_turn(sides, rounds=ROUNDS)
        for side in (side for several in sides.values() for side in several):
            side.close()
    control, own, whole = (_ratios(wall[f"{name} 1"], wall[f"{name} 2"]) for name in ("plain", "own", "beam"))
    work = {workers: _less(wall[f"beam {workers}"], wall[f"start {workers}"]) for workers in (1, 2)}
    figures = [
        figure("two plain processes, times one", control, note="the control: what the machine allows"),
        figure("--workers 2, times --workers 1", own),
        figure("    part of the control", _ratios(own, control)),
        figure("Beam's multi_processing, 2 workers times 1", whole, note="with their start"),
        figure("    without their start", _ratios(work[1], work[2])),
        figure("    part of the control", _ratios(_ratios(work[1], work[2]), control)),
        figure("    start of two workers, seconds", wall["start 2"]),
        figure("--workers 2, times multi_processing with 2", _ratios(wall["beam 2"], wall["own 2"])),
        figure("--workers 2, seconds a run", wall["own 2"]),
    ]
    report("two_processes", f"Two processes, {FILES} files, {seconds / 3600:.1f} h, {SPEC.sample_rate} Hz", figures)


if __name__ == "__main__":
    main()
