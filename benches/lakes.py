"""Lakes for the benches, made with the commands of the command line."""

import subprocess
import sys
from pathlib import Path

from benches import corpora


def soundlake(*arguments: str) -> None:
    """Run a soundlake command; stdout is discarded, stderr is not."""
    program = Path(sys.executable).with_name("soundlake")
    subprocess.run([str(program), *arguments], check=True, stdout=subprocess.DEVNULL)


def extracted(folder: Path, *, hours: int) -> Path:
    """Make a lake of `hours` hours of sound in five-minute recordings: 3,516 windows per hour."""
    corpora.wav_files(folder / "corpus", count=12 * hours, minutes=5, rate=16_000)
    lake = folder / "lake"
    soundlake("extract", str(folder / "corpus"), "--lake", str(lake))
    return lake
