"""Two writers at once on one lake in a bucket, and writers that are killed: nothing lost, nothing doubled."""

import random
import time

import pytest

from tests.buckets.twins import Trained, Twins
from tests.system.lakes import done


def at_once(twins: Twins, *calls: tuple[str, ...]) -> None:
    """Start commands at once, and wait for all; who is told to come back, in one clear line, does so."""
    started = [twins.started(*call) for call in calls]
    for call, command in zip(calls, started, strict=True):
        assert command.end() in (0, 75), command.err
        if command.process.returncode == 75:
            assert "again" in command.err.splitlines()[-1] or "later" in command.err.splitlines()[-1]
            twins.again.append(command.err.splitlines()[-1])
            twins.done(*call)


@pytest.mark.parametrize("attempt", range(2))
def test_two_extracts_at_once(twins: Twins, attempt: int) -> None:
    """Of the whole corpus and of a part of it, the first ones of their lake."""
    done("extract", twins.audio, "--lake", twins.near, small=True)
    at_once(twins, ("extract", twins.far_audio), ("extract", twins.far_audio, "--partition", "bell"))
    twins.compare(table=False, bundles=False)
    print("called again:", len(twins.again))


@pytest.mark.parametrize("attempt", range(2))
def test_two_encodes_at_once(twins: Twins, trained: Trained, attempt: int) -> None:
    done("extract", twins.audio, "--lake", twins.near, small=True)
    twins.done("extract", twins.far_audio)
    twins.give(trained)
    done("promote", trained.first, "--lake", twins.near)
    twins.done("promote", trained.first)
    done("encode", "--lake", twins.near, small=True)
    at_once(twins, ("encode",), ("encode",))
    twins.compare()
    print("called again:", len(twins.again))


def test_killed_again_and_again(twins: Twins) -> None:
    """SIGKILL soon after a bundle is done; what each left is found, and the lake is that of one never killed."""
    done("extract", twins.audio, "--lake", twins.near, small=True)
    drawn, killed = random.Random(3), 0
    twins.environment = {"SOUNDLAKE_LEASE_SECONDS": "4"}
    client = twins.server.client()

    def bundles() -> int:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=twins.bucket, Prefix="lake/features/")
        return sum("/outcomes/" in item["Key"] for page in pages for item in page.get("Contents", []))

    for _ in range(6):
        before, command = bundles(), twins.started("extract", twins.far_audio)
        while bundles() == before and not command.ended_before(0.02):
            pass
        if command.ended_before(drawn.uniform(0, 0.2)):
            break
        killed += command.kill(group=True)
    print("killed:", killed)
    assert killed
    twins.done("extract", twins.far_audio)
    twins.compare(table=False)


def test_one_that_is_killed_with_the_lock_delays_the_next_and_no_more(twins: Twins) -> None:
    done("extract", twins.audio, "--lake", twins.near, small=True)
    twins.environment = {"SOUNDLAKE_LEASE_SECONDS": "4"}
    twins.done("extract", twins.far_audio, "--partition", "bell")
    client = twins.server.client()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=twins.bucket, Prefix="lake/features/")
    (lock,) = (item["Key"] for page in pages for item in page["Contents"] if item["Key"].endswith("/ledger.lock"))

    def is_held() -> bool:
        return b'"free": false' in client.get_object(Bucket=twins.bucket, Key=lock)["Body"].read()

    assert not is_held()

    def makes_a_version(method: str, path: str) -> bool:
        return method == "PUT" and "/ledger.lance/_versions/" in path

    # The commit takes long enough to be met.
    with twins.server.faulty(share=1.0, kinds=("slow",), where=makes_a_version) as proxy:
        command = twins.started("extract", twins.far_audio, AWS_ENDPOINT_URL=proxy.address)
        while not is_held() and not command.ended_before(0):
            time.sleep(0.01)
        command.kill(group=True)
    assert is_held()
    twins.done("extract", twins.far_audio)
    assert not is_held()
    # The partition was packed by itself before.
    twins.compare(table=False, bundles=False)
