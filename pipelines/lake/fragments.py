"""Lance datasets that many workers write and one commit changes: the ledger, and the tables.

Workers write new fragments, and old ones without the rows that leave, where no reader sees them. One commit by the
driver makes all of it visible, if the rows are still those of the version that the run was planned from. Lance itself
would rebase concurrent appends, duplicating rows: docs/storage.md tells how that is prevented.
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

# What Lance calls its files.
_FILE = re.compile(r"[0-9A-Za-z_-]+\.lance")


def is_there(lake: Lake, name: str) -> bool:
    """Whether a dataset has a version: its folders alone may be what a killed first commit left."""
    return any(found.endswith(".manifest") for found in lake.names(f"{name}/_versions"))


def opened(uri: str, version: int | None = None) -> Any:
    """A dataset at a version, or the newest."""
    import lance

    return patiently(uri, lambda: lance.dataset(uri, version=version, storage_options=lance_options(uri)))


def of_lake(lake: Lake, name: str, version: int | None = None) -> Any:
    """A dataset of the lake, at a version or the newest; None if it has none.

    Raises
    ------
    InputError
        If it has data outside its folder: Lance reads from wherever a version says.
    """
    if not is_there(lake, name):
        return None
    if lake.is_local:
        no_links(lake.path(name))
    found = opened(lake.path(name), version)
    if not found.schema.names:
        # A manifest of zeros, as a power cut may leave, is one for Lance, of a dataset without columns.
        raise InputError(
            f"{found.uri} is damaged (its newest version has no columns): check the disk, then restore its folder from "
            "a backup"
        )
    bases = [base.path for base in found.base_paths().values()]
    if bases:
        raise InputError(
            f"{found.uri} refers to data outside the lake ({bases[0][:200]}), which soundlake never "
            "writes: restore it from a backup"
        )
    return found


def checked(text: str) -> Any:
    """A fragment from its JSON, for `commit`: its files lie in the dataset's own folder, by names that Lance gives.

    Raises
    ------
    InputError
        If they do not, or this is no fragment.
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
    """One fragment of a dataset at a pinned version: what a worker reads of it."""
    return opened(uri, version).get_fragment(fragment)


def created(uri: str, schema: pa.Schema) -> Any:
    """A dataset without rows, made if there is none."""
    import lance

    def create() -> Any:
        try:
            return lance.write_dataset(schema.empty_table(), uri, schema=schema, storage_options=lance_options(uri))
        except OSError as error:
            # By another, or by a try whose answer was lost.
            if "already exists" in str(error):
                return opened(uri)
            raise

    with storage_errors(uri):
        return patiently(uri, create)


def changed(dataset: Any, change: Callable[[Any], Result]) -> Result:
    """What a change of a dataset gives that may be made twice, such as an index; `dataset` is at its newest after it.

    Parameters
    ----------
    dataset : lance.LanceDataset
    change : callable
        Of the dataset; each time it looks again at what there is to do.
    """

    def again() -> Result:
        dataset.checkout_latest()
        found = change(dataset)
        dataset.checkout_latest()
        return found

    with storage_errors(dataset.uri):
        return patiently(dataset.uri, again)


def numbers(dataset: Any) -> list[int]:
    """The numbers of a dataset's fragments; none where there is no dataset yet."""
    return [] if dataset is None else [fragment.fragment_id for fragment in dataset.get_fragments()]


def version_of(dataset: Any) -> int:
    """The version of a dataset; 0 where there is none yet."""
    return 0 if dataset is None else int(dataset.version)


def write(uri: str, rows: pa.Table) -> list[str]:
    """Write rows where no reader sees them; return the fragments as JSON for `commit`."""
    import lance

    def put() -> Any:
        options = lance_options(uri)
        return lance.fragment.write_fragments(rows, uri, schema=rows.schema, mode="append", storage_options=options)

    with storage_errors(uri):
        written = patiently(uri, put)
    return [json.dumps(fragment.to_json()) for fragment in written]


def in_list(column: str, values: Iterable[str]) -> str:
    """An SQL filter for rows whose `column` is one of some texts, whatever is in them."""
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({quoted})"


def drop(element: tuple[int, Iterable[str]], uri: str, version: int, column: str) -> tuple[int, str | None]:
    """Take rows out of a fragment, where no reader sees it.

    Parameters
    ----------
    element : (int, iterable of str)
        The fragment, and the values of `column` whose rows leave.
    uri, version, column : str, int, str
        The dataset that the run was planned from.

    Returns
    -------
    (int, str or None)
        The fragment, and what is left of it as JSON for `commit`; None if no row is.
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
    """One commit: rows leave, fragments come in.

    Of two commits from one version one goes through, on a disk and in a bucket, whatever locks say.

    Parameters
    ----------
    uri, version : str, int
        The dataset that the run was planned from; 0 where there was none.
    schema : pyarrow.Schema
    fragments : iterable of str
        From `write`.
    dropped : iterable of (int, str or None)
        From `drop`.
    run_id : str or None
        Of a run that may call this once more from the same version, not knowing that its commit is there.

    Returns
    -------
    int or None
        The new version; None if another commit has changed rows meanwhile, and nothing of this one is there.

    Raises
    ------
    InputError
        If a fragment has files elsewhere.
    """
    import lance

    new = [checked(text) for text in fragments]
    gone = {number: None if text is None else checked(text) for number, text in dropped}
    # The name by which a commit knows itself again, when its answer was lost.
    name = uuid.uuid4() if run_id is None else uuid.uuid5(uuid.NAMESPACE_URL, f"{uri}@{version}#{run_id}")
    transaction = lance.Transaction(version, _operation(uri, version, schema, new, gone), str(name))

    def put() -> int | None:
        try:
            # A first commit is strict if Lance may not try it again; another one is by what it says it changes.
            retries, options = 20 if version else 0, lance_options(uri)
            done = lance.LanceDataset.commit(uri, transaction, storage_options=options, max_retries=retries)
            return int(done.version)
        except (OSError, ValueError, RuntimeError) as error:
            after, ours = _since(uri, version, transaction.uuid)
            if ours is not None:
                return ours
            if after and is_conflict(error):
                return None
            raise

    with storage_errors(uri):
        return patiently(uri, put)


def _operation(uri: str, version: int, schema: pa.Schema, new: list[Any], gone: dict[int, Any]) -> Any:
    """What Lance is told to change: always something that every other commit from this version changes, too."""
    import lance

    if not version:
        return lance.LanceOperation.Overwrite(schema, new)
    dataset = opened(uri, version)
    there = {fragment.fragment_id: fragment for fragment in dataset.get_fragments()}
    if not there:
        # A merge names all fragments, and goes with no other change of rows.
        return lance.LanceOperation.Merge(new, dataset.lance_schema)
    witness = min(there)
    if witness not in gone:
        gone = {witness: there[witness].metadata, **gone}
    return lance.LanceOperation.Update(
        removed_fragment_ids=[number for number, kept in gone.items() if kept is None],
        updated_fragments=[kept for kept in gone.values() if kept is not None],
        new_fragments=new,
    )


def _since(uri: str, version: int, name: str) -> tuple[bool, int | None]:
    """Whether there are versions after one, and which of them a transaction of this name has made."""
    try:
        newest = opened(uri)
    except (ValueError, FileNotFoundError) as error:
        if number_of(error) not in (None, errno.ENOENT):
            raise
        return False, None
    for number in range(version + 1, int(newest.version) + 1):
        with contextlib.suppress(ValueError):
            found = patiently(uri, functools.partial(newest.read_transaction, number))
            if found is not None and found.uuid == name:
                return True, number
    return int(newest.version) > version, None


def is_conflict(error: Exception) -> bool:
    """Whether an error of a commit says that another commit was faster."""
    said = f"{type(error).__name__}: {error}"
    # A strict first commit asks for the version 0 that there never was.
    return any(words in said for words in ("onflict", "already exists", "0.manifest was not found"))
