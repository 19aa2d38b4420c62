"""Forget: every file of the lake is opened with a reader of its own, and nothing of what was forgotten is in any."""

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import lance
import numpy as np
import pytest

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import PRESETS
from soundlake.pipelines import commands
from soundlake.pipelines.audio.reading import probe
from soundlake.pipelines.extract import plan
from soundlake.pipelines.extract.account import Candidate, Work
from soundlake.pipelines.extract.bundle import make_bundle
from soundlake.pipelines.lake import fragments, ledger, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.runs import run_manifest
from soundlake.pipelines.storage.folder import Folder
from soundlake.pipelines.upkeep.forget import forget
from soundlake.pipelines.upkeep.maintain import maintain
from tests.conftest import Made
from tests.pipelines.opened import example, holding, records
from tests.pipelines.test_extract import run, sha256, write

SPEC = PRESETS["general"]


@dataclass(frozen=True)
class Case:
    """A lake with a past, and what is to be forgotten of it.

    Attributes
    ----------
    needles : dict of str to list of bytes
        What must be in no file afterwards, by kind.
    """

    lake: Lake
    audio: Path
    path: Path
    recording_id: str
    needles: dict[str, list[bytes]]

    @property
    def root(self) -> Path:
        return Path(self.lake.root)

    def copy(self, folder: Path, *left_out: str) -> "Case":
        shutil.copytree(self.root, folder / "lake", ignore=shutil.ignore_patterns(*left_out))
        return Case(Lake.at(str(folder / "lake")), self.audio, self.path, self.recording_id, self.needles)


def windows(lake: Path) -> dict[tuple[str, int], bytes]:
    """Quantised values of the windows that the ledger names, read without our reader."""
    found = {}
    (known,) = lake.glob("features/*/ledger.lance")
    for row in lance.dataset(known).to_table(columns=["recording_id", "bundles"]).to_pylist():
        for bundle in row["bundles"] or ():
            for _, data in records((known.parent / "shards" / f"{bundle}.tfrecord").read_bytes()):
                one = example(data)
                if one["recording_id"].decode() == row["recording_id"]:
                    found[row["recording_id"], one["window"]] = one["values"]
    return found


def embeddings(lake: Path) -> list[dict[str, Any]]:
    (path,) = lake.glob("tables/*.lance")
    return sorted(lance.dataset(path).to_table().to_pylist(), key=lambda row: row["id"])


def needles_of(lake: Path, path: Path) -> dict[str, list[bytes]]:
    """What a recording could be known by: name, digest, sound and vectors."""
    uri, recording_id = str(path), sha256(path)
    of_list = hashlib.sha256(recording_id.encode()).digest()[:8]
    own = [values for (one, _), values in windows(lake).items() if one == recording_id]
    vectors = [row["embedding"] for row in embeddings(lake) if row["recording_id"] == recording_id]
    return {
        "row": [hashlib.sha256(uri.encode()).hexdigest()[:16].encode()],
        "name": [uri.encode(), quote(uri).encode(), json.dumps(uri)[1:-1].encode(), path.name.encode()],
        "digest": [recording_id.encode(), bytes.fromhex(recording_id)],
        "window": [part for values in own for part in (values[4096:4352], values[9216:9472])],
        "embedding": [np.array(vector[:16], "<f4").tobytes() for vector in vectors],
        "trained": [of_list, of_list[::-1]],
    }


def leave_behind(lake: Lake, path: Path) -> None:
    """What killed runs leave, made by the functions that they would have called, and texts that name the recording."""
    info = path.stat()
    file = Candidate(str(path), info.st_size, info.st_mtime_ns, probe=probe(path))
    assert file.probe is not None
    work = Work(next(plan.segments(sha256(path), file.probe, file.size, SPEC)), (file,))
    make_bundle(lake, SPEC, [work])
    shard = Path(lake.path(Lake.shard(SPEC.spec_id, plan.bundle_id(SPEC, [work.segment]))))
    (shard.parent / ".part-0011223344556677").write_bytes(shard.read_bytes()[:-100])
    ledger.write_rows(lake, SPEC.spec_id, [ledger.row(uri=str(path), recording_id=sha256(path), status="done")])
    (model_id,) = (name.removesuffix(".lance") for name in lake.names("tables") if name.endswith(".lance"))
    known = table.need_table(lake, model_id)
    rows = known.to_table(filter=f"recording_id = '{sha256(path)}'")
    staged = fragments.write(known.uri, rows)
    lake.write(f"tables/{model_id}.staged/99/abc.json", json.dumps({"fragments": staged, "rows": 1}).encode())
    folder = "runs/20260101T000000Z-plan-abcdef"
    lake.write(f"{folder}/plan.json", json.dumps({"samples": [work.packed().decode()]}).encode())
    with contextlib.suppress(InputError), run_manifest(lake, "extract", {"audio": str(path.parent)}):
        raise InputError(f"cannot read {path}: {path.name} of recording {sha256(path)}")
    log = json.dumps([{"not_compared": f"no window of {path}", "promoted": False}]).encode()
    lake.write(f"models/{model_id}/promotions.json", log)
    (Path(lake.root, "models", model_id) / "part-trained.npy").unlink(missing_ok=True)


@pytest.fixture(scope="module")
def case(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Made by run and evaluate; then other rows, other labels, an index, and what killed runs leave."""
    folder = tmp_path_factory.mktemp("forget")
    lake = made.copy(folder)
    (model,) = (Path(lake.root) / "models").glob("*/model.json")
    trained = np.load(model.parent / "trained.npy").tolist()
    path = next(
        path
        for path in sorted(made.audio.glob("*/*"))
        if int.from_bytes(hashlib.sha256(sha256(path).encode()).digest()[:8], "big") in trained
    )
    write(folder / "more" / "other.wav", 9.0, seed=77)
    run(lake, folder / "more")
    commands.encode(lake)
    labels = made.audio / "labels.csv"
    other = folder / "labels.csv"
    other.write_text(labels.read_text().replace(f"{path.name},", f"{path.name},other "))
    run(lake, made.audio, labels=str(other))
    commands.encode(lake)
    known = table.need_table(lake, model.parent.name)
    known.create_index("embedding", "IVF_FLAT", name="embedding_idx", metric="l2", num_partitions=2)
    said = table.said(lake, model.parent.name)
    table.say(lake, model.parent.name, said | {"table_version": int(known.version)})
    needles = needles_of(Path(lake.root), path)
    leave_behind(lake, path)
    return Case(lake, made.audio, path, sha256(path), needles)


def test_the_search_through_all_files_finds_what_is_there(case: Case) -> None:
    """Else that it finds nothing would say nothing."""
    found = holding(case.root, case.needles)
    places = {kind: {name.split("/")[0] + "/" + Path(name).suffix for name in names} for kind, names in found.items()}
    assert {"features/.lance", "features/.parquet", "tables/.lance", "models/.html", "runs/.json"} <= places["name"]
    assert {"features/.tfrecord", "features/.parquet", "tables/.lance", "runs/.json"} <= places["digest"]
    assert {"features/.tfrecord"} <= places["window"]
    assert any("/_indices/" in name for name in found["embedding"])
    assert len([name for name in found["embedding"] if "/data/" in name]) > 1
    assert {"models/.npy"} <= places["trained"]


def test_nothing_is_left_and_the_others_are_as_they_were(case: Case, tmp_path: Path) -> None:
    case = case.copy(tmp_path)
    before, rows = windows(case.root), embeddings(case.root)
    files = {row["uri"]: row for row in ledger.open_ledger(case.lake, SPEC.spec_id).to_table().to_pylist()}
    told = forget(case.lake, [str(case.path)])
    assert (told["recordings"], told["names"], told["already"], told["unknown"]) == (1, 1, 0, [])
    (model,) = told["models"]
    assert (model["promoted"], model["recordings"], told["tables"]) == (True, 1, [model["model_id"]])
    assert holding(case.root, case.needles) == {kind: set() for kind in case.needles}

    # The others: the same windows, the same rows, each row at the place where its window is now.
    assert windows(case.root) == {key: value for key, value in before.items() if key[0] != case.recording_id}
    moving = ("bundle", "record_offset")
    after = embeddings(case.root)
    assert [{k: v for k, v in row.items() if k not in moving} for row in after] == [
        {k: v for k, v in row.items() if k not in moving} for row in rows if row["recording_id"] != case.recording_id
    ]
    shards = case.root / "features" / SPEC.spec_id / "shards"
    for row in after:
        there = dict(records((shards / f"{row['bundle']}.tfrecord").read_bytes()))
        one = example(there[row["record_offset"]])
        assert (one["recording_id"].decode(), one["window"]) == (row["recording_id"], row["window"])
    now = {row["uri"]: row for row in ledger.open_ledger(case.lake, SPEC.spec_id).to_table().to_pylist()}
    assert now.keys() == files.keys() - {str(case.path)}
    assert all({**now[uri], "bundles": 0} == {**files[uri], "bundles": 0} for uri in now)

    # And all goes on.
    other = next(uri for uri in now if uri.endswith(".wav") and now[uri]["status"] == "done")
    hits = commands.search(case.lake, [other], k=30, where=None, by="recordings")["results"][0]["hits"]
    assert hits[0].uri == other
    assert str(case.path) not in {hit.uri for hit in hits}
    assert commands.encode(case.lake)["run_id"] is None  # nothing to do, and it knows
    for _ in range(2):
        labels = str(case.audio / "labels.csv")
        found = run(case.lake, case.audio, labels=labels, repair=True)
        assert (found["forgotten"], found["listed"]) == (1, found["unchanged"] + found["done"] + found["rejected"] + 1)
        assert found["repair"]["damaged"] == []
        commands.encode(case.lake)
        assert holding(case.root, case.needles) == {kind: set() for kind in case.needles}
    assert maintain(case.lake, grace=0.0)["swept"]["shards"]["count"] == 0
    assert forget(case.lake, [str(case.path)])["already"] == 1
    assert holding(case.root, case.needles) == {kind: set() for kind in case.needles}

    # Told so, it comes back, and stays.
    found = run(case.lake, case.audio, include_forgotten=True)
    assert (found["forgotten"], found["done"]) == (0, 1)
    assert run(case.lake, case.audio)["unchanged"] == found["listed"]
    assert windows(case.root) == before


def small(case: Case, folder: Path) -> Case:
    """A copy without the large files of the model, which forget does not look into."""
    return case.copy(folder, "checkpoints", "weights.weights.h5", "*.onnx")


class Killed(BaseException):
    """Nobody but a test raises or catches it."""


class Fuse:
    """Ends everything at the n-th change of the lake, before or after it is made."""

    def __init__(self, patch: pytest.MonkeyPatch, at: int, *, after: bool) -> None:
        self.left, self.after = at, after
        self.patch = patch

    def on(self, owner: Any, name: str) -> None:
        """Count calls of a function."""
        real: Callable[..., Any] = getattr(owner, name)

        def counted(*given: Any, **more: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Killed
            result = real(*given, **more)
            if self.left == 0:
                raise Killed
            return result

        self.patch.setattr(owner, name, counted)


def killed_at(case: Case, at: int, *, after: bool) -> bool:
    """Whether forget was ended at its n-th change; False if it has fewer."""
    with pytest.MonkeyPatch.context() as patch:
        fuse = Fuse(patch, at, after=after)
        for owner, name in ((Lake, "write"), (Folder, "delete"), (Folder, "remove"), (fragments, "write")):
            fuse.on(owner, name)
        fuse.on(fragments, "commit")
        fuse.on(lance.LanceDataset, "cleanup_old_versions")
        try:
            forget(case.lake, [str(case.path)])
        except Killed:
            return True
        return False


def finished_after(case: Case, folder: Path, at: int) -> bool:
    """Forget, ended at the n-th change, and forget again; whether it was ended."""
    mine = small(case, folder)
    others = {key: value for key, value in windows(mine.root).items() if key[0] != case.recording_id}
    ended = killed_at(mine, at, after=at % 2 == 0)
    forget(mine.lake, [str(case.path)])
    assert holding(mine.root, case.needles) == {kind: set() for kind in case.needles}, at
    assert windows(mine.root) == others, at
    shards = mine.root / "features" / SPEC.spec_id / "shards"
    for row in embeddings(mine.root):
        there = dict(records((shards / f"{row['bundle']}.tfrecord").read_bytes()))
        assert example(there[row["record_offset"]])["window"] == row["window"], at
    (model,) = (mine.root / "models").glob("*/model.json")
    said = json.loads(model.read_text())
    assert said["files"]["trained.npy"] == sha256(model.parent / "trained.npy")
    assert (said["trained_forgotten"], "trained_before" in said) == (1, False)
    shutil.rmtree(mine.root)
    return ended


@pytest.mark.parametrize("at", [4, 9, 14])
def test_killed_and_called_again_it_finishes(case: Case, tmp_path: Path, at: int) -> None:
    assert finished_after(case, tmp_path, at)


@pytest.mark.slow
def test_killed_at_any_change_it_finishes(case: Case, tmp_path: Path) -> None:
    at = 1
    while finished_after(case, tmp_path / str(at), at):
        at += 1
    assert at > 20
