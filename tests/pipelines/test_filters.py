"""Filters: a value is itself, whatever is in it; an expression of the user reads rows of this table, no other thing."""

from pathlib import Path

import lance
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from soundlake.model.errors import InputError
from soundlake.pipelines import commands
from soundlake.pipelines.lake import fragments, table
from tests.conftest import Made
from tests.pipelines.hostile import model_of, tree

# What SQL, LIKE, a shell or a C library reads in another way; and whatever else Unicode has.
ODD = ["'", "''", '"', "\\", "\\'", "%", "_", ";", "--", "/*", "\0", "\n", "\r", "\t", "`", "$", " OR ", "é", "e\u0301"]
TEXTS = st.lists(st.sampled_from(ODD), max_size=6).map("".join) | st.text(st.characters(exclude_categories=["Cs"]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(TEXTS, min_size=1, max_size=12, unique=True), data=st.data())
@example(values=["x' OR '1'='1", "x", "'; DROP TABLE t; --", "\\", "a\0b", "a"], data=None)
def test_a_filter_selects_the_values_and_no_other(
    tmp_path: Path, values: list[str], data: st.DataObject | None
) -> None:
    """Against rows of a real dataset, by what Python finds equal; and what `drop` takes out is what it was told."""
    wanted = values[:1] if data is None else data.draw(st.lists(st.sampled_from(values), min_size=1, unique=True))
    uri = str(tmp_path / "t.lance")
    dataset = lance.write_dataset(pa.table({"v": values}), uri, mode="overwrite")
    chosen = fragments.in_list("v", wanted)
    rest = [value for value in values if value not in wanted]
    assert sorted(dataset.to_table(filter=chosen)["v"].to_pylist()) == sorted(wanted)
    assert sorted(dataset.to_table(filter=f"NOT {chosen}")["v"].to_pylist()) == sorted(rest)
    assert dataset.count_rows(chosen) == len(wanted)
    number, left = fragments.drop((dataset.get_fragments()[0].fragment_id, wanted), uri, dataset.version, "v")
    assert (left is None) == (not rest)
    fragments.commit(uri, dataset.version, dataset.schema, [], [(number, left)])
    assert sorted(lance.dataset(uri).to_table()["v"].to_pylist()) == sorted(rest)


@pytest.mark.parametrize(
    "where",
    [
        "label IN (SELECT label FROM t)",
        "EXISTS (SELECT 1)",
        "label = (SELECT column1 FROM read_csv('/etc/passwd'))",
        "label = (SELECT column1 FROM '/etc/passwd')",
        "true; DROP TABLE t",
        "true; COPY t TO 'OUT'",
        "label = 'bird' label = 'x'",
        "label = 'bird') UNION SELECT * FROM t --",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "INSERT INTO t VALUES (1)",
        "read_text('/etc/passwd') = 'x'",
        "pg_read_file('/etc/passwd') = 'x'",
        "load_extension('OUT')",
        "label = getenv('HOME')",
    ],
)
def test_an_expression_reads_no_other_thing_and_writes_none(made: Made, tmp_path: Path, where: str) -> None:
    """A filter is an expression, with no room for a query, a statement or a function that knows of files."""
    before = tree(Path(made.lake.root, "tables"))
    for query in ([], [str(sorted(made.audio.glob("bird/*"))[0])]):
        with pytest.raises(InputError, match="cannot use the filter") as caught:
            commands.search(made.lake, query, k=3, where=where.replace("OUT", str(tmp_path / "out")), by="windows")
        assert "root:" not in str(caught.value)
    assert tree(Path(made.lake.root, "tables")) == before
    assert not list(tmp_path.iterdir())


def test_what_follows_a_parenthesis_of_ones_own_is_not_read(made: Made) -> None:
    """Nothing is done with it: the rows are those of this table that pass what comes before."""
    found = commands.search(made.lake, [], k=100, where="label = 'bird'); DROP TABLE t; --", by="recordings")
    assert {hit.label for hit in found["results"][0]["hits"]} == {"bird"}


def test_no_function_of_a_filter_knows_of_files_or_of_this_process(made: Made) -> None:
    """Of all names that DuckDB, PostgreSQL, SQLite and DataFusion have for such functions, the engine knows none."""
    dataset = table.need_table(made.lake, model_of(made))
    names = "read_csv read_csv_auto read_parquet read_json read_text read_blob glob parquet_scan read_avro readfile "
    names += "writefile pg_read_file pg_ls_dir lo_import current_setting getenv system shell exec http_get url_get "
    names += "load_extension fts3_tokenizer current_user user database input_file_name"
    for name in names.split():
        for arguments in ("", "'/etc/passwd'"):
            with pytest.raises((ValueError, OSError)):
                dataset.to_table(filter=f"{name}({arguments}) IS NOT NULL", columns=["id"])


@pytest.mark.parametrize("where", ["\"group\" = 'x'", "label = 'it''s' OR \"group\" = 'x'"])
def test_a_column_in_double_quotes_is_not_taken_for_a_text(where: str) -> None:
    """Lance alone would compare the text `group` with `x`, and find nothing."""
    with pytest.raises(InputError, match="write group for the column, or 'group' for the text"):
        table.whole(where)


@pytest.mark.parametrize("where", ['label = "bird"', "label = '\"group\"'", "group = 'x'", "`group` = 'x'"])
def test_other_quotes_are_left_as_they_are(where: str) -> None:
    assert table.whole(where) == f"({where}\n)"
