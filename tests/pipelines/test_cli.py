"""The command line: exit codes, one clear line, JSON alone on stdout, nothing heavy on the way to help."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from soundlake.pipelines.cli.commands import app
from soundlake.pipelines.cli.program import main
from soundlake.pipelines.cli.terminal import out
from soundlake.pipelines.lake.lake import Lake
from tests.conftest import Made


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bogus"], "No such command"),
        (["serch"], "Did you mean 'search'? See "),
        (["extract", "--retry-rejected"], "Missing argument"),
        (["extract", "--retry-rejected", "/nonexistent"], "no such folder"),
        (["plan", "--retry-rejected", "/nonexistent", "--", "--x"], "cannot read the corpus /nonexistent"),
        (["extract", "--retry-rejected", "silent", "/nonexistent"], "no such folder"),
        (["extract", "/nonexistent", "--retry-rejected"], "no such folder"),
        (["extract", "--retry-rejected", "--lake", "x", "/nonexistent"], "no such folder"),
        (["extract", ".", "--lake", "/nonexistent", "--retry-rejected=ugly"], "unknown reason 'ugly'"),
        (["run", "/nonexistent"], "no such folder"),
        (["status", "--lake", "/a lake"], "soundlake run AUDIO --lake '/a lake'"),
        (["extract"], "Missing argument"),
        (["extract", "/nonexistent"], "no such folder"),
        (["search", "x.wav", "-k", "0"], "-k"),
        (["search", "x.wav", "--by", "files"], "--by"),
        (["train", "--steps", "many"], "--steps"),
        (["status", "--lake", "/nonexistent"], "no lake"),
        (["extract", ".", "--lake", "/nonexistent", "--retry-rejected", "ugly"], "unknown reason 'ugly'"),
        (["plan", "/nonexistent"], "no such folder"),
        (["plan", ".", "--price-cpu", "-1"], "--price-cpu"),
        (["plan", ".", "--price-cpu", "inf"], "not a finite number"),
        (["plan", ".", "--price-storage", "nan"], "--price-storage"),
        (["train", "--if-grown", "inf"], "not a finite number"),
        (["extract", ".", "--lake", "la\udcffke"], "is not UTF-8"),
        (["extract", ".", "--lake", ""], "--lake is empty"),
        (["search", "x.wav", "-k", "-1"], "equal to 1. See "),
        (["run", ".", "--spec", "opera"], "opera"),
        (["synth", "/dev/null/x"], "/dev/null"),
    ],
)
def test_a_wrong_call_is_one_line_and_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err
    assert not list(tmp_path.iterdir())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "--version") == (0, f"soundlake {metadata.version('soundlake')}\n", "")


def test_a_filter_is_told_as_it_was_given(capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path) -> None:
    sound = str(next(made.audio.rglob("*.flac")))
    lake = ["--lake", made.lake.root]
    for arguments in (["search"], ["search", sound], ["export", str(tmp_path / "x.csv")]):
        for where, said in (
            ("lable = 'drum'", "No field named lable"),
            ("label = 'drum", "Unterminated string literal."),
            ("label =", "found: the end."),
        ):
            code, out, err = call(capsys, *arguments, *lake, "--where", where)
            assert (code, out, len(err.splitlines())) == (2, "", 1)
            assert f"cannot use the filter {where!r}: " in err
            assert said in err
            assert "\\n" not in err


def test_wrong_settings(capsys: pytest.CaptureFixture[str], made: Made) -> None:
    for option, value in (
        ("--batch-size", "0"),
        ("--learning-rate", "-1"),
        ("--preset", "opera"),
        ("--free-bits", "inf"),
        ("--temperature", "nan"),
    ):
        code, _, err = call(capsys, "train", "--lake", made.lake.root, option, value)
        assert (code, len(err.splitlines())) == (2, 1)


def test_unknown_beam_option(capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path) -> None:
    code, _, err = call(capsys, "extract", str(made.audio), "--lake", str(tmp_path / "lake"), "--", "--runnr=X")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "--runnr" in err
    assert not (tmp_path / "lake").exists()


def test_a_folder_that_is_no_lake(capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    code, _, err = call(capsys, "extract", str(made.audio), "--lake", str(tmp_path))
    assert code == 2
    assert "thesis.txt" in err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_lake_that_cannot_be_written(capsys: pytest.CaptureFixture[str], made: Made) -> None:
    # Not even root makes a folder there.
    code, _, err = call(capsys, "extract", str(made.audio), "--lake", "/proc/lake")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "/proc/lake" in err


# A shell starts what it puts in the background with SIGINT ignored, and these tests may be that.
LISTEN = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"


@pytest.mark.parametrize(
    ("command", "number"), [("extract", signal.SIGINT), ("extract", signal.SIGTERM), ("train", signal.SIGINT)]
)
def test_interrupted_is_130_and_says_what_is_kept(
    made: Made, tmp_path: Path, command: str, number: signal.Signals
) -> None:
    """Twice, as by ``timeout``, and with all that the command has started."""
    lake = made.copy(tmp_path) if command == "train" else Lake.at(str(tmp_path / "lake"))
    arguments = ["extract", str(made.audio)] if command == "extract" else ["train", "--steps", "100000", "--seed", "5"]
    (tmp_path / "tmp").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", f"{LISTEN}; from soundlake.pipelines.cli.program import script; script()", *arguments],
        env={
            **os.environ,
            "TMPDIR": str(tmp_path / "tmp"),
            "SOUNDLAKE_LAKE": lake.root,
            "PYTHONDONTWRITEBYTECODE": "",  # that is: written
        },
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    # Once it is at work: extract has listed the files, train has its first checkpoint's folder or its logs.
    sign = "runs/*/*" if command == "extract" else "models/*/logs/*"
    before = len(list(Path(lake.root).glob(sign)))
    deadline = time.monotonic() + 120
    while len(list(Path(lake.root).glob(sign))) == before and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(2):
        os.killpg(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    *before_it, said = err.splitlines()
    # Signs of life, and no traceback.
    assert all(re.match(r"soundlake: [^:]+: .* s(o far| left)?", line) for line in before_it), err
    assert said.startswith("soundlake: interrupted; finished work is kept")
    assert list((tmp_path / "tmp").iterdir()) == []
    manifests = [json.loads(path.read_text()) for path in Path(lake.root).glob("runs/*.json")]
    assert "interrupted" in {manifest["result"] for manifest in manifests}


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("arguments", "end"),
    [(["status"], 0), (["status", "--json"], 0), (["--help"], 0), ([], 2), (["status", "--spec", "opera"], 2)],
)
def test_a_stdout_that_takes_nothing(made: Made, arguments: list[str], end: int, unbuffered: str) -> None:
    """Once the reader of a pipe has enough, that is the reader's business; a full disk is ours to tell."""
    line = [sys.executable, "-c", "from soundlake.pipelines.cli.program import script; script()", *arguments]
    environment = {**os.environ, "SOUNDLAKE_LAKE": made.lake.root, "PYTHONUNBUFFERED": unbuffered}
    nobody, pipe = os.pipe()
    os.close(nobody)
    with os.fdopen(pipe, "wb") as unread, open("/dev/full", "wb") as full:
        done = [
            subprocess.run(line, stdout=out, stderr=subprocess.PIPE, env=environment, text=True)
            for out in (unread, full)
        ]
    if "opera" in arguments:  # nothing to write
        assert [(d.returncode, len(d.stderr.splitlines())) for d in done] == [(2, 1)] * 2
        return
    assert (done[0].returncode, done[0].stderr) == (end, "")
    assert done[1].returncode == 75
    assert done[1].stderr == "soundlake: the output could not be written: No space left on device\n"


def test_a_terminal_without_letters(made: Made) -> None:
    line = [
        sys.executable,
        "-c",
        "from soundlake.pipelines.cli.program import script; script()",
        "search",
        "--lake",
        made.lake.root,
    ]
    clip = str(sorted(made.audio.glob("bird/*"))[0])
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*line, clip], capture_output=True, env=environment, text=True, check=True)
    assert "\\u2013" in done.stdout


def test_json_has_no_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        out({"a": float("inf")})


def test_what_is_logged_reads_like_what_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code = "from soundlake.pipelines.cli.program import script; script()"
    line = [sys.executable, "-c", code, "extract", str(tmp_path / "empty"), "--lake", str(tmp_path / "lake")]
    assert "soundlake: the corpus " in subprocess.run(line, capture_output=True, text=True, check=True).stderr


def test_a_manifest_is_named_where_there_is_one(
    capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object, **__: object) -> None:
        raise RuntimeError("oh")

    lake = made.copy(tmp_path)
    monkeypatch.setattr("soundlake.pipelines.lake.status.status", fault)
    monkeypatch.setattr("soundlake.pipelines.extract.pipeline.extract", fault)
    code, _, err = call(capsys, "status", "--lake", lake.root)
    assert (code, "-v shows the traceback" in err, "manifest" in err) == (1, True, False)
    code, _, err = call(capsys, "extract", str(made.audio), "--lake", lake.root)
    assert (code, "newest manifest in the lake's runs/" in err) == (1, True)


def test_a_corpus_without_sound(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    (audio / "a.wav").write_text("no sound")
    code, _, err = call(capsys, "run", str(audio), "--lake", str(tmp_path / "lake"))
    assert code == 2
    assert "no usable recording" in err
    code, out, _ = call(capsys, "status", "--lake", str(tmp_path / "lake"))
    assert code == 0
    assert "not-audio" in out


def test_max_rejects_is_4(capsys: pytest.CaptureFixture[str], made: Made) -> None:
    arguments = ["extract", str(made.audio), "--lake", made.lake.root, "--max-rejects"]
    assert call(capsys, *arguments, "2")[0] == 0
    code, _, err = call(capsys, *arguments, "1")
    assert code == 4
    assert "2 rejects" in err


@pytest.mark.parametrize("reason", [[], ["not-audio"], ["silent"], ["AUDIO"], ["=silent"]])
def test_rejects_are_tried_again(
    capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path, reason: list[str]
) -> None:
    """Where what follows the option is no reason, it is the corpus."""
    lake = made.copy(tmp_path)
    retry = [f"--retry-rejected{value}" for value in reason if value.startswith("=")] or ["--retry-rejected", *reason]
    audio = [] if "AUDIO" in reason else [str(made.audio)]
    arguments = [str(made.audio) if value == "AUDIO" else value for value in retry]
    reason = [] if "AUDIO" in reason else reason
    code, out, _ = call(capsys, "extract", *audio, "--lake", lake.root, *arguments, "--json")
    found = json.loads(out)
    assert code == 0
    # One is silent and one no sound; the same answer again is no news.
    assert (found["tried_again"], found["listed"]) == (1 if reason else 2, 26)
    assert found["ledger"]["rejected"] == 2


def test_a_plan_in_words(capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path) -> None:
    code, out, _ = call(capsys, "plan", str(made.audio), "--lake", made.lake.root)
    assert code == 0
    assert out.splitlines() == ["26 files: 26 unchanged, 0 new, 0 changed; 1 ignored by name", "nothing to decode"]
    arguments = ["--lake", str(tmp_path / "lake"), "--price-cpu", "0.04", "--price-storage", "0.02"]
    code, out, _ = call(capsys, "plan", str(made.audio), *arguments)
    assert code == 0
    assert "26 files: 0 unchanged, 26 new, 0 changed" in out
    # Silence is found by decoding only.
    assert "to decode: 25 recordings" in out
    assert "measured now for FLAC" in out
    assert "per month for storage" in out
    assert not (tmp_path / "lake").exists()


def test_repair_says_what_it_did(capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path) -> None:
    lake = made.copy(tmp_path)
    shard = sorted(Path(lake.root).glob("features/*/shards/*"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    code, out, _ = call(capsys, "extract", str(made.audio), "--lake", lake.root, "--repair")
    assert code == 0
    assert "1 damaged" in out
    assert f"{shard.name}: record" in out
    assert "byte for byte" in out


def test_json_is_one_object(capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path) -> None:
    clip = str(sorted(made.audio.glob("bird/*"))[0])
    lake = ["--lake", made.lake.root]
    calls = (
        ["run", str(made.audio), *lake],
        ["extract", str(made.audio), *lake],
        ["plan", str(made.audio), *lake],
        ["train", "--if-missing", *lake],
        ["encode", *lake],
        ["status", *lake],
        ["search", clip, *lake],
        ["search", "--where", "label = 'bird'", *lake],
        ["export", str(tmp_path / "t.parquet"), *lake],
    )
    for arguments in calls:
        code, out, _ = call(capsys, *arguments, "--json")
        assert code == 0, arguments
        assert isinstance(json.loads(out), dict)
    found = json.loads(call(capsys, "search", clip, *lake, "-k", "1", "--json")[1])
    assert found["results"][0]["hits"][0]["uri"] == clip
    assert found["results"][0]["hits"][0]["rank"] == 1


def test_the_same_run_again_does_nothing_and_says_so(capsys: pytest.CaptureFixture[str], made: Made) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in Path(made.lake.root).rglob("*") if "runs" not in p.parts)
    code, out, _ = call(capsys, "run", str(made.audio), "--lake", made.lake.root)
    assert code == 0
    assert "nothing to do: all 26 files are unchanged" in out
    assert "nothing to encode" in out
    after = sorted((p, p.stat().st_mtime_ns) for p in Path(made.lake.root).rglob("*") if "runs" not in p.parts)
    assert [entry for entry in after if entry not in before and not entry[0].is_dir()] == []


def test_status_tells_the_lake(capsys: pytest.CaptureFixture[str], made: Made) -> None:
    code, out, _ = call(capsys, "status", "--lake", made.lake.root)
    assert code == 0
    assert "26 files = 24 done + 2 rejected" in out
    assert "silent" in out
    assert "not-audio" in out
    assert "up to date" in out


def test_status_tells_which_model_is_in_use_even_if_it_cannot_be_read(
    capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path
) -> None:
    lake = made.copy(tmp_path)
    current = Path(lake.root, "models", "current.json")
    ((spec_id, model_id),) = json.loads(current.read_text())["promoted"].items()
    manifest = Path(lake.root, "models", model_id, "model.json")

    def status() -> dict[str, Any]:
        code, out, _ = call(capsys, "status", "--lake", lake.root, "--json")
        assert code == 0
        return dict(json.loads(out))

    assert status()["specs"][spec_id]["promoted"] == model_id
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 999}))
    found = status()
    assert found["specs"][spec_id]["promoted"] == model_id
    assert "999" in found["models"][model_id]["unreadable"]
    shutil.rmtree(manifest.parent)
    assert status()["specs"][spec_id]["promoted"] == model_id
    current.unlink()
    assert status()["specs"][spec_id]["promoted"] is None


def test_a_play_list_is_written(capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path) -> None:
    clip = str(sorted(made.audio.glob("bird/*"))[0])
    target = tmp_path / "found.m3u"
    assert call(capsys, "search", clip, "--lake", made.lake.root, "--play-list", str(target), "-k", "3")[0] == 0
    lines = target.read_text().splitlines()
    assert lines[0] == "#EXTM3U"
    assert next(line for line in lines if line.startswith("/")) == clip
    assert call(capsys, "search", clip, "--lake", made.lake.root, "--play-list", str(tmp_path / "no" / "x.m3u"))[0] == 2


@pytest.mark.parametrize("ending", ["parquet", "csv", "npz"])
def test_exports_agree(capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path, ending: str) -> None:
    import numpy as np
    from pyarrow import csv, parquet

    target = tmp_path / f"t.{ending}"
    code, out, _ = call(capsys, "export", str(target), "--lake", made.lake.root, "--where", "label = 'bird'")
    assert code == 0
    if ending == "npz":
        found = np.load(target, allow_pickle=False)
        rows, vector = len(found["uri"]), found["embedding"][0]
    elif ending == "csv":
        found = csv.read_csv(target)
        rows, vector = len(found), [found[f"z{i}"][0].as_py() for i in range(128)]
    else:
        found = parquet.read_table(target)
        rows, vector = len(found), found["embedding"][0].as_py()
    assert f"{rows} rows" in out
    hits = main(["search", "--where", "label = 'bird'", "--lake", made.lake.root])
    assert hits == 0
    assert len(vector) == 128
    assert rows > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [target.name]


@pytest.mark.parametrize("target", ["t.xlsx", "no/such/folder/t.csv"])
def test_exports_that_cannot_be(capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path, target: str) -> None:
    code, _, err = call(capsys, "export", str(tmp_path / target), "--lake", made.lake.root)
    assert (code, len(err.splitlines())) == (2, 1)


def test_what_is_in_use_is_promoted_already(capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path) -> None:
    lake = made.copy(tmp_path)
    model_id = made.result["model"]["model_id"]
    assert call(capsys, "promote", model_id, "--lake", lake.root)[0] == 0
    history = json.loads((Path(lake.root) / "models" / "current.json").read_text())["history"]
    assert [entry["reason"] for entry in history] == ["the first model of its spec"]
    assert call(capsys, "promote", "../../etc", "--lake", lake.root)[0] == 2


def test_a_manifest_a_run(made: Made) -> None:
    manifests = [json.loads(path.read_text()) for path in Path(made.lake.root).glob("runs/*.json")]
    assert {"extract", "train", "encode"} <= {manifest["command"] for manifest in manifests}
    assert all(manifest["versions"]["soundlake"] for manifest in manifests)


def test_every_help_ends_with_an_example() -> None:
    for command in app.registered_commands:
        assert (command.epilog or "").startswith("Example: soundlake "), command.name


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["search", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    listed = "print(sorted(sys.modules), file=sys.stderr)"
    code = f"import sys; from soundlake.pipelines.cli.program import main; main({arguments!r}); {listed}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"tensorflow", "keras", "apache_beam", "librosa", "lance", "pyarrow", "numpy", "scipy", "onnxruntime"}
    assert not heavy & set(eval(done.stderr.splitlines()[-1]))
    assert "Usage" in done.stdout


def test_status_imports_no_engine(made: Made) -> None:
    code = (
        "import sys; from soundlake.pipelines.cli.program import main; "
        f"main(['status', '--lake', {made.lake.root!r}]); "
        "print(sorted({'tensorflow', 'keras', 'apache_beam', 'librosa', 'scipy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"


@pytest.mark.parametrize("part", ["data/*.lance", "_versions/*.manifest"])
@pytest.mark.parametrize("command", ["status", "extract", "search"])
def test_a_broken_file_of_a_dataset_is_no_fault_of_ours(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, command: str
) -> None:
    lake = made.copy(tmp_path)
    for path in [
        *Path(lake.root).glob(f"features/*/ledger.lance/{part}"),
        *Path(lake.root).glob(f"tables/*.lance/{part}"),
    ]:
        path.write_bytes(path.read_bytes()[:20])
    given = {"status": [], "extract": [str(made.audio)], "search": ["--where", "label = 'bell'"]}[command]
    assert main([command, *given, "--lake", lake.root]) == 2
    assert "damaged" in capsys.readouterr().err
