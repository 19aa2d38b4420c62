"""The README's walk-through, run as it stands, as a new user would: in an empty folder, by the installed command."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
CONTRIBUTING = README.with_name("CONTRIBUTING.md")


def walk_through() -> list[str]:
    block = README.read_text().split("<!-- A test runs the commands of this block")[1].split("```")[1]
    return [line.split(" #")[0].strip() for line in block.splitlines()[1:] if line.strip()]


def test_the_walk_through(tmp_path: Path) -> None:
    commands = walk_through()
    assert len(commands) == 15
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = {}
    for command in commands:
        # Fewer steps here: what is shown is that the commands work, not how good the model is.
        command = command.replace("--steps 600", "--steps 60")
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        said[command] = done.stdout
    first = next(out for command, out in said.items() if "bird-003" in command)
    heading, best, *_ = first.splitlines()
    assert heading.split() == ["same", "distance", "nearer", "than", "random", "pairs", "place", "file"]
    assert re.match(r"1 +=.*bird-003\.mp3", best)
    drums = next(out for command, out in said.items() if "drum" in command)
    assert len(drums.splitlines()) == 1 + 5
    assert all("[drum]" in line for line in drums.splitlines()[1:])
    found = json.loads(next(out for command, out in said.items() if "--json" in command))
    assert found["results"][0]["hits"][0]["uri"].endswith("rain-001.mp3")
    assert (tmp_path / "demo" / "rain.m3u").read_text().startswith("#EXTM3U")
    again = next(
        out for command, out in said.items() if command.startswith("soundlake run") and "--steps" not in command
    )
    repaired, partition, kept = (said[command] for command in commands[-3:])
    assert "byte for byte" not in repaired
    assert "0 damaged" in repaired
    assert partition.startswith("nothing to do: all 12 files")
    assert "removed: " in kept
    assert "nothing to do: all 98 files are unchanged" in again
    program = README.read_text().split("```python")[1].split("```")[0]
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)
    report = Path(re.search(r"^report +(.+)$", again, re.MULTILINE)[1])
    assert (tmp_path / report).read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    "name", re.findall(r"`((?:model|pipelines|dags)/[\w./]+\.\w+)`", README.read_text() + CONTRIBUTING.read_text())
)
def test_files_that_it_names_exist(name: str) -> None:
    assert (README.parent / name).is_file()
