"""Partitions of a corpus: taken one at a time they come to what the whole comes to, and none touches another."""

import json
import os
import shutil
from pathlib import Path

import pytest

from soundlake.model.errors import InputError
from soundlake.pipelines import commands
from soundlake.pipelines.cli.program import main
from soundlake.pipelines.corpus.files import LOOSE, in_partition, listing, partition_of, partitions
from soundlake.pipelines.lake import ledger, lookup, table
from soundlake.pipelines.lake.lake import Lake
from tests.conftest import Made
from tests.pipelines.test_extract import SPEC, rows, shards, write


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    """Two folders, one of them deep, and files beside them; names that would mislead a comparison of beginnings."""
    root = tmp_path / "audio"
    for number, name in enumerate(["a/1.wav", "a/deep/2.wav", "ab/3.wav", "4.wav", "5.wav"]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write(root / name, 1.0 + number, seed=number)
    (root / "labels.csv").write_text("uri,label\na/1.wav,dog\nab/3.wav,cat\n4.wav,owl\nab/none.wav,owl\n")
    (root / ".hidden").mkdir()
    write(root / ".hidden" / "6.wav", 1.0, seed=9)
    return root


def names(lake: Lake, root: Path) -> set[str]:
    return {str(Path(uri).relative_to(root)) for uri in rows(lake)}


def test_every_file_is_in_exactly_one(audio: Path) -> None:
    root = str(audio)
    assert partitions(root) == [LOOSE, "a", "ab"]
    whole = sorted(found[0] for found in listing(root) if found)
    parts = {name: sorted(found[0] for found in listing(root, name) if found) for name in partitions(root)}
    assert sorted(uri for part in parts.values() for uri in part) == whole
    for name, part in parts.items():
        assert part == [uri for uri in whole if in_partition(uri, root, name)]
    assert [Path(uri).name for uri in parts["a"]] == ["1.wav", "2.wav"]
    assert partition_of("/elsewhere/x.wav", root) is None


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/c\xe9"
    os.mkdir(folder)
    write(tmp_path / "x.wav", 1.0, seed=1)
    os.rename(tmp_path / "x.wav", folder + b"/x.wav")
    (name,) = partitions(str(tmp_path))
    assert os.fsencode(name) == b"c\xe9"
    ((uri, _),) = (found for found in listing(str(tmp_path), name) if found)
    assert partition_of(uri, str(tmp_path)) == name


def extract(lake: Lake, audio: Path, partition: str | None, **more: object) -> dict:
    return commands.extract(lake, str(audio), spec=SPEC, partition=partition, **more)


def test_one_at_a_time_comes_to_the_whole(audio: Path, tmp_path: Path) -> None:
    whole, lake = Lake.at(str(tmp_path / "whole")), Lake.at(str(tmp_path / "lake"))
    extract(whole, audio, None)
    totals = {name: extract(lake, audio, name) for name in ("ab", LOOSE, "a")}
    assert {name: found["listed"] for name, found in totals.items()} == {"ab": 1, LOOSE: 2, "a": 2}
    assert totals["ab"]["labels_without_file"] == 1
    assert totals["a"]["labels_without_file"] == totals["a"]["gone"] == 0
    # Bundles differ, since each partition packs its own; all else is the same.
    parts, at_once = rows(lake), rows(whole)
    assert {uri: row | {"bundles": []} for uri, row in parts.items()} == {
        uri: row | {"bundles": []} for uri, row in at_once.items()
    }
    # And the whole finds nothing left to do.
    again = extract(lake, audio, None)
    assert (again["unchanged"], again["done"], again["gone"]) == (5, 0, 0)
    assert again["ledger_version"] == totals["a"]["ledger_version"]


def test_what_has_gone_leaves_with_its_own_partition_only(audio: Path, tmp_path: Path) -> None:
    lake = Lake.at(str(tmp_path / "lake"))
    extract(lake, audio, None)
    kept = shards(lake)
    (audio / "ab" / "3.wav").unlink()
    (audio / "5.wav").unlink()
    assert extract(lake, audio, "a")["gone"] == 0
    assert names(lake, audio) == {"a/1.wav", "a/deep/2.wav", "ab/3.wav", "4.wav", "5.wav"}
    assert extract(lake, audio, LOOSE)["gone"] == 1
    # The folder is there and empty now: is it mounted?
    with pytest.raises(InputError, match=r"audio/ab is empty, but the ledger has 1 files of it"):
        extract(lake, audio, "ab")
    shutil.rmtree(audio / "ab")
    found = commands.partitions(lake, str(audio), spec=SPEC)
    assert (found["partitions"], found["gone"]) == ([LOOSE, "a", "ab"], ["ab"])
    assert extract(lake, audio, "ab", allow_empty=True)["gone"] == 1
    assert names(lake, audio) == {"a/1.wav", "a/deep/2.wav", "4.wav"}
    assert commands.partitions(lake, str(audio), spec=SPEC)["partitions"] == [LOOSE, "a"]
    assert shards(lake) == kept


def test_no_such_partition(audio: Path, tmp_path: Path) -> None:
    lake = Lake.at(str(tmp_path / "lake"))
    for name in ("b", "..", "a/deep", "", ".hidden"):
        with pytest.raises(InputError, match=r"has no partition .*; it has: \., a, ab"):
            extract(lake, audio, name)


def test_encode_takes_one_at_a_time(made: Made, tmp_path: Path) -> None:
    """New recordings in two partitions: each brings its own rows, the rest waits; in the end the table is whole."""
    lake = made.copy(tmp_path)
    spec_id, model_id = made.result["extract"]["spec_id"], made.result["model"]["model_id"]
    audio = tmp_path / "more"
    for number, name in enumerate(["a/1.wav", "a/2.wav", "b/3.wav"]):
        (audio / name).parent.mkdir(parents=True, exist_ok=True)
        write(audio / name, 4.0 + number, seed=40 + number)
    extracted = commands.extract(lake, str(audio), spec=lookup.spec_of_lake(lake, None))
    assert extracted["done"] == 3

    def uris() -> set[str]:
        found = table.need_table(lake, model_id).to_table(columns=["uri"]).column("uri").to_pylist()
        return {uri for uri in found if uri.startswith(str(audio))}

    first = commands.encode(lake, audio=str(audio), partition="a")
    assert uris() == {f"{audio}/a/1.wav", f"{audio}/a/2.wav"}
    assert first["encoded"] == sum(r["windows"] for r in rows_under(lake, spec_id, f"{audio}/a/"))
    # Not all is done: the next call must look.
    assert commands.encode(lake, audio=str(audio), partition="a")["encoded"] == 0
    shutil.rmtree(audio / "a")
    commands.extract(lake, str(audio), spec=lookup.spec_of_lake(lake, None), partition="a", allow_empty=True)
    second = commands.encode(lake, audio=str(audio), partition="b")
    # Rows of what has gone from a stay until the whole is brought up to date.
    assert uris() == {f"{audio}/a/1.wav", f"{audio}/a/2.wav", f"{audio}/b/3.wav"}
    assert second["stale_recordings"] == 0
    last = commands.encode(lake)
    assert (last["encoded"], last["stale_recordings"]) == (0, 2)
    assert uris() == {f"{audio}/b/3.wav"}
    assert last["rows"] == ledger.summary(ledger.open_ledger(lake, spec_id))["windows"]
    assert commands.encode(lake)["run_id"] is None


def rows_under(lake: Lake, spec_id: str, prefix: str) -> list[dict]:
    found = ledger.open_ledger(lake, spec_id).to_table().to_pylist()
    return [row for row in found if row["uri"].startswith(prefix)]


def test_encode_wants_both(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = made.copy(tmp_path)
    for given in (["--partition", "a"], ["--corpus", str(made.audio)]):
        assert main(["encode", "--lake", lake.root, *given]) == 2
        assert "--corpus and --partition belong together" in capsys.readouterr().err


def test_json_holds_the_manifest(audio: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = str(tmp_path / "lake")
    given = ["extract", str(audio), "--lake", lake, "--partition", "a", "--json"]
    assert main(given) == 0
    found = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "lake" / "runs" / f"{found['run_id']}.json").read_text())
    assert found["manifest"] == {name: value for name, value in kept.items() if name != "counts"}
    assert found["manifest"]["settings"]["partition"] == "a"
    assert (found["manifest"]["result"], found["done"]) == ("done", 2)
    assert main(["partitions", str(audio), "--lake", lake, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["partitions"] == [".", "a", "ab"]


def test_train_waits_for_enough_new_sound(made: Made, tmp_path: Path) -> None:
    lake = made.copy(tmp_path)
    model_id = made.result["model"]["model_id"]
    windows = made.result["ledger"]["windows"]
    same = commands.train(lake, settings={"max_steps": 2, "batch_size": 8}, if_grown=0.2)
    assert (same["model_id"], same["trained"], same["run_id"]) == (model_id, False, None)
    assert (same["windows"], same["seen"]) == (windows, windows)
    # A fifth more, and a little: one long recording.
    write(tmp_path / "more" / "long.wav", 1.1 * (0.2 * windows + 2), seed=5)
    commands.extract(lake, str(tmp_path / "more"), spec=lookup.spec_of_lake(lake, None))
    grown = commands.train(lake, settings={"max_steps": 2, "batch_size": 8}, if_grown=0.2)
    assert grown["trained"]
    assert grown["windows"] >= 1.2 * grown["seen"] == 1.2 * windows
    # Held or not, what it saw counts: it is not trained again for the same sound.
    assert not grown["promoted"]
    again = commands.train(lake, settings={"max_steps": 3, "batch_size": 8}, if_grown=0.2)
    assert (again["model_id"], again["trained"]) == (grown["model_id"], False)
