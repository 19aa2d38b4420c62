"""A corpus and its lake, made by the local engine, that clusters are compared with; and what took how long."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from soundlake.pipelines.cli.synth import synthesise
from tests.conftest import SHARED
from tests.system.lakes import done

# As small as can be.
MODEL = ("--steps", "12", "--batch-size", "8", "--latent-dim", "4")


@dataclass(frozen=True)
class Local:
    """A corpus, and the lake that the local engine made of it: with a model and its table."""

    audio: Path
    lake: Path


class Timings:
    """Seconds by what they went to, told at the end: never judged."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        """Take the time of a block."""
        began = time.monotonic()
        yield
        self.add(what, time.monotonic() - began)

    def add(self, what: str, seconds: float) -> None:
        """A time that was taken elsewhere."""
        self.lines.append(f"{what:<44}{seconds:7.1f} s")


_timings = Timings()


@pytest.fixture(scope="session")
def timings() -> Timings:
    return _timings


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("what took how long")
    for line in _timings.lines:
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory, timings: Timings) -> Local:
    """400 recordings of ../shared, or the demo corpus in a clone without, and one that is none."""
    folder = tmp_path_factory.mktemp("local")
    made = Local(folder / "audio", folder / "lake")
    if (SHARED / "corpora" / "esc10").is_dir():
        shutil.copytree(SHARED / "corpora" / "esc10" / "audio", made.audio)
    else:
        synthesise(str(made.audio), recordings=96)
    (made.audio / "no-sound.wav").write_bytes(b"RIFF, but no sound at all")
    with timings.of("local: extract"):
        done("extract", made.audio, "--lake", made.lake)
    # Of a few recordings: what a model is worth is nothing here.
    for path in sorted(made.audio.iterdir())[:20]:
        (folder / "few").mkdir(exist_ok=True)
        shutil.copy(path, folder / "few")
    with timings.of("local: a model, for both"):
        done("extract", folder / "few", "--lake", folder / "few-lake")
        done("train", "--lake", folder / "few-lake", *MODEL)
    shutil.copytree(folder / "few-lake" / "models", made.lake / "models")
    with timings.of("local: encode"):
        done("encode", "--lake", made.lake)
    return made
