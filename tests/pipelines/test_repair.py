"""Repair: a damaged shard is named, made again byte for byte, or its recordings move where one of them is lost."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from soundlake.model.errors import InputError
from soundlake.pipelines import commands
from soundlake.pipelines.extract.bundle import read_outcomes
from soundlake.pipelines.lake import ledger
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.upkeep import repair
from tests.pipelines.test_extract import SPEC, corpus, rows, run, shards, windows_of, write


@pytest.fixture
def extracted(tmp_path: Path) -> tuple[Path, Lake]:
    audio = corpus(tmp_path / "audio")
    for i in range(8):
        write(audio / f"more{i}.wav", 60.0, seed=100 + i)
    lake = Lake.at(str(tmp_path / "lake"))
    run(lake, audio)
    assert len(shards(lake)) > 2
    return audio, lake


def paths(lake: Lake) -> list[Path]:
    return sorted(Path(lake.root).glob("features/*/shards/*.tfrecord"))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut_between_records(path: Path) -> None:
    """No checksum fails: only the number of records is wrong."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little") + 16
    path.write_bytes(data[: len(data) - size] if len(data) % size == 0 else data[:0])


def mended(lake: Lake, audio: Path) -> dict[str, Any]:
    found = run(lake, audio, repair=True)["repair"]
    return {one["bundle"]: one for one in found["damaged"]} | {"shards": found["shards"]}


@pytest.mark.parametrize("harm", ["flip", "length", "missing", "short", "cut", "empty"])
def test_a_damaged_shard_is_made_again(extracted: tuple[Path, Lake], harm: str) -> None:
    audio, lake = extracted
    before, known = shards(lake), rows(lake)
    path = paths(lake)[1]
    {
        "flip": lambda: flip(path, 5000),
        "length": lambda: flip(path, 3),
        "missing": path.unlink,
        "short": lambda: os.truncate(path, path.stat().st_size - 7),
        "cut": lambda: cut_between_records(path),
        "empty": lambda: os.truncate(path, 0),
    }[harm]()
    assert repair.damage(lake, SPEC.spec_id, path.stem) is not None
    found = mended(lake, audio)
    assert found.keys() == {path.stem, "shards"}
    assert (found[path.stem]["moved_to"], found["shards"]) == (path.stem, len(before))
    assert shards(lake) == before
    assert rows(lake) == known
    assert mended(lake, audio) == {"shards": len(before)}


def test_outcomes_lost_with_the_shard(extracted: tuple[Path, Lake]) -> None:
    """The segments follow from the ledger and the recordings: the digest that is the bundle's name proves them."""
    audio, lake = extracted
    before = shards(lake)
    path = paths(lake)[0]
    path.unlink()
    outcomes = path.parent.parent / "outcomes" / f"{path.stem}.parquet"
    outcomes.write_bytes(b"not Parquet")
    assert read_outcomes(lake, SPEC.spec_id, path.stem) is None
    assert mended(lake, audio)[path.stem]["moved_to"] == path.stem
    assert shards(lake) == before


def test_where_a_recording_has_gone_the_others_move(extracted: tuple[Path, Lake]) -> None:
    audio, lake = extracted
    windows = windows_of(lake)
    path = next(p for p in paths(lake) if len(read_outcomes(lake, SPEC.spec_id, p.stem) or ()) > 1)
    gone = next(row for row in rows(lake).values() if path.stem in row["bundles"])
    Path(gone["uri"]).unlink()
    flip(path, 5000)
    found = mended(lake, audio)
    moved_to = found[path.stem]["moved_to"]
    assert moved_to != path.stem
    after = rows(lake)
    assert not [row for row in after.values() if path.stem in row["bundles"]]
    assert [row for row in after.values() if moved_to in row["bundles"]]
    path.unlink()
    wanted = {key: value for key, value in windows.items() if key[0] != gone["recording_id"]}
    assert windows_of(lake) == wanted
    assert mended(lake, audio) == {"shards": len(shards(lake))}


def test_a_corpus_that_is_away_is_named_and_the_rest_mended(extracted: tuple[Path, Lake], tmp_path: Path) -> None:
    audio, lake = extracted
    other = write(tmp_path / "other" / "far.wav", 30.0, seed=500)
    run(lake, other.parent)
    before = shards(lake)
    far = rows(lake)[str(other)]["bundles"][0]
    near = next(p.stem for p in paths(lake) if p.stem != far)
    for name in (far, near):
        flip(next(p for p in paths(lake) if p.stem == name), 5000)
    shutil.move(other, tmp_path / "aside.wav")
    with pytest.raises(InputError, match=rf"1 of 2 damaged shards.*{far}.*{other}"):
        run(lake, audio, repair=True)
    assert shards(lake)[f"{near}.tfrecord"] == before[f"{near}.tfrecord"]
    shutil.move(tmp_path / "aside.wav", other)
    mended(lake, audio)
    assert shards(lake) == before


def test_training_names_the_shard_and_what_to_do(extracted: tuple[Path, Lake]) -> None:
    _, lake = extracted
    path = paths(lake)[0]
    flip(path, 5000)
    with pytest.raises(InputError, match=rf"{path.name}.*--repair"):
        commands.train(lake, settings={"max_steps": 2})
    assert ledger.open_ledger(lake, SPEC.spec_id) is not None
