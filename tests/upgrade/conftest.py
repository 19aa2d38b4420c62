"""Lakes of earlier versions, unpacked to be changed."""

import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from soundlake.pipelines.lake.lake import Lake

PACKED = Path(__file__).parent / "lakes" / "lakes.tar.xz"
MODELS = {3: "ff14d17970c490a5", 4: "a4a553251f0d5d5e"}
SPEC_ID = "695eb15f11c890f6"


@dataclass(frozen=True)
class Old:
    """A lake of an earlier version, and a copy of the audio that it was made of, at another place."""

    lake: Lake
    audio: Path
    model_id: str

    @property
    def spec(self) -> str:
        """The spec as a file."""
        return f"{self.lake.root}/features/{SPEC_ID}/spec.json"


def unpacked(folder: Path, number: int) -> Old:
    """The lake with a model of a format."""
    with tarfile.open(PACKED) as packed:
        names = [name for name in packed.getnames() if name.split("/")[0] == f"format-{number}"]
        packed.extractall(folder, [packed.getmember(name) for name in names], filter="data")
    home = folder / f"format-{number}"
    return Old(Lake.at(str(home / "lake")), home / "audio", MODELS[number])


@pytest.fixture(params=MODELS)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Old:
    """A lake of each format."""
    return unpacked(tmp_path, request.param)


@pytest.fixture
def old_3(tmp_path: Path) -> Old:
    """The lake whose model does not tell what it was trained on."""
    return unpacked(tmp_path, 3)
