"""A store in a bucket, on a real server, with faults between: whole files, one winner, and clear words."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from soundlake.model.errors import InputError, TryLaterError
from soundlake.pipelines.lake import fragments, ledger
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.storage import bucket as room
from soundlake.pipelines.storage import lease, opening, patience
from soundlake.pipelines.storage.store import Info
from tests.buckets.faults import KINDS, FaultyProxy
from tests.buckets.server import Server

SCHEMA = pa.schema([pa.field("id", pa.int64()), pa.field("by", pa.string())])


def through(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    room._client.cache_clear()


def side_by_side(work: Callable[[int], None], who: range) -> None:
    with ThreadPoolExecutor(len(who)) as pool:
        list(pool.map(work, who))


def test_files(here: Server, bucket: str) -> None:
    files = opening.at(f"s3://{bucket}/a lake/ü")
    long = bytes(range(256)) * 100_000
    for name, data in {"deep/long": long, "deep/empty": b"", "deep/er/a%20b#?+&.txt": b"odd", ".hidden": b"1"}.items():
        with files.create(name) as file:
            file.write(data)
    here.client().put_object(Bucket=bucket, Key="a lake/ü/deep/mark/", Body=b"")
    assert files.read("deep/er/a%20b#?+&.txt") == b"odd"
    assert files.names("") == ["deep"]
    assert files.names("deep") == ["empty", "er", "long", "mark"]
    found = {info.name: info.size for info in files.below("") if not info.is_folder}
    assert found == {"deep/long": len(long), "deep/empty": 0, "deep/er/a%20b#?+&.txt": 3, ".hidden": 1}
    assert [files.exists(name) for name in ("deep", "deep/empty", "dee")] == [True, True, False]
    with files.open("deep/long", block=1000) as file:
        file.seek(-777, 2)
        assert file.read() == long[-777:]
        file.seek(123_456)
        assert file.read(5000) == long[123_456:128_456]
    files.remove("deep")
    assert [info.name for info in files.below("")] == [".hidden"]
    files.delete("nothing")
    with pytest.raises(FileNotFoundError):
        files.read("deep/long")


def test_a_file_that_changes_while_it_is_read(here: Server, bucket: str) -> None:
    files = opening.at(f"s3://{bucket}")
    with files.create("x") as file:
        file.write(b"a" * 100_000)
    with files.open("x", block=1000) as file:
        assert file.read(1000) == b"a" * 1000
        with files.create("x") as other:
            other.write(b"b" * 100_000)
        with pytest.raises(OSError, match="changed while"):
            file.read()


@pytest.mark.parametrize("kind", KINDS)
def test_whole_or_not_there(
    here: Server, bucket: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of several parts, sent and read, every second request spoiled; who looks meanwhile sees all or none."""
    monkeypatch.setattr(patience, "REQUEST_S", 2.0)
    data, looker = bytes(range(251)) * 100_000, opening.at(f"s3://{bucket}")
    seen: set[int] = set()
    over = threading.Event()
    direct = here.client()

    def look() -> None:
        while not over.is_set():
            for item in direct.list_objects_v2(Bucket=bucket).get("Contents", []):
                seen.add(item["Size"])

    watcher = threading.Thread(target=look)
    with here.faulty(share=0.5, kinds=(kind,), seed=KINDS.index(kind)) as proxy:
        through(proxy, monkeypatch)
        watcher.start()
        try:
            with looker.create("long") as file:
                file.write(data)
            with open(tmp_path / "copy", "w+b") as copy:
                looker.copy_to("long", copy)
            for number in range(20):
                with looker.create(f"short/{number}") as file:
                    file.write(b"%d" % number)
            names = sorted(info.name for info in looker.below("short"))
        finally:
            over.set()
            watcher.join()
        assert proxy.counts[kind] >= 5
    assert (tmp_path / "copy").read_bytes() == data
    assert names == sorted(f"short/{number}" for number in range(20))
    assert seen <= {len(data), 1, 2}


def test_of_many_that_swap_no_change_is_lost_or_made_twice(
    here: Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four writers add marks to one list; an answer that is lost is found out about by the mark."""
    monkeypatch.setattr(patience, "REQUEST_S", 2.0)
    files = opening.at(f"s3://{bucket}")
    assert isinstance(files, room.Bucket)
    with here.faulty(share=0.4, seed=1) as proxy:
        through(proxy, monkeypatch)

        def add(who: int) -> None:
            for turn in range(6):
                mark = f"{who}-{turn}"
                while True:
                    before = files._found("x")
                    marks = [] if before is None else before[0].decode().split()
                    if mark in marks:
                        break
                    if files.swap("x", " ".join([*marks, mark]).encode(), None if before is None else before[1]):
                        break

        side_by_side(add, range(4))
        print(f"faults: {dict(proxy.counts)} in {proxy.requests} requests")
        assert min(proxy.counts[kind] for kind in KINDS) >= 5
        marks = files.read("x").decode().split()
    assert sorted(marks) == [f"{who}-{turn}" for who in range(4) for turn in range(6)]


def test_a_lease(here: Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LENGTH_S", 3.0)
    files = opening.at(f"s3://{bucket}")
    inside, most = [0], [0]

    def work(who: int) -> None:
        with files.locked("x"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            with pytest.raises(TryLaterError, match=r"has locked s3://.*x\.lock"), files.locked("x", wait=False):
                pass
            inside[0] -= 1

    side_by_side(work, range(3))
    assert most == [1]
    assert [info.name for info in files.below("")] == ["x.lock"]


def write(uri: str, ids: range, by: str) -> list[str]:
    return fragments.write(uri, pa.table({"id": list(ids), "by": [by] * len(ids)}, schema=SCHEMA))


@pytest.mark.parametrize("where", ["bucket", "disk"])
@pytest.mark.parametrize("start", ["no dataset", "no rows", "rows"])
def test_of_two_commits_from_one_version_one_goes_through(
    here: Server, bucket: str, tmp_path: Path, where: str, start: str
) -> None:
    uri = f"s3://{bucket}/x.lance" if where == "bucket" else str(tmp_path / "x.lance")
    version = 0
    if start != "no dataset":
        version = int(fragments.created(uri, SCHEMA).version)
    if start == "rows":
        version = fragments.commit(uri, version, SCHEMA, [*write(uri, range(5), "before")], []) or 0
    barrier, got = threading.Barrier(6), {}

    def commit(who: int) -> None:
        new = write(uri, range(100, 110), str(who))
        # Every second one takes rows out, too.
        dropped = [fragments.drop((0, ["before"]), uri, version, "by")] if start == "rows" and who % 2 else []
        barrier.wait()
        got[who] = fragments.commit(uri, version, SCHEMA, new, dropped)

    side_by_side(commit, range(6))
    (winner,) = [who for who, made in got.items() if made is not None]
    rows = fragments.opened(uri).to_table().to_pylist()
    kept = 5 if start == "rows" and winner % 2 == 0 else 0
    assert sorted(row["id"] for row in rows) == [*range(kept), *range(100, 110)]
    assert {row["by"] for row in rows if row["id"] >= 100} == {str(winner)}
    # One that comes much later is no better off.
    assert fragments.commit(uri, version, SCHEMA, write(uri, range(3), "late"), []) is None
    assert fragments.opened(uri).count_rows() == len(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_commit_is_done_once_whatever_becomes_of_its_answer(
    here: Server, bucket: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "REQUEST_S", 2.0)
    uri = f"s3://{bucket}/x.lance"

    def of_commits(method: str, path: str) -> bool:
        return method in ("PUT", "POST") and ("/_versions/" in path or "/_transactions/" in path)

    with here.faulty(share=0.5, kinds=(kind,), where=of_commits, seed=KINDS.index(kind)) as proxy:
        through(proxy, monkeypatch)
        version = 0
        for turn in range(6):
            made = fragments.commit(uri, version, SCHEMA, write(uri, range(turn * 10, turn * 10 + 10), "me"), [])
            assert made == version + 1
            version = made
        assert proxy.counts[kind] >= 3
        assert sorted(fragments.opened(uri).to_table()["id"].to_pylist()) == list(range(60))


@pytest.mark.parametrize("kind", KINDS)
def test_columns_are_added_once_whatever_becomes_of_the_answer(
    here: Server, bucket: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "REQUEST_S", 2.0)
    lake = Lake.at(f"s3://{bucket}")
    old = pa.schema([field for field in ledger.SCHEMA if field.name not in ("decoder", "notes")])
    rows = pa.Table.from_pylist([ledger.row(uri="/a", status="done", bundles=["b"])], schema=old)

    def of_commits(method: str, path: str) -> bool:
        return method in ("PUT", "POST") and ("/_versions/" in path or "/_transactions/" in path)

    with here.faulty(share=0.5, kinds=(kind,), where=of_commits, seed=KINDS.index(kind)) as proxy:
        through(proxy, monkeypatch)
        for spec_id in map(str, range(4)):
            uri = lake.ledger_uri(spec_id)
            assert fragments.commit(uri, 0, old, fragments.write(uri, rows), []) == 1
            found = ledger.open_for_writing(lake, spec_id)
            assert (int(found.version), found.schema.names) == (2, ledger.SCHEMA.names)
            assert found.to_table().to_pylist() == [ledger.row(uri="/a", status="done", bundles=["b"])]
        assert proxy.counts[kind] >= 3


def test_names_that_cannot_be(here: Server, bucket: str) -> None:
    with pytest.raises(InputError, match="no part of it"):
        opening.at(f"s3://{bucket}").read("a//b")
    with pytest.raises(InputError, match="there is no bucket s3://nowhere-at-all"):
        opening.at("s3://nowhere-at-all/x").exists("y")


def test_no_time_of_a_folder(here: Server, bucket: str) -> None:
    files = opening.at(f"s3://{bucket}")
    with files.create("a/b") as file:
        file.write(b"1")
    assert list(files.below("", recursive=False)) == [Info("a", 0, 0, is_folder=True)]
