"""The ledger: rows merge by uri, what is gone leaves, totals add up."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from soundlake.model.errors import InputError
from soundlake.pipelines.lake import fragments, ledger
from soundlake.pipelines.lake.lake import Lake


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    made = Lake.at(str(tmp_path / "lake"))
    made.initialise()
    return made


def done(uri: str, recording: str, **values: object) -> ledger.Row:
    base = {"duration_s": 1800.0, "windows": 5, "silent_windows": 1, "bundles": ["b1"], "status": "done"}
    return ledger.row(uri=uri, recording_id=recording, **base | values)


def commit(lake: Lake, *rows: ledger.Row, spec_id: str = "s", gone: tuple[str, ...] = ()) -> int:
    """Rows in, rows of `gone` out, as extract does it."""
    before = ledger.open_ledger(lake, spec_id)
    uri, version = lake.ledger_uri(spec_id), fragments.version_of(before)
    dropped = [fragments.drop((number, gone), uri, version, "uri") for number in fragments.numbers(before) if gone]
    return fragments.commit(uri, version, ledger.SCHEMA, ledger.write_rows(lake, spec_id, rows), dropped)


def test_rows_come_and_leave_in_one_commit(lake: Lake) -> None:
    first = commit(lake, done("/a", "A"), done("/b", "B"))
    second = commit(lake, done("/b", "B2"), done("/c", "C"), gone=("/a", "/b"))
    assert second == first + 1
    found = {r["uri"]: r["recording_id"] for r in ledger.open_ledger(lake, "s").to_table().to_pylist()}
    assert found == {"/b": "B2", "/c": "C"}


def test_names_that_look_like_sql(lake: Lake) -> None:
    names = ["/it's", "/x' OR '1'='1", "/new\nline", "/back\\slash", "/ä'"]
    commit(lake, *(done(name, "A") for name in names), done("/other", "B"))
    commit(lake, gone=tuple(names[:4]))
    assert sorted(ledger.open_ledger(lake, "s").to_table()["uri"].to_pylist()) == ["/other", "/ä'"]


def test_an_old_version_stays_readable(lake: Lake) -> None:
    first = commit(lake, done("/a", "A"))
    commit(lake, done("/a", "A2"), gone=("/a",))
    assert ledger.open_ledger(lake, "s", first).to_table()["recording_id"].to_pylist() == ["A"]


def test_what_is_not_committed_is_not_there(lake: Lake) -> None:
    commit(lake, done("/a", "A"))
    written = ledger.write_rows(lake, "s", [done("/b", "B")])
    assert ledger.open_ledger(lake, "s").to_table()["uri"].to_pylist() == ["/a"]
    assert list(ledger.uris_of(lake, "s", written)) == ["/b"]


def test_summary_counts_content_once(lake: Lake) -> None:
    bad = ledger.row(uri="/x", status="rejected", reason="damaged", detail="d2", bundles=[])
    rows = [done("/a", "A"), done("/copy-of-a", "A"), done("/b", "B", bundles=["b1", "b2"])]
    commit(lake, *rows, bad, bad | {"uri": "/w", "detail": "d1"}, bad | {"uri": "/z", "reason": "empty"})
    found = ledger.summary(ledger.open_ledger(lake, "s"))
    assert (found["listed"], found["done"], found["rejected"]) == (6, 3, 3)
    assert (found["recordings"], found["hours"], found["windows"], found["silent_windows"]) == (2, 1.0, 10, 2)
    assert found["shards"] == 2
    assert found["rejects"] == {
        "damaged": {"count": 2, "example": "/w", "detail": "d1"},
        "empty": {"count": 1, "example": "/z", "detail": "d2"},
    }


def test_training_input_is_what_is_done(lake: Lake) -> None:
    bad = ledger.row(uri="/x", status="rejected", recording_id="X", reason="damaged", bundles=[])
    commit(lake, done("/a", "A", group="g"), done("/b", "B", bundles=["b2", "b0"]), bad)
    assert ledger.training_input(ledger.open_ledger(lake, "s")) == (
        {"b0": ["B"], "b1": ["A"], "b2": ["B"]},
        {"A": "g", "B": ""},
    )


def test_groups_that_copies_link_are_one(lake: Lake) -> None:
    """A chain of three, one that stands alone, and a copy that names no group; in any order of rows."""
    rows = [
        done("/a", "A", group="g3"),
        done("/copy-of-a", "A", group="g2"),
        done("/b", "B", group="g2"),
        done("/c", "C", group="g1"),
        done("/copy-of-b", "B", group="g1"),
        done("/copy-of-c", "C"),
        done("/d", "D", group="g9"),
        done("/e", "E"),
        done("/copy-of-e", "E", group="g9"),
        done("/f", "F", group="g3"),
        done("/h", "H"),
    ]
    expected = {"A": "g1", "B": "g1", "C": "g1", "D": "g9", "E": "g9", "F": "g1", "H": ""}
    for number, order in enumerate((rows, rows[::-1], [*rows[4:], *rows[:4]])):
        for row in order:  # a fragment each, in this order
            commit(lake, row, spec_id=f"s{number}")
        assert ledger.training_input(ledger.open_ledger(lake, f"s{number}"))[1] == expected


def test_copies_that_link_most_of_a_corpus_are_told(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    rows = [done(f"/{i}", str(i), group=f"g{i}") for i in range(4)]
    commit(lake, *rows)
    ledger.training_input(ledger.open_ledger(lake, "s"))
    assert not caplog.text
    commit(lake, *(done(f"/silence-{i}", "common", group=f"g{i}") for i in range(3)))
    groups = ledger.training_input(ledger.open_ledger(lake, "s"))[1]
    assert groups == {"0": "g0", "1": "g0", "2": "g0", "3": "g3", "common": "g0"}
    assert "4 of 5 recordings are in the group 'g0' now" in caplog.text


def test_one_row_of_several_files() -> None:
    rows = [done("/b", "A", label="wolf"), done("/a", "A"), done("/c", "A", label="wolf")]
    assert ledger.merged(rows) == done("/a", "A", label="wolf")
    assert ledger.merged([*rows, done("/d", "A", label="dog")])["label"] is None


def test_unknown_columns(lake: Lake) -> None:
    with pytest.raises(KeyError, match="colour"):
        ledger.row(uri="/a", colour=3)


def test_which_spec(lake: Lake) -> None:
    with pytest.raises(InputError, match="no features yet"):
        ledger.only_spec(lake)
    commit(lake, done("/a", "A"), spec_id="s1")
    assert ledger.only_spec(lake) == "s1"
    commit(lake, done("/a", "A"), spec_id="s2")
    with pytest.raises(InputError, match="s1, s2"):
        ledger.only_spec(lake)


LATER = ["decoder", "notes"]


def old_ledger(lake: Lake, *rows: ledger.Row) -> None:
    """A ledger as versions made it that did not know the later columns."""
    schema = pa.schema([field for field in ledger.SCHEMA if field.name not in LATER])
    uri = lake.ledger_uri("s")
    written = fragments.write(uri, pa.Table.from_pylist(list(rows), schema=schema))
    assert fragments.commit(uri, 0, schema, written, []) == 1


def test_readers_take_missing_columns_for_nulls(lake: Lake) -> None:
    bad = ledger.row(uri="/x", status="rejected", reason="damaged", bundles=[])
    old_ledger(lake, done("/a", "A", group="g"), bad)
    found = ledger.open_ledger(lake, "s")
    assert [*ledger.read(found, ["uri", "decoder", "notes"])] == [
        {"uri": "/a", "decoder": None, "notes": None},
        {"uri": "/x", "decoder": None, "notes": None},
    ]
    assert [*ledger.read(found, ["decoder", "uri"], where="status = 'done'")] == [{"decoder": None, "uri": "/a"}]
    assert ledger.summary(found)["listed"] == 2
    assert ledger.training_input(found) == ({"b1": ["A"]}, {"A": "g"})
    # Reading has changed nothing.
    assert int(ledger.open_ledger(lake, "s").version) == 1


def test_missing_columns_are_added_before_the_first_rows(lake: Lake) -> None:
    old_ledger(lake, done("/a", "A"))
    before = ledger.open_for_writing(lake, "s")
    assert (int(before.version), before.schema.names) == (2, ledger.SCHEMA.names)
    uri = lake.ledger_uri("s")
    written = ledger.write_rows(lake, "s", [done("/b", "B", decoder=2, notes=["n"])])
    assert fragments.commit(uri, 2, ledger.SCHEMA, written, []) == 3
    now = ledger.open_for_writing(lake, "s")
    assert int(now.version) == 3  # nothing is added twice
    assert {row["uri"]: row for row in now.to_table().to_pylist()} == {
        "/a": done("/a", "A"),
        "/b": done("/b", "B", decoder=2, notes=["n"]),
    }


def test_a_commit_planned_before_the_columns_came_is_refused(lake: Lake) -> None:
    old_ledger(lake, done("/a", "A"))
    uri = lake.ledger_uri("s")
    schema = ledger.open_ledger(lake, "s").schema
    written = fragments.write(uri, pa.Table.from_pylist([done("/b", "B")], schema=schema))
    ledger.open_for_writing(lake, "s")
    assert fragments.commit(uri, 1, schema, written, []) is None
    assert ledger.open_ledger(lake, "s").to_table()["uri"].to_pylist() == ["/a"]


def test_a_version_that_knows_no_later_columns_writes_beside_them(lake: Lake) -> None:
    old_ledger(lake, done("/a", "A"))
    ledger.open_for_writing(lake, "s")
    commit(lake, done("/b", "B", decoder=2))
    # Its rows have nulls: a decoder of that version read the files.
    uri = lake.ledger_uri("s")
    schema = pa.schema([field for field in ledger.SCHEMA if field.name not in LATER])
    written = fragments.write(uri, pa.Table.from_pylist([done("/c", "C")], schema=schema))
    assert fragments.commit(uri, 3, schema, written, []) == 4
    found = ledger.open_ledger(lake, "s")
    assert {r["uri"]: r["decoder"] for r in ledger.read(found, ["uri", "decoder"])} == {"/a": None, "/b": 2, "/c": None}


def test_two_runs_add_missing_columns_once(lake: Lake) -> None:
    old_ledger(lake, done("/a", "A"))
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: ledger.open_for_writing(lake, "s"), range(4)))
    assert {(int(one.version), *one.schema.names) for one in opened} == {(2, *ledger.SCHEMA.names)}
