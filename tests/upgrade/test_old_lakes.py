"""A lake of an earlier version keeps working; what cannot be read says what to do, and that is done."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

from soundlake.pipelines.cli.program import main
from soundlake.pipelines.lake import ledger, lookup, models
from tests.upgrade.conftest import MODELS, SPEC_ID, Old, unpacked

Capture = pytest.CaptureFixture[str]


def run(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def manifest_of(old: Old) -> Path:
    return Path(old.lake.root) / "models" / old.model_id / "model.json"


def change(old: Old, how: str) -> None:
    """Make the model one that cannot be read."""
    manifest = manifest_of(old)
    if how == "garbage":
        manifest.write_text("{")
    else:
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": int(how)}))


def test_an_old_lake_answers(old: Old, tmp_path: Path, capsys: Capture) -> None:
    lake = old.lake.root
    assert json.loads(manifest_of(old).read_text())["format_version"] == int(old.lake.root.split("format-")[1][0])
    assert run("status", "--lake", lake) == 0
    said = capsys.readouterr().out
    assert "17 files = 17 done" in said
    assert f"model {old.model_id}: spec {SPEC_ID}, promoted" in said
    assert run("search", "--where", "label = 'bell'", "--lake", lake) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2
    # The file itself is found, by the old model.
    assert run("search", old.audio / "rain-05.flac", "-k", "1", "--lake", lake) == 0
    assert re.match(r"1 .*/tmp/soundlake-fixture/audio/rain-05\.flac", capsys.readouterr().out.splitlines()[1])
    assert run("export", tmp_path / "out.csv", "--lake", lake) == 0
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({row["uri"] for row in rows}) == 17
    # One vector, of latent and similarity side by side; of a recording mean and deviation.
    assert {name for name in rows[0] if name[0] == "z" or "latent" in name} == {f"z{i}" for i in range(8)}
    assert run("export", tmp_path / "clips.csv", "--by", "recordings", "--lake", lake) == 0
    with open(tmp_path / "clips.csv", newline="") as file:
        assert sum(name[0] == "z" for name in next(csv.reader(file))) == 16
    capsys.readouterr()
    # Nothing of that has changed the lake; encode brings the table up to this version without encoding a window.
    assert "decoder" not in ledger.open_ledger(old.lake, SPEC_ID).schema.names
    assert run("encode", "--json", "--lake", lake) == 0
    assert json.loads(capsys.readouterr().out)["encoded"] == 0


@pytest.mark.parametrize("how", ["garbage", "1", "99"])
def test_what_needs_no_model_works_when_none_can_be_read(old_3: Old, how: str, tmp_path: Path, capsys: Capture) -> None:
    change(old_3, how)
    lake = old_3.lake.root
    assert run("status", "--lake", lake) == 0
    assert "its model cannot be read" in capsys.readouterr().out
    assert run("search", "--where", "label = 'bell'", "--lake", lake) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 2
    recording = next(ledger.read(ledger.open_ledger(old_3.lake, SPEC_ID), ["recording_id"]))["recording_id"]
    assert run("search", recording, "-k", "3", "--lake", lake) == 0
    for by, target in (("windows", "windows.parquet"), ("recordings", "recordings.parquet")):
        assert run("export", tmp_path / target, "--by", by, "--lake", lake) == 0
    assert run("search", old_3.audio / "rain-05.flac", "--lake", lake) == 2
    said = capsys.readouterr().err
    if how == "99":
        assert "has model format 99, and this soundlake reads 3, 4 and 5; update soundlake" in said


def test_the_way_out_of_a_model_that_is_too_old(old_3: Old, capsys: Capture) -> None:
    """One command, which the message names."""
    change(old_3, "2")
    lake = old_3.lake.root
    assert run("encode", "--lake", lake) == 2
    told = re.search(r"run: soundlake (train .+)$", capsys.readouterr().err.strip())
    assert told
    # Fewer steps here, and what the tiny spec needs.
    small = ["--steps", "2", "--batch-size", "8", "--latent-dim", "4", "--likeness-dim", "4", "--pitch", "2"]
    assert run(*shlex.split(told[1]), "--if-missing", *small) == 0
    new = models.promoted(old_3.lake, SPEC_ID)
    assert new not in (None, old_3.model_id)
    history = json.loads((Path(lake) / "models" / "current.json").read_text())["history"]
    assert history[-1]["reason"] == f"the model in use, {old_3.model_id}, has a format that is not read"
    assert run("encode", "--lake", lake) == 0
    assert run("search", old_3.audio / "rain-05.flac", "--lake", lake) == 0
    # From now on there is one.
    capsys.readouterr()
    assert run(*shlex.split(told[1]), "--if-missing", "--json", *small) == 0
    assert json.loads(capsys.readouterr().out)["model_id"] == new


def test_a_model_that_does_not_tell_what_it_was_trained_on(old_3: Old, tmp_path: Path, capsys: Capture) -> None:
    lake = old_3.lake.root
    assert run("evaluate", "--lake", lake) == 2
    said = capsys.readouterr().err
    assert "has format 3, which does not tell what a model was trained on" in said
    assert said.strip().endswith(f"run: soundlake train --lake {lake}")
    # Another model cannot be compared with it, and the line names what promotes that all the same.
    other = Path(lake) / "models" / MODELS[4]
    (Path(unpacked(tmp_path / "4", 4).lake.root) / "models" / MODELS[4]).rename(other)
    assert run("promote", MODELS[4], "--lake", lake) == 3
    told = re.search(r"run: soundlake (promote \S+ --force --lake \S+)", capsys.readouterr().err)
    assert told
    assert run(*shlex.split(told[1])) == 0
    assert lookup.find_model(old_3.lake, None).model_id == MODELS[4]
