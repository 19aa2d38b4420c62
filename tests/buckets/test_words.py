"""A bucket that cannot be used: the right exit code, and one line that says which and what to do."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.buckets.server import Server
from tests.system.lakes import Command


@pytest.fixture
def silent() -> Iterator[str]:
    """Something that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def nobody() -> str:
    """An address where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def line_of(command: Command, code: int) -> str:
    """What it said, which must be one line."""
    assert command.end() == code, command.err
    (line,) = command.err.splitlines()
    return line


@pytest.mark.parametrize("who", ["nobody", "silent"])
@pytest.mark.parametrize("what", ["status", "extract"])
def test_no_answer_is_75(
    here: Server, bucket: str, who: str, what: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    address = request.getfixturevalue(who)
    short = {"SOUNDLAKE_PATIENCE_SECONDS": "4", "SOUNDLAKE_REQUEST_SECONDS": "1", "AWS_ENDPOINT_URL": address}
    # A corpus that cannot be reached is not one that is empty.
    call = ["status"] if what == "status" else ["extract", f"s3://{bucket}/audio"]
    lake = f"s3://{bucket}/lake" if what == "status" else tmp_path / "lake"
    said = line_of(Command(*call, "--lake", lake, environment=short), 75)
    assert address in said
    assert said.endswith("run the same command again")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "credentials"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "credentials"),
    ],
)
def test_wrong_credentials_are_2(here: Server, bucket: str, change: dict[str, str], said: str) -> None:
    for call in (["status"], ["extract", f"s3://{bucket}/audio"]):
        line = line_of(Command(*call, "--lake", f"s3://{bucket}/lake", environment=change), 2)
        assert said in line
        assert f"s3://{bucket}" in line


def test_no_bucket_is_2(here: Server, tmp_path: Path) -> None:
    lake = ["status", "--lake", "s3://nowhere-at-all/lake"]
    corpus = ["extract", "s3://nowhere-at-all/audio", "--lake", tmp_path / "lake"]
    for call in (lake, corpus):
        assert "there is no bucket s3://nowhere-at-all" in line_of(Command(*call), 2)


def test_no_lake_there_is_2(here: Server, bucket: str) -> None:
    assert f"there is no lake at s3://{bucket}/lake" in line_of(Command("status", "--lake", f"s3://{bucket}/lake"), 2)


def test_a_place_of_another_kind_is_2(tmp_path: Path) -> None:
    assert "cannot open ftp://x/y" in line_of(Command("status", "--lake", "ftp://x/y"), 2)
