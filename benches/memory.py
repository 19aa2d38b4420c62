"""Peak memory and time of `soundlake extract` by size of the corpus: neither may grow out of proportion.

`python -m benches.memory` · about seven minutes, 2 GB of disk

Memory: 20,000 short files compared with 1,000, and a recording of ten hours compared with one of a minute, both for a
format that can be cut into segments (WAV) and for one that cannot (MP3). The figure is the peak, over many samples, of
the memory of the command and all its child processes: the proportional shares (PSS) of anonymous pages, plus the pages
of libraries once, from the process that has most of them. The table also contains the PSS of all pages, which depends
on other processes on the machine that map the same files.

Time: 16 and 4 hours of sound compared with one. The time of a run on a single file is measured in the same rounds and
subtracted.
"""

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benches import corpora
from benches.harness import Figure, faster, figure, pin, report
from benches.sides import processes, processor_seconds

LOOK_SECONDS = 0.1
PAGE = os.sysconf("SC_PAGE_SIZE")
ROUNDS, TIMED_ROUNDS = 2, 3
SHORT_FILES, LONG_MINUTES = 20_000, 600
HOURS, FILE_MINUTES, RATE = (1, 4, 16), 3, 44_100
NEAR = {"least": 0.9, "most": 1.1}


def command(corpus: Path, lake: Path) -> list[str]:
    """The command line of the measured run."""
    program = Path(sys.executable).with_name("soundlake")
    return [str(program), "extract", str(corpus), "--lake", str(lake), "--workers", "1", "--json"]


def started(corpus: Path, lake: Path) -> subprocess.Popen[bytes]:
    """Start an extract into a new lake, in a separate session, by which its child processes are recognised."""
    shutil.rmtree(lake, ignore_errors=True)
    null = subprocess.DEVNULL
    return subprocess.Popen(command(corpus, lake), start_new_session=True, stdout=null, stderr=null)


def ended(process: subprocess.Popen[bytes]) -> None:
    """Exit the bench if the command failed."""
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, process.args))} ended with {process.returncode}")  # type: ignore[arg-type]


def held(session: int) -> tuple[float, float]:
    """Memory of a session's processes in megabytes: as if alone on a machine, and by proportional shares."""
    anonymous = files = shares = 0
    for folder in processes(session):
        with contextlib.suppress(OSError), open(f"{folder}/smaps_rollup") as rollup, open(f"{folder}/statm") as statm:
            sizes = {line[0]: int(line[1]) for line in map(str.split, rollup) if line[0] in ("Pss:", "Pss_Anon:")}
            anonymous += sizes.get("Pss_Anon:", 0)
            shares += sizes.get("Pss:", 0)
            files = max(files, int(statm.read().split()[2]) * PAGE // 1024)
    return (anonymous + files) / 1024, shares / 1024


def peak(corpus: Path, lake: Path) -> tuple[float, float]:
    """Peak memory of an extract, by each of the two counts of `held`."""
    process = started(corpus, lake)
    alone = shares = 0.0
    while process.poll() is None:
        now = held(process.pid)
        alone, shares = max(alone, now[0]), max(shares, now[1])
        time.sleep(LOOK_SECONDS)
    ended(process)
    return alone, shares


def timed(corpus: Path, lake: Path) -> tuple[float, float]:
    """Seconds of an extract: wall-clock time, and processor time."""
    began = time.perf_counter()
    process = started(corpus, lake)
    spent: dict[str, float] = {}
    while process.poll() is None:
        spent |= processor_seconds(process.pid)
        time.sleep(LOOK_SECONDS / 2)
    ended(process)
    return time.perf_counter() - began, sum(spent.values())


def memory(folder: Path) -> list[Figure]:
    """Peak memory of large corpora relative to small ones."""
    corpora.short_files(folder / "short", count=SHORT_FILES)
    for minutes in (1, LONG_MINUTES):
        corpora.wav_files(folder / f"wav {minutes}", count=1, minutes=minutes, rate=16_000)
        corpora.mp3_files(folder / f"mp3 {minutes}", count=1, minutes=minutes, rate=16_000)
    pairs = {
        f"{SHORT_FILES:,} short files, times 1,000": ("short", "short/000"),
        f"{LONG_MINUTES // 60} h in one WAV, times 1 min": (f"wav {LONG_MINUTES}", "wav 1"),
        f"{LONG_MINUTES // 60} h in one MP3, times 1 min": (f"mp3 {LONG_MINUTES}", "mp3 1"),
    }
    figures = []
    for what, names in pairs.items():
        rounds = [[peak(folder / name, folder / "lake") for name in names] for _ in range(ROUNDS)]
        for count, (text, promise) in enumerate({f"memory, {what}": NEAR, "    by proportional shares": {}}.items()):
            mb = " : ".join(f"{statistics.median(peaks[i][count] for peaks in rounds):.0f}" for i in (0, 1))
            ratios = [large[count] / small[count] for large, small in rounds]
            figures.append(figure(text, ratios, **promise, note=f"{mb} MB"))
    return figures


def linearity(folder: Path) -> list[Figure]:
    """Time per hour of sound in corpora of several sizes."""
    counts = {0: 1} | {hours: hours * 60 // FILE_MINUTES for hours in HOURS}
    corpora.mp3_files(folder / "all", count=counts[HOURS[-1]], minutes=FILE_MINUTES, rate=RATE)
    files = sorted((folder / "all").iterdir())
    for hours, count in counts.items():
        (folder / str(hours)).mkdir()
        for path in files[:count]:
            os.link(path, folder / str(hours) / path.name)
    timed(folder / "0", folder / "lake")
    took: dict[int, list[tuple[float, float]]] = {hours: [] for hours in counts}
    for _ in range(TIMED_ROUNDS):
        for hours, seconds in took.items():
            seconds.append(timed(folder / str(hours), folder / "lake"))

    def an_hour(hours: int, clock: int) -> list[float]:
        """Seconds per hour of sound without the start-up, one number per round."""
        sound = (counts[hours] - counts[0]) * FILE_MINUTES / 60
        return [(run[clock] - start[clock]) / sound for run, start in zip(took[hours], took[0], strict=True)]

    figures = []
    for hours in HOURS[1:]:
        texts = {f"time an hour, {hours} h of sound, times {HOURS[0]} h": {"least": 0.85, "most": 1.15}}
        for clock, (text, promise) in enumerate((texts | {"    time of processors": {}}).items()):
            figures.append(faster(text, an_hour(hours, clock), an_hour(HOURS[0], clock), **promise))
    start_up, one_hour = ([wall for wall, _ in took[hours]] for hours in (0, HOURS[0]))
    return [*figures, faster("start-up, subtracted, part of the run on one hour", start_up, one_hour)]


def main() -> None:
    """Measure both; print and write the table."""
    pin(2)
    with tempfile.TemporaryDirectory() as name:
        figures = memory(Path(name))
    with tempfile.TemporaryDirectory() as name:
        figures += linearity(Path(name))
    report("memory", "extract --workers 1: peak memory and time, large against small", figures)


if __name__ == "__main__":
    main()
