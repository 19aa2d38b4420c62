"""Progress: on a terminal a bar with what the pieces said; elsewhere a plain line now and then."""

import os
import pty
import subprocess
import sys
import time
from pathlib import Path

import pytest

from soundlake.pipelines.cli import display
from soundlake.pipelines.lake import progress, stages
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.progress import LISTED, PROBED, Progress, Tally, Watch, watching

SCRIPT = """
import sys, time
from soundlake.pipelines.cli import display
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.progress import Progress, watching
display.DELAY = 0.0
told = Progress(Lake.at(sys.argv[1]), "runs/r")
with display.at_work("extract"), watching(told, verb="extracting"):
    told.expect(40)
    told.tell("a", {"work": 10, "files": 3, "rejected": 1, "audio_s": 3600.0})
    told.tell("b", {"work": 10, "files": 4, "rejected": 0, "audio_s": 1800.0})
    time.sleep(1.6)
"""


def test_on_a_terminal(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"COLUMNS": "160"}
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=root, stderr=slave, env=environment, check=True)
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 65_536):
            shown += part
    except OSError:
        pass
    assert b"extracting:  50%, 7 files, 1 rejected, 1.50 h of sound" in shown
    assert b"left" in shown


def test_plain_lines_elsewhere(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "LINE", 0.0)
    monkeypatch.setattr(progress, "LOCAL_LOOK", 0.05)
    told = Progress(Lake.at(str(tmp_path)), "runs/r")
    with display.at_work("extract"), watching(told, verb="extracting"):
        told.expect(4)
        told.tell("a", {"work": 1, "files": 2})
        time.sleep(0.3)
    said = capfd.readouterr()
    assert said.out == ""
    assert "soundlake: extracting:  25%, 2 files" in said.err
    assert "\x1b" not in said.err


def test_a_piece_counts_once(tmp_path: Path) -> None:
    told = Progress(Lake.at(str(tmp_path)), "runs/r")
    watch = Watch(told)
    watch.look()
    shown = stages.Stage("extracting")
    watch.report(shown)
    assert shown.share is None
    told.expect(10)
    for _ in range(2):
        # A runner that tries a piece again tells it again.
        told.tell("a", {"work": 5, "files": 1})
        watch.look()
    watch.report(shown)
    assert (shown.share, watch.numbers["files"]) == (0.5, 1)


def test_what_is_listed_and_probed_before_there_is_a_total(tmp_path: Path) -> None:
    told = Progress(Lake.at(str(tmp_path)), "runs/r")
    watch, shown = Watch(told), stages.Stage("extracting")
    for name, count in ((LISTED, 3), (PROBED, 2), (LISTED, 4)):
        tally = Tally(told, name)
        for _ in range(count):
            tally.add()
        tally.tell()
    watch.look()
    watch.report(shown)
    assert shown.line().startswith("extracting: 7 files listed, 2 files probed, ")
    # What was only listed is no piece of work, and no rate is guessed from it.
    assert watch.first is None
    told.expect(4)
    told.tell("a", {"work": 1, "files": 1})
    watch.look()
    watch.report(shown)
    assert shown.line().startswith("extracting:  25%, 1 files")
