"""A lake from somebody who means harm: what is refused, and what stays as it was.

docs/security.md says who is trusted with what; each promise there has its test here or beside it.
"""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from lance import DatasetBasePath

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import PRESETS
from soundlake.model.saved import artifact
from soundlake.pipelines import commands
from soundlake.pipelines.cli.playlist import playlist
from soundlake.pipelines.encode import encoder
from soundlake.pipelines.lake import fragments, ledger, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.learning import showing
from soundlake.pipelines.learning.evaluation import Clip
from soundlake.pipelines.query import search
from tests.conftest import Made
from tests.pipelines.hostile import COMMANDS, SPEC, call, model_of, refused, tree

LINKS = [
    ("features", "status"),
    ("features/SPEC", "status"),
    ("features/SPEC/spec.json", "list"),
    ("features/SPEC/ledger.lance", "status"),
    ("features/SPEC/ledger.lance/_versions", "status"),
    ("features/SPEC/ledger.lance/data", "status"),
    ("features/SPEC/ledger.lance/data/*", "status"),
    ("features/SPEC/shards/*", "search"),
    ("features/SPEC/shards/*", "maintain"),
    ("features/SPEC/outcomes/*", "maintain"),
    ("models", "status"),
    ("models/current.json", "list"),
    ("models/MODEL", "search"),
    ("models/MODEL/report.html", "search"),
    ("models/MODEL/checkpoints", "maintain"),
    ("tables", "list"),
    ("tables/MODEL.lance", "list"),
    ("tables/MODEL.lance/data/*", "list"),
    ("tables/MODEL.lance/_versions/*", "list"),
    ("runs", "maintain"),
    ("features/SPEC/outcomes/*", "forget"),
    ("runs", "forget"),
]


@pytest.mark.parametrize(("name", "command"), LINKS)
def test_a_link_in_a_lake_is_not_followed(
    name: str, command: str, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even to the very thing that should be there."""
    lake = made.copy(tmp_path)
    path = sorted(Path(lake.root).glob(name.replace("SPEC", SPEC).replace("MODEL", model_of(made))))[0]
    outside = tmp_path / "outside"
    path.rename(outside)
    path.symlink_to(outside)
    before = tree(tmp_path)
    refused(capsys, f"{path} is a symbolic link", *COMMANDS[command](made), "--lake", lake.root)
    after = tree(tmp_path)
    assert {k: v for k, v in after.items() if "/runs/" not in k} == {
        k: v for k, v in before.items() if "/runs/" not in k
    }


def test_the_lake_may_be_a_link(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").symlink_to(made.lake.root)
    code, out, _ = call(capsys, "status", "--lake", str(tmp_path / "mine"))
    assert (code, model_of(made) in out) == (0, True)


def test_maintain_and_encode_sweep_nothing_outside(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of a dead run, or of what encode is done with, may lie in somebody's home, or be it."""
    home = tmp_path / "home"
    (home / "letters").mkdir(parents=True)
    for name in ("will.txt", "letters/.part-of-a-novel"):
        (home / name).write_text("mine")
        os.utime(home / name, (1, 1))
    for place in (
        "runs",
        "runs/20200101T000000Z-extract-aaaaaa",
        f"tables/{model_of(made)}.staged",
        f"tables/{model_of(made)}.staged/0",
        f"tables/{'0' * 16}.staged/0",
        "models/0123456789abcdef",
        "runs/.part-x",
    ):
        lake = made.copy(tmp_path)
        link = Path(lake.root, place)
        link.parent.mkdir(exist_ok=True)
        shutil.rmtree(link, ignore_errors=True)
        link.symlink_to(home)
        refused(capsys, "is a symbolic link", "maintain", "--lake", lake.root, "--grace", "0")
        with pytest.raises(InputError, match="is a symbolic link"):
            lake.remove(place)
        assert sorted(tree(home)) == ["letters/.part-of-a-novel", "will.txt"]
        shutil.rmtree(lake.root)


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a//b", "x\0y", "."])
def test_no_access_to_files_outside(made: Made, tmp_path: Path, name: str) -> None:
    lake = made.copy(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("mine")
    bucket = Lake("s3://bucket/lake")
    for action in (lake.read, lake.open, lake.exists, lake.names, lake.remove, lake.path, bucket.path, bucket.read):
        with pytest.raises(InputError, match="leads out"):
            action(name)
    with pytest.raises(InputError, match="leads out"):
        lake.write(name, b"x")
    with pytest.raises(InputError, match="leads out"), lake.locked(f"{name}/x"):
        pass
    assert tree(tmp_path / "x") == {"mine": hashlib.sha256(b"mine").hexdigest()}


def test_files_are_made_new_and_with_the_rights_of_the_user(tmp_path: Path) -> None:
    lake = Lake.at(str(tmp_path / "lake"))
    before = os.umask(0o077)
    try:
        lake.write("runs/a.json", b"x")
    finally:
        os.umask(before)
    assert Path(lake.root, "runs/a.json").stat().st_mode & 0o777 == 0o600


def test_a_pipe_in_a_lake_is_not_waited_for(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = made.copy(tmp_path)
    spec = Path(lake.root, f"features/{SPEC}/spec.json")
    spec.unlink()
    os.mkfifo(spec)
    refused(capsys, "is not a regular file", "search", "--where", "label = 'bird'", "--lake", lake.root)


# Ids, rows and JSON that name something else.


def test_a_promoted_model_is_one_of_the_lake(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = made.copy(tmp_path)
    model_id = model_of(made)
    shutil.copytree(Path(lake.root, "models", model_id), tmp_path / "evil" / model_id)
    for named in (f"../../evil/{model_id}", str(tmp_path / "evil" / model_id), "--force", 3):
        Path(lake.root, "models/current.json").write_text(json.dumps({"promoted": {SPEC: named}, "history": []}))
        for command in ("search", "encode"):
            refused(capsys, "has an invalid model id", *COMMANDS[command](made), "--lake", lake.root)


def test_what_encode_said_names_no_other_model(made: Made, tmp_path: Path) -> None:
    lake = made.copy(tmp_path)
    said = table.said(lake, model_of(made))
    table.say(lake, model_of(made), said | {"model_id": "../../evil"})
    with pytest.raises(InputError, match="is not a valid model id"):
        commands.run(lake, str(made.audio), spec=PRESETS["general"], settings={})


def test_folders_that_are_no_ids_are_not_looked_at(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = made.copy(tmp_path)
    root = Path(lake.root)
    shutil.copytree(root / "features" / SPEC, root / "features" / "a\x1b[31m b")
    shutil.copytree(root / "models" / model_of(made), root / "models" / "--force")
    shutil.copytree(root / "tables" / f"{model_of(made)}.lance", root / "tables" / "..x.lance")
    code, out, _ = call(capsys, "status", "--lake", lake.root, "--json")
    found = json.loads(out)
    assert code == 0
    assert [list(found[kind]) for kind in ("specs", "models", "tables")] == [[SPEC], [model_of(made)], [model_of(made)]]
    for arguments in (["promote", "--", "--force"], ["search", "--where", "true", "--model=--force"]):
        refused(capsys, "no model '--force'", *arguments[:1], "--lake", lake.root, *arguments[1:])


def hostile_rows(lake: Lake, **changes: Any) -> None:
    """Write all rows of the ledger anew with some columns changed, as whoever may write into the lake can."""
    dataset = lance.dataset(lake.ledger_uri(SPEC))
    rows = [row | changes for row in dataset.to_table().to_pylist()]
    lance.write_dataset(pa.Table.from_pylist(rows, schema=ledger.SCHEMA), lake.ledger_uri(SPEC), mode="overwrite")


@pytest.mark.parametrize("named", ["../../../../outside", "a'b"])
def test_bundles_of_a_ledger_are_files_of_the_lake(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], named: str
) -> None:
    lake = made.copy(tmp_path)
    (tmp_path / "outside.tfrecord").write_bytes(next(Path(lake.root).glob("features/*/shards/*")).read_bytes())
    hostile_rows(lake, bundles=[named])
    shutil.rmtree(Path(lake.root, "tables"))
    for command in ("train", "encode"):
        refused(capsys, "is not a valid bundle id", *COMMANDS[command](made), "--lake", lake.root)


@pytest.mark.parametrize("column", ["bundle", "recording_id"])
def test_a_hostile_table_selects_nothing_else(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    lake = made.copy(tmp_path)
    uri = lake.table_uri(model_of(made))
    dataset = lance.dataset(uri)
    rows = dataset.to_table().to_pylist()
    hostile = {"bundle": "../../../../etc/passwd", "recording_id": "x' OR '1'='1"}[column]
    rows[0][column] = hostile
    lance.write_dataset(pa.Table.from_pylist(rows, schema=dataset.schema), uri, mode="overwrite")
    query = COMMANDS["search"](made)
    if column == "bundle":
        refused(capsys, "is not a valid bundle id", *query, "--lake", lake.root, "-k", "50")
    else:
        code, out, _ = call(capsys, *query, "--lake", lake.root, "-k", "30", "--json")
        hits = json.loads(out)["results"][0]["hits"]
        assert code == 0
        assert {hit["recording_id"] for hit in hits} == {row["recording_id"] for row in rows}


def test_rows_elsewhere_are_not_read(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lance follows a base path that a version names, wherever it leads: to another dataset, or a bucket."""
    lake = made.copy(tmp_path)
    uri = lake.table_uri(model_of(made))
    dataset = lance.dataset(uri)
    secret = lance.write_dataset(dataset.to_table().slice(0, 3), str(tmp_path / "secret.lance"))
    dataset.add_bases([DatasetBasePath(path=secret.uri, name="n", is_dataset_root=True)])
    text = secret.get_fragments()[0].metadata.to_json()
    for file in text["files"]:
        file["base_id"] = 1
    fragment = lance.fragment.FragmentMetadata.from_json(json.dumps(text))
    now = lance.dataset(uri).version
    changed = lance.LanceDataset.commit(uri, lance.LanceOperation.Append([fragment]), read_version=now)
    assert changed.count_rows() == dataset.count_rows() + 3  # what this test is about: Lance itself reads them
    for command in ("list", "search", "status", "encode", "maintain"):
        refused(capsys, "refers to data outside the lake", *COMMANDS[command](made), "--lake", lake.root)


@pytest.mark.parametrize("path", ["../../../secret.lance/data/x.lance", "/x.lance", "a/b.lance", "x.lance\n", ""])
def test_pieces_of_encode_name_files_of_their_table(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str
) -> None:
    lake = made.copy(tmp_path)
    dataset = lance.dataset(lake.table_uri(model_of(made)))
    text = dataset.get_fragments()[0].metadata.to_json()
    text["files"][0]["path"] = path
    with pytest.raises(InputError, match="not in its dataset's folder"):
        fragments.commit(dataset.uri, dataset.version, dataset.schema, [json.dumps(text)], [])
    text["files"][0] |= {"path": "x.lance", "base_id": 1}
    with pytest.raises(InputError, match="not in its dataset's folder"):
        fragments.commit(dataset.uri, dataset.version, dataset.schema, [], [(0, json.dumps(text))])
    assert lance.dataset(dataset.uri).version == dataset.version


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": 3}', '{"files": [{}]}', '{"files": [{"path": 3}]}'])
def test_what_is_no_fragment(text: str) -> None:
    with pytest.raises(InputError, match="is not a fragment"):
        fragments.checked(text)


def test_a_planted_piece_is_not_committed(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encode takes up what a killed one left. Names of pieces are digests: anybody can tell them before."""
    lake = made.copy(tmp_path)
    shutil.rmtree(Path(lake.root, "tables"))
    model = artifact.find(Path(lake.root, "models"), model_of(made))
    version = table.create(lake, model.model_id, table.schema_of(model)).version
    fragment = json.dumps({"id": 0, "files": [{"path": "../../../secret.lance", "fields": [0]}]})
    planted = json.dumps({"rows": 1, "encoded": 1, "fragments": [fragment]}).encode()
    monkeypatch.setattr(encoder, "piece_id", lambda piece: "0")
    lake.write(Lake.staged(model.model_id, version, "0"), planted)
    refused(capsys, "not in its dataset's folder", "encode", "--lake", lake.root)


# Uris of a lake.


def clip_of(made: Made, uri: str) -> Clip:
    """A recording of the sample as evaluate has it, but for where the lake says that it lies."""
    dataset = ledger.open_ledger(made.lake, SPEC)
    row = dataset.to_table(filter=f"uri = '{sorted(made.audio.glob('bird/*'))[0]}'").to_pylist()[0]
    size = PRESETS["general"].window_frames
    values = np.zeros((1, size, PRESETS["general"].n_mels), np.uint16)
    return Clip(row["recording_id"], uri, "g", None, np.array([0]), values, np.array([size]))


def test_only_the_recording_itself_is_played(made: Made, tmp_path: Path) -> None:
    model = artifact.find(Path(made.lake.root, "models"), model_of(made))
    true = sorted(made.audio.glob("bird/*"))[0]
    wanted = showing._recorded(clip_of(made, str(true)), 0, model)
    assert wanted is not None
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    other = sorted(made.audio.glob("wind/*"))[0]
    began = time.monotonic()
    for uri in (str(other), "/dev/zero", "/etc/shadow", str(tmp_path / "pipe"), str(tmp_path / "folder"), "../x", ""):
        assert showing._recorded(clip_of(made, uri), 0, model) is None
    assert time.monotonic() - began < 60  # a device never ends
    # A file whose name is that of the stretch: its bytes were not compared.
    copy = shutil.copy(true, tmp_path / f"copy{true.suffix}")
    end = PRESETS["general"].window_frames * 256 / 16_000
    shutil.copy(other, f"{copy}@0.000000-{end:.6f}")
    np.testing.assert_array_equal(showing._recorded(clip_of(made, str(copy)), 0, model), wanted)


def test_a_play_list_holds_files_and_no_options() -> None:
    hits = [
        search.Hit(uri, "0" * 64, 0, 0.0, 1.0, None, False, None, None)
        for uri in ("#EXTVLCOPT:sout=#file{dst=/tmp/x}", "/a\n#EXTVLCOPT:x=1", "/a\r#EXTM3U")
    ]
    lines = playlist(hits).split("\n")
    assert {line.split("=")[0] for line in lines if line.startswith("#EXTVLC")} == {
        "#EXTVLCOPT:start-time",
        "#EXTVLCOPT:stop-time",
    }
    assert "\r" not in "".join(lines)
