"""The table in Lance, with one row for each window and each file that contains it: its schema, index and rows.

A recording with three files has three rows per window, which differ only in id, uri, label and group. So a filter
applies to each file by itself. The rows of the first file, by uri, represent the recording.
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

# Number of rows from which an index is built. Below it an exact scan takes milliseconds, and an index is not worth its
# cost.
INDEX_ROWS = 65_536
RECALL_QUERIES, RECALL_K = 100, 10
# The rows of a table: 1, of the first file of each recording; 2, of every file. Kept in the table's totals.
ROW_FORMAT = 2

# Key of a table's totals: distances of random pairs of its windows (`pipelines.query.random_pairs`), by the length of a
# run.
RANDOM_PAIRS = "random_pairs"

_KEY = {b"lance-schema:unenforced-primary-key": b"true"}


# Key in the metadata of the embedding column: how the embeddings of a recording's windows become one
# (`model.saved.artifact.Pooling`).
_POOLING = b"soundlake:pooling"


def schema(size: int, *, latent: int = 0, pooling: Pooling = "mean") -> pa.Schema:
    """The columns of a table.

    Parameters
    ----------
    size, latent : int
        Length of an embedding, and of a posterior mean; `latent` is 0 if the table has no column of posterior means.
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
    """The columns of a model's table."""
    return schema(model.embedding_dim, latent=model.latent_dim if model.keeps_latent else 0, pooling=model.pooling)


def pooling_of(dataset: Any) -> Pooling:
    """How the embeddings of a recording's windows become one, by the table's metadata."""
    pooling = (dataset.schema.field("embedding").metadata or {}).get(_POOLING)
    # Tables of the previous format have no such entry: they use mean and deviation.
    return "mean" if pooling == b"mean" else "mean and deviation"


def row_id(recording_id: str, window: int, *, copy: str | None = None) -> str:
    """The id of a row: ``RECORDING_ID:WINDOW``, followed by a digest of the uri for further files of the recording.

    Parameters
    ----------
    recording_id, window : str, int
    copy : str or None
        The uri of the file; None for the recording's first file.
    """
    name = f"{recording_id}:{window}"
    return name if copy is None else f"{name}:{hashlib.sha256(copy.encode()).hexdigest()[:16]}"


def open_table(lake: Lake, model_id: str, version: int | None = None) -> Any:
    """Open the table as a Lance dataset, at a version or at the newest; None if nothing was encoded yet."""
    return fragments.of_lake(lake, Lake.table(model_id), version)


def need_table(lake: Lake, model_id: str) -> Any:
    """Open the newest version of the table; raise `InputError` if there is none."""
    dataset = open_table(lake, model_id)
    if dataset is None:
        raise InputError(f"model {model_id} has no table yet; run: {lake.command('encode')}")
    return dataset


def create(lake: Lake, model_id: str, columns: pa.Schema) -> Any:
    """Open the table, or create an empty one: workers need a dataset in which to write fragments."""
    with lake.locked(f"tables/{model_id}"):
        dataset = open_table(lake, model_id)
        return fragments.created(lake.table_uri(model_id), columns) if dataset is None else dataset


def said(lake: Lake, model_id: str) -> dict[str, Any]:
    """The totals of the last encode of a table; empty if there was none."""
    try:
        return dict(json.loads(lake.read(Lake.totals(model_id))))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def say(lake: Lake, model_id: str, totals: dict[str, Any]) -> None:
    """Store the totals of an encode of a table."""
    lake.write(Lake.totals(model_id), json.dumps(totals, sort_keys=True).encode() + b"\n")


def rows_of(dataset: Any, column: str, values: Sequence[str], columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows whose `column` (``id`` or ``recording_id``) is one of `values`."""
    for first in range(0, len(values), 1000):
        chunk = values[first : first + 1000]
        yield from dataset.to_batches(columns=columns, filter=fragments.in_list(column, chunk))


def index(dataset: Any) -> dict[str, Any]:
    """Build the index of the embeddings if there are enough rows, or add new rows to it, and measure its recall.

    Returns
    -------
    dict
        ``kind`` (``"exact"`` or ``"IVF_FLAT"``), ``rows``, and for an index ``recall``: the share of the ten true
        nearest windows that a query finds, over 100 rows of the table.
    """
    rows = dataset.count_rows()
    indexed = any(description.name == "embedding_idx" for description in dataset.describe_indices())
    # An existing index stays in use even if rows are removed.
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


# A filter from `whole`, perhaps after the recordings that a search excludes; then the parts that Lance adds around its
# messages.
_WHOLE = re.compile(r"(?:NOT \w+ IN \([^)]*\) AND )?\((.*)\n\)", re.DOTALL)
_LANCE = re.compile(r"Invalid user input: |Schema error: |Error during planning: |Error parsing function: ")
_STATEMENT = re.compile(
    r"(?:parsing|tokenizing) statement: .*\((?:sql parser error: )?([^(]*?)(?: at Line: \d+, Column: \d+)?\)$",
    re.DOTALL,
)


# A text in single quotes, or a name in double quotes.
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"([^"]*)\"""")


def whole(where: str | None) -> str | None:
    """Put a user's filter in parentheses, since Lance silently ignores any text after the first complete expression.

    Raises
    ------
    InputError
        If the name of a column is in double quotes. That is a column in SQL but a text in Lance, where such a filter
        would silently select nothing.
    """
    quoted = {match[1] for match in _QUOTED.finditer(where or "")} & {*schema(1, latent=1).names}
    if quoted:
        name = min(quoted)
        raise InputError(f"cannot use the filter {where!r}: write {name} for the column, or {name!r} for the text")
    return f"({where}\n)" if where and where.strip() else None


def nearest(
    dataset: Any, vector: Any, *, k: int, where: str | None, columns: list[str], exact: bool = False
) -> list[dict[str, Any]]:
    """The `k` rows whose embeddings are nearest, by L2; a filter is applied before the search, not after it.

    Raises
    ------
    InputError
        If the table cannot use the filter.
    """
    query = {"column": "embedding", "q": vector, "k": k, "metric": "l2", "nprobes": 16}
    if exact:
        query["use_index"] = False
    try:
        rows = dataset.to_table(
            columns=[*columns, "_distance"], nearest=query, filter=whole(where), prefilter=where is not None
        )
    except (ValueError, OSError) as error:
        raise filter_error(dataset, where, error) from error
    return list(rows.to_pylist())


def filter_error(dataset: Any, where: str | None, error: Exception) -> Exception:
    """`InputError` for a filter that the table cannot use; the error itself if it has another cause."""
    if where is None or is_of_lance(error) or number_of(error) is not None:
        return error
    # The user's filter, without the text that `whole` and a search put around it.
    user_filter = inside[1] if (inside := _WHOLE.match(where)) else where
    text = _LANCE.sub("", str(error).split(", /")[0].split(", rust/")[0])
    if statement := _STATEMENT.search(text):
        text = statement[1].replace("found: )", "found: the end")
    # Lance's list of columns is replaced by soundlake's, since Lance's list contains the hidden columns, too.
    text = " ".join(text.partition(". Valid fields are")[0].split()).rstrip(".")
    text = text if text.endswith("?") else f"{text}."
    hidden = ("embedding", "latent", "bundle", "record_offset")
    names = ", ".join(name for name in dataset.schema.names if name not in hidden)
    return InputError(f"cannot use the filter {user_filter!r}: {text} Columns: {names}")


def recall(dataset: Any) -> float:
    """The share of the true nearest windows that the index finds, over rows that are spread over the table.

    Windows are counted, not rows: the rows of one window are equally near, and the index may return any of them.
    """
    count, key_columns = dataset.count_rows(), ["recording_id", "window"]
    picked = [int(step * count / RECALL_QUERIES) for step in range(RECALL_QUERIES)]
    wanted, hits, name = 0, 0, "measuring what the index finds"
    with stage(name) as report:
        for number, vector in enumerate(dataset.take(picked, columns=["embedding"])["embedding"].to_pylist()):
            report(name, number, RECALL_QUERIES, f"{number} of {RECALL_QUERIES} queries")
            results = (
                nearest(dataset, vector, k=RECALL_K, where=None, columns=key_columns, exact=exact)
                for exact in (True, False)
            )
            true, approximate = ({(row["recording_id"], row["window"]) for row in rows} for rows in results)
            wanted, hits = wanted + len(true), hits + len(true & approximate)
    return hits / wanted
