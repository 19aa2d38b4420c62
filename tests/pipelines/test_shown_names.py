"""Names and labels from anywhere: a terminal, a browser, a player or a spreadsheet shows them, and obeys none."""

import csv
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import PRESETS
from soundlake.model.saved import artifact
from soundlake.pipelines import commands
from soundlake.pipelines.cli.program import main
from soundlake.pipelines.cli.terminal import Told, visible
from soundlake.pipelines.corpus import labels
from soundlake.pipelines.lake import table
from soundlake.pipelines.query.export import export
from tests.conftest import Made
from tests.pipelines.hostile import NASTY, call, model_of

# Controls of ASCII and of Latin 1, changes of direction, separators of lines.
OBEYED = {
    chr(n) for n in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)
}


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
    with open(audio / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([["uri", "label"], *zip(names, labels, strict=True)])
    commands.extract(lake, str(audio), spec=PRESETS["general"])
    commands.encode(lake)
    return Made(audio, lake, made.result)


def only_prints(text: str) -> None:
    """Lines of characters that show: nothing that a terminal would obey, and none that a name has begun."""
    assert not set(text) & OBEYED - {"\n"}
    assert not any(line.startswith("soundlake: all is well") for line in text.split("\n"))


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
    handler, log = Told(), logging.getLogger("soundlake.pipelines.x")
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
    assert "2 names and labels look like spreadsheet formulas" in caplog.text
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "t.csv", "t.csv.part"]


def test_a_report_shows_names_and_runs_none(nasty: Made, tmp_path: Path) -> None:
    from html.parser import HTMLParser

    from soundlake.model.judging.report import Pair, Worth, write

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
        labels.read_labels(str(tmp_path / "audio" / "labels.csv"), str(tmp_path / "audio"))
    assert "hunter2" not in str(caught.value)
