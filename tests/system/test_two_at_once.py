"""Two of the same command at once, on one lake: together they do what one does, and each thing once."""

import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Made
from tests.system.lakes import Command, done, half_made, ledger_rows, shards, table_rows

STEPS = ("--steps", "4")
ATTEMPTS = pytest.mark.parametrize("attempt", [0, pytest.param(1, marks=pytest.mark.slow)])


def both(*call: str | Path) -> list[Command]:
    """Start a command twice, and wait for both."""
    started = [Command(*call, small=True) for _ in range(2)]
    for command in started:
        command.end()
    return started


def once_each(lake: Path, *, table: bool = True) -> bool:
    """Whether each uri and each window has one row, and no file is half made."""
    names = Counter(row["uri"] for row in ledger_rows(lake))
    if table:
        names += Counter(row["id"] for row in table_rows(lake))
    return set(names.values()) == {1} and not list(half_made(lake))


@pytest.fixture(scope="module")
def alone(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake that one process made."""
    lake = tmp_path_factory.mktemp("alone") / "lake"
    done("run", made.audio, "--lake", lake, *STEPS, small=True)
    return lake


@ATTEMPTS
def test_two_extracts(alone: Path, made: Made, tmp_path: Path, attempt: int) -> None:
    lake = tmp_path / "lake"
    for command in both("extract", made.audio, "--lake", lake):
        assert command.process.returncode == 0, command.err
    assert shards(lake) == shards(alone)
    assert ledger_rows(lake) == ledger_rows(alone)
    assert once_each(lake, table=False)


@ATTEMPTS
def test_two_encodes(alone: Path, tmp_path: Path, attempt: int) -> None:
    lake = tmp_path / "lake"
    shutil.copytree(alone, lake, ignore=lambda _, names: [name for name in names if name == "tables"])
    for command in both("encode", "--lake", lake):
        assert command.process.returncode == 0, command.err
    assert table_rows(lake) == table_rows(alone)
    assert once_each(lake)


@pytest.mark.slow
def test_two_runs(alone: Path, made: Made, tmp_path: Path) -> None:
    """Two would train the same model: the second is told to come back, in one line, and then finds all done."""
    lake = tmp_path / "lake"
    call = ("run", made.audio, "--lake", lake, *STEPS)
    ended = both(*call)
    assert min(command.process.returncode for command in ended) == 0, ended[0].err + ended[1].err
    for command in ended:
        if command.process.returncode != 0:
            assert command.process.returncode == 75, command.err
            *steps, line = command.err.splitlines()
            assert all(step.endswith("…") for step in steps)
            assert line.startswith("soundlake: ")
            assert "run the same command when it is done" in line
            done(*call, small=True)
    assert shards(lake) == shards(alone)
    assert ledger_rows(lake) == ledger_rows(alone)
    assert table_rows(lake) == table_rows(alone)
    assert once_each(lake)
