"""The table: one row for each window and each file that holds it, in Lance; its schema, its index, its rows.

A recording that lies in three files has three rows a window, equal but for id, uri, label and group: a filter is then
true of each file by itself. The rows of its first file, by uri, stand for the recording.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from soundlake.model.errors import InputError, is_of_lance, number_of
from soundlake.model.saved.artifact import Model, Pooling
from soundlake.pipelines.lake import fragments
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.stages import stage

# Below this an exact scan takes milliseconds; an index would cost more than it gives.
INDEX_ROWS = 65_536
RECALL_QUERIES, RECALL_K = 100, 10
# What rows there are: 1, of the first file of each recording; 2, of every file. Kept in what encode said of a table.
ROW_FORMAT = 2

# In a table's totals: distances of random pairs of its windows (`pipelines.query.random_pairs`), by the length of a
# run.
RANDOM_PAIRS = "random_pairs"

_KEY = {b"lance-schema:unenforced-primary-key": b"true"}


# Of the column of embeddings: how those of a recording's windows become one (`model.saved.artifact.Pooling`).
_POOLING = b"soundlake:pooling"


def schema(size: int, *, latent: int = 0, pooling: Pooling = "mean") -> pa.Schema:
    """Columns of a table.

    Parameters
    ----------
    size, latent : int
        Numbers of an embedding, and of a posterior mean; 0 if the table has no column of these.
    pooling : {"mean", "mean and deviation"}
        How the embeddings of a recording's windows become one.
    """
    more = [pa.field("latent", pa.list_(pa.float32(), latent), nullable=False)] if latent else []
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False, metadata=_KEY),  # see `row_id`
            pa.field("recording_id", pa.string(), nullable=False),
            pa.field("window", pa.int32(), nullable=False),
            pa.field("uri", pa.string(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("group", pa.string()),
            pa.field("start_s", pa.float64(), nullable=False),  # seconds from the recording's start
            pa.field("end_s", pa.float64(), nullable=False),
            pa.field("embedding", pa.list_(pa.float32(), size), nullable=False, metadata={_POOLING: pooling.encode()}),
            *more,
            pa.field("posterior_std", pa.float32(), nullable=False),  # mean over the latent dimensions
            pa.field("reconstruction_error", pa.float32(), nullable=False),  # mean square, of unit variance
            pa.field("bundle", pa.string(), nullable=False),
            pa.field("record_offset", pa.int64(), nullable=False),  # byte of its record in the shard
        ]
    )


def schema_of(model: Model) -> pa.Schema:
    """Columns of a model's table."""
    return schema(model.embedding_dim, latent=model.latent_dim if model.keeps_latent else 0, pooling=model.pooling)


def pooling_of(dataset: Any) -> Pooling:
    """How the embeddings of a recording's windows become one, as the table says."""
    said = (dataset.schema.field("embedding").metadata or {}).get(_POOLING)
    # Tables of the format before do not say.
    return "mean" if said == b"mean" else "mean and deviation"


def row_id(recording_id: str, window: int, *, copy: str | None = None) -> str:
    """The id of a row: ``RECORDING_ID:WINDOW``, and for a further file of the recording a digest of its uri behind it.

    Parameters
    ----------
    recording_id, window : str, int
    copy : str or None
        The uri of the file, unless it is the recording's first.
    """
    name = f"{recording_id}:{window}"
    return name if copy is None else f"{name}:{hashlib.sha256(copy.encode()).hexdigest()[:16]}"


def open_table(lake: Lake, model_id: str, version: int | None = None) -> Any:
    """The table as a Lance dataset, at a version or the newest; None if nothing was encoded yet."""
    return fragments.of_lake(lake, Lake.table(model_id), version)


def need_table(lake: Lake, model_id: str) -> Any:
    """`open_table`, or `InputError` if there is none."""
    found = open_table(lake, model_id)
    if found is None:
        raise InputError(f"model {model_id} has no table yet; run: {lake.command('encode')}")
    return found


def create(lake: Lake, model_id: str, columns: pa.Schema) -> Any:
    """The table, made empty if there is none: fragments need a place to go."""
    with lake.locked(f"tables/{model_id}"):
        found = open_table(lake, model_id)
        return fragments.created(lake.table_uri(model_id), columns) if found is None else found


def said(lake: Lake, model_id: str) -> dict[str, Any]:
    """What the last encode said of a table: its totals; empty if there was none."""
    try:
        return dict(json.loads(lake.read(Lake.totals(model_id))))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def say(lake: Lake, model_id: str, totals: dict[str, Any]) -> None:
    """Keep what encode said of a table."""
    lake.write(Lake.totals(model_id), json.dumps(totals, sort_keys=True).encode() + b"\n")


def rows_of(dataset: Any, column: str, values: Sequence[str], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Rows whose `column` (``id`` or ``recording_id``) is one of `values`."""
    for first in range(0, len(values), 1000):
        chunk = values[first : first + 1000]
        yield from dataset.to_batches(columns=columns, filter=fragments.in_list(column, chunk))


def index(dataset: Any) -> dict[str, Any]:
    """Index the embeddings if there are enough, or fold new rows into the index; measure what it finds.

    Returns
    -------
    dict
        ``kind`` (``"exact"`` or ``"IVF_FLAT"``), ``rows``, and for an index ``recall``: the share of the ten true
        nearest windows that a query finds, over 100 rows of the table.
    """
    rows = dataset.count_rows()
    indexed = any(found.name == "embedding_idx" for found in dataset.describe_indices())
    # One that was built stays in use if rows leave.
    if rows < INDEX_ROWS and not indexed:
        return {"kind": "exact", "rows": rows}
    with stage("building the index"):
        if indexed:
            dataset.optimize.optimize_indices()
        else:
            dataset.create_index(
                "embedding", "IVF_FLAT", name="embedding_idx", metric="l2", num_partitions=round(math.sqrt(rows))
            )
    return {"kind": "IVF_FLAT", "rows": rows, "recall": recall(dataset)}


# A filter as `whole` makes it, perhaps after recordings that a search leaves out; what Lance puts around its words.
_WHOLE = re.compile(r"(?:NOT \w+ IN \([^)]*\) AND )?\((.*)\n\)", re.DOTALL)
_LANCE = re.compile(r"Invalid user input: |Schema error: |Error during planning: |Error parsing function: ")
_STATEMENT = re.compile(
    r"(?:parsing|tokenizing) statement: .*\((?:sql parser error: )?([^(]*?)(?: at Line: \d+, Column: \d+)?\)$",
    re.DOTALL,
)


# A text in single quotes, or what stands in double quotes.
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"([^"]*)\"""")


def whole(where: str | None) -> str | None:
    """A user's filter in parentheses: where an expression ends, Lance would leave the rest out without a word.

    Raises
    ------
    InputError
        If the name of a column stands in double quotes. That is a column in SQL and a text in Lance, where such a
        filter would select nothing, without a word.
    """
    quoted = {match[1] for match in _QUOTED.finditer(where or "")} & {*schema(1, latent=1).names}
    if quoted:
        name = min(quoted)
        raise InputError(f"cannot use the filter {where!r}: write {name} for the column, or {name!r} for the text")
    return f"({where}\n)" if where and where.strip() else None


def nearest(
    dataset: Any, vector: Any, *, k: int, where: str | None, columns: list[str], exact: bool = False
) -> list[dict[str, Any]]:
    """The `k` rows whose embeddings are nearest, by L2; a filter is applied before, not after.

    Raises
    ------
    InputError
        If the filter is not one that the table understands.
    """
    query = {"column": "embedding", "q": vector, "k": k, "metric": "l2", "nprobes": 16}
    if exact:
        query["use_index"] = False
    try:
        found = dataset.to_table(
            columns=[*columns, "_distance"], nearest=query, filter=whole(where), prefilter=where is not None
        )
    except (ValueError, OSError) as error:
        raise filter_error(dataset, where, error) from error
    return list(found.to_pylist())


def filter_error(dataset: Any, where: str | None, error: Exception) -> Exception:
    """`InputError` for a filter that the table does not understand; the error itself if it is about something else."""
    if where is None or is_of_lance(error) or number_of(error) is not None:
        return error
    # What was asked, without what `whole` and a search put around it.
    asked = inside[1] if (inside := _WHOLE.match(where)) else where
    said = _LANCE.sub("", str(error).split(", /")[0].split(", rust/")[0])
    if statement := _STATEMENT.search(said):
        said = statement[1].replace("found: )", "found: the end")
    # Ours follow; Lance's list has its hidden ones, too.
    said = " ".join(said.partition(". Valid fields are")[0].split()).rstrip(".")
    said = said if said.endswith("?") else f"{said}."
    hidden = ("embedding", "latent", "bundle", "record_offset")
    names = ", ".join(name for name in dataset.schema.names if name not in hidden)
    return InputError(f"cannot use the filter {asked!r}: {said} Columns: {names}")


def recall(dataset: Any) -> float:
    """Share of the true nearest windows that the index finds, for rows spread over the table.

    Counted by window, not by row: the rows of one window are equally near, and any of them may be found.
    """
    count, place = dataset.count_rows(), ["recording_id", "window"]
    picked = [int(i * count / RECALL_QUERIES) for i in range(RECALL_QUERIES)]
    wanted, hits, name = 0, 0, "measuring what the index finds"
    with stage(name) as report:
        for number, vector in enumerate(dataset.take(picked, columns=["embedding"])["embedding"].to_pylist()):
            report(name, number, RECALL_QUERIES, f"{number} of {RECALL_QUERIES} queries")
            both = (
                nearest(dataset, vector, k=RECALL_K, where=None, columns=place, exact=exact) for exact in (True, False)
            )
            true, found = ({(row["recording_id"], row["window"]) for row in rows} for rows in both)
            wanted, hits = wanted + len(true), hits + len(true & found)
    return hits / wanted
