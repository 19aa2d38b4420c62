"""Lance datasets that many workers write and one commit changes: the ledger, and the tables.

Workers write new fragments, and old ones without the rows that leave, where no reader sees them. One commit by the
driver makes all of it visible, if the dataset is still at the version that the run was planned from.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from model.errors import InputError, storage_errors
from model.paths import no_links
from pipelines.lake import Lake

# What Lance calls its files.
_FILE = re.compile(r"[0-9A-Za-z_-]+\.lance")


def is_there(lake: Lake, name: str) -> bool:
    """Whether a dataset has a version: its folders alone may be what a killed first commit left."""
    return any(found.endswith(".manifest") for found in lake.names(f"{name}/_versions"))


def opened(lake: Lake, name: str, version: int | None = None) -> Any:
    """A dataset of the lake, at a version or the newest; None if it has none.

    Raises
    ------
    InputError
        If it has data outside its folder: Lance reads from wherever a version says.
    """
    import lance

    if not is_there(lake, name):
        return None
    if lake.is_local:
        no_links(lake.path(name))
    found = lance.dataset(lake.path(name), version=version)
    bases = [base.path for base in found.base_paths().values()]
    if bases:
        raise InputError(
            f"{found.uri} has rows elsewhere ({bases[0][:200]}): none of a lake's datasets has; restore it"
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
        raise InputError(f"{text[:200]!r} is no fragment of a Lance dataset: {error}") from error
    raise InputError(f"a fragment names a file that is not in its dataset's folder: {text[:200]!r}")


def of(uri: str, version: int, fragment: int) -> Any:
    """One fragment of a dataset at a pinned version: what a worker reads of it."""
    import lance

    return lance.dataset(uri, version=version).get_fragment(fragment)


def numbers(dataset: Any) -> list[int]:
    """The numbers of a dataset's fragments; none where there is no dataset yet."""
    return [] if dataset is None else [fragment.fragment_id for fragment in dataset.get_fragments()]


def version_of(dataset: Any) -> int:
    """The version of a dataset; 0 where there is none yet."""
    return 0 if dataset is None else int(dataset.version)


def write(uri: str, rows: pa.Table) -> list[str]:
    """Write rows where no reader sees them; return the fragments as JSON for `commit`."""
    import lance

    with storage_errors(uri):
        written = lance.fragment.write_fragments(rows, uri, schema=rows.schema, mode="append")
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
        kept = of(uri, version, number).delete(in_list(column, sorted(set(values))))
    return number, None if kept is None else json.dumps(kept.to_json())


def commit(
    uri: str, version: int, schema: pa.Schema, fragments: Iterable[str], dropped: Iterable[tuple[int, str | None]]
) -> int:
    """One commit: rows leave, fragments come in; return the new version.

    Parameters
    ----------
    uri, version : str, int
        The dataset that the run was planned from; 0 where there was none.
    schema : pyarrow.Schema
    fragments : iterable of str
        From `write`.
    dropped : iterable of (int, str or None)
        From `drop`.

    Raises
    ------
    InputError
        If a fragment has files elsewhere.
    """
    import lance

    new = [checked(text) for text in fragments]
    gone = list(dropped)
    operation: Any = lance.LanceOperation.Append(new)
    if not version:
        operation = lance.LanceOperation.Overwrite(schema, new)
    elif gone:
        operation = lance.LanceOperation.Update(
            removed_fragment_ids=[number for number, text in gone if text is None],
            updated_fragments=[checked(text) for _, text in gone if text is not None],
            new_fragments=new,
        )
    with storage_errors(uri):
        return int(lance.LanceDataset.commit(uri, operation, read_version=version or None).version)
