"""Whole commands on a lake and a corpus in a bucket, with faults between, beside the same commands on a disk."""

import json
import shutil
import signal

from tests.buckets.faults import KINDS
from tests.buckets.twins import Trained, Twins
from tests.system.lakes import done, weights

# Of each kind, at least.
FAULTS = 25


def test_every_command_through_faults(twins: Twins, trained: Trained) -> None:
    near, audio, first, second = twins.near, twins.audio, trained.first, trained.second
    done("extract", audio, "--lake", near, small=True)
    twins.give(trained)
    done("promote", first, "--lake", near)
    done("encode", "--lake", near, small=True)
    with twins.server.faulty(seed=14, share=0.2) as proxy:
        twins.environment = {"AWS_ENDPOINT_URL": proxy.address, "SOUNDLAKE_REQUEST_SECONDS": "2"}
        twins.done("extract", twins.far_audio)
        twins.compare(table=False)
        twins.done("promote", first)
        twins.done("encode")
        twins.compare()
        # A file comes, one goes, one is renamed, one has other content.
        some = sorted(path for path in audio.rglob("*.wav") if path.stat().st_size > 50_000)
        new, renamed = audio / "new.wav", audio / "renamed.wav"
        shutil.copyfile(some[0], renamed)
        new.write_bytes(some[1].read_bytes() + some[1].read_bytes()[-20_000:])
        some[3].write_bytes(some[2].read_bytes()[:40_000])
        for path in (new, renamed, some[3]):
            twins.put(path)
        for path in (some[0], some[1]):
            twins.drop(path)
        done("extract", audio, "--lake", near, small=True)
        done("encode", "--lake", near, small=True)
        twins.done("extract", twins.far_audio)
        twins.done("encode")
        twins.compare()
        done("promote", second, "--lake", near, "--force")
        twins.done("promote", second, "--force")
        done("maintain", "--lake", near, "--grace", "0")
        twins.done("maintain", "--grace", "0")
        twins.compare()
        said = json.loads(twins.done("status", "--json").out)
        print(f"\n{proxy.requests} requests, faults: {dict(proxy.counts)}; called again: {len(twins.again)}")
        assert min(proxy.counts[kind] for kind in KINDS) >= FAULTS
    far = twins.fetched()
    history = json.loads((far / "models/current.json").read_text())["history"]
    assert [entry["model_id"] for entry in history] == [first, second]
    assert said["models"][second]["promoted"]
    # A maintain that is called again finds a version that no encode has spoken of, and leaves it to the next.
    assert said["tables"][first]["up_to_date"] or twins.again
    # What is no secret of the tests is none of anybody's: in no manifest, no model, no progress.
    for path in far.rglob("*.json"):
        assert "not-a-secret" not in path.read_text()


def test_a_training_goes_on_on_another_machine(twins: Twins, trained: Trained) -> None:
    """Stopped on one, killed on a second, ended on a third, faults between: the weights of one that never stopped."""
    twins.done("extract", twins.far_audio)

    def checkpoints() -> set[str]:
        found = twins.server.client().list_objects_v2(Bucket=twins.bucket, Prefix="lake/models/").get("Contents", [])
        return {item["Key"].rpartition("/")[2] for item in found if item["Key"].endswith(".index")}

    with twins.server.faulty(seed=15, share=0.1) as proxy:
        twins.environment = {"AWS_ENDPOINT_URL": proxy.address, "SOUNDLAKE_LEASE_SECONDS": "6"}
        for machine, (number, until) in enumerate(
            ((signal.SIGTERM, "step-4.index"), (signal.SIGKILL, "step-12.index"))
        ):
            cache = str(twins.folder / f"machine-{machine}")
            training = twins.started("train", "--steps", "24", SOUNDLAKE_CACHE=cache)
            while until not in checkpoints() and not training.ended_before(0.2):
                pass
            training.process.send_signal(number)
            assert training.process.wait() in (-signal.SIGKILL, 130), training.err
        ended = twins.done("train", "--steps", "24", SOUNDLAKE_CACHE=str(twins.folder / "machine-2"))
        print(f"\n{proxy.requests} requests, faults: {dict(proxy.counts)}; called again: {len(twins.again)}")
    assert "trained" in ended.out
    assert weights(twins.fetched()) == weights(trained.lake, trained.second)
    assert not checkpoints()
