"""The demo corpus: the same from the same seed, labelled, and never over someone else's files."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import soundfile

from model.errors import InputError
from pipelines.synth import KINDS, synthesise


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.suffix in (".wav", ".flac")
    }


def test_the_same_seed_the_same_corpus(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert synthesise(str(tmp_path / name), recordings=16, seed=seed) == 18
    assert digests(tmp_path / "a") == digests(tmp_path / "b") != digests(tmp_path / "c")


def test_what_is_in_it(tmp_path: Path) -> None:
    synthesise(str(tmp_path / "a"), recordings=16)
    with open(tmp_path / "a" / "labels.csv") as file:
        labels = list(csv.DictReader(file))
    assert {row["label"] for row in labels} == set(KINDS)
    for row in labels:
        sound, rate = soundfile.read(tmp_path / "a" / row["uri"])
        assert 4 <= len(sound) / rate <= 9.2
        assert 0.2 < np.abs(sound).max() <= 1.1
    assert len({Path(row["uri"]).suffix for row in labels}) == 4


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    synthesise(str(folder), recordings=8)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    synthesise(str(folder), recordings=8)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(InputError, match="something else"):
        synthesise(str(folder), recordings=16)
    with pytest.raises(InputError, match="something else"):
        synthesise(str(tmp_path), recordings=8)


@pytest.mark.parametrize("count", [0, -1, 100_001])
def test_counts_out_of_range(tmp_path: Path, count: int) -> None:
    with pytest.raises(InputError, match="--recordings"):
        synthesise(str(tmp_path / "a"), recordings=count)
