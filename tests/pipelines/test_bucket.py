"""A corpus in a bucket, on moto's S3 server on loopback; tests/buckets has a real one, and faults between."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from soundlake.model.errors import InputError
from soundlake.pipelines import commands
from soundlake.pipelines.corpus.files import at_hand, listing, partitions
from soundlake.pipelines.corpus.labels import find_labels, read_labels
from soundlake.pipelines.engine.runners import beam_options
from soundlake.pipelines.lake.lake import Lake
from tests.pipelines.test_extract import SPEC, corpus, rows, run, shards, write

KEYS = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    before = {name: os.environ.get(name) for name in ("NO_PROXY", "no_proxy")}
    os.environ |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, str, Path]:
    """A client, the bucket's name, and a local copy of what the bucket holds below ``audio/``."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    for key, variable in zip(KEYS, ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"), strict=True):
        monkeypatch.setenv(variable, KEYS[key])
    client = boto3.client("s3", endpoint_url=endpoint, **KEYS)
    name = f"b-{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    client.create_bucket(Bucket=name)
    local = corpus(tmp_path / "audio")
    write(local / "deep" / "er" / "d.wav", 5.0, seed=7)
    (local / "deep" / "notes.txt").write_text("left out")
    (local / ".hidden").mkdir()
    write(local / ".hidden" / "h.wav", 1.0, seed=8)
    (local / "labels.csv").write_text("uri,label\n0.wav,dog\ndeep/er/d.wav,cat\n")
    for path in local.rglob("*"):
        if path.is_file():
            client.upload_file(str(path), name, f"audio/{path.relative_to(local)}")
    client.put_object(Bucket=name, Key="audio/empty/", Body=b"")
    return client, name, local


def test_listing_labels_and_bytes(bucket: tuple[Any, str, Path]) -> None:
    _, name, local = bucket
    root = f"s3://{name}/audio"
    found = list(listing(root))
    names = [item[0] for item in found if item]
    assert sorted(names) == sorted(f"{root}/{n}" for n in [*(f"{i}.wav" for i in range(7)), "deep/er/d.wav"])
    assert found.count(None) == 2
    sizes = {item[0]: item[1].size for item in found if item}
    assert sizes[f"{root}/3.wav"] == (local / "3.wav").stat().st_size
    labels = find_labels(root, None)
    assert labels == f"{root}/labels.csv"
    assert read_labels(labels, root).lines[f"{root}/deep/er/d.wav"].values[0] == "cat"
    with at_hand(f"{root}/3.wav") as path:
        assert Path(os.fsdecode(path)).read_bytes() == (local / "3.wav").read_bytes()
    with pytest.raises(OSError, match="nothing"), at_hand(f"{root}/nothing.wav"):
        pass


def test_partitions(bucket: tuple[Any, str, Path]) -> None:
    _, name, local = bucket
    root = f"s3://{name}/audio"
    # The mark of an empty folder is one, as an empty folder of a disk is.
    assert partitions(root) == [".", "deep", "empty"]
    for one in (".", "deep"):
        here = {os.path.relpath(item[0], local) for item in listing(str(local), one) if item}
        assert {item[0].removeprefix(f"{root}/") for item in listing(root, one) if item} == here


def test_options_of_beam_for_buckets_are_told_about() -> None:
    with pytest.raises(InputError, match="AWS_ENDPOINT_URL"):
        beam_options(["--s3_region_name=us-east-1"])


def test_the_same_shards_as_from_a_folder(bucket: tuple[Any, str, Path], tmp_path: Path) -> None:
    client, name, local = bucket
    near, far = Lake.at(str(tmp_path / "near")), Lake.at(str(tmp_path / "far"))
    run(near, local)
    root = f"s3://{name}/audio"
    found = commands.extract(far, root, spec=SPEC)
    assert (found["listed"], found["done"], found["left_out"]) == (8, 8, 2)
    assert shards(far) == shards(near)
    assert rows(far)[f"{root}/0.wav"]["label"] == "dog"
    again = commands.extract(far, root, spec=SPEC)
    assert (again["unchanged"], again["done"]) == (8, 0)
    # One new, one gone, one renamed: only the new one is decoded.
    files = shards(far)
    client.copy_object(Bucket=name, CopySource=f"{name}/audio/1.wav", Key="audio/one.wav")
    client.delete_object(Bucket=name, Key="audio/1.wav")
    client.delete_object(Bucket=name, Key="audio/2.wav")
    client.upload_file(str(write(tmp_path / "new.wav", 3.0, seed=50)), name, "audio/new.wav")
    changed = commands.extract(far, root, spec=SPEC)
    assert (changed["unchanged"], changed["done"], changed["gone"]) == (6, 2, 2)
    assert len(set(shards(far)) - set(files)) == 1


def test_a_prefix_that_holds_nothing(bucket: tuple[Any, str, Path], tmp_path: Path) -> None:
    """A bucket knows no folders: nothing there is a corpus without files, and it does not empty the ledger."""
    client, name, _ = bucket
    lake, root = Lake.at(str(tmp_path / "lake")), f"s3://{name}/audio"
    commands.extract(lake, root, spec=SPEC)
    before = rows(lake)
    assert commands.extract(lake, f"{root}/nowhere", spec=SPEC)["listed"] == 0
    for item in client.list_objects_v2(Bucket=name)["Contents"]:
        client.delete_object(Bucket=name, Key=item["Key"])
    with pytest.raises(InputError, match="is it mounted"):
        commands.extract(lake, root, spec=SPEC)
    assert rows(lake) == before
