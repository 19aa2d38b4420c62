"""A small lake, made once a session by the real commands, for every test that only reads one."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from soundlake.pipelines import commands
from soundlake.pipelines.cli.synth import synthesise
from soundlake.pipelines.lake import lookup
from soundlake.pipelines.lake.lake import Lake

SHARED = Path(__file__).resolve().parents[2] / "shared"


def need_corpus(name: str) -> Path:
    """A corpus of ../shared, or a skip that says why."""
    folder = SHARED / "corpora" / name
    if not folder.is_dir():
        pytest.skip(f"needs ../shared/corpora/{name}, which this clone is without")
    return folder


@dataclass(frozen=True)
class Made:
    """A corpus, its lake, and what `run` said."""

    audio: Path
    lake: Lake
    result: dict[str, Any]

    def copy(self, folder: Path) -> Lake:
        """A copy of the lake to change."""
        shutil.copytree(self.lake.root, folder / "lake")
        return Lake.at(str(folder / "lake"))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The demo corpus of 24 recordings and two rejects, extracted, trained for a few steps, encoded."""
    folder = tmp_path_factory.mktemp("made")
    synthesise(str(folder / "audio"), recordings=24)
    lake = Lake.at(str(folder / "lake"))
    result = commands.run(
        lake,
        str(folder / "audio"),
        spec=lookup.parse_spec("general"),
        settings={"max_steps": 60, "batch_size": 32},
    )
    return Made(folder / "audio", lake, result)
