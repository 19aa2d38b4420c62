"""Forget on a lake in a bucket: nothing is left in any object, nor in this machine's cache."""

import json
from pathlib import Path

from soundlake.pipelines import commands
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.upkeep.forget import forget
from tests.buckets.server import Server
from tests.buckets.twins import Trained
from tests.pipelines.opened import holding
from tests.pipelines.test_extract import run, sha256
from tests.pipelines.test_forget import embeddings, needles_of, windows


def test_nothing_is_left(here: Server, bucket: str, audio: Path, trained: Trained, tmp_path: Path) -> None:
    here.upload(trained.lake, bucket, "lake")
    lake = Lake.at(f"s3://{bucket}/lake")
    commands.encode(lake)
    before = here.download(bucket, "lake", tmp_path / "before")
    path = sorted(audio.glob("*/*.wav"))[0]
    needles = needles_of(before, path)
    there = holding(before, needles)
    assert all(there[kind] for kind in ("name", "digest", "window", "embedding"))
    told = forget(lake, [str(path)])
    assert (told["recordings"], told["names"]) == (1, 1)
    after = here.download(bucket, "lake", tmp_path / "after")
    nothing: dict[str, set[str]] = {kind: set() for kind in needles}
    assert holding(after, needles) == nothing
    assert holding(tmp_path / "cache", needles) == nothing
    assert windows(after) == {key: value for key, value in windows(before).items() if key[0] != sha256(path)}
    assert len(embeddings(after)) == sum(row["recording_id"] != sha256(path) for row in embeddings(before))
    assert json.loads((after / "forgotten.json").read_text())["names"]
    assert run(lake, audio)["forgotten"] == 1
    assert forget(lake, [str(path)])["already"] == 1
