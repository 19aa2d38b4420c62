"""Lance datasets that many workers write and one commit changes: the ledger, and the tables.

Workers write new fragments, and old fragments without the removed rows, where no reader sees them. One commit by the
driver makes all of it visible. It goes through only if the rows are still those of the version that the run was planned
from. Lance itself would rebase concurrent appends and so duplicate rows; docs/storage.md explains how soundlake
prevents this.
"""

import contextlib
import errno
import functools
import json
import re
import uuid
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import pyarrow as pa

from soundlake.model.errors import InputError, number_of, storage_errors
from soundlake.model.paths import no_links
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.storage.bucket import lance_options
from soundlake.pipelines.storage.patience import patiently

Result = TypeVar("Result")

# The form of the names that Lance gives to its files.
_FILE = re.compile(r"[0-9A-Za-z_-]+\.lance")


def is_there(lake: Lake, name: str) -> bool:
    """Whether a dataset has a version. Its folders alone may be leftovers of a killed first commit."""
    return any(base_name.endswith(".manifest") for base_name in lake.names(f"{name}/_versions"))


def opened(uri: str, version: int | None = None) -> Any:
    """Open a dataset at a version, or at the newest."""
    import lance

    return patiently(uri, lambda: lance.dataset(uri, version=version, storage_options=lance_options(uri)))


def of_lake(lake: Lake, name: str, version: int | None = None) -> Any:
    """Open a dataset of the lake, at a version or at the newest; None if it has no version.

    Raises
    ------
    InputError
        If the dataset is damaged, or refers to data outside its folder: Lance reads from any place that a version
        names.
    """
    if not is_there(lake, name):
        return None
    if lake.is_local:
        no_links(lake.path(name))
    dataset = opened(lake.path(name), version)
    if not dataset.schema.names:
        # A power cut may leave a manifest of zeros. Lance reads it as a dataset without columns.
        raise InputError(
            f"{dataset.uri} is damaged (its newest version has no columns): check the disk, then restore its folder "
            "from a backup"
        )
    bases = [base.path for base in dataset.base_paths().values()]
    if bases:
        raise InputError(
            f"{dataset.uri} refers to data outside the lake ({bases[0][:200]}), which soundlake never "
            "writes: restore it from a backup"
        )
    return dataset


def checked(text: str) -> Any:
    """Parse a fragment for `commit`, and check that its files lie in the dataset's own folder, under Lance's names.

    Raises
    ------
    InputError
        If a file lies elsewhere, or if the text is no fragment.
    """
    from lance.fragment import FragmentMetadata

    try:
        files = json.loads(text)["files"]
        if all(_FILE.fullmatch(file["path"]) and file.get("base_id") is None for file in files):
            return FragmentMetadata.from_json(text)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{text[:200]!r} is not a fragment of a Lance dataset: {error}") from error
    raise InputError(f"a fragment names a file that is not in its dataset's folder: {text[:200]!r}")


def of(uri: str, version: int, fragment: int) -> Any:
    """Open one fragment of a dataset at a pinned version, as workers do."""
    return opened(uri, version).get_fragment(fragment)


def created(uri: str, schema: pa.Schema) -> Any:
    """Create a dataset without rows, or open the existing one."""
    import lance

    def create() -> Any:
        try:
            return lance.write_dataset(schema.empty_table(), uri, schema=schema, storage_options=lance_options(uri))
        except OSError as error:
            # Another process created it, or an earlier try whose answer was lost.
            if "already exists" in str(error):
                return opened(uri)
            raise

    with storage_errors(uri):
        return patiently(uri, create)


def changed(dataset: Any, change: Callable[[Any], Result]) -> Result:
    """Make a change that may be repeated, such as building an index, at the newest version of a dataset.

    Parameters
    ----------
    dataset : lance.LanceDataset
        At its newest version afterwards.
    change : callable
        Takes the dataset. It may be called again, and must check each time which work is left.

    Returns
    -------
    object
        The result of `change`.
    """

    def again() -> Result:
        dataset.checkout_latest()
        result = change(dataset)
        dataset.checkout_latest()
        return result

    with storage_errors(dataset.uri):
        return patiently(dataset.uri, again)


def numbers(dataset: Any) -> list[int]:
    """The ids of a dataset's fragments; none where there is no dataset yet."""
    return [] if dataset is None else [fragment.fragment_id for fragment in dataset.get_fragments()]


def version_of(dataset: Any) -> int:
    """The version of a dataset; 0 where there is none yet."""
    return 0 if dataset is None else int(dataset.version)


def write(uri: str, rows: pa.Table) -> list[str]:
    """Write rows where no reader sees them; return the new fragments as JSON for `commit`."""
    import lance

    def put() -> Any:
        options = lance_options(uri)
        return lance.fragment.write_fragments(rows, uri, schema=rows.schema, mode="append", storage_options=options)

    with storage_errors(uri):
        written = patiently(uri, put)
    return [json.dumps(fragment.to_json()) for fragment in written]


def in_list(column: str, values: Iterable[str]) -> str:
    """An SQL filter for rows whose `column` has one of the values, which may contain any characters."""
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({quoted})"


def drop(element: tuple[int, Iterable[str]], uri: str, version: int, column: str) -> tuple[int, str | None]:
    """Delete rows of a fragment, where no reader sees it.

    Parameters
    ----------
    element : (int, iterable of str)
        The id of the fragment, and the values of `column` whose rows are deleted.
    uri, version, column : str, int, str
        The dataset and version that the run was planned from, and the column to match.

    Returns
    -------
    (int, str or None)
        The id of the fragment, and the remaining fragment as JSON for `commit`; None if no row remains.
    """
    number, values = element
    with storage_errors(uri):
        kept = patiently(uri, lambda: of(uri, version, number).delete(in_list(column, sorted(set(values)))))
    return number, None if kept is None else json.dumps(kept.to_json())


def commit(
    uri: str,
    version: int,
    schema: pa.Schema,
    fragments: Iterable[str],
    dropped: Iterable[tuple[int, str | None]],
    *,
    run_id: str | None = None,
) -> int | None:
    """Commit new fragments and deleted rows together, as one new version.

    Of two commits from one version only one goes through, on a disk and in a bucket, with or without locks.

    Parameters
    ----------
    uri, version : str, int
        The dataset that the run was planned from; 0 where there was none.
    schema : pyarrow.Schema
    fragments : iterable of str
        Results of `write`.
    dropped : iterable of (int, str or None)
        Results of `drop`.
    run_id : str or None
        The id of a run that may call this again from the same version, because it does not know that its commit was
        made. The second call then finds the first commit.

    Returns
    -------
    int or None
        The new version; None if another commit has changed rows meanwhile and nothing of this commit was made.

    Raises
    ------
    InputError
        If a fragment has files outside the dataset's folder.
    """
    import lance

    new = [checked(text) for text in fragments]
    gone = {number: None if text is None else checked(text) for number, text in dropped}
    # The name by which this commit is recognised if its answer was lost.
    name = uuid.uuid4() if run_id is None else uuid.uuid5(uuid.NAMESPACE_URL, f"{uri}@{version}#{run_id}")
    transaction = lance.Transaction(version, _operation(uri, version, schema, new, gone), str(name))

    def put() -> int | None:
        try:
            # A first commit is strict only if Lance may not retry it. A later commit is strict because of the fragment
            # that it declares as changed.
            retries, options = 20 if version else 0, lance_options(uri)
            committed = lance.LanceDataset.commit(uri, transaction, storage_options=options, max_retries=retries)
            return int(committed.version)
        except (OSError, ValueError, RuntimeError) as error:
            has_newer, own_version = _since(uri, version, transaction.uuid)
            if own_version is not None:
                return own_version
            if has_newer and is_conflict(error):
                return None
            raise

    with storage_errors(uri):
        return patiently(uri, put)


def _operation(uri: str, version: int, schema: pa.Schema, new: list[Any], gone: dict[int, Any]) -> Any:
    """The Lance operation of a commit. It always changes a fragment that every other commit from this version changes.

    So Lance refuses the second of two such commits.
    """
    import lance

    if not version:
        return lance.LanceOperation.Overwrite(schema, new)
    dataset = opened(uri, version)
    existing = {fragment.fragment_id: fragment for fragment in dataset.get_fragments()}
    if not existing:
        # A merge lists all fragments, and conflicts with every other change of rows.
        return lance.LanceOperation.Merge(new, dataset.lance_schema)
    witness = min(existing)
    if witness not in gone:
        gone = {witness: existing[witness].metadata, **gone}
    return lance.LanceOperation.Update(
        removed_fragment_ids=[number for number, kept in gone.items() if kept is None],
        updated_fragments=[kept for kept in gone.values() if kept is not None],
        new_fragments=new,
    )


def _since(uri: str, version: int, name: str) -> tuple[bool, int | None]:
    """Whether versions after `version` exist, and which of them the transaction of this name made, if any."""
    try:
        newest = opened(uri)
    except (ValueError, FileNotFoundError) as error:
        if number_of(error) not in (None, errno.ENOENT):
            raise
        return False, None
    for number in range(version + 1, int(newest.version) + 1):
        with contextlib.suppress(ValueError):
            transaction = patiently(uri, functools.partial(newest.read_transaction, number))
            if transaction is not None and transaction.uuid == name:
                return True, number
    return int(newest.version) > version, None


def is_conflict(error: Exception) -> bool:
    """Whether an error of a commit means that another commit was faster."""
    text = f"{type(error).__name__}: {error}"
    # A strict first commit looks for version 0, which never existed.
    return any(words in text for words in ("onflict", "already exists", "0.manifest was not found"))
