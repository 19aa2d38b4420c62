"""A lease that is lost: who held it stops before it writes. Two processes, on moto's S3 server on loopback."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.models import CHECKPOINTS
from soundlake.pipelines.storage import lease

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
MODEL = "0123456789abcdef"
SECONDS = "1.5"

# A training without TensorFlow: each validation keeps a checkpoint, the older one goes.
TRAINING = """
import sys, time
from pathlib import Path
from soundlake.model.errors import TryLaterError
from soundlake.pipelines.lake import models
from soundlake.pipelines.lake.lake import Lake
lake = Lake.at(sys.argv[1])
folder = models.folder(lake) / sys.argv[2] / models.CHECKPOINTS
folder.mkdir(parents=True)
try:
    with models.being_trained(lake, sys.argv[2]) as saved:
        for step in range(1000):
            for old in folder.glob("step-*"):
                old.unlink()
            (folder / f"step-{step}").write_text("first")
            (folder / "checkpoint").write_text(f"first {step}")
            saved(folder.parent)
            print(step, flush=True)
            time.sleep(1)  # it is stopped here, with nothing on its way
except TryLaterError as error:
    print(error, file=sys.stderr)
    sys.exit(75)
"""


@pytest.fixture(scope="module")
def lake() -> Iterator[Lake]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = "http://{}:{}".format(*server.get_host_and_port())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (KEYS | {"AWS_ENDPOINT_URL": address, "NO_PROXY": "127.0.0.1"}).items():
            patch.setenv(name, value)
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="a-lease")
        yield Lake.at("s3://a-lease/lake")
    server.stop()


def checkpoints(lake: Lake) -> dict[str, str]:
    folder = f"models/{MODEL}/{CHECKPOINTS}"
    return {name: lake.read(f"{folder}/{name}").decode() for name in lake.names(folder)}


def test_a_training_that_slept_stops_before_it_writes(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a machine that was suspended: another took over, and its checkpoints stay."""
    monkeypatch.setattr(lease, "LENGTH_S", float(SECONDS))
    first = subprocess.Popen(
        [sys.executable, "-c", TRAINING, lake.root, MODEL],
        env=os.environ | {"SOUNDLAKE_LEASE_SECONDS": SECONDS, "SOUNDLAKE_CACHE": str(tmp_path / "first")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "0\n"
        first.send_signal(signal.SIGSTOP)
        assert checkpoints(lake) == {"checkpoint": "first 0", "step-0": "first"}
        with lake.locked(f"models/{MODEL}"):
            for name in lake.names(f"models/{MODEL}/{CHECKPOINTS}"):
                lake.store.delete(f"models/{MODEL}/{CHECKPOINTS}/{name}")
            mine = {"checkpoint": "second", "step-9": "second"}
            for name, text in mine.items():
                lake.write(f"models/{MODEL}/{CHECKPOINTS}/{name}", text.encode())
            first.send_signal(signal.SIGCONT)
            _, said = first.communicate(timeout=60)
            found = checkpoints(lake)
    finally:
        first.kill()
    assert first.returncode == 75, said
    assert "took over the lock" in said.splitlines()[-1]
    assert "run the same command later" in said.splitlines()[-1]
    assert found == mine


def test_a_lease_that_is_kept_says_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LENGTH_S", 3.0)
    with lake.locked("x") as still_held:
        for _ in range(4):
            still_held()
            time.sleep(0.5)
    with lake.locked("x", wait=False) as still_held:
        still_held()
