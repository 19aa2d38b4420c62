"""A full disk, and one that cannot be written: one line that says what to do, nothing half made, and it goes on."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from soundlake.pipelines.cli.program import main
from tests.conftest import Made
from tests.system.lakes import Command, half_made, ledger_rows, shards, table_rows, temporary

STEPS = ("--steps", "2", "--batch-size", "8")


class Disk:
    """A small file system, filled by a ballast."""

    def __init__(self, path: Path) -> None:
        self.path, self.ballast, self.lake = path, path / "ballast", path / "lake"

    def remount(self, options: str) -> None:
        """Change its size, or whether it can be written."""
        subprocess.run(["mount", "-o", f"remount,{options}", self.path], check=True)

    def leave(self, kilobytes: int) -> None:
        """Leave so much room and no more."""
        free = shutil.disk_usage(self.path).free - (kilobytes << 10)
        with open(self.ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, free)

    def copy(self, lake: str, *left_out: str) -> None:
        """A copy of a lake in place of what is there."""
        for path in self.path.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(lake, self.lake, ignore=lambda _, names: [name for name in names if name in left_out])


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", path], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        pytest.skip(f"may not mount a file system here: {said.decode().strip()}")
    try:
        yield Disk(path)
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            subprocess.run(["umount", path], check=True, capture_output=True)
        if os.path.ismount(path):
            subprocess.run(["umount", "--lazy", path], check=True)


def whole(folder: Path) -> dict[str, str]:
    """Shards of a lake of which every visible file is whole, and nothing else is there."""
    assert not list(half_made(folder))
    assert not temporary(folder)
    return shards(folder)


def says_what_to_do(said: str, disk: Disk) -> bool:
    # On a slow machine signs of life come before it: a stage, and how far it is.
    *before, line = said.splitlines()
    assert all(re.match(r"soundlake: [^:]+: .*(so far|left|%)", text) for text in before), said
    assert not any("no space" in text for text in before), said
    return line.startswith(f"soundlake: no space left for {disk.lake}") and "run the same command again" in line


def test_extract_fills_the_disk(disk: Disk, made: Made) -> None:
    """In the middle of the shards; with more room the same command ends as it does elsewhere."""
    wanted = shards(Path(made.lake.root))
    disk.remount("size=3m")
    call = ("extract", made.audio, "--lake", disk.lake)
    first = Command(*call)
    assert first.end() == 75
    assert says_what_to_do(first.err, disk)
    assert first.out == ""
    found = whole(disk.lake)
    assert found.items() <= wanted.items()
    assert len(found) < len(wanted)
    assert not list(disk.lake.glob("features/*/ledger.lance/_versions"))
    disk.remount("size=256m")
    second = Command(*call)
    assert second.end() == 0, second.err
    assert whole(disk.lake) == wanted
    assert ledger_rows(disk.lake) == ledger_rows(Path(made.lake.root))


@pytest.mark.parametrize("free", [*range(0, 40, 8), 36, 40])
def test_extract_finds_no_room_for_the_ledger(
    disk: Disk, made: Made, free: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """All shards are there; on the way to the commit a page more or less is left each time."""
    disk.copy(made.lake.root, "ledger.lance", "models", "tables", "runs")
    disk.leave(free)
    call = ["extract", str(made.audio), "--lake", str(disk.lake)]
    code = main(call)
    out, err = capsys.readouterr()
    if code != 0:
        assert (code, out) == (75, ""), err
        assert says_what_to_do(err, disk)
        assert whole(disk.lake) == shards(Path(made.lake.root))
    disk.ballast.unlink()
    assert main(call) == 0, capsys.readouterr().err
    assert ledger_rows(disk.lake) == ledger_rows(Path(made.lake.root))
    assert whole(disk.lake) == shards(Path(made.lake.root))


@pytest.mark.parametrize("free", [0, 4, 12, 20, 28, 64])
def test_encode_finds_no_room(disk: Disk, made: Made, free: int, capsys: pytest.CaptureFixture[str]) -> None:
    disk.copy(made.lake.root, "checkpoints", "logs", "tables", "runs")
    disk.leave(free)
    call = ["encode", "--lake", str(disk.lake)]
    code = main(call)
    out, err = capsys.readouterr()
    if code != 0:
        assert (code, out) == (75, ""), err
        assert says_what_to_do(err, disk)
        assert not temporary(disk.lake)
    disk.ballast.unlink()
    assert main(call) == 0, capsys.readouterr().err
    assert table_rows(disk.lake) == table_rows(Path(made.lake.root))


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) >> 10


@pytest.mark.parametrize("place", ["checkpoint", pytest.param("weights", marks=pytest.mark.slow)])
def test_train_finds_no_room(disk: Disk, made: Made, place: str) -> None:
    """TensorFlow and HDF5 have errors of their own for it."""
    disk.copy(made.lake.root, "models", "tables", "runs")
    (model,) = Path(made.lake.root).glob("models/*/")
    disk.leave(1000 if place == "checkpoint" else size(model / "checkpoints") + size(model / "logs") + 1000)
    call = ("train", "--lake", disk.lake, *STEPS)
    first = Command(*call)
    assert first.end() == 75, first.err
    assert says_what_to_do(first.err, disk)
    assert not list(disk.lake.glob("models/*/model.json"))
    assert (place == "weights") == bool(list(disk.lake.glob("models/*/checkpoints/step-2.index")))
    disk.ballast.unlink()
    second = Command(*call)
    assert second.end() == 0, second.err


CALLS = {
    "extract": ["extract", "AUDIO"],
    "train": ["train", *STEPS],
    "encode": ["encode"],
    "run": ["run", "AUDIO"],
}


@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in CALLS for how in ("read-only", "mode") if (name, how) != ("train", "mode")],
)
def test_a_lake_that_cannot_be_written(disk: Disk, made: Made, name: str, how: str) -> None:
    """Exit code 2, since the same call fails again; and nothing was changed."""
    disk.copy(made.lake.root, "checkpoints", "logs", "tables", "runs")
    for folder in (disk.lake / "tables", disk.lake / "runs"):
        folder.mkdir()
    if how == "read-only":
        disk.remount("ro")
    else:
        for path in [disk.lake, *disk.lake.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(disk.lake.rglob("*"))
    arguments = [str(made.audio) if value == "AUDIO" else value for value in CALLS[name]]
    call = Command(*arguments, "--lake", disk.lake, bound=True)
    assert call.end() == 2, call.err
    lines = [line for line in call.err.splitlines() if not line.endswith("…")]
    assert len(lines) == 1
    assert lines[0].startswith(f"soundlake: cannot use {disk.lake}")
    assert call.out == ""
    assert sorted(disk.lake.rglob("*")) == before


@pytest.mark.parametrize("how", ["read-only", "mode"])
def test_a_place_where_no_lake_can_be_made(disk: Disk, made: Made, how: str) -> None:
    disk.remount("ro") if how == "read-only" else disk.path.chmod(0o555)
    call = Command("extract", made.audio, "--lake", disk.lake, bound=True)
    assert call.end() == 2, call.err
    assert len(call.err.splitlines()) == 1
    assert str(disk.lake) in call.err
