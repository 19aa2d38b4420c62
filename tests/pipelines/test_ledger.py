"""The ledger: rows merge by uri, what is gone leaves, totals add up."""

from pathlib import Path

import pytest

from model.errors import InputError
from pipelines import fragments, ledger
from pipelines.lake import Lake


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
