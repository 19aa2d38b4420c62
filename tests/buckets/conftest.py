"""Fixtures: the server, an empty bucket, soundlake's environment for it, twins."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from soundlake.pipelines.cli.synth import synthesise
from tests.buckets.server import KEYS, Server, program
from tests.buckets.twins import Trained, Twins
from tests.system.lakes import done


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("s3")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "data").mkdir()
    keys = {"ROOT_ACCESS_KEY": KEYS["AWS_ACCESS_KEY_ID"], "ROOT_SECRET_KEY": KEYS["AWS_SECRET_ACCESS_KEY"]}
    call = [program(), "--port", f"127.0.0.1:{port}", "--region", KEYS["AWS_REGION"], "--quiet"]
    with open(folder / "log", "wb") as log:
        # ETags are in extended attributes. Beside the files (--sidecar) the server changes them later than the content.
        call += ["posix", folder / "data"]
        process = subprocess.Popen(list(map(str, call)), env=os.environ | keys, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail((folder / "log").read_text(), pytrace=False)
                time.sleep(0.1)
        yield Server(port)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def bucket(server: Server, request: pytest.FixtureRequest) -> str:
    """An empty bucket."""
    name = f"b-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]}"
    server.client().create_bucket(Bucket=name)
    return name


@pytest.fixture
def here(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """This process uses the server, and so does every command that it starts."""
    from soundlake.pipelines.storage import bucket as room

    for name, value in server.environment(SOUNDLAKE_CACHE=str(tmp_path / "cache")).items():
        monkeypatch.setenv(name, value)
    room._client.cache_clear()
    yield server
    room._client.cache_clear()


@pytest.fixture(scope="session")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo corpus."""
    folder = tmp_path_factory.mktemp("corpus") / "audio"
    synthesise(str(folder), recordings=48)
    return folder


@pytest.fixture(scope="session")
def trained(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Its features on a disk, and two models, of 4 and of 24 steps; the first is in use."""
    lake = tmp_path_factory.mktemp("trained") / "lake"
    done("extract", audio, "--lake", lake, small=True)
    first = json.loads(done("train", "--lake", lake, "--steps", "4", "--json", small=True).out)["model_id"]
    second = json.loads(done("train", "--lake", lake, "--steps", "24", "--json", small=True).out)["model_id"]
    return Trained(lake, first, second)


@pytest.fixture
def twins(here: Server, bucket: str, audio: Path, tmp_path: Path) -> Iterator[Twins]:
    """No lakes yet, and the demo corpus on either side."""
    twins = Twins(here, bucket, tmp_path)
    shutil.copytree(audio, twins.audio)
    here.upload(twins.audio, bucket, "audio")
    yield twins
    if twins.again:
        print("called again:", *twins.again, sep="\n  ")
