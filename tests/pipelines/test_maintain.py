"""Maintain: what goes, to the file; what stays, to the row; and that the commands after it find nothing changed."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from soundlake.model.errors import HeldError, InputError
from soundlake.model.features.log_mel import PRESETS
from soundlake.pipelines import commands
from soundlake.pipelines.cli.program import main
from soundlake.pipelines.lake import fragments, ledger, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.status import status
from soundlake.pipelines.lake.table import schema
from soundlake.pipelines.upkeep.maintain import maintain
from tests.conftest import Made
from tests.pipelines.test_bucket import KEYS, endpoint  # noqa: F401
from tests.pipelines.test_extract import corpus, run, write
from tests.system.lakes import ledger_rows, table_rows

SPEC = PRESETS["general"].spec_id
HOUR = 3600.0
NOTHING = {kind: {"count": 0, "bytes": 0} for kind in ("parts", "runs", "staged", "outcomes", "shards")}


def age(path: Path, hours: float) -> None:
    then = time.time() - hours * HOUR
    os.utime(path, (then, then))


def put(lake: Lake, name: str, size: int, hours: float) -> str:
    path = Path(lake.root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    age(path, hours)
    return name


def tree(lake: Lake) -> dict[str, tuple[int, int]]:
    """Every file of the lake, with its size and time."""
    found = (path for path in Path(lake.root).rglob("*") if path.is_file())
    return {str(path.relative_to(lake.root)): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(found)}


def ours(lake: Lake) -> set[str]:
    """Files that are no locks, not Lance's, and no manifest."""
    return {
        name for name in tree(lake) if not re.search(r"\.lock$|\.lance/(?!\.part)|^runs/[^/]*Z-\w+-\w{6}\.json$", name)
    }


def versions(path: Path) -> list[int]:
    return [one["version"] for one in lance.dataset(str(path)).versions()]


def ledger_of(lake: Lake) -> Path:
    return Path(lake.ledger_uri(SPEC))


def table_of(made: Made, lake: Lake) -> Path:
    return Path(lake.table_uri(made.result["model"]["model_id"]))


def left_of_everything(made: Made, lake: Lake) -> tuple[list[str], list[str]]:
    """What is to go, and what looks like it and stays. Sizes are powers of two: their sums tell which."""
    model_id = made.result["model"]["model_id"]
    version = lance.dataset(str(table_of(made, lake))).version
    features, staged = f"features/{SPEC}", f"tables/{model_id}.staged"
    gone = [
        put(lake, ".part-a", 1, 50),
        put(lake, f"models/{model_id}/.part-b", 2, 50),
        put(lake, "models/.part-c", 4, 50),
        put(lake, f"{features}/shards/.part-d", 8, 50),
        put(lake, f"tables/{model_id}.lance/.part-e", 16, 50),
        put(lake, "runs/.part-f", 32, 50),
        put(lake, "runs/20260101T000000Z-extract-aaaaaa/done/1.json", 64, 50),
        put(lake, "runs/20260101T000000Z-extract-aaaaaa/done/.part-g", 128, 60),
        put(lake, f"{staged}/{version - 1}/0a.json", 256, 0),
        put(lake, f"{staged}/{version}/0b.json", 512, 50),
        put(lake, f"{features}/outcomes/{'1' * 32}.parquet", 1024, 50),
        put(lake, f"{features}/shards/{'1' * 32}.tfrecord", 2048, 50),
        put(lake, f"{features}/shards/{'2' * 32}.tfrecord", 4096, 50),
    ]
    stays = [
        put(lake, "models/.part-young", 3, 46),
        put(lake, "notes/.part-mine", 3, 500),
        put(lake, "runs/20260101T000000Z-plan-bbbbbb/expected.json", 3, 47),
        put(lake, "runs/20260101T000000Z-plan-bbbbbb/done/1.json", 3, 46),
        put(lake, f"{features}/outcomes/{'3' * 32}.parquet", 3, 1),
        put(lake, f"{features}/shards/{'3' * 32}.tfrecord", 3, 500),
        put(lake, f"{features}/shards/notes.txt", 3, 500),
        put(lake, "models/0123456789abcdef/checkpoints/ckpt-1", 3, 500),
        put(lake, "models/0123456789abcdef/lock", 0, 500),
    ]
    return gone, stays


SWEPT = {
    "parts": {"count": 6, "bytes": 63},
    "runs": {"count": 1, "bytes": 192},
    "staged": {"count": 2, "bytes": 768},
    "outcomes": {"count": 1, "bytes": 1024},
    "shards": {"count": 2, "bytes": 6144},
}


@pytest.fixture
def lake(made: Made, tmp_path: Path) -> Lake:
    """A copy of the lake; what its own encode was done with is gone, and all its shards are old."""
    found = made.copy(tmp_path)
    shutil.rmtree(table_of(made, found).with_suffix(".staged"))
    for path in Path(found.root, "features", SPEC).glob("[so]*/*"):
        age(path, 500)
    return found


def test_what_goes_and_what_stays(made: Made, lake: Lake) -> None:
    before = ours(lake)
    gone, stays = left_of_everything(made, lake)
    assert maintain(lake)["swept"] == SWEPT
    assert ours(lake) == before | set(stays)
    assert not [name for name in gone if Path(lake.root, name).exists()]
    assert not Path(lake.root, gone[6]).parents[1].exists()


def test_a_dry_run_changes_nothing_and_says_the_same(made: Made, lake: Lake) -> None:
    left_of_everything(made, lake)
    later = time.time() + 49 * HOUR  # all of Lance's versions but the newest are old then
    for path in (ledger_of(lake), table_of(made, lake)):
        fragments.commit(str(path), versions(path)[-1], lance.dataset(str(path)).schema, [], [])
    before = tree(lake)
    dry = maintain(lake, dry_run=True, now=later)
    assert tree(lake) == before
    real = maintain(lake, now=later)
    assert dry["swept"] == real["swept"] != SWEPT  # what was young is old then
    for kind in ("ledgers", "tables"):
        for name, one in dry[kind].items():
            assert one["version"]["before"] == one["version"]["after"]
            assert one["fragments"]["before"] == one["fragments"]["after"]
            assert (one["merged"], one["versions_removed"]) == (2, real[kind][name]["versions_removed"])
            assert real[kind][name]["merged"] == 2
            assert real[kind][name]["versions_removed"] >= 1
    assert dry["run_id"] is None


def test_a_live_run_keeps_what_was_of_use_when_it_began(lake: Lake) -> None:
    """A run, or a training, of more days than the grace."""
    shard = put(lake, f"features/{SPEC}/shards/{'1' * 32}.tfrecord", 1, 70)
    for first, newest in (
        ("runs/20260101T000000Z-plan-aaaaaa/expected.json", "runs/20260101T000000Z-plan-aaaaaa/done/1.json"),
        ("models/0123456789abcdef/lock", "models/0123456789abcdef/checkpoints/1"),
    ):
        put(lake, first, 1, 80)
        put(lake, newest, 1, 1)
        assert maintain(lake)["swept"] == NOTHING
        shutil.rmtree(Path(lake.root, first).parent)
    assert maintain(lake)["swept"]["shards"] == {"count": 1, "bytes": 1}
    assert not Path(lake.root, shard).exists()


def test_bundles_that_a_pinned_version_names_stay(tmp_path: Path) -> None:
    """The newest version names it no more; the one before was current until the next came, however old it is."""
    audio, lake = corpus(tmp_path / "audio"), Lake.at(str(tmp_path / "lake"))
    run(lake, audio)
    write(audio / "new.wav", 5.0, seed=50)
    run(lake, audio)
    row = next(row for row in ledger_rows(Path(lake.root)) if row["uri"].endswith("new.wav"))
    (audio / "new.wav").unlink()
    run(lake, audio)
    shard, outcome = (Path(lake.uri(name(SPEC, row["bundles"][0]))) for name in (Lake.shard, Lake.outcome))
    named = {bundle for row in ledger_rows(Path(lake.root)) for bundle in row["bundles"] or ()}
    for path in Path(lake.root, "features", SPEC).glob("[so]*/*"):
        age(path, 5000)
    when = [one["timestamp"].timestamp() for one in lance.dataset(str(ledger_of(lake))).versions()]
    assert len(when) == 3
    for moment, kept in (((when[0] + when[1]) / 2, True), ((when[1] + when[2]) / 2, True), (when[2] + 1, False)):
        maintain(lake, now=moment + 48 * HOUR)
        assert (shard.exists(), outcome.exists()) == (kept, kept)
    assert {path.stem for path in Path(lake.root).glob("features/*/shards/*")} == named
    # What the rows are of is there, and comes back as it was.
    write(audio / "new.wav", 5.0, seed=50)
    assert run(lake, audio)["done"] == 1
    assert shard.exists()


def test_old_versions_go_by_when_they_were_superseded(lake: Lake) -> None:
    path = ledger_of(lake)
    for _ in range(3):
        fragments.commit(str(path), versions(path)[-1], ledger.SCHEMA, [], [])
    when = {one["version"]: one["timestamp"].timestamp() for one in lance.dataset(str(path)).versions()}
    *_, third, second, _ = sorted(when)
    rows = ledger_rows(Path(lake.root))
    # At this moment the third newest was current still: a run that began then reads it.
    told = maintain(lake, now=(when[third] + when[second]) / 2 + 48 * HOUR)["ledgers"][SPEC]
    assert min(versions(path)) == third
    assert told["versions_removed"] == len([version for version in when if version < third])
    assert lance.dataset(str(path), version=third).count_rows() == len(rows)
    assert ledger_rows(Path(lake.root)) == rows


def test_files_of_uncommitted_writes(made: Made, lake: Lake) -> None:
    """Rows that no version names may be of an encode at work: Lance keeps them a week."""
    path = table_of(made, lake)
    rows = lance.dataset(str(path)).to_table()
    old, young = (
        path / "data" / json.loads(fragments.write(str(path), rows.slice(0, 5))[0])["files"][0]["path"]
        for _ in range(2)
    )
    age(old, 8 * 24)
    age(young, 6 * 24)
    maintain(lake)
    assert (old.exists(), young.exists()) == (False, True)


def names(found: dict[str, Any]) -> list[tuple[str, float, float | None]]:
    return [(hit.uri, hit.start_s, hit.distance) for one in found["results"] for hit in one["hits"]]


def test_fragments_are_put_together_and_nobody_sees_it(made: Made, lake: Lake, tmp_path: Path) -> None:
    def seen() -> list[Any]:
        file = tmp_path / "rows.parquet"
        commands.export(lake, str(file))
        exported = parquet.read_table(file)
        hits = names(commands.search(lake, queries, k=20, where=None, by="windows"))
        filtered = names(commands.search(lake, [], k=100, where="label = 'bell'", by="windows"))
        return [ledger_rows(Path(lake.root)), table_rows(Path(lake.root)), exported, hits, filtered]

    queries = [str(path) for path in sorted(made.audio.glob("b*/*"))[:3]]
    before = seen()
    told = maintain(lake)
    model_id = made.result["model"]["model_id"]
    for one, path in (told["ledgers"][SPEC], ledger_of(lake)), (told["tables"][model_id], table_of(made, lake)):
        assert (one["fragments"]["before"], one["fragments"]["after"], one["merged"]) == (2, 1, 2)
        assert len(lance.dataset(str(path)).get_fragments()) == 1
        assert one["version"]["before"] < one["version"]["after"] == versions(path)[-1]
    assert seen() == before
    # Nothing for encode to do, and so no run of it; status says so, too.
    runs = lake.names("runs")
    assert commands.encode(lake)["encoded"] == 0
    assert lake.names("runs") == runs
    assert status(lake)["tables"][model_id]["up_to_date"]

    again = maintain(lake)
    assert again["swept"] == NOTHING
    for kind in ("ledgers", "tables"):
        for name, one in again[kind].items():
            last = told[kind][name]["version"]["after"]
            assert one["version"] == {"before": last, "after": last}
            assert (one["merged"], one["versions_removed"], one["bytes_removed"]) == (0, 0, 0)


def test_a_table_that_was_behind_stays_so(made: Made, lake: Lake, tmp_path: Path) -> None:
    audio = corpus(tmp_path / "more")
    run(lake, audio)
    model_id = made.result["model"]["model_id"]
    maintain(lake)
    assert not status(lake)["tables"][model_id]["up_to_date"]
    assert commands.encode(lake)["encoded"] > 0
    stored = ledger.summary(ledger.open_ledger(lake, SPEC))["windows"]
    assert len(table_rows(Path(lake.root))) == stored


def test_what_a_stopped_encode_made_is_kept_for_the_next(made: Made, lake: Lake) -> None:
    path = table_of(made, lake)
    version = versions(path)[-1]
    piece = put(lake, f"tables/{path.stem}.staged/{version}/0b.json", 1, 40)
    told = maintain(lake)["tables"][path.stem]
    assert "encode" in told["left_alone"]
    assert (versions(path)[-1], Path(lake.root, piece).exists()) == (version, True)


@pytest.mark.parametrize("command", ["extract", "encode"])
def test_what_shows_that_it_is_at_work_is_left_alone(made: Made, lake: Lake, command: str) -> None:
    left_of_everything(made, lake)
    before = ours(lake)
    put(lake, f"runs/20260101T000000Z-{command}-cccccc/expected.json", 1, 47.5)
    told = maintain(lake)
    one, path, kinds = {
        "extract": (told["ledgers"][SPEC], ledger_of(lake), ("outcomes", "shards")),
        "encode": (told["tables"][table_of(made, lake).stem], table_of(made, lake), ("staged",)),
    }[command]
    assert command in one["left_alone"]
    assert one["version"]["before"] == one["version"]["after"] == versions(path)[-1]
    for kind in SWEPT:
        assert told["swept"][kind] == (NOTHING if kind in kinds else SWEPT)[kind]
    folder = {"extract": "features/", "encode": "tables/"}[command]
    kept = {name for name in before if name.startswith(folder) and "/.part-" not in name}
    assert kept <= ours(lake)


def test_bundles_of_a_first_extract_wait_for_the_next(lake: Lake) -> None:
    shutil.rmtree(ledger_of(lake))
    before = ours(lake)
    bundles = len(list(Path(lake.root).glob("features/*/outcomes/*")))
    told = maintain(lake)
    assert told["swept"] == NOTHING
    assert f"{bundles} bundles wait" in told["ledgers"][SPEC]["left_alone"]
    assert ours(lake) == before


# The index, on tables made of numbers.


def made_of(lake: Lake, vectors: np.ndarray, *, first: int = 0) -> Any:
    """A table of one more fragment, in one commit, as encode makes it."""
    size = vectors.shape[1]
    dataset = table.create(lake, "m", schema(size))
    rows = pa.table(
        {
            "id": [f"r{i}:0" for i in range(first, first + len(vectors))],
            "recording_id": [f"r{i}" for i in range(first, first + len(vectors))],
            "window": pa.array([0] * len(vectors), pa.int32()),
            "uri": ["u"] * len(vectors),
            "label": pa.nulls(len(vectors), pa.string()),
            "group": pa.nulls(len(vectors), pa.string()),
            "start_s": [0.0] * len(vectors),
            "end_s": [1.0] * len(vectors),
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), size),
            "posterior_std": pa.array([0.0] * len(vectors), pa.float32()),
            "reconstruction_error": pa.array([0.0] * len(vectors), pa.float32()),
            "bundle": ["b"] * len(vectors),
            "record_offset": [0] * len(vectors),
        },
        schema=schema(size),
    )
    fragments.commit(dataset.uri, dataset.version, dataset.schema, fragments.write(dataset.uri, rows), [])
    return table.need_table(lake, "m")


@pytest.fixture
def numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.setattr(table, "INDEX_ROWS", 1000)
    lake = Lake.at(str(tmp_path / "numbers"))
    lake.initialise()
    return lake


def recall_by_numpy(dataset: Any, vectors: np.ndarray) -> float:
    """Of 100 rows spread over the table, how many of the ten nearest by numpy the index finds."""
    rows = [i * len(vectors) // 100 for i in range(100)]
    hits = 0
    for i in rows:
        order = np.argsort(((vectors - vectors[i]) ** 2).sum(axis=1), kind="stable")[:10]
        nearest = {"column": "embedding", "q": vectors[i], "k": 10, "nprobes": 16}
        found = dataset.to_table(columns=["id"], nearest=nearest)["id"].to_pylist()
        hits += len({f"r{n}:0" for n in order} & set(found))
    return hits / 1000


def test_an_index_is_built_and_stays_one_as_rows_come(numbers: Lake) -> None:
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((1600, 8)).astype(np.float32)
    for first in range(0, 1200, 400):
        made_of(numbers, vectors[first : first + 400], first=first)
    found = maintain(numbers, recall_floor=0.5)["tables"]["m"]
    assert (found["index"]["kind"], found["index"]["rows"]) == ("IVF_FLAT", 1200)
    dataset = table.need_table(numbers, "m")
    assert found["index"]["recall"] == pytest.approx(recall_by_numpy(dataset, vectors[:1200]), abs=0.002)
    assert len(dataset.get_fragments()) == 1

    # Four encodes: each folds its own rows in, as a part of the index of its own.
    for first in range(1200, 1600, 100):
        table.index(made_of(numbers, vectors[first : first + 100], first=first))
    before = table.need_table(numbers, "m")
    assert len(before.describe_indices()[0].segments) > 1
    maintain(numbers, recall_floor=0.5)
    dataset = table.need_table(numbers, "m")
    assert len(dataset.get_fragments()) == len(dataset.describe_indices()[0].segments) == 1
    assert dataset.stats.index_stats("embedding_idx")["num_unindexed_rows"] == 0
    for i in range(0, 1600, 50):
        query = {"column": "embedding", "q": vectors[i], "k": 1, "nprobes": 16}
        assert dataset.to_table(columns=["id"], nearest=query)["id"].to_pylist() == [f"r{i}:0"]
    maintain(numbers, recall_floor=0.5)
    assert table.need_table(numbers, "m").version == dataset.version


def test_a_dry_run_says_that_an_index_is_due(numbers: Lake) -> None:
    draw = np.random.default_rng(0)
    for first in (0, 600):
        made_of(numbers, draw.standard_normal((600, 8)).astype(np.float32), first=first)
        found = maintain(numbers, dry_run=True)["tables"]["m"]["index"]
        assert found == {"kind": "exact", "rows": first + 600, "due": first == 600}
    maintain(numbers, recall_floor=0.0)
    assert not maintain(numbers, dry_run=True)["tables"]["m"]["index"]["due"]


def test_an_index_that_finds_too_little_is_built_anew(numbers: Lake) -> None:
    vectors = np.random.default_rng(1).standard_normal((2000, 12)).astype(np.float32)
    dataset = made_of(numbers, vectors)
    dataset.create_index("embedding", "IVF_FLAT", name="embedding_idx", metric="l2", num_partitions=1000)
    bad = recall_by_numpy(dataset, vectors)
    assert bad < 0.9
    assert maintain(numbers, dry_run=True)["tables"]["m"]["index"]["recall"] == pytest.approx(bad, abs=0.002)
    found = maintain(numbers)["tables"]["m"]["index"]
    assert found["anew"]
    assert found["recall"] == pytest.approx(recall_by_numpy(table.need_table(numbers, "m"), vectors), abs=0.002)
    assert found["recall"] >= 0.9
    assert maintain(numbers)["tables"]["m"]["index"] == {"kind": "IVF_FLAT", "rows": 2000, "recall": found["recall"]}


def test_below_the_floor_is_3_after_all_else(numbers: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    """So many dimensions that no index finds the nearest in a third of it."""
    vectors = np.random.default_rng(2).standard_normal((3000, 64)).astype(np.float32)
    for first in range(0, 3000, 1000):
        dataset = made_of(numbers, vectors[first : first + 1000], first=first)
    # As encode says it; the model is nowhere, so what it says of the ledger is not known to be true.
    table.say(numbers, "m", {"table_version": dataset.version, "ledger_version": 7, "index": None})
    dead = put(numbers, "runs/20260101T000000Z-extract-aaaaaa/1.json", 1, 50)
    assert main(["maintain", "--lake", numbers.root, "--json"]) == 3
    out, err = capsys.readouterr()
    found = json.loads(out)
    recall = found["tables"]["m"]["index"]["recall"]
    assert recall == pytest.approx(recall_by_numpy(table.need_table(numbers, "m"), vectors), abs=0.002)
    assert len(err.splitlines()) == 1
    assert all(word in err for word in ("table m", f"{recall:.3f}", "0.9", "--recall-floor"))
    assert found["tables"]["m"]["fragments"]["after"] == len(table.need_table(numbers, "m").get_fragments()) == 1
    assert not Path(numbers.root, dead).exists()
    (manifest,) = (json.loads(path.read_text()) for path in Path(numbers.root).glob("runs/*-maintain-*.json"))
    assert manifest["counts"]["tables"]["m"]["index"] == found["tables"]["m"]["index"]
    assert manifest["counts"]["swept"]["runs"]["count"] == 1
    # It was built anew, to no avail: not every night again.
    version = table.need_table(numbers, "m").version
    with pytest.raises(HeldError, match="table m"):
        maintain(numbers)
    assert table.need_table(numbers, "m").version == version
    assert table.said(numbers, "m")["ledger_version"] == 7
    assert main(["maintain", "--lake", numbers.root, "--recall-floor", f"{recall - 0.01}"]) == 0


# The command line.


def test_words(made: Made, lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    left_of_everything(made, lake)
    for dry in (["--dry-run"], []):
        assert main(["maintain", "--lake", lake.root, *dry]) == 0
        swept, features, embeddings, *rest = capsys.readouterr().out.splitlines()
        for said in (
            "6 unfinished file(s) (63 B)",
            "1 folder(s) of dead runs (192 B)",
            "2 staging folder(s) of finished encodes (768 B)",
            "1 outcome file(s) of bundles that are not in the ledger (1.02 kB)",
            "2 shard(s) of such bundles (6.14 kB)",
        ):
            assert said in swept
        assert features.startswith(f"ledger {SPEC}: ")
        assert embeddings.startswith(f"table {made.result['model']['model_id']}: ")
        assert ("2 of 2 fragments to merge" if dry else "fragments 2 → 1") in features
        assert rest == (["dry run: nothing was changed"] if dry else [])


@pytest.mark.parametrize("arguments", [["--grace", "-1"], ["--recall-floor", "2"], ["--lake", "/nonexistent"]])
def test_a_wrong_call_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["maintain", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# A bucket.


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lake]:  # noqa: F811
    boto3 = pytest.importorskip("boto3")
    for name, value in (
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=endpoint, **KEYS)
    client.create_bucket(Bucket="lake-in-a-bucket")
    lake = Lake.at("s3://lake-in-a-bucket/lake")
    lake.initialise()
    return lake


def test_a_lake_in_a_bucket(bucket: Lake) -> None:
    named, unnamed = "1" * 32, "2" * 32
    for i in range(3):
        before = fragments.version_of(ledger.open_ledger(bucket, SPEC))
        row = ledger.row(uri=f"u{i}", status=ledger.DONE, recording_id=f"r{i}", bundles=[named])
        fragments.commit(bucket.ledger_uri(SPEC), before, ledger.SCHEMA, ledger.write_rows(bucket, SPEC, [row]), [])
    for name in (named, unnamed):
        bucket.write(Lake.outcome(SPEC, name), b"xx")
        bucket.write(Lake.shard(SPEC, name), b"xxx")
    bucket.write("runs/20260101T000000Z-extract-aaaaaa/done/1.json", b"x")
    assert maintain(bucket, dry_run=True)["swept"] == NOTHING
    told = maintain(bucket, now=time.time() + 50 * HOUR)
    assert told["swept"] == NOTHING | {
        "runs": {"count": 1, "bytes": 1},
        "outcomes": {"count": 1, "bytes": 2},
        "shards": {"count": 1, "bytes": 3},
    }
    assert bucket.names(f"features/{SPEC}/shards") == [f"{named}.tfrecord"]
    assert bucket.names(f"features/{SPEC}/outcomes") == [f"{named}.parquet"]
    assert not [name for name in bucket.names("runs") if not name.endswith((".json", ".lock"))]
    dataset = ledger.open_ledger(bucket, SPEC)
    assert sorted(dataset.to_table()["uri"].to_pylist()) == ["u0", "u1", "u2"]
    assert len(dataset.get_fragments()) == 1
    assert told["ledgers"][SPEC]["versions_removed"] == 2
    # Later the versions that it made itself are old, too; then there is nothing.
    maintain(bucket, now=time.time() + 50 * HOUR)
    again = maintain(bucket, now=time.time() + 50 * HOUR)
    assert again["swept"] == NOTHING
    assert again["ledgers"][SPEC]["version"] == {"before": dataset.version, "after": dataset.version}
    assert again["ledgers"][SPEC]["versions_removed"] == 0


def test_no_lake_is_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no lake"):
        maintain(Lake.at(str(tmp_path / "x")))
    assert not list(tmp_path.iterdir())
