"""Signs of life: each command says what it does and how far it is, on a terminal and without one."""

import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from soundlake.model.saved import artifact
from soundlake.pipelines.cli import display
from soundlake.pipelines.cli.display import at_work
from soundlake.pipelines.cli.program import main
from soundlake.pipelines.cli.terminal import say, tell
from soundlake.pipelines.lake.stages import Stage, stage
from tests.conftest import Made

ROOT = Path(__file__).resolve().parents[2]
# The real command, with a bar from the first moment on.
SHOWN = "import sys; from soundlake.pipelines.cli import display, program; display.DELAY = 0.0; "
SHOWN += "sys.exit(program.main(sys.argv[1:]))"


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line whenever a stage begins, and at every look."""
    monkeypatch.setattr(display, "LINE", 0.0)


def on_terminal(*arguments: str) -> tuple[str, str]:
    """A command whose stderr alone is a terminal: what was on stdout, and on the terminal."""
    master, slave = pty.openpty()
    call = [sys.executable, "-c", SHOWN, *arguments]
    environment = os.environ | {"COLUMNS": "160", "TERM": "xterm"}
    with subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, stderr=slave, env=environment) as process:
        os.close(slave)
        shown = b""
        try:
            while part := os.read(master, 65_536):
                shown += part
        except OSError:  # the end, on Linux
            pass
        assert process.stdout is not None
        answer = process.stdout.read()
    os.close(master)
    assert process.returncode == 0, shown[-2000:]
    return answer.decode(), shown.decode()


def test_a_stage_in_one_line() -> None:
    one = Stage("training")
    assert one.line() == "training: 0 s so far"
    one("training", note="compiling")
    assert one.line() == "training: compiling, 0 s so far"
    one("training", 3, 12, "step 3 of 12")
    assert one.line() == "training:  25%, step 3 of 12"
    one._began -= 60
    one("training", 6, 12, "step 6 of 12")
    # Three steps in a minute: six more take two.
    assert one.line() == "training:  50%, step 6 of 12, 2 min 00 s left"
    one("training", 12, 12)
    assert one.line() == "training: 100%"
    one("writing")
    assert one.line() == "writing: 0 s so far"


@pytest.mark.usefixtures("talkative")
def test_the_innermost_stage_speaks(capfd: pytest.CaptureFixture[str]) -> None:
    with at_work("run"), stage("outer"):
        with stage("inner") as report:
            report("inner part", 1, 2)
        say("a message")
        tell("the answer")
    said = capfd.readouterr()
    assert said.out == "the answer\n"
    names = [line.split(":")[1].strip() for line in said.err.splitlines() if line.startswith("soundlake: ")]
    assert list(dict.fromkeys(names)) == ["outer", "inner", "inner part"]
    assert "a message\n" in said.err
    assert "\x1b" not in said.err


def test_where_nobody_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    with stage("alone") as report:
        report("alone", 1, 2)
    assert capfd.readouterr() == ("", "")


def stages(err: str) -> set[str]:
    """The stages that spoke."""
    return {line.split(":")[1].strip() for line in err.splitlines() if line.startswith("soundlake: ")}


@pytest.fixture
def lake(made: Made, tmp_path: Path) -> str:
    return made.copy(tmp_path).root


@pytest.mark.usefixtures("talkative")
def test_every_stage_of_the_main_job_speaks(
    made: Made, lake: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And stdout is the answer alone."""

    def stages_of(*arguments: str) -> set[str]:
        assert main([*arguments, "--json"]) == 0
        said = capfd.readouterr()
        json.loads(said.out)
        return stages(said.err)

    corpus = str(tmp_path / "corpus")
    assert "making sounds" in stages_of("synth", corpus, "--recordings", "4")
    assert {"planning"} <= stages_of("plan", corpus, "--lake", str(tmp_path / "fresh"))
    assert {"extracting", "committing to the ledger"} <= stages_of("extract", corpus, "--lake", str(tmp_path / "fresh"))
    assert "checking shards" in stages_of("extract", str(made.audio), "--lake", lake, "--repair")
    found = stages_of("train", "--lake", lake, "--steps", "2", "--batch-size", "8", "--seed", "7")
    assert found >= {
        "loading TensorFlow",
        "fetching the shards",
        "reading the shards",
        "mean and deviation of the mel bands",
        "windows for the principal components",
        "principal components",
        "statistics for the similarity map",
        "similarity map",
        "building the network",
        "compiling the training step",
        "training",
        "validating the best weights",
        "writing the ONNX copy encoder.onnx",
        "writing the ONNX copy decoder.onnx",
        "comparing the ONNX copies with the model",
        "writing the report",
    }
    made_by_it = next(
        name for name in artifact.models(Path(lake) / "models") if name not in os.listdir(made.lake.path("models"))
    )
    assert {"encoding", "committing to the table", "bringing the index up to date"} <= stages_of(
        "encode", "--lake", lake, "--model", made_by_it
    )
    assert stages_of("evaluate", "--lake", lake) >= {
        "loading TensorFlow",
        "reading the sample",
        "looking for near copies",
        "encoding",
        "rebuilding",
        "disturbing windows",
        "probes",
        "writing the report",
    }
    assert stages_of("promote", made_by_it, "--lake", lake, "--force") >= {"reading the sample", "comparing", "probes"}
    assert "writing windows" in stages_of("export", str(tmp_path / "t.parquet"), "--lake", lake)
    assert {"looking for what killed runs left", "putting small fragments together", "removing old versions"} <= (
        stages_of("maintain", "--lake", lake, "--grace", "0")
    )
    assert "searching" in stages_of("search", str(made.audio / "bird" / "bird-001.flac"), "--lake", lake)


@pytest.mark.slow
def test_a_training_on_a_terminal(lake: str) -> None:
    answer, shown = on_terminal("train", "--lake", lake, "--steps", "3", "--batch-size", "8", "--seed", "8", "--json")
    assert json.loads(answer)["trained"]
    for said in ("loading TensorFlow", "step 3 of 3", "writing the ONNX copy encoder.onnx", "writing the report"):
        assert said in shown
    assert "nan" not in shown
    # The bar is gone at the end, and the cursor is there.
    assert shown.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


def test_run_says_when_the_table_can_be_searched(made: Made, lake: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Before it evaluates, with a command line that works."""
    for metrics in Path(lake).glob(f"models/*/{artifact.METRICS}"):
        metrics.unlink()
    assert main(["run", str(made.audio), "--lake", lake]) == 0
    said = capfd.readouterr()
    lines = said.err.splitlines()
    (ready,) = (i for i, line in enumerate(lines) if "can be searched now" in line)
    assert ready < lines.index("soundlake: evaluate …")
    command = shlex.split(lines[ready].partition("such as by: ")[2])
    assert command[0] == "soundlake"
    assert main(command[1:]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 1 + 10
    # What the figures mean stands below them.
    assert "principal components" in said.out.split("evaluation ")[1]
