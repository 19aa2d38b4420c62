"""Lakes for the benches, made by the commands as a user gives them."""

import subprocess
import sys
from pathlib import Path

from benches import corpora


def soundlake(*arguments: str) -> None:
    """Run a command; what it prints is dropped, its errors are not."""
    program = Path(sys.executable).with_name("soundlake")
    subprocess.run([str(program), *arguments], check=True, stdout=subprocess.DEVNULL)


def extracted(folder: Path, *, hours: int) -> Path:
    """A lake of so many hours of sound in five-minute recordings: 3,516 windows an hour."""
    corpora.wav_files(folder / "corpus", count=12 * hours, minutes=5, rate=16_000)
    lake = folder / "lake"
    soundlake("extract", str(folder / "corpus"), "--lake", str(lake))
    return lake
