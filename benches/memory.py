"""Peak memory and time of `soundlake extract` against the size of the corpus: neither may grow out of proportion.

`python -m benches.memory` · about seven minutes, 2 GB of disk

Memory: 20,000 short files against 1,000, and ten hours in one recording against one minute, both where a recording is
cut into segments (WAV) and where it cannot be (MP3). Counted is what the command and all processes that it starts hold
at one moment, the most of many moments: the proportional shares (PSS) of pages that lie in no file, and the pages of
libraries once, of the process that has most of them. Their proportional shares, which are told beside, would depend on
who else on the machine maps the same files.

Time: 16 and 4 hours of sound against one. What a run takes on a single file is measured in the same rounds and
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
    """The command as a user gives it."""
    program = Path(sys.executable).with_name("soundlake")
    return [str(program), "extract", str(corpus), "--lake", str(lake), "--workers", "1", "--json"]


def started(corpus: Path, lake: Path) -> subprocess.Popen[bytes]:
    """Begin an extract into a fresh lake, in a session of its own: whatever it starts can be told from all others."""
    shutil.rmtree(lake, ignore_errors=True)
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(command(corpus, lake), start_new_session=True, stdout=nowhere, stderr=nowhere)


def ended(process: subprocess.Popen[bytes]) -> None:
    """Stop the bench if the command failed."""
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, process.args))} ended with {process.returncode}")  # type: ignore[arg-type]


def held(session: int) -> tuple[float, float]:
    """Megabytes that a session's processes hold: as on a machine of their own, and by proportional shares."""
    anonymous = files = shares = 0
    for folder in processes(session):
        with contextlib.suppress(OSError), open(f"{folder}/smaps_rollup") as rollup, open(f"{folder}/statm") as statm:
            found = {line[0]: int(line[1]) for line in map(str.split, rollup) if line[0] in ("Pss:", "Pss_Anon:")}
            anonymous += found.get("Pss_Anon:", 0)
            shares += found.get("Pss:", 0)
            files = max(files, int(statm.read().split()[2]) * PAGE // 1024)
    return (anonymous + files) / 1024, shares / 1024


def peak(corpus: Path, lake: Path) -> tuple[float, float]:
    """The most that an extract held at a moment, by each of the two counts."""
    process = started(corpus, lake)
    own = shares = 0.0
    while process.poll() is None:
        now = held(process.pid)
        own, shares = max(own, now[0]), max(shares, now[1])
        time.sleep(LOOK_SECONDS)
    ended(process)
    return own, shares


def timed(corpus: Path, lake: Path) -> tuple[float, float]:
    """Seconds of an extract: by the wall's clock, and of processors."""
    began = time.perf_counter()
    process = started(corpus, lake)
    spent: dict[str, float] = {}
    while process.poll() is None:
        spent |= processor_seconds(process.pid)
        time.sleep(LOOK_SECONDS / 2)
    ended(process)
    return time.perf_counter() - began, sum(spent.values())


def memory(folder: Path) -> list[Figure]:
    """Peaks of large against small."""
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
            mb = " : ".join(f"{statistics.median(one[i][count] for one in rounds):.0f}" for i in (0, 1))
            ratios = [large[count] / small[count] for large, small in rounds]
            figures.append(figure(text, ratios, **promise, note=f"{mb} MB"))
    return figures


def linearity(folder: Path) -> list[Figure]:
    """Time an hour of sound takes in corpora of several sizes."""
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
        """What an hour of sound takes beyond the start-up, a number a round."""
        sound = (counts[hours] - counts[0]) * FILE_MINUTES / 60
        return [(one[clock] - none[clock]) / sound for one, none in zip(took[hours], took[0], strict=True)]

    figures = []
    for hours in HOURS[1:]:
        texts = {f"time an hour, {hours} h of sound, times {HOURS[0]} h": {"least": 0.85, "most": 1.15}}
        for clock, (text, promise) in enumerate((texts | {"    time of processors": {}}).items()):
            figures.append(faster(text, an_hour(hours, clock), an_hour(HOURS[0], clock), **promise))
    none, one = ([wall for wall, _ in took[hours]] for hours in (0, HOURS[0]))
    return [*figures, faster("start-up, subtracted, part of the run on one hour", none, one)]


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
