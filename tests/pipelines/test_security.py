"""A lake, a corpus or a name from somebody who means harm: what is refused, and what stays as it was.

docs/security.md says who is trusted with what; each promise there has its test here, or in tests/model.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
import soundfile
from lance import DatasetBasePath

from model import artifact
from model.errors import InputError
from model.features import PRESETS
from pipelines import bundle, commands, corpus, fragments, ledger, search, showing, table
from pipelines.evaluation import Clip
from pipelines.export import export
from pipelines.lake import Lake, run_manifest
from pipelines.program import main
from pipelines.secrecy import refuse_secrets, without_secrets
from pipelines.terminal import visible
from tests.conftest import Made

SPEC = PRESETS["general"].spec_id
# What a terminal obeys: colours, a title, a new line, a change of direction, a carriage return.
NASTY = "a\x1b[31mred\x1b]0;title\x07\r\nsoundlake: all is well \u202efdp"


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def tree(folder: Path) -> dict[str, str]:
    """Digests of all files below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def model_of(made: Made) -> str:
    return str(made.result["model"]["model_id"])


def refused(capsys: pytest.CaptureFixture[str], said: str, *arguments: str) -> None:
    """The command ends with 2 and one line."""
    code, _, err = call(capsys, *arguments)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert said in err


# Links and names that lead out.

COMMANDS: dict[str, Callable[[Made], list[str]]] = {
    "status": lambda made: ["status"],
    "search": lambda made: ["search", str(sorted(made.audio.glob("bird/*"))[0])],
    "list": lambda made: ["search", "--where", "label = 'bird'"],
    "maintain": lambda made: ["maintain", "--grace", "0"],
    "train": lambda made: ["train", "--steps", "60", "--batch-size", "32"],
    "encode": lambda made: ["encode"],
    "extract": lambda made: ["extract", str(made.audio)],
}
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
    ("models/MODEL", "list"),
    ("models/MODEL/report.html", "list"),
    ("models/MODEL/checkpoints", "maintain"),
    ("tables", "list"),
    ("tables/MODEL.lance", "list"),
    ("tables/MODEL.lance/data/*", "list"),
    ("tables/MODEL.lance/_versions/*", "list"),
    ("runs", "maintain"),
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
    refused(capsys, f"{path} is a link", *COMMANDS[command](made), "--lake", lake.root)
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
    """A folder of a dead run, or of what encode is done with, may be a link to somebody's home."""
    home = tmp_path / "home"
    (home / "letters").mkdir(parents=True)
    for name in ("will.txt", "letters/.part-of-a-novel"):
        (home / name).write_text("mine")
        os.utime(home / name, (1, 1))
    for place in (
        "runs/20200101T000000Z-extract-aaaaaa",
        f"tables/{model_of(made)}.staged/0",
        f"tables/{'0' * 16}.staged/0",
        "models/0123456789abcdef",
        "runs/.part-x",
    ):
        lake = made.copy(tmp_path)
        link = Path(lake.root, place)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(home)
        refused(capsys, "is a link", "maintain", "--lake", lake.root, "--grace", "0")
        with pytest.raises(InputError, match="is a link"):
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
    refused(capsys, "is no file", "search", "--where", "label = 'bird'", "--lake", lake.root)


# Ids, rows and JSON that name something else.


def test_a_promoted_model_is_one_of_the_lake(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = made.copy(tmp_path)
    model_id = model_of(made)
    shutil.copytree(Path(lake.root, "models", model_id), tmp_path / "evil" / model_id)
    for named in (f"../../evil/{model_id}", str(tmp_path / "evil" / model_id), "--force", 3):
        Path(lake.root, "models/current.json").write_text(json.dumps({"promoted": {SPEC: named}, "history": []}))
        for command in ("search", "encode"):
            refused(capsys, "names what is no model", *COMMANDS[command](made), "--lake", lake.root)


def test_what_encode_said_names_no_other_model(made: Made, tmp_path: Path) -> None:
    lake = made.copy(tmp_path)
    said = table.said(lake, model_of(made))
    table.say(lake, model_of(made), said | {"model_id": "../../evil"})
    with pytest.raises(InputError, match="is no id of a model"):
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
        refused(capsys, "is no id of a bundle", *COMMANDS[command](made), "--lake", lake.root)


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
        refused(capsys, "is no id of a bundle", *query, "--lake", lake.root, "-k", "50")
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
        refused(capsys, "has rows elsewhere", *COMMANDS[command](made), "--lake", lake.root)


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
    with pytest.raises(InputError, match="is no fragment"):
        fragments.checked(text)


def test_a_planted_piece_is_not_committed(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encode takes up what a killed one left. Names of pieces are digests: anybody can tell them before."""
    from pipelines import encoder

    lake = made.copy(tmp_path)
    shutil.rmtree(Path(lake.root, "tables"))
    model = artifact.find(Path(lake.root, "models"), model_of(made))
    version = table.create(lake, model.model_id, model.embedding_dim).version
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
    lines = search.playlist(hits).split("\n")
    assert {line.split("=")[0] for line in lines if line.startswith("#EXTVLC")} == {
        "#EXTVLCOPT:start-time",
        "#EXTVLCOPT:stop-time",
    }
    assert "\r" not in "".join(lines)


# What is printed, shown and exported.


@pytest.fixture(scope="module")
def nasty(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A lake whose corpus has names and labels that a terminal, a browser or a spreadsheet would obey."""
    folder = tmp_path_factory.mktemp("nasty")
    lake = made.copy(folder)
    audio = folder / "audio"
    audio.mkdir()
    names = [f"{NASTY}.wav", "[red]bold[/red].wav", "=1+1.wav", "<script>alert(1)</script>'\">.wav"]
    labels = ["=HYPERLINK(1)", NASTY, "<img src=x onerror=alert(1)>", "@SUM(1)"]
    names = [name.replace("/", "∕") for name in names]
    rng = np.random.default_rng(0)
    for name in names:
        soundfile.write(audio / name, 0.1 * rng.standard_normal(40_000), 16_000)
    (audio / f"broken {NASTY}.wav").write_text("x")
    (audio / f"folder {NASTY}").mkdir()
    shutil.copy(sorted(made.audio.glob("bird/*"))[0], audio / f"folder {NASTY}")
    import csv

    with open(audio / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([["uri", "label"], *zip(names, labels, strict=True)])
    commands.extract(lake, str(audio), spec=PRESETS["general"])
    commands.encode(lake)
    return Made(audio, lake, made.result)


def only_prints(text: str) -> None:
    """Lines of characters that show: nothing that a terminal would obey."""
    for line in text.removesuffix("\n").split("\n"):
        assert visible(line) == line, line
        assert not line.startswith("soundlake: all is well")


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["partitions", "AUDIO"],
        ["search", "--where", "uri LIKE '%audio%'", "-k", "100"],
        ["search", f"no{NASTY}.wav"],
        ["search", "--where", f"label = '{NASTY}"],
        ["search", "--where", "x", "--model", NASTY],
        ["extract", f"/nowhere{NASTY}"],
        ["extract", "AUDIO", "--partition", NASTY],
        ["extract", "AUDIO", "--", NASTY],
        ["status", "--spec", NASTY],
        ["export", f"/nowhere/{NASTY}.csv"],
        ["-v", "status", "--spec", NASTY],
        ["status", "-v", "--spec", NASTY],
    ],
    ids=lambda arguments: ascii(" ".join(arguments))[:40],
)
def test_a_terminal_shows_names_and_obeys_none(
    nasty: Made, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    command = [argument.replace("AUDIO", str(nasty.audio)) for argument in arguments]
    at = command.index("--") if "--" in command else len(command)
    code, out, err = call(capsys, *command[:at], "--lake", nasty.lake.root, *command[at:])
    assert code in (0, 2)
    assert out + err
    only_prints(out)
    only_prints(err)


def test_the_same_names_are_whole_in_json(nasty: Made, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(
        capsys, "search", "--where", "uri LIKE '%.wav'", "-k", "100", "--lake", nasty.lake.root, "--json"
    )
    assert code == 0
    hits = json.loads(out)["results"][0]["hits"]
    assert str(nasty.audio / f"{NASTY}.wav") in {hit["uri"] for hit in hits}
    assert NASTY in {hit["label"] for hit in hits}
    only_prints(out)


def test_rich_takes_no_name_for_markup(nasty: Made, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "search", "--where", "uri LIKE '%red%'", "-k", "100", "--lake", nasty.lake.root)
    assert "[red]bold[∕red].wav" in out


def test_what_a_hostile_lake_says_of_its_tables(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = made.copy(tmp_path)
    said = table.said(lake, model_of(made))
    table.say(lake, model_of(made), said | {"index": {"kind": NASTY}, "rows": NASTY})
    for command in ("status", "encode"):
        code, out, err = call(capsys, command, "--lake", lake.root)
        assert code == 0
        only_prints(out + err)


def test_what_is_logged(capsys: pytest.CaptureFixture[str]) -> None:
    main(["status", "--lake", "/nonexistent"])  # sets up the log
    capsys.readouterr()
    from pipelines.terminal import Told

    handler, log = Told(), logging.getLogger("pipelines.x")
    log.addHandler(handler)
    log.propagate = False
    try:
        log.warning("no sound of %s", NASTY)
        try:
            raise RuntimeError(NASTY)
        except RuntimeError:
            log.exception("oh")
    finally:
        log.removeHandler(handler)
        log.propagate = True
    err = capsys.readouterr().err
    only_prints(err)
    assert all(line.startswith(("soundlake: no sound", "soundlake: oh", "  ")) for line in err.splitlines())


def test_visible() -> None:
    assert visible("plain – text × 3 % [red]") == "plain – text × 3 % [red]"
    assert visible("a\x1b[2J\n\u202e\u2028\x9b\udc80\x00") == r"a\x1b[2J\n\u202e\u2028\x9b\udc80\x00"


def test_a_csv_says_that_it_holds_formulas(nasty: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What it holds is what the labels are: whoever reads them as data gets them as they were."""
    dataset = table.need_table(nasty.lake, model_of(nasty))
    with caplog.at_level(logging.WARNING):
        export(dataset, str(tmp_path / "t.csv"), by="recordings")
    assert "2 names and labels begin as formulas do" in caplog.text
    from pyarrow import csv as arrow_csv

    options = arrow_csv.ParseOptions(newlines_in_values=True)
    labels = set(arrow_csv.read_csv(tmp_path / "t.csv", parse_options=options)["label"].to_pylist())
    assert {"=HYPERLINK(1)", "@SUM(1)", "<img src=x onerror=alert(1)>"} <= labels
    caplog.clear()
    export(dataset, str(tmp_path / "u.csv"), where="label = 'bird'", by="recordings")
    assert not caplog.text


def test_an_export_writes_through_no_link(made: Made, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "t.csv.part").symlink_to(tmp_path / "mine")
    export(table.need_table(made.lake, model_of(made)), str(tmp_path / "t.csv"))
    assert (tmp_path / "mine").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "t.csv"]


def test_a_report_shows_names_and_runs_none(nasty: Made, tmp_path: Path) -> None:
    from html.parser import HTMLParser

    from model.report import Pair, Worth, write

    names = [path.name for path in nasty.audio.iterdir()] + ['"><script>alert(1)</script>', "x' onmouseover='alert(1)"]
    model = artifact.find(Path(nasty.lake.root, "models"), model_of(nasty))
    window = np.full((model.spec.window_frames, model.spec.n_mels), model.spec.floor, np.float32)
    worth = Worth(
        found=nasty.result["evaluation"] | {"no_probes": names[-1], "probes": None},
        plane=np.random.default_rng(0).random((len(names), 2)),
        names=names,
        labels=names[::-1],
        neighbours=[],
    )
    pairs = [Pair(name, window, window, np.zeros(16_000, np.float32)) for name in names[-2:]]
    write(tmp_path / "report.html", model.manifest, history=model.manifest["history"], pairs=pairs, worth=worth)
    tags: set[str] = set()
    attributes: set[str] = set()
    shown: list[str] = []

    class Seen(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.add(tag)
            attributes.update(name for name, _ in attrs)

        def handle_data(self, data: str) -> None:
            shown.append(data)

    Seen().feed((tmp_path / "report.html").read_text())
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form"}
    assert not [name for name in attributes if name.startswith("on") or name == "href"]
    # HTML knows no carriage return of its own: what is read back has a new line there.
    text = "".join(shown).replace("\r\n", "\n")
    assert all(name.replace("\r\n", "\n") in text for name in names)
    assert "default-src 'none'" in (tmp_path / "report.html").read_text()


def test_a_label_file_that_is_another_file_is_not_quoted(tmp_path: Path) -> None:
    """A link in a corpus may stand for any file of whoever extracts it; messages and manifests are read by others."""
    (tmp_path / "token").write_text("hunter2-secret\n1\n")
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "labels.csv").symlink_to(tmp_path / "token")
    with pytest.raises(InputError, match="no column `uri`") as caught:
        list(corpus.read_labels(str(tmp_path / "audio" / "labels.csv"), str(tmp_path / "audio")))
    assert "hunter2" not in str(caught.value)


# Secrets.

CANARIES = {
    "AWS_ACCESS_KEY_ID": "canary-key-id-51",
    "AWS_SECRET_ACCESS_KEY": "canary-secret-52",
    "AWS_SESSION_TOKEN": "canary-session-53",
    "GOOGLE_APPLICATION_CREDENTIALS": "/nowhere/canary-google-54.json",
    "AZURE_STORAGE_CONNECTION_STRING": "canary-azure-55",
    "SOME_PASSWORD": "canary-other-56",
}


def test_no_secret_is_written_down_or_said(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    lake = made.copy(tmp_path)
    audio = tmp_path / "audio"
    shutil.copytree(made.audio, audio)
    secret = ["--s3_secret_access_key=canary-option-57", "--s3_session_token=canary-option-58"]
    uri = "s3://user:canary-password-59@bucket/audio"
    said = ""
    for code, *arguments in [
        (0, "extract", str(audio), "--lake", lake.root, "--json", "--", *secret, "--s3_region_name=eu-central-1"),
        (2, "extract", str(audio), "--lake", lake.root, "--", *secret, "--bogus=1"),
        (2, "-v", "extract", uri, "--lake", lake.root),
        (2, "extract", uri, "--lake", lake.root),
        (2, "extract", f"{uri}?secret_key=canary-query-60", "--lake", lake.root),
        (2, "extract", str(audio), "--lake", "s3://user:canary-password-61@bucket/lake"),
        (2, "extract", str(audio), "--lake", "s3://bucket/lake?access_key=a&secret_key=canary-query-62"),
        (2, "extract", str(audio), "--lake", lake.root, "--labels", f"{uri}/labels.csv"),
        (2, "search", f"{uri}/a.wav", "--lake", lake.root),
        (2, "evaluate", "--folds", f"{uri}/folds.csv", "--lake", lake.root),
        (0, "status", "--lake", lake.root, "--json"),
        (0, "maintain", "--lake", lake.root, "--json"),
    ]:
        found, out, err = call(capsys, *arguments)
        assert found == code or (found == 2 and arguments[0] == "-v"), (arguments, err)
        said += out + err
    assert "canary" not in said
    assert "--s3_region_name=eu-central-1" in said
    for path in tmp_path.rglob("*"):
        assert "canary" not in path.name
        if path.is_file():
            assert b"canary" not in path.read_bytes(), path
    manifest = json.loads(max(Path(lake.root, "runs").glob("*-extract-*.json")).read_text())
    assert manifest["settings"]["beam"][:2] == ["--s3_secret_access_key=…", "--s3_session_token=…"]


def test_a_failed_run_keeps_no_secret(tmp_path: Path) -> None:
    lake = Lake.at(str(tmp_path))
    with pytest.raises(RuntimeError), run_manifest(lake, "x", {"beam": ["--azure_connection_string=canary"], "n": 1}):
        raise RuntimeError("oh")
    (path,) = tmp_path.glob("runs/*.json")
    assert "canary" not in path.read_text()
    assert json.loads(path.read_text())["settings"]["n"] == 1


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/audio",
        "/home/a:b@c/audio",
        "s3://bucket/a:b@c/x.wav",
        "abfs://container@account.dfs.core.windows.net/lake",
        "s3://bucket/what?.wav",
        "FILE@1-2",
        "gs://b/token.wav",
    ],
)
def test_uris_without_secrets(uri: str) -> None:
    refuse_secrets(uri)


def test_options_without_secrets() -> None:
    plain = ["--runner=DataflowRunner", "--dataflow_kms_key=projects/p", "--no_auth", "secret=1", {"a": ("b", 2, None)}]
    assert without_secrets(plain) == [*plain[:4], {"a": ["b", 2, None]}]


# Pickles.


class Planted:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def planted(tmp_path: Path) -> tuple[bytes, Path]:
    import pickle

    path = tmp_path / "unpickled"
    data = pickle.dumps(Planted(path))
    return data, path


def with_a_pickled_type(data: bytes, rows: pa.Table) -> bytes:
    """A Parquet file whose schema asks Arrow to unpickle a type (CVE-2023-47248)."""
    import io

    from pyarrow import parquet

    first = rows.schema.field(0)
    hostile = first.with_metadata(
        {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": data}
    )
    rows = rows.cast(rows.schema.set(0, hostile))
    sink = io.BytesIO()
    parquet.write_table(rows, sink)
    assert parquet.read_schema(sink).field(0).metadata[b"ARROW:extension:metadata"] == data
    return sink.getvalue()


def test_files_of_a_model_are_refused_by_digest(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], planted: tuple[bytes, Path]
) -> None:
    data, path = planted
    for name in (artifact.WEIGHTS, artifact.ENCODER, artifact.DECODER):
        lake = made.copy(tmp_path)
        folder = Path(lake.root, "models", model_of(made))
        (folder / name).write_bytes(data)
        for command in ("list", "train", "encode"):
            refused(capsys, f"{name} is not the file that was trained", *COMMANDS[command](made), "--lake", lake.root)
        shutil.rmtree(lake.root)
    assert not path.exists()


def test_parquet_unpickles_nothing(made: Made, tmp_path: Path, planted: tuple[bytes, Path]) -> None:
    data, path = planted
    rows = pa.table({"uri": ["a.wav"], "label": ["x"]})
    (tmp_path / "labels.parquet").write_bytes(with_a_pickled_type(data, rows))
    assert list(corpus.read_labels(str(tmp_path / "labels.parquet"), "/r")) == [
        ("/r/a.wav", {"label": "x", "group": None})
    ]
    lake = made.copy(tmp_path)
    name = next(Path(lake.root).glob("features/*/outcomes/*.parquet"))
    from pyarrow import parquet

    name.write_bytes(with_a_pickled_type(data, parquet.read_table(name)))
    assert bundle.read_outcomes(lake, SPEC, name.stem)
    assert not path.exists()


# Runs commands one after the other, and tells what was opened in the lake, and whatever looked for something by name to
# unpickle, with the packages on the way there.
WATCHED = """
import json, os, sys
lake, calls = sys.argv[1], json.loads(sys.argv[2])
opened, unpickled = set(), set()
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        name = os.fsdecode(arguments[0])
        if name.startswith(lake + "/"):
            opened.add(name)
    elif event == "pickle.find_class":
        frame, packages = sys._getframe(1), []
        while frame:
            packages.append(frame.f_globals.get("__name__", "").split(".")[0])
            frame = frame.f_back
        unpickled.add((str(arguments[0]), str(arguments[1]), " ".join(sorted(set(packages)))))
sys.addaudithook(watch)
from pipelines.program import main
codes = []
for call in calls:
    sys.stdout.flush()
    unpickled_before = len(unpickled)
    codes.append([main([*call, "--lake", lake]), len(unpickled) - unpickled_before])
print("\\n" + json.dumps({"codes": codes, "opened": sorted(opened), "unpickled": sorted(unpickled)}))
"""


def test_no_command_unpickles_what_lies_in_a_lake(made: Made, tmp_path: Path, planted: tuple[bytes, Path]) -> None:
    """Pickles and a Keras archive with a lambda, under names that tools look for; each file opened is of a kind we know.

    Beam pickles its steps on the way to its workers, and the sandbox of the decoders what it hands over: those come from
    this very process, and never from a lake.
    """
    import subprocess
    import sys
    import zipfile

    data, path = planted
    lake = made.copy(tmp_path)
    root = Path(lake.root)
    folder = root / "models" / model_of(made)
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        layer = {
            "class_name": "Lambda",
            "config": {"function": {"class_name": "__lambda__", "config": {"code": "4w=="}}},
        }
        archive.writestr("config.json", json.dumps(layer))
        archive.writestr("data.pkl", data)
    for name in ("model.pkl", "weights.pkl", "weights.npy", "saved_model.pb", "encoder.ort", "encoder.onnx.data"):
        (folder / name).write_bytes(data)
    for name in (
        "features",
        f"features/{SPEC}",
        f"features/{SPEC}/shards",
        f"features/{SPEC}/outcomes",
        "tables",
        "runs",
    ):
        for kind in ("x.pkl", "x.pickle", "x.joblib", "x.npy"):
            (root / name / kind).write_bytes(data)
    shutil.rmtree(root / "tables" / f"{model_of(made)}.lance")
    query = str(sorted(made.audio.glob("bird/*"))[0])
    calls = [["status"], ["encode"], ["search", query], ["search", "--where", "label = 'bird'"]]
    calls += [["export", str(tmp_path / "t.npz")], ["status"], ["evaluate"], ["maintain"]]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(root), json.dumps(calls)], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert [code for code, _ in told["codes"]] == [0] * len(calls), done.stderr
    assert not path.exists()
    # Without a pipeline nothing is unpickled at all.
    assert [count for call, (_, count) in zip(calls, told["codes"], strict=True) if call[0] in PLAIN] == [0] * 5
    for module, name, packages in told["unpickled"]:
        assert {"apache_beam", "multiprocessing", "joblib", "concurrent"} & set(packages.split()), (
            module,
            name,
            packages,
        )
    assert told["opened"]
    for name in told["opened"]:
        assert Path(name).name == "lock" or name.endswith(KINDS) or "/.part-" in name, name


PLAIN = {"status", "search", "export"}
# What a lake holds: JSON, TFRecord, Parquet, HDF5 (weights, verified and not read), ONNX, a report; locks are empty.
KINDS = (".json", ".tfrecord", ".parquet", ".weights.h5", ".onnx", ".html", ".lock")


def test_every_file_of_a_lake_is_of_a_kind_we_know(made: Made) -> None:
    """By what is in it, not by its name; Lance's own, TensorFlow's checkpoints and logs among them."""
    seen = set()
    for path in Path(made.lake.root).rglob("*"):
        if path.is_file():
            head, tail = path.read_bytes()[:8], path.read_bytes()[-8:]
            kind = next((name for name, is_one in FORMATS.items() if is_one(path, head, tail)), None)
            assert kind is not None, path
            assert not head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")), path
            seen.add(kind)
    assert seen >= {"JSON", "Parquet", "TFRecord", "HDF5", "ONNX", "HTML", "Lance", "Lance manifest"}


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


FORMATS: dict[str, Callable[[Path, bytes, bytes], bool]] = {
    "empty": lambda path, head, tail: not head,
    "JSON": lambda path, head, tail: path.suffix == ".json" and _is_json(path),
    "Parquet": lambda path, head, tail: head[:4] == tail[-4:] == b"PAR1",
    "HDF5": lambda path, head, tail: head == b"\x89HDF\r\n\x1a\n",
    "HTML": lambda path, head, tail: head == b"<!doctyp",
    "ONNX": lambda path, head, tail: path.suffix == ".onnx" and head[0] == 8,
    "Lance": lambda path, head, tail: path.suffix in (".lance", ".idx") and tail[-4:] == b"LANC",
    "Lance manifest": lambda path, head, tail: path.suffix == ".manifest" and tail[-4:] == b"LANC",
    "Lance transaction": lambda path, head, tail: path.suffix == ".txn",
    "TFRecord": lambda path, head, tail: path.suffix == ".tfrecord" or path.name.startswith("events.out.tfevents."),
    "checkpoint": lambda path, head, tail: path.suffix == ".index" or ".data-0000" in path.name,
    "list of checkpoints": lambda path, head, tail: (
        path.name == "checkpoint" and path.parent.parent.parent.name in ("models", path.parent.parent.name)
    ),
}
