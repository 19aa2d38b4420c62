"""Lance datasets that many workers write and one commit changes: the ledger, and the tables.

Workers write new fragments, and old ones without the rows that leave, where no reader sees them. One commit by the
driver makes all of it visible, if the dataset is still at the version that the run was planned from.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import pyarrow as pa


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

    written = lance.fragment.write_fragments(rows, uri, schema=rows.schema, mode="append")
    return [json.dumps(fragment.to_json()) for fragment in written]


def in_list(column: str, values: Iterable[str]) -> str:
    """An SQL filter for rows whose `column` is one of some texts, whatever is in them."""
    quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
    return f"{column} IN ({quoted})"


class Drop(beam.DoFn):
    """(fragment, values of a column) → (fragment, the fragment without those rows as JSON; None if none is left).

    Parameters
    ----------
    uri, version : str, int
        The dataset that the run was planned from.
    column : str
    """

    def __init__(self, uri: str, version: int, column: str) -> None:
        self.uri, self.version, self.column = uri, version, column

    def process(self, element: tuple[int, Iterable[str]]) -> Iterator[tuple[int, str | None]]:
        number, values = element
        kept = of(self.uri, self.version, number).delete(in_list(self.column, sorted(set(values))))
        yield number, None if kept is None else json.dumps(kept.to_json())


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
        From `Drop`.
    """
    import lance
    from lance.fragment import FragmentMetadata

    new = [FragmentMetadata.from_json(text) for text in fragments]
    gone = list(dropped)
    operation: Any = lance.LanceOperation.Append(new)
    if not version:
        operation = lance.LanceOperation.Overwrite(schema, new)
    elif gone:
        operation = lance.LanceOperation.Update(
            removed_fragment_ids=[number for number, text in gone if text is None],
            updated_fragments=[FragmentMetadata.from_json(text) for _, text in gone if text is not None],
            new_fragments=new,
        )
    return int(lance.LanceDataset.commit(uri, operation, read_version=version or None).version)
