"""Errors of the system are told by their number, whatever library they come through: the libraries meet real ones."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from soundlake.model.errors import InputError, TryLaterError, number_of, of_system, storage_errors
from soundlake.pipelines.cli.program import main
from soundlake.pipelines.storage.patience import patiently
from tests.conftest import Made
from tests.errors.faulty import CASES
from tests.system.lakes import Command

# What to do, by the number.
TODO = {
    errno.EMFILE: "ulimit -n",
    errno.EIO: "check the disk",
    errno.ENOMEM: "not enough memory",
    errno.ENOSPC: "free some",
    errno.EDQUOT: "quota",
    errno.EACCES: "Permission denied",
    errno.EROFS: "Read-only file system",
    errno.ETIMEDOUT: "check the network",
    errno.ESTALE: "mount the network share",
}
FINAL = {errno.EACCES, errno.EROFS}


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes calls fail."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler (cc) on Linux: the faults cannot be made")
    target = tmp_path_factory.mktemp("fault") / "fault.so"
    source = Path(__file__).with_name("fault.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", target, source, "-ldl"], check=True)
    return target


@pytest.mark.parametrize("library", [*CASES])
def test_each_library(shim: Path, library: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.errors.faulty", tmp_path, library],
        env=os.environ | {"LD_PRELOAD": str(shim), "TF_CPP_MIN_LOG_LEVEL": "3", "LANCE_LOG": "error"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(CASES[library]) + (library != "tensorflow")
    for case in found:
        fault = case["fault"]
        assert case["number"] == fault, case
        assert case["code"] == (2 if fault in FINAL else 75), case
        assert TODO[fault] in case["said"], case
        assert "damaged" not in case["said"]
        assert "\n" not in case["said"]


FAULTS = [
    ("open", ".manifest", errno.EMFILE),
    ("open", "/data/", errno.EMFILE),
    ("read", "/data/", errno.EIO),
    ("open", "/data/", errno.EACCES),
    ("open", ".manifest", errno.ETIMEDOUT),
]


LISTS, EXPORTS = ("search", "--where", "label = 'bird'"), ("export", "x.csv")


@pytest.mark.parametrize(
    ("command", "call", "part", "fault"), [*((LISTS, *fault) for fault in FAULTS), (EXPORTS, *FAULTS[2])]
)
def test_commands(
    shim: Path, made: Made, tmp_path: Path, command: tuple[str, ...], call: str, part: str, fault: int
) -> None:
    """One line that names the number's cause, the exit code that goes with it, and nothing about damage."""
    part = f"/tables/{made.result['model']['model_id']}.lance{part}" if part == "/data/" else part
    arguments = [str(tmp_path / value) if value == "x.csv" else value for value in command]
    environment = {"LD_PRELOAD": str(shim), "FAULT_CALL": call, "FAULT_PATH": part, "FAULT_ERRNO": str(fault)}
    done = Command(*arguments, "--lake", made.lake.root, environment=environment)
    assert done.end() == (2 if fault in FINAL else 75), done.err
    (line,) = done.err.splitlines()
    assert TODO[fault] in line
    assert "damaged" not in line
    assert done.out == ""


@pytest.mark.parametrize(
    ("command", "call", "part", "fault"),
    [
        (("encode",), "read", "/shards/", errno.EIO),
        pytest.param(("encode",), "open", ".lance/data/", errno.EMFILE, marks=pytest.mark.slow),
        (("extract", "AUDIO", "--spec", "music"), "open", "/ledger.lance/data/", errno.EMFILE),
        pytest.param(
            ("extract", "AUDIO", "--spec", "music"), "write", "/outcomes/", errno.EDQUOT, marks=pytest.mark.slow
        ),
        pytest.param(("train", "--steps", "1"), "read", "/shards/", errno.EIO, marks=pytest.mark.slow),
    ],
)
def test_steps_of_a_pipeline(
    shim: Path, made: Made, tmp_path: Path, command: tuple[str, ...], call: str, part: str, fault: int
) -> None:
    """Through Beam, and in a worker's thread; the same call goes through once the fault is gone."""
    lake = made.copy(tmp_path)
    for folder in ("tables", "models") if command[0] == "train" else ("tables",):
        shutil.rmtree(Path(lake.root) / folder)
    arguments = [str(made.audio) if value == "AUDIO" else value for value in command]
    environment = {"LD_PRELOAD": str(shim), "FAULT_CALL": call, "FAULT_PATH": part, "FAULT_ERRNO": str(fault)}
    done = Command(*arguments, "--lake", lake.root, environment=environment)
    assert done.end() == 75, done.err
    line = done.err.splitlines()[-1]
    assert TODO[fault] in line
    assert "damaged" not in line
    again = Command(*arguments, "--lake", lake.root)
    assert again.end() == 0, again.err


# Not bits that are flipped: Lance keeps no checksum of its data.
WRONG: dict[str, Callable[[bytes], bytes]] = {
    "zeros": lambda data: bytes(len(data)),
    "cut short": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("files", ["data/*", "_versions/*.manifest"])
@pytest.mark.parametrize("how", [*WRONG, "gone"])
def test_bytes_that_are_wrong_are_damage(
    made: Made, tmp_path: Path, how: str, files: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not an error of the filter, and no internal one."""
    lake = made.copy(tmp_path)
    (table,) = Path(lake.root).glob("tables/*.lance")
    if (how, files) == ("gone", "_versions/*.manifest"):
        return  # then there is no table
    for file in table.glob(files):
        if how == "gone":
            file.unlink()
        else:
            file.write_bytes(WRONG[how](file.read_bytes()))
    assert main(["export", str(tmp_path / "x.csv"), "--where", "label != 'x'", "--lake", lake.root]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "is damaged" in line
    assert "restore its folder from a backup" in line
    assert not (tmp_path / "x.csv").exists()


# Texts of libraries that no test here can make fail: as they were seen.
TEXTS: list[tuple[Exception, int | None]] = [
    (RuntimeError("Traceback (most recent call last):\n  x\nOSError: [Errno 24] Too many open files: '/a/b'"), 24),
    (
        RuntimeError("Generic S3 error: error sending request: tcp connect error: Connection refused (os error 111)"),
        111,
    ),
    (RuntimeError("Load model from /m/encoder.onnx failed: system error number 13"), 13),
    (ValueError("a label '(os errors 24)'"), None),
    (KeyError("Input"), None),
    (OSError("no number at all"), None),
]


@pytest.mark.parametrize(("error", "number"), TEXTS)
def test_numbers_in_texts(error: Exception, number: int | None) -> None:
    assert number_of(error) == number


def test_a_number_is_found_behind_other_errors() -> None:
    error = RuntimeError("a step failed")
    error.__cause__ = OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/x")
    found = of_system(error)
    assert isinstance(found, TryLaterError)
    assert "/x" in str(found)


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, OSError])
def test_storage_errors_know_all_classes(kind: type[Exception]) -> None:
    with (
        pytest.raises(TryLaterError, match="files while using /place: "),
        storage_errors("/place"),
    ):
        raise kind("LanceError(IO): Too many open files (os error 24), /home/x.rs:1:2")
    with pytest.raises(InputError, match="cannot use /place: Permission denied"), storage_errors("/place"):
        raise kind("LanceError(IO): Permission denied (os error 13), /home/x.rs:1:2")


@pytest.mark.parametrize("error", [ValueError("a"), KeyError("b"), InputError("c"), KeyboardInterrupt()])
def test_other_errors_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as found, storage_errors("/place"):
        raise error
    assert found.value is error


def test_what_may_pass_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its number, not by its class; what will not pass is not."""
    calls: list[Any] = []

    def call() -> str:
        calls.append(None)
        if len(calls) < 3:
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
        return "done"

    monkeypatch.setattr("soundlake.pipelines.storage.patience.FIRST_PAUSE_S", 0.001)
    assert patiently("s3://bucket/x", call) == "done"
    assert len(calls) == 3

    def refuse() -> None:
        calls.append(None)
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    calls.clear()
    with pytest.raises(PermissionError):
        patiently("s3://bucket/x", refuse)
    assert len(calls) == 1


def test_a_folder_that_cannot_be_listed_is_not_gone(shim: Path, made: Made, tmp_path: Path) -> None:
    """Else its files would leave the ledger, and with the next encode the table."""
    lake = made.copy(tmp_path)
    before = Path(lake.root)
    versions = sorted(before.glob("features/*/ledger.lance/_versions/*"))
    environment = {"FAULT_CALL": "list", "FAULT_PATH": "audio/bird", "FAULT_ERRNO": str(errno.EMFILE)}
    done = Command("extract", made.audio, "--lake", lake.root, environment=environment | {"LD_PRELOAD": str(shim)})
    assert done.end() == 75, done.err
    line = done.err.splitlines()[-1]
    assert TODO[errno.EMFILE] in line
    assert "audio/bird" in line
    assert sorted(before.glob("features/*/ledger.lance/_versions/*")) == versions


def test_a_play_list_on_a_full_disk_is_75(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["search", "--where", "label = 'bird'", "--lake", made.lake.root, "--play-list"]
    assert main([*call, "/dev/full"]) == 75
    assert "no space left for /dev/full" in capsys.readouterr().err
    assert main([*call, "/proc/x.m3u"]) == 2
    assert "cannot use /proc/x.m3u" in capsys.readouterr().err
