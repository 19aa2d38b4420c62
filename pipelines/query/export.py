"""What comes out of a table: a row for each window of each file, or for each file; as a stream, and as files for other
tools."""

import logging
import os
from collections.abc import Iterator
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from soundlake.model.errors import InputError, storage_errors
from soundlake.model.saved.artifact import Pooling, pooled_width
from soundlake.pipelines.lake.stages import Stage, stage
from soundlake.pipelines.lake.table import filter_error, pooling_of, whole
from soundlake.pipelines.storage.folder import Folder

log = logging.getLogger(__name__)

WINDOW_COLUMNS = ["uri", "recording_id", "window", "start_s", "end_s", "label", "group", "posterior_std"]
WINDOW_COLUMNS += ["reconstruction_error", "embedding"]
# What a CSV calls the numbers of a vector, each with its place behind it.
VECTORS = {"embedding": "z", "latent": "latent"}
# Recordings that are handed out together.
BATCH_RECORDINGS = 1024


def windows(dataset: Any, *, where: str | None = None) -> Iterator[pa.RecordBatch]:
    """Rows of a table, `WINDOW_COLUMNS` and the latent if it has one, block by block: of each file its windows.

    Parameters
    ----------
    dataset : lance.LanceDataset
    where : str or None
        SQL filter.
    """
    more = [name for name in ("latent",) if name in dataset.schema.names]
    yield from dataset.to_batches(columns=[*WINDOW_COLUMNS, *more], filter=where)


def recordings_schema(size: int, pooling: Pooling = "mean") -> pa.Schema:
    """Columns of the view of recordings, of a table whose embeddings have `size` numbers."""
    return pa.schema(
        [
            pa.field("uri", pa.string(), nullable=False),
            pa.field("recording_id", pa.string(), nullable=False),
            pa.field("windows", pa.int64(), nullable=False),
            pa.field("start_s", pa.float64(), nullable=False),
            pa.field("end_s", pa.float64(), nullable=False),
            pa.field("label", pa.string()),
            pa.field("group", pa.string()),
            pa.field("reconstruction_error", pa.float32(), nullable=False),  # mean over the windows
            pa.field("embedding", pa.list_(pa.float32(), pooled_width(size, pooling)), nullable=False),
        ]
    )


def recordings(dataset: Any, *, where: str | None = None) -> Iterator[pa.RecordBatch]:
    """The files that the table knows: one row each, with the clip embedding of its recording
    (`model.saved.artifact.pooled`).

    Files that hold the same recording have a row each, with their own uri, label and group. Read a fragment at a time;
    what is held are files whose windows go on in a later one.

    Parameters
    ----------
    dataset : lance.LanceDataset
    where : str or None
        SQL filter on windows; a clip embedding is that of the windows that pass.

    Yields
    ------
    pyarrow.RecordBatch
        Of `recordings_schema`.
    """
    size, pooling = dataset.schema.field("embedding").type.list_size, pooling_of(dataset)
    last: dict[tuple[str, str], int] = {}
    for fragment in dataset.get_fragments():
        for batch in fragment.to_batches(columns=["uri", "recording_id"], filter=where):
            names = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            last |= dict.fromkeys(names, fragment.fragment_id)
    # By uri and recording: a file that has changed keeps its old rows until the whole table is brought up to date.
    open_ones: dict[tuple[str, str], _Pool] = {}
    ready: list[dict[str, Any]] = []
    for fragment in dataset.get_fragments():
        for batch in fragment.to_batches(columns=WINDOW_COLUMNS, filter=where):
            vectors = np.asarray(batch.column("embedding").flatten(), np.float64).reshape(len(batch), size)
            for i, row in enumerate(batch.drop_columns(["embedding"]).to_pylist()):
                name = row["uri"], row["recording_id"]
                if name not in open_ones:
                    open_ones[name] = _Pool(row, size, pooling)
                open_ones[name].add(row, vectors[i])
        ready += [open_ones.pop(name).row() for name in list(open_ones) if last[name] == fragment.fragment_id]
        while ready:
            part, ready = ready[:BATCH_RECORDINGS], ready[BATCH_RECORDINGS:]
            yield pa.RecordBatch.from_pylist(part, schema=recordings_schema(size, pooling))


class _Pool:
    """Sums over the windows of a file."""

    def __init__(self, row: dict[str, Any], size: int, pooling: Pooling) -> None:
        self._pooling = pooling
        self._row = {name: row[name] for name in ("uri", "recording_id", "label", "group", "start_s", "end_s")}
        self._count, self._error = 0, 0.0
        self._sum, self._squares = np.zeros(size), np.zeros(size)

    def add(self, row: dict[str, Any], vector: np.ndarray) -> None:
        self._row["start_s"] = min(self._row["start_s"], row["start_s"])
        self._row["end_s"] = max(self._row["end_s"], row["end_s"])
        self._count, self._error = self._count + 1, self._error + row["reconstruction_error"]
        self._sum += vector
        self._squares += np.square(vector)

    def row(self) -> dict[str, Any]:
        vector = mean = self._sum / self._count
        if self._pooling != "mean":
            deviation = np.sqrt(np.maximum(self._squares / self._count - np.square(mean), 0))
            vector = np.concatenate([mean, deviation])
        error = self._error / self._count
        return self._row | {"windows": self._count, "reconstruction_error": error, "embedding": vector}


def export(
    dataset: Any, target: str, *, where: str | None = None, by: Literal["windows", "recordings"] = "windows"
) -> int:
    """Write the table to a Parquet, CSV or NPZ file, block by block where the format allows; return the rows.

    Parameters
    ----------
    dataset : lance.LanceDataset
    target : str
        Local path; its ending says which. A CSV has one column a number of the embedding (``z0``, …) and of the latent
        (``latent0``, …); an NPZ holds ``embedding`` and ``latent``, (rows, numbers) float32, and one array a column. A
        row of a recording has no latent.
    where : str or None
        SQL filter.
    by : {"windows", "recordings"}
        What a row is.

    Raises
    ------
    InputError
        If the ending is unknown, the filter wrong, or there can be no such file.
    TryLaterError
        If the disk is full.
    """
    kind = os.path.splitext(target)[1].lower()
    if kind not in (".parquet", ".csv", ".npz"):
        raise InputError(f"cannot export to {target}: the name must end in .parquet, .csv or .npz")
    rows = _read(dataset, where, by)
    with storage_errors(target):
        folder, name = os.path.split(os.path.abspath(target))
        # What is wrong with the place is said before the table is read; and no folder is made.
        os.stat(f"{folder}/.")
        there = Folder(folder).info(name)
        if there is not None and there.is_folder:
            raise InputError(f"cannot export to {target}: it is a folder")
        with Folder(folder).create(name) as file:
            with stage(f"writing {by}") as report:
                rows = _counted(rows, dataset.count_rows() if where is None and by == "windows" else None, by, report)
                count = _write_npz(rows, file) if kind == ".npz" else _write_blocks(rows, file, kind)
            if not count:
                raise InputError("nothing to export: no row of the table matches the filter")
    return count


def _read(dataset: Any, where: str | None, by: str) -> Iterator[pa.RecordBatch]:
    """The rows; an error on the way is one of the table or the filter, and none of the file that is written."""
    try:
        yield from (recordings if by == "recordings" else windows)(dataset, where=whole(where))
    except (ValueError, OSError) as error:
        if where is not None:
            raise filter_error(dataset, where, error) from error
        with storage_errors(dataset.uri):
            raise


def _counted(rows: Iterator[pa.RecordBatch], total: int | None, by: str, report: Stage) -> Iterator[pa.RecordBatch]:
    """The same, and how many there were is reported."""
    count = 0
    for batch in rows:
        count += len(batch)
        report(report.name, count, total, f"{count} {by}")
        yield batch


def _write_npz(rows: Iterator[pa.RecordBatch], file: IO[bytes]) -> int:
    batches = list(rows)
    if not batches:
        return 0
    found = pa.Table.from_batches(batches)
    names = [name for name in found.column_names if name not in VECTORS]
    arrays = {name: found[name].to_numpy(zero_copy_only=False) for name in names}
    # Text as fixed-width Unicode: an object array would need pickle to be read back.
    arrays = {n: a.astype(str) if a.dtype == object else a for n, a in arrays.items()}
    for name in (name for name in VECTORS if name in found.column_names):
        arrays[name] = np.asarray(found[name].combine_chunks().flatten()).reshape(len(found), -1)
    np.savez(file, **arrays)
    return len(found)


def _write_blocks(rows: Iterator[pa.RecordBatch], file: IO[bytes], kind: str) -> int:
    from pyarrow import csv, parquet

    count = formulas = 0
    writer: Any = None
    try:
        for batch in rows:
            if kind == ".csv":
                formulas += sum(_formulas(column) for column in batch.columns if pa.types.is_string(column.type))
                batch = _flat(batch)
            if writer is None:
                writer = (csv.CSVWriter if kind == ".csv" else parquet.ParquetWriter)(file, batch.schema)
            writer.write_batch(batch)
            count += len(batch)
    finally:
        if writer is not None:
            writer.close()
    if formulas:
        # As they are: to whoever reads numbers and labels, another text would be another label.
        log.warning("%d names and labels look like spreadsheet formulas: import the CSV as text", formulas)
    return count


def _flat(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same with a column a number in place of the vectors."""
    columns = {name: batch.column(name) for name in batch.schema.names if name not in VECTORS}
    for name in (name for name in VECTORS if name in batch.schema.names):
        width = batch.schema.field(name).type.list_size
        numbers = batch.column(name).flatten().to_numpy().reshape(-1, width)
        columns |= {f"{VECTORS[name]}{i}": pa.array(values) for i, values in enumerate(numbers.T)}
    return pa.RecordBatch.from_pydict(columns)


def _formulas(column: pa.Array) -> int:
    """How many texts a spreadsheet would take for formulas."""
    return int(pc.sum(pc.match_substring_regex(column, r"^[=+\-@\t\r]")).as_py() or 0)
