"""The demo corpus: the same from the same seed, labelled, and never over someone else's files."""

import csv
import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from model.errors import InputError, TryLaterError
from pipelines.synth import KINDS, synthesise
from tests.pipelines import limits


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
    for call, said in (
        ({"recordings": 16}, "of 8 recordings, not 16"),
        ({"recordings": 4}, "of 8 recordings, not 4"),
        ({"recordings": 8, "seed": 1}, "another seed"),
    ):
        with pytest.raises(InputError, match=said):
            synthesise(str(folder), **call)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(InputError, match="is not empty"):
        synthesise(str(tmp_path), recordings=8)


def test_what_is_missing_is_made_and_the_rest_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    synthesise(str(folder), recordings=16)
    whole = digests(folder)
    shutil.rmtree(folder / "bird")
    for name in ("recorder-off.wav", "labels.csv", "not-a-sound.wav"):
        (folder / name).unlink()
    (folder / "bell" / "bell-000.flac").write_bytes(b"mine")
    (folder / "mine.txt").write_text("mine")
    assert synthesise(str(folder), recordings=16) == 18
    assert digests(folder) == whole | {"bell/bell-000.flac": hashlib.sha256(b"mine").hexdigest()}
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 16 + 4


def test_a_stopped_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it had made by then is whole."""
    synthesise(str(tmp_path / "a"), recordings=8)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(KINDS, "engine", stop)
    with pytest.raises(KeyboardInterrupt):
        synthesise(str(tmp_path / "b"), recordings=8)
    assert 0 < len(digests(tmp_path / "b")) < len(digests(tmp_path / "a"))
    monkeypatch.undo()
    synthesise(str(tmp_path / "b"), recordings=8)
    assert digests(tmp_path / "b") == digests(tmp_path / "a")
    assert not list((tmp_path / "b").rglob(".*"))


@pytest.mark.parametrize("labels", [None, b"", b"uri,label,group\n", b"\xff"])
def test_foreign_folders_are_not_touched(tmp_path: Path, labels: bytes | None) -> None:
    """Also not those with names that are in a demo corpus, too."""
    (tmp_path / "bell").mkdir()
    soundfile.write(tmp_path / "bell" / "bell-000.flac", np.zeros(48_000), 48_000)
    if labels is not None:
        (tmp_path / "labels.csv").write_bytes(labels)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"is not empty|holds something else"):
        synthesise(str(tmp_path), recordings=8)
    assert sorted(tmp_path.rglob("*")) == before


def test_no_room(tmp_path: Path) -> None:
    with pytest.raises(TryLaterError, match="run the same command again"), limits.file_size(8192):
        synthesise(str(tmp_path / "a"), recordings=8)
    assert digests(tmp_path / "a") == {}


@pytest.mark.parametrize("count", [0, -1, 100_001])
def test_counts_out_of_range(tmp_path: Path, count: int) -> None:
    with pytest.raises(InputError, match="--recordings"):
        synthesise(str(tmp_path / "a"), recordings=count)
