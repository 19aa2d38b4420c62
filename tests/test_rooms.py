"""Rooms: which part of the code may import which, as pyproject.toml declares it."""

import ast
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINT = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]


def test_no_import_goes_up_or_round() -> None:
    done = subprocess.run(LINT, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# What is imported from outside of pipelines: by `soundlake`, and by its command.
DOORS = {"api": {"hits", "lake"}, "cli": {"program"}}


# One of each contract: into a room above, round in a room, past a border of the project.
@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("pipelines/storage/secrecy.py", "from soundlake.pipelines.lake import lake"),
        ("pipelines/storage/secrecy.py", "def late():\n    from soundlake.pipelines.cli import terminal"),
        ("pipelines/storage/store.py", "from soundlake.pipelines.storage import bucket"),
        ("model/errors.py", "from soundlake.pipelines.storage import store"),
        ("model/errors.py", "import apache_beam"),
        ("model/features/records.py", "from soundlake.model.training import places"),
        ("pipelines/lake/lake.py", "import tensorflow"),
        ("pipelines/stray.py", "import os"),
    ],
)
def test_a_stray_is_seen(tmp_path: Path, file: str, line: str) -> None:
    for folder in ("soundlake", "model", "pipelines"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / file).open("a") as planted:
        planted.write(f"\n{line}\n")
    done = subprocess.run(LINT, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1, done.stdout
    assert "BROKEN" in done.stdout or "Missing layers" in done.stdout, done.stdout


def imported(path: Path) -> Iterator[tuple[str, ...]]:
    """Modules of soundlake that a file imports, as parts of their names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("soundlake.pipelines."):
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield tuple((module if is_module(module) else str(node.module)).split("."))


def is_module(name: str) -> bool:
    """Whether a name under soundlake is a module's."""
    place = ROOT.joinpath(*name.split(".")[1:])
    return place.with_suffix(".py").exists() or place.is_dir()


def public(room: str) -> list[str]:
    """What a room says that others may import."""
    spec = importlib.util.find_spec(f"soundlake.pipelines.{room}")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    assert ast.get_docstring(tree)
    (names,) = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    return list(ast.literal_eval(names))


def test_rooms_import_what_others_offer() -> None:
    """And a room offers nothing that no other imports, but for tests."""
    rooms = sorted(path.name for path in (ROOT / "pipelines").iterdir() if (path / "__init__.py").exists())
    assert len(rooms) > 8
    used: dict[str, set[str]] = {room: set() for room in rooms}
    for path in sorted((ROOT / "pipelines").rglob("*.py")):
        own = path.relative_to(ROOT / "pipelines").parts[0]
        for name in imported(path):
            if len(name) > 3 and name[2] != own:
                assert name[3] in public(name[2]), f"{path}: {'.'.join(name)} is private"
                used[name[2]].add(name[3])
    for room in rooms:
        offered = set(public(room))
        assert offered - used[room] == DOORS.get(room, set())
        assert len(list((ROOT / "pipelines" / room).glob("*.py"))) <= 13, room
