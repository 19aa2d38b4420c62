"""Peak memory and time of `soundlake extract` against the size of the corpus: neither may grow out of proportion.

`python -m benches.memory` · about seven minutes, 2 GB of disk

Memory: 20,000 short files against 1,000, and ten hours in one recording against one minute, both where a recording is
cut into segments (WAV) and where it cannot be (MP3). Counted is the proportional share (PSS) of the command and of all
processes that it starts, added up at one moment, the most of many moments. Time: 16 and 4 hours of sound against one;
what a run takes on a single file is subtracted, and measured in the same rounds.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benches import corpora
from benches.harness import Figure, faster, figure, interleaved, pin, report

LOOK_SECONDS = 0.1
ROUNDS, TIMED_ROUNDS = 2, 3
SHORT_FILES, LONG_MINUTES = 20_000, 600
HOURS, FILE_MINUTES, RATE = (1, 4, 16), 3, 44_100
NEAR = {"least": 0.9, "most": 1.1}


def command(corpus: Path, lake: Path) -> list[str]:
    """The command as a user gives it."""
    program = Path(sys.executable).with_name("soundlake")
    return [str(program), "extract", str(corpus), "--lake", str(lake), "--workers", "1", "--json"]


def held(session: int) -> tuple[int, int]:
    """Kilobytes that the processes of a session hold: proportional share of all, and of what is in no file."""
    total = anonymous = 0
    for name in os.listdir("/proc"):
        try:
            if not name.isdigit() or os.getsid(int(name)) != session:
                continue
            with open(f"/proc/{name}/smaps_rollup") as file:
                found = {line[0]: int(line[1]) for line in map(str.split, file) if line[0] in ("Pss:", "Pss_Anon:")}
        except OSError:  # it has ended
            continue
        total += found.get("Pss:", 0)
        anonymous += found.get("Pss_Anon:", 0)
    return total, anonymous


def peak(corpus: Path, lake: Path) -> tuple[float, float]:
    """Most megabytes that an extract into a fresh lake held at a moment: in all, and of what is in no file."""
    shutil.rmtree(lake, ignore_errors=True)
    # A session of its own: its processes can be told from all others, whatever becomes of their parents.
    process = subprocess.Popen(
        command(corpus, lake), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    most = (0, 0)
    while process.poll() is None:
        most = tuple(map(max, most, held(process.pid)))  # type: ignore[assignment]
        time.sleep(LOOK_SECONDS)
    if process.returncode:
        raise SystemExit(f"extract of {corpus} ended with {process.returncode}")
    return most[0] / 1024, most[1] / 1024


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
        ratios, own = ([large[i] / small[i] for large, small in rounds] for i in (0, 1))
        mb = " : ".join(f"{max(one[i][0] for one in rounds):.0f}" for i in (0, 1))
        figures.append(figure(f"memory, {what}", ratios, **NEAR, note=f"{mb} MB"))
        mb = " : ".join(f"{max(one[i][1] for one in rounds):.0f}" for i in (0, 1))
        figures.append(figure("    without pages of files", own, note=f"{mb} MB"))
    return figures


def linearity(folder: Path) -> list[Figure]:
    """Time an hour of sound takes in corpora of several sizes."""
    most = HOURS[-1] * 60 // FILE_MINUTES
    corpora.mp3_files(folder / "hours", count=most, minutes=FILE_MINUTES, rate=RATE)
    files = sorted((folder / "hours").iterdir())
    counts = {0: 1} | {hours: hours * 60 // FILE_MINUTES for hours in HOURS}
    sides: dict[Any, Callable[[], Any]] = {}
    for hours, count in counts.items():
        part = folder / f"{hours} hours"
        part.mkdir()
        for path in files[:count]:
            os.link(path, part / path.name)

        def side(part: Path = part) -> None:
            lake = folder / "lake"
            shutil.rmtree(lake, ignore_errors=True)
            subprocess.run(command(part, lake), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        sides[hours] = side
    sides[0]()
    took = interleaved(sides, rounds=TIMED_ROUNDS, warm=0)
    an_hour = {
        hours: [
            (seconds - none) / ((counts[hours] - 1) * FILE_MINUTES / 60)
            for seconds, none in zip(took[hours], took[0], strict=True)
        ]
        for hours in HOURS
    }
    figures = [
        figure(
            f"time an hour, {hours} h of sound, times {HOURS[0]} h",
            [large / small for large, small in zip(an_hour[hours], an_hour[HOURS[0]], strict=True)],
            least=0.85,
            most=1.15,
            note="start-up subtracted",
        )
        for hours in HOURS[1:]
    ]
    return [*figures, faster("start-up, part of the run on one hour", took[0], took[HOURS[0]])]


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
