"""Traces of forgotten recordings in Lance datasets: rows, deleted rows, old versions, and files that no version names.

A deleted row stays in its data file, and an old version keeps the rows that a newer version dropped. So a fragment with
a forgotten row is rewritten, old versions are removed at once, and every other data file is opened and checked.
"""

import errno
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from soundlake.model.errors import InputError, number_of, storage_errors
from soundlake.pipelines.lake import fragments
from soundlake.pipelines.lake.forgotten import Memory
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.storage.bucket import lance_options
from soundlake.pipelines.storage.patience import patiently

# Columns that identify the file and the recording of a row, in a ledger or a table.
URI, RECORDING_ID = ABOUT = ["uri", "recording_id"]


def forgotten_in(memory: Memory, rows: Any, columns: Iterable[str] = ABOUT) -> Any:
    """An array of booleans: which rows are forgotten, by their uri and recording_id, or by one of the two."""
    is_forgotten = pa.array([False] * len(rows))
    for name in columns:
        values = [value for value in pc.unique(rows[name]).to_pylist() if value is not None]
        forgotten = [value for value in values if memory.holds(**{name: value})]
        if forgotten:
            mask = pc.is_in(rows[name], pa.array(forgotten, pa.string()))
            is_forgotten = pc.or_(is_forgotten, mask.combine_chunks() if isinstance(mask, pa.ChunkedArray) else mask)
    return is_forgotten


def rows_in(dataset_uri: str, name: str) -> Any:
    """Uri and recording_id of the rows in a data file, deleted rows included; None if the file cannot be read."""
    from lance.file import LanceFileReader

    path, options = f"{dataset_uri}/data/{name}", lance_options(dataset_uri)

    def read() -> Any:
        names = LanceFileReader(path, storage_options=options).metadata().schema.names
        # A column that was added later lies in separate files.
        if not set(ABOUT) <= set(names):
            return pa.table({column: pa.array([], pa.string()) for column in ABOUT})
        return LanceFileReader(path, storage_options=options, columns=ABOUT).read_all().to_table()

    try:
        return patiently(dataset_uri, read)
    except (OSError, ValueError, RuntimeError) as error:
        if number_of(error) not in (None, errno.ENOENT):
            raise
        return None


def files_of(fragment: Any) -> list[str]:
    """The names of a fragment's data files."""
    return [file.path for file in fragment.data_files()]


def held_by(memory: Memory, dataset_uri: str, names: Iterable[str]) -> bool:
    """Whether any of the data files contains a forgotten row, deleted or not."""
    tables = (rows_in(dataset_uri, name) for name in names)
    return any(rows is not None and pc.any(forgotten_in(memory, rows)).as_py() for rows in tables)


def rewritten(
    dataset: Any, memory: Memory, columns: Iterable[str], concerned: Callable[[Any], bool], after: Callable[[Any], Any]
) -> tuple[list[str], list[tuple[int, None]]]:
    """Rewrite fragments, where no reader sees them: those with a forgotten row, and those that `concerned` selects.

    Parameters
    ----------
    dataset : lance.LanceDataset
    memory : Memory
    columns : iterable of str
        The columns that `concerned` reads.
    concerned : callable
        Takes the rows of a fragment, and returns whether other rows of it change, too.
    after : callable
        Takes the rows of a fragment, with all columns, and returns the rows that stay, with their new values.

    Returns
    -------
    (list of str, list of (int, None))
        New and dropped fragments, for `pipelines.lake.fragments.commit`.
    """
    new: list[str] = []
    dropped: list[tuple[int, None]] = []
    for fragment in dataset.get_fragments():
        selected = fragment.to_table(columns=list(columns))
        if held_by(memory, dataset.uri, files_of(fragment)) or concerned(selected):
            rows = after(fragment.to_table())
            if len(rows):
                new += fragments.write(dataset.uri, rows.cast(dataset.schema))
            dropped.append((fragment.fragment_id, None))
    return new, dropped


def cleaned(lake: Lake, name: str, memory: Memory, *, moment: float, versions: bool) -> None:
    """Remove the files with forgotten rows that the newest version of a dataset does not name, and its old versions.

    Parameters
    ----------
    lake, name : Lake, str
        The dataset.
    memory : Memory
    moment : float
        When the memory was written, in seconds of the epoch. A file that cannot be read is removed if it is older: its
        run began earlier, and the run's results cannot be committed any more.
    versions : bool
        Whether to remove old versions in any case; else only if such a file has forgotten rows.

    Raises
    ------
    InputError
        If somebody has tagged a version, since Lance keeps tagged versions.
    """
    dataset = fragments.of_lake(lake, name)
    with storage_errors(lake.path(name)):
        old = _unnamed(lake, name, dataset)
        if dataset is not None and (versions or held_by(memory, dataset.uri, old)):
            tags = sorted(patiently(dataset.uri, dataset.tags.list))
            if tags:
                raise InputError(
                    f"{dataset.uri} has versions with tags ({', '.join(tags)}), which keep what is to be forgotten: "
                    "delete the tags, and run the same command again"
                )
            fragments.changed(dataset, lambda one: one.cleanup_old_versions(older_than=timedelta(0)))
            old = _unnamed(lake, name, dataset)
        for file, changed in old.items():
            rows = rows_in(lake.path(name), file)
            if changed < moment if rows is None else pc.any(forgotten_in(memory, rows)).as_py():
                lake.store.delete(f"{name}/data/{file}")
        if dataset is not None:
            uuids = {part.uuid for index in patiently(dataset.uri, dataset.describe_indices) for part in index.segments}
            _remove_indices(lake, f"{name}/_indices", {str(uuid) for uuid in uuids}, moment)


def _unnamed(lake: Lake, name: str, dataset: Any) -> dict[str, float]:
    """Data files that the newest version does not name → when they were written, in seconds of the epoch."""
    named = set() if dataset is None else {file for part in dataset.get_fragments() for file in files_of(part)}
    entries = ((info.name.rpartition("/")[2], info) for info in lake.store.below(f"{name}/data", recursive=False))
    return {base: info.changed_ns / 1e9 for base, info in entries if base not in named and not info.is_folder}


def _remove_indices(lake: Lake, folder: str, named: set[str], moment: float) -> None:
    """Remove indices that the newest version does not name, since they contain vectors."""
    written: dict[str, float] = {}
    for info in lake.store.below(folder):
        base = info.name.removeprefix(f"{folder}/").partition("/")[0]
        written[base] = max(written.get(base, 0.0), info.changed_ns / 1e9)
    for uuid, changed in written.items():
        if uuid not in named and changed < moment:
            lake.store.remove(f"{folder}/{uuid}")
