"""Progress: on a terminal it counts what the lake got; elsewhere it is silent."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.lake import Lake
from pipelines.progress import watching

SCRIPT = """
import sys, time
from pipelines.lake import Lake
from pipelines.progress import watching
lake = Lake.at(sys.argv[1])
lake.write("a/before", b"")
with watching(lake, "a", verb="extracting", what="bundles"):
    lake.write("a/1", b"")
    lake.write("a/2", b"")
    time.sleep(1.6)
"""


def test_on_a_terminal(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=root, stderr=slave, check=True)
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 65_536):
            shown += part
    except OSError:
        pass
    assert b"extracting: 2 bundles written" in shown


def test_elsewhere_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with watching(Lake.at(str(tmp_path)), "a", verb="extracting", what="bundles"):
        pass
    assert capfd.readouterr() == ("", "")
