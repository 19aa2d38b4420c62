"""Traces of what is forgotten in Lance datasets: rows, deleted ones too, old versions, files that no version names.

A deleted row stays in its data file, and an old version keeps the rows that a newer one dropped. So a fragment that
holds a forgotten row is written anew, old versions go at once, and every other data file is opened and looked at.
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

# Columns that say what a row of a ledger or table is about.
URI, RECORDING_ID = ABOUT = ["uri", "recording_id"]


def forgotten_in(memory: Memory, rows: Any, columns: Iterable[str] = ABOUT) -> Any:
    """Which rows are forgotten, by their uri and recording_id, or by one of them: an array of booleans."""
    found = pa.array([False] * len(rows))
    for name in columns:
        values = [one for one in pc.unique(rows[name]).to_pylist() if one is not None]
        gone = [one for one in values if memory.holds(**{name: one})]
        if gone:
            mask = pc.is_in(rows[name], pa.array(gone, pa.string()))
            found = pc.or_(found, mask.combine_chunks() if isinstance(mask, pa.ChunkedArray) else mask)
    return found


def rows_in(dataset_uri: str, name: str) -> Any:
    """Uri and recording_id of the rows in a data file, deleted ones too; None if it cannot be read."""
    from lance.file import LanceFileReader

    path, options = f"{dataset_uri}/data/{name}", lance_options(dataset_uri)

    def read() -> Any:
        there = LanceFileReader(path, storage_options=options).metadata().schema.names
        # A column that was added later has files of its own.
        if not set(ABOUT) <= set(there):
            return pa.table({column: pa.array([], pa.string()) for column in ABOUT})
        return LanceFileReader(path, storage_options=options, columns=ABOUT).read_all().to_table()

    try:
        return patiently(dataset_uri, read)
    except (OSError, ValueError, RuntimeError) as error:
        if number_of(error) not in (None, errno.ENOENT):
            raise
        return None


def files_of(fragment: Any) -> list[str]:
    """The data files of a fragment, by name."""
    return [file.path for file in fragment.data_files()]


def held_by(memory: Memory, dataset_uri: str, names: Iterable[str]) -> bool:
    """Whether data files hold a forgotten row, deleted or not."""
    found = (rows_in(dataset_uri, name) for name in names)
    return any(rows is not None and pc.any(forgotten_in(memory, rows)).as_py() for rows in found)


def rewritten(
    dataset: Any, memory: Memory, columns: Iterable[str], concerned: Callable[[Any], bool], after: Callable[[Any], Any]
) -> tuple[list[str], list[tuple[int, None]]]:
    """Write fragments anew, where no reader sees them: those that hold a forgotten row, and those that are concerned.

    Parameters
    ----------
    columns : iterable of str
        What `concerned` looks at.
    concerned : callable
        Of the rows of a fragment: whether others of them change, too.
    after : callable
        Of the rows of a fragment, all columns: those that stay, as they are to be.

    Returns
    -------
    (list of str, list of (int, None))
        For `pipelines.lake.fragments.commit`.
    """
    new: list[str] = []
    gone: list[tuple[int, None]] = []
    for fragment in dataset.get_fragments():
        some = fragment.to_table(columns=list(columns))
        if held_by(memory, dataset.uri, files_of(fragment)) or concerned(some):
            rows = after(fragment.to_table())
            if len(rows):
                new += fragments.write(dataset.uri, rows.cast(dataset.schema))
            gone.append((fragment.fragment_id, None))
    return new, gone


def cleaned(lake: Lake, name: str, memory: Memory, *, moment: float, versions: bool) -> None:
    """Remove what no version of a dataset needs and holds forgotten rows, and the versions before this one with it.

    Parameters
    ----------
    lake, name : Lake, str
        The dataset.
    moment : float
        When the memory was written, in seconds of the epoch. A file that cannot be read goes if it is older: its run
        began before, and what it made is not committed any more.
    versions : bool
        Whether old versions go in any case.

    Raises
    ------
    InputError
        If somebody has tagged a version, which Lance keeps for them.
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
            indices = {part.uuid for one in patiently(dataset.uri, dataset.describe_indices) for part in one.segments}
            _remove_indices(lake, f"{name}/_indices", {str(one) for one in indices}, moment)


def _unnamed(lake: Lake, name: str, dataset: Any) -> dict[str, float]:
    """Data files that the newest version does not name, and when they were written."""
    named = set() if dataset is None else {file for one in dataset.get_fragments() for file in files_of(one)}
    found = ((info.name.rpartition("/")[2], info) for info in lake.store.below(f"{name}/data", recursive=False))
    return {base: info.changed_ns / 1e9 for base, info in found if base not in named and not info.is_folder}


def _remove_indices(lake: Lake, folder: str, named: set[str], moment: float) -> None:
    """Remove indices that the newest version does not name: they hold vectors."""
    written: dict[str, float] = {}
    for info in lake.store.below(folder):
        first = info.name.removeprefix(f"{folder}/").partition("/")[0]
        written[first] = max(written.get(first, 0.0), info.changed_ns / 1e9)
    for one, changed in written.items():
        if one not in named and changed < moment:
            lake.store.remove(f"{folder}/{one}")
