"""Export a table, a row for each window of each file or for each file, as a stream or as a file for other tools."""

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
# Prefixes of the CSV columns that hold the numbers of a vector; the index of the number follows.
VECTORS = {"embedding": "z", "latent": "latent"}
# Recordings in one batch.
BATCH_RECORDINGS = 1024


def windows(dataset: Any, *, where: str | None = None) -> Iterator[pa.RecordBatch]:
    """Rows of a table, block by block, one for each window of each file: `WINDOW_COLUMNS`, and the latent if present.

    Parameters
    ----------
    dataset : lance.LanceDataset
    where : str or None
        SQL filter.
    """
    extra = [name for name in ("latent",) if name in dataset.schema.names]
    yield from dataset.to_batches(columns=[*WINDOW_COLUMNS, *extra], filter=where)


def recordings_schema(size: int, pooling: Pooling = "mean") -> pa.Schema:
    """Schema of the rows of recordings, for a table whose embeddings have `size` numbers."""
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
    """One row for each file of a table, with the clip embedding of its recording (`model.saved.artifact.pooled`).

    Files that hold the same recording have a row each, with their own uri, label and group. The table is read fragment
    by fragment; only the files whose windows continue in a later fragment are kept in memory.

    Parameters
    ----------
    dataset : lance.LanceDataset
    where : str or None
        SQL filter on windows; a clip embedding pools only the windows that pass.

    Yields
    ------
    pyarrow.RecordBatch
        Of `recordings_schema`.
    """
    size, pooling = dataset.schema.field("embedding").type.list_size, pooling_of(dataset)
    last_fragments: dict[tuple[str, str], int] = {}
    for fragment in dataset.get_fragments():
        for batch in fragment.to_batches(columns=["uri", "recording_id"], filter=where):
            files = zip(*(column.to_pylist() for column in batch.columns), strict=True)
            last_fragments |= dict.fromkeys(files, fragment.fragment_id)
    # Keyed by uri and recording: a changed file keeps its old rows until the whole table is brought up to date.
    open_pools: dict[tuple[str, str], _Pool] = {}
    ready: list[dict[str, Any]] = []
    for fragment in dataset.get_fragments():
        for batch in fragment.to_batches(columns=WINDOW_COLUMNS, filter=where):
            vectors = np.asarray(batch.column("embedding").flatten(), np.float64).reshape(len(batch), size)
            for i, row in enumerate(batch.drop_columns(["embedding"]).to_pylist()):
                file = row["uri"], row["recording_id"]
                if file not in open_pools:
                    open_pools[file] = _Pool(row, size, pooling)
                open_pools[file].add(row, vectors[i])
        ready += [
            open_pools.pop(file).row() for file in list(open_pools) if last_fragments[file] == fragment.fragment_id
        ]
        while ready:
            block, ready = ready[:BATCH_RECORDINGS], ready[BATCH_RECORDINGS:]
            yield pa.RecordBatch.from_pylist(block, schema=recordings_schema(size, pooling))


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
    """Write the table to a Parquet, CSV or NPZ file, block by block where the format allows; return the row count.

    Parameters
    ----------
    dataset : lance.LanceDataset
    target : str
        Local path; its ending selects the format. A CSV has a column for each number of the embedding (``z0``, …) and
        of the latent (``latent0``, …); an NPZ holds ``embedding`` and ``latent``, (rows, numbers) float32, and an array
        for each other column. A row of a recording has no latent.
    where : str or None
        SQL filter.
    by : {"windows", "recordings"}
        Whether a row is a window or a recording.

    Raises
    ------
    InputError
        If the ending is unknown, the filter is wrong, or the file cannot be created.
    TryLaterError
        If the disk is full.
    """
    kind = os.path.splitext(target)[1].lower()
    if kind not in (".parquet", ".csv", ".npz"):
        raise InputError(f"cannot export to {target}: the name must end in .parquet, .csv or .npz")
    rows = _read(dataset, where, by)
    with storage_errors(target):
        folder, name = os.path.split(os.path.abspath(target))
        # Report a wrong place before the table is read. A missing folder is not created.
        os.stat(f"{folder}/.")
        existing = Folder(folder).info(name)
        if existing is not None and existing.is_folder:
            raise InputError(f"cannot export to {target}: it is a folder")
        with Folder(folder).create(name) as file:
            with stage(f"writing {by}") as report:
                rows = _counted(rows, dataset.count_rows() if where is None and by == "windows" else None, by, report)
                count = _write_npz(rows, file) if kind == ".npz" else _write_blocks(rows, file, kind)
            if not count:
                raise InputError("nothing to export: no row of the table matches the filter")
    return count


def _read(dataset: Any, where: str | None, by: str) -> Iterator[pa.RecordBatch]:
    """The rows; an error in reading them is reported as one of the table or the filter, not of the file written."""
    try:
        yield from (recordings if by == "recordings" else windows)(dataset, where=whole(where))
    except (ValueError, OSError) as error:
        if where is not None:
            raise filter_error(dataset, where, error) from error
        with storage_errors(dataset.uri):
            raise


def _counted(rows: Iterator[pa.RecordBatch], total: int | None, by: str, report: Stage) -> Iterator[pa.RecordBatch]:
    """The same rows; reports how many have passed."""
    count = 0
    for batch in rows:
        count += len(batch)
        report(report.name, count, total, f"{count} {by}")
        yield batch


def _write_npz(rows: Iterator[pa.RecordBatch], file: IO[bytes]) -> int:
    batches = list(rows)
    if not batches:
        return 0
    table = pa.Table.from_batches(batches)
    names = [name for name in table.column_names if name not in VECTORS]
    arrays = {name: table[name].to_numpy(zero_copy_only=False) for name in names}
    # Store text as fixed-width Unicode: reading an object array back would need pickle.
    arrays = {n: a.astype(str) if a.dtype == object else a for n, a in arrays.items()}
    for name in (name for name in VECTORS if name in table.column_names):
        arrays[name] = np.asarray(table[name].combine_chunks().flatten()).reshape(len(table), -1)
    np.savez(file, **arrays)
    return len(table)


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
        # The texts are written unchanged: for a program that reads labels, an escaped text would be another label.
        log.warning("%d names and labels look like spreadsheet formulas: import the CSV as text", formulas)
    return count


def _flat(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The same batch with a column for each number of a vector in place of the vectors."""
    columns = {name: batch.column(name) for name in batch.schema.names if name not in VECTORS}
    for name in (name for name in VECTORS if name in batch.schema.names):
        width = batch.schema.field(name).type.list_size
        numbers = batch.column(name).flatten().to_numpy().reshape(-1, width)
        columns |= {f"{VECTORS[name]}{i}": pa.array(values) for i, values in enumerate(numbers.T)}
    return pa.RecordBatch.from_pydict(columns)


def _formulas(column: pa.Array) -> int:
    """Number of texts that a spreadsheet would take for formulas."""
    return int(pc.sum(pc.match_substring_regex(column, r"^[=+\-@\t\r]")).as_py() or 0)
