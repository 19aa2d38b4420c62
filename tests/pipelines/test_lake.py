"""The lake: whole writes only, the right folder only, a manifest however a run ends."""

import errno
import fcntl
import json
from pathlib import Path

import pytest

from soundlake.model.errors import InputError, TryLaterError, storage_errors
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.runs import run_manifest

# As Beam makes it of Ctrl-C in a step.
# Its context's context is itself.
ROUND = RuntimeError("said again")
ROUND.__cause__ = ValueError()
ROUND.__cause__.__context__ = ROUND
WRAPPED = RuntimeError("KeyboardInterrupt [while running 'probe']")
WRAPPED.__context__ = KeyboardInterrupt()


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake.at(str(tmp_path / "lake"))
    made.initialise()
    return made


def test_a_file_appears_whole_or_not_at_all(lake: Lake) -> None:
    def half() -> None:
        with lake.create("a/b") as file:
            file.write(b"half")
            assert lake.names("a") == []
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        half()
    assert list(Path(lake.root, "a").iterdir()) == []
    lake.write("a/b", b"whole")
    assert lake.read("a/b") == b"whole"
    assert lake.names("a") == ["b"]
    assert Path(lake.root, "a/b").stat().st_mode & 0o777 == 0o644


def test_names_as_long_as_names_may_be(lake: Lake) -> None:
    name = "n" * 255
    lake.write(f"a/{name}", b"x")
    assert lake.names("a") == [name]


def test_another_call_finds_the_lake(lake: Lake) -> None:
    lake.initialise()
    assert json.loads(lake.read("lake.json")) == {"format_version": 1}


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").write_text("x")
    with pytest.raises(InputError, match=r"thesis\.doc"):
        Lake.at(str(tmp_path)).initialise()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.doc"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        ('{"format_version": 0}', "make a new lake"),
        ('{"format_version": 2}', "update soundlake"),
    ],
)
def test_lakes_that_cannot_be_read(lake: Lake, text: str, said: str) -> None:
    Path(lake.root, "lake.json").write_text(text)
    with pytest.raises(InputError, match=f"lake.*{said}"):
        lake.check()


def test_names_of_one_lake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/heron")
    for name in ("/home/heron/my lake", "~/my lake", "file:///home/heron/my%20lake", "/home/heron/x/../my lake/"):
        assert Lake.at(name).root == "/home/heron/my lake"
    assert Lake.at("s3://b/my%20lake/").root == "s3://b/my%20lake"
    assert Lake.at("./~").root.endswith("/~")


@pytest.mark.parametrize("name", ["", "file://", "la\udcffke", "file:///la%ffke"])
def test_names_of_no_lake(name: str) -> None:
    with pytest.raises(InputError, match=r"empty|UTF-8"):
        Lake.at(name)


def test_no_lake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no lake"):
        Lake.at(str(tmp_path / "x")).check()


def test_unknown_scheme() -> None:
    with pytest.raises(InputError, match="cannot open"):
        Lake.at("quux://a/b").initialise()


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, TryLaterError),
        (errno.EDQUOT, TryLaterError),
        (errno.EFBIG, TryLaterError),
        (errno.EIO, TryLaterError),
        (errno.EACCES, InputError),
        (errno.EROFS, InputError),
        (errno.ENOENT, InputError),
        (errno.ENAMETOOLONG, InputError),
    ],
)
def test_what_storage_says(number: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="/the/place"), storage_errors("/the/place"):
        raise OSError(number, "said")


def test_a_full_disk_leaves_nothing(lake: Lake) -> None:
    """The kernel's own full device, in place of the temporary file."""

    def fill() -> None:
        with lake.create("x"), open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(TryLaterError, match="no space left"):
        fill()
    assert lake.names("") == ["lake.json"]


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (None, "done"),
        (ValueError("oh"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
        (WRAPPED, "interrupted"),
        (ROUND, "failed"),
    ],
)
def test_a_manifest_however_it_ends(lake: Lake, error: BaseException | None, result: str) -> None:
    def go() -> None:
        with run_manifest(lake, "extract", {"a": 1}) as run:
            run.manifest["counts"] = {"listed": 3}
            if error is not None:
                raise error

    if error is None:
        go()
    else:
        with pytest.raises(type(error)):
            go()
    (name,) = lake.names("runs")
    manifest = json.loads(lake.read(f"runs/{name}"))
    assert (manifest["result"], manifest["command"], manifest["settings"]) == (result, "extract", {"a": 1})
    assert manifest["counts"] == {"listed": 3}
    assert ("traceback" in manifest) == (result == "failed")


def test_ids_of_runs_differ(lake: Lake) -> None:
    for _ in range(20):
        with run_manifest(lake, "x", {}):
            pass
    assert len(lake.names("runs")) == 20


def test_a_file_system_without_locks(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done without; what is wrong otherwise is said."""
    said = errno.ENOLCK

    def no_lock(*_: object) -> None:
        raise OSError(said, "said")

    monkeypatch.setattr(fcntl, "flock", no_lock)
    entered = False
    with lake.locked("models/current"):
        entered = True
    assert entered
    said = errno.EIO
    with pytest.raises(TryLaterError, match="storage failed"), lake.locked("models/current"):
        pass
