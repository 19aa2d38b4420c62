"""A corpus in a bucket, on a real S3 server that the test starts on loopback, through Beam's own file system."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from model.errors import InputError
from pipelines import commands
from pipelines.corpus import at_hand, find_labels, listing, read_labels
from pipelines.lake import Lake
from pipelines.runners import beam_options
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
def bucket(endpoint: str, tmp_path: Path) -> tuple[Any, list[str], Path]:
    """A client, the options that follow ``--``, and a local copy of what the bucket holds below ``audio/``."""
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
    options = [f"--s3_endpoint_url={endpoint}", "--s3_access_key_id=test", "--s3_secret_access_key=test"]
    return client, [*options, "--s3_region_name=us-east-1"], local


def root_of(client: Any) -> str:
    return f"s3://{client.list_buckets()['Buckets'][-1]['Name']}/audio"


def test_listing_labels_and_bytes(bucket: tuple[Any, list[str], Path]) -> None:
    client, options, local = bucket
    beam_options(options)
    root = root_of(client)
    found = list(listing(root))
    names = [item[0] for item in found if item]
    assert sorted(names) == sorted(f"{root}/{n}" for n in [*(f"{i}.wav" for i in range(7)), "deep/er/d.wav"])
    assert found.count(None) == 2
    sizes = {item[0]: item[1].size for item in found if item}
    assert sizes[f"{root}/3.wav"] == (local / "3.wav").stat().st_size
    labels = find_labels(root, None)
    assert labels == f"{root}/labels.csv"
    assert dict(read_labels(labels, root))[f"{root}/deep/er/d.wav"]["label"] == "cat"
    with at_hand(f"{root}/3.wav") as path:
        assert Path(os.fsdecode(path)).read_bytes() == (local / "3.wav").read_bytes()
    with pytest.raises(OSError, match="nothing"), at_hand(f"{root}/nothing.wav"):
        pass


def test_the_same_shards_as_from_a_folder(bucket: tuple[Any, list[str], Path], tmp_path: Path) -> None:
    client, options, local = bucket
    near, far = Lake.at(str(tmp_path / "near")), Lake.at(str(tmp_path / "far"))
    run(near, local)
    root = root_of(client)
    found = commands.extract(far, root, spec=SPEC, beam=options)
    assert (found["listed"], found["done"], found["left_out"]) == (8, 8, 2)
    assert shards(far) == shards(near)
    assert rows(far)[f"{root}/0.wav"]["label"] == "dog"
    again = commands.extract(far, root, spec=SPEC, beam=options)
    assert (again["unchanged"], again["done"]) == (8, 0)
    # One new, one gone, one renamed: only the new one is decoded.
    name = root.removeprefix("s3://").split("/")[0]
    files = shards(far)
    client.copy_object(Bucket=name, CopySource=f"{name}/audio/1.wav", Key="audio/one.wav")
    client.delete_object(Bucket=name, Key="audio/1.wav")
    client.delete_object(Bucket=name, Key="audio/2.wav")
    client.upload_file(str(write(tmp_path / "new.wav", 3.0, seed=50)), name, "audio/new.wav")
    changed = commands.extract(far, root, spec=SPEC, beam=options)
    assert (changed["unchanged"], changed["done"], changed["gone"]) == (6, 2, 2)
    assert len(set(shards(far)) - set(files)) == 1


def test_a_prefix_that_holds_nothing(bucket: tuple[Any, list[str], Path], tmp_path: Path) -> None:
    """A bucket knows no folders: nothing there is a corpus without files, and it does not empty the ledger."""
    client, options, _ = bucket
    lake, root = Lake.at(str(tmp_path / "lake")), root_of(client)
    commands.extract(lake, root, spec=SPEC, beam=options)
    before = rows(lake)
    assert commands.extract(lake, f"{root}/nowhere", spec=SPEC, beam=options)["listed"] == 0
    for item in client.list_objects_v2(Bucket=root.split("/")[2])["Contents"]:
        client.delete_object(Bucket=root.split("/")[2], Key=item["Key"])
    with pytest.raises(InputError, match="is it mounted"):
        commands.extract(lake, root, spec=SPEC, beam=options)
    assert rows(lake) == before
