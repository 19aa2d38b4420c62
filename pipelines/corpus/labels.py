"""Label files: read the labels of a corpus, and find contradictions and labels without a file.

A label file is CSV or Parquet, with a column ``uri`` and others such as ``label`` and ``group``. Nothing is guessed:
ambiguous files are refused, and oddities are reported.
"""

import contextlib
import csv
import difflib
import io
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple

from soundlake.model.errors import InputError
from soundlake.pipelines.corpus.files import is_file, listing, local_path, read_whole, uri_of
from soundlake.pipelines.storage.secrecy import refuse_secrets
from soundlake.pipelines.storage.store import is_bucket

NAMES = ("labels.csv", "labels.parquet")
COLUMNS = ("label", "group")
# Possible separators of a CSV: spreadsheets write semicolons in many countries, and clipboards write tabs.
SEPARATORS = ",;\t"

# Number of labels without a file, and of groups of labels that look alike, that are reported by name.
NAMED = 5
# Number of files of the corpus whose names are compared with the labels without a file.
COMPARED = 100_000
# Two names in one folder are near if they have this share of letters in common (`difflib.SequenceMatcher.ratio`).
NEAR = 0.8


class Line(NamedTuple):
    """The entry of a label file for one file.

    Attributes
    ----------
    number : int
        The line of a CSV, or the row of a Parquet file; the first is 1.
    values : tuple of str or None
        One value for each requested column, in the order of the request.
    """

    number: int
    values: tuple[str | None, ...]


@dataclass
class LabelFile:
    """The content of a label file.

    Attributes
    ----------
    lines : dict of str to Line
        By uri, in the form of `pipelines.corpus.files.listing`.
    notes : list of str
        Messages about oddities of the file that did not prevent reading it.
    """

    lines: dict[str, Line] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_labels(root: str, labels: str | None) -> str | None:
    """The label file of a corpus: `labels`, else ``labels.csv`` or ``labels.parquet`` in its folder, else None.

    Raises
    ------
    InputError
        If the file `labels` does not exist, if a URI contains a password, or if `labels` is None and both files lie in
        the folder.
    """
    if labels is not None:
        refuse_secrets(labels)
        if not is_file(labels):
            raise InputError(f"cannot read {labels}: there is no such file")
        return labels
    existing = [f"{root}/{name}" for name in NAMES if is_file(f"{root}/{name}")]
    if len(existing) > 1:
        raise InputError(f"the corpus {root} has two label files, {' and '.join(NAMES)}: choose one with --labels")
    return existing[0] if existing else None


def read_labels(labels: str, root: str, *, columns: Sequence[str] = COLUMNS) -> LabelFile:
    """Read a whole label file.

    Parameters
    ----------
    labels : str
        Path or uri. A file whose name ends in ``.parquet`` is Parquet; any other is CSV in UTF-8.
    root : str
        The corpus; names that are not absolute are relative to it.
    columns : sequence of str
        The columns to read besides ``uri``; at least one of them must exist.

    Raises
    ------
    InputError
        If the file is empty, lacks its column names, is not of the format of its name, or has different values for one
        file.
    """
    data = read_whole(labels)
    is_parquet = labels.endswith(".parquet")
    word = "row" if is_parquet else "line"
    result = LabelFile()
    trimmed: list[int] = []
    conflicts: list[tuple[str, Line, Line]] = []
    for number, uri, texts in _parquet(labels, data, columns) if is_parquet else _csv(labels, data, columns):
        if not uri.strip():
            raise InputError(f"{labels} names no file in {word} {number}: its `uri` is empty")
        values = tuple(sys.intern(text.strip()) or None if text is not None else None for text in texts)
        if any(text is not None and text != (value or "") for text, value in zip(texts, values, strict=True)):
            trimmed.append(number)
        name, line = resolved(uri, root), Line(number, values)
        earlier = result.lines.setdefault(name, line)
        if earlier.values != values:
            conflicts.append((name, earlier, line))
    if conflicts:
        name, first, second = conflicts[0]
        more = f" (and so for {len(conflicts) - 1} more rows)" if len(conflicts) > 1 else ""
        raise InputError(
            f"{labels} says two things about {name}: {_said(columns, first)} in {word} {first.number}, "
            f"{_said(columns, second)} in {word} {second.number}{more}. Keep one of the rows"
        )
    if not result.lines:
        result.notes.append("the label file names its columns, but no file")
    if trimmed:
        result.notes.append(
            f"{len(trimmed)} rows have blanks around a label or group, the first in {word} {trimmed[0]}: "
            "the blanks were removed"
        )
    for place, column in enumerate(columns):
        result.notes += _look_alike(column, (line.values[place] for line in result.lines.values()))
    return result


def read_folds(path: str) -> dict[str, str]:
    """Read uri → fold from a CSV or Parquet file with these columns; uris may be relative to the file's own folder.

    Raises
    ------
    InputError
        As for `read_labels`, and if there is no such file, or if it contains no fold.
    """
    labels = str(find_labels("", path))
    folder = path.rpartition("/")[0] if "://" in path else os.path.dirname(os.path.abspath(path))
    lines = read_labels(labels, folder, columns=("fold",)).lines
    folds = {uri: fold for uri, (_, (fold,)) in lines.items() if fold is not None}
    if not folds:
        raise InputError(f"no folds found in {path}: it needs columns `uri` and `fold`")
    return folds


def resolved(uri: str, root: str) -> str:
    """Convert a uri of a label file, in any spelling, to the form of `pipelines.corpus.files.listing`."""
    is_absolute = uri.startswith(("/", "file://"))
    if not is_absolute and "://" in uri:
        return uri
    if not is_absolute and is_bucket(root):
        return f"{root}/{uri.removeprefix('./')}"
    path = local_path(uri if is_absolute else root) or b""
    whole = path if is_absolute else path + b"/" + os.fsencode(uri)
    # POSIX gives two leading slashes a meaning of their own, so `normpath` keeps them: reduce them to one.
    return uri_of(b"/" + os.path.normpath(whole).lstrip(b"/"))


def _csv(labels: str, data: bytes, columns: Sequence[str]) -> Iterator[tuple[int, str, list[str | None]]]:
    """Yield number, uri and the other values of each row of a CSV file; blank lines are skipped."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {labels}: not a CSV file in UTF-8 ({error})") from error
    if not text.strip():
        raise InputError(
            f"{labels} is empty: name the columns in its first line, such as uri,label,group; or remove it"
        )
    separator, names, reader = next(_headers(text), ("", [], csv.reader([])))
    places = _places(labels, names, columns)
    number = reader.line_num + 1
    try:
        for row in reader:
            if any(value.strip() for value in row[len(names) :]):
                raise InputError(
                    f"{labels} has {len(row)} values in line {number} and {len(names)} columns: put a name or label "
                    f"that holds {separator!r} in double quotes"
                )
            if any(value.strip() for value in row):
                values = [row[place] if place is not None and place < len(row) else None for place in places]
                yield number, values[0] or "", values[1:]
            number = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"cannot read {labels}: line {number} is not valid CSV ({error})") from error


def _headers(text: str) -> Iterator[tuple[str, list[str], Any]]:
    """Yield the separators with which a CSV file has a column `uri`, each with the column names and a reader."""
    for separator in SEPARATORS:
        # newline="" keeps the file's line ends, since a name in quotes may contain one.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        with contextlib.suppress(csv.Error):
            names = [name.strip() for name in next((row for row in reader if any(row)), [])]
            if "uri" in names:
                yield separator, names, reader


def _parquet(labels: str, data: bytes, columns: Sequence[str]) -> Iterator[tuple[int, str, list[str | None]]]:
    """Yield number, uri and the other values of each row of a Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        rows = parquet.read_table(io.BytesIO(data))
        places = _places(labels, rows.column_names, columns)
        for place in places:
            kind = None if place is None else rows.schema.field(place).type
            if kind is not None and (
                pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_nested(kind)
            ):
                raise InputError(f"{labels} has a column of {kind} where text is needed: `{rows.column_names[place]}`")
        cells = [[None] * len(rows) if place is None else rows.column(place).to_pylist() for place in places]
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {labels}: {error}") from error
    for number, (uri, *values) in enumerate(zip(*cells, strict=True), start=1):
        # NaN counts as missing: some libraries write it for missing values.
        yield number, str(uri or ""), [None if value is None or value != value else str(value) for value in values]


def _places(labels: str, names: Sequence[str], columns: Sequence[str]) -> list[int | None]:
    """The positions of the uri and the other columns; None for a missing column.

    The messages do not quote the file's own column names: the path may be a link to any file of this user, and the
    messages are stored.
    """
    if "uri" not in names:
        raise InputError(f"{labels} has no column `uri`: name the columns in its first line, such as uri,label,group")
    if not set(columns) & set(names):
        raise InputError(f"{labels} needs columns `uri` and {' or '.join(f'`{name}`' for name in columns)}")
    for name in ("uri", *columns):
        if list(names).count(name) > 1:
            raise InputError(f"{labels} has two columns `{name}`: remove or rename one")
    return [names.index(name) if name in names else None for name in ("uri", *columns)]


def _said(columns: Sequence[str], line: Line) -> str:
    parts = [f"{name} {value!r}" for name, value in zip(columns, line.values, strict=True) if value is not None]
    return " and ".join(parts) or f"no {' and no '.join(columns)}"


def folded(text: str) -> str:
    """Normalise a text: its Unicode form, its case, blanks around it and the number of blanks within it."""
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())


def _look_alike(column: str, values: Iterable[str | None]) -> list[str]:
    """Messages about values of a column that differ but look the same."""
    known: dict[str, list[str]] = {}
    for value in dict.fromkeys(values):
        if value is not None:
            known.setdefault(folded(value), []).append(value)
    alike = [sorted(spellings) for spellings in known.values() if len(spellings) > 1]
    notes = [
        f"{', '.join(map(repr, spellings))} differ only by case, blanks or Unicode form: "
        f"each is a `{column}` of its own"
        for spellings in sorted(alike)[:NAMED]
    ]
    return notes + ([f"{len(alike) - NAMED} more of `{column}` do so"] if len(alike) > NAMED else [])


def without_file(unmatched: Sequence[Sequence[Any]], root: str) -> list[dict[str, Any]]:
    """Labels without a file, each with a file that may be meant.

    Parameters
    ----------
    unmatched : sequence of (int, str)
        Line numbers of the label file (row numbers of a Parquet file), and uris.
    root : str
        The corpus; its first `COMPARED` files are compared.

    Returns
    -------
    list of dict
        ``line``; ``uri``; ``nearest``, the uri of the nearest file, or None; ``differs``, how the two names differ, in
        words, or None.
    """
    best: list[tuple[int, float, str]] = [(len(_DIFFERENCES), 0.0, "")] * len(unmatched)
    names = [_Name.of(uri, root) for _, uri in unmatched]
    if names:
        for listed in islice((file for file in listing(root) if file is not None), COMPARED):
            name = _Name.of(listed[0], root)
            for place, wanted in enumerate(names):
                rank = _nearness(wanted, name)
                if rank is not None:
                    best[place] = min(best[place], (*rank, listed[0]))
    return [
        {
            "line": number,
            "uri": uri,
            "nearest": nearest or None,
            "differs": _DIFFERENCES[rank] if nearest else None,
        }
        for (number, uri), (rank, _, nearest) in zip(unmatched, best, strict=True)
    ]


# The kinds of difference between a label's name and a file's name, from near to far.
_DIFFERENCES = (
    "in Unicode form",
    "in case",
    "in blanks",
    "in case, blanks, slashes or Unicode form",
    "in its folder",
    "in its ending",
    "in a few letters",
)


class _Name(NamedTuple):
    """A name within a corpus: unchanged, and folded: whole, its folder, its last part, and that part without ending."""

    text: str
    whole: str
    folder: str
    base: str
    stem: str

    @classmethod
    def of(cls, uri: str, root: str) -> "_Name":
        text = uri.removeprefix(f"{root}/")
        parts = ["".join(folded(part).split()) for part in text.replace("\\", "/").split("/")]
        folder = "/".join(parts[:-1])
        return cls(text, "/".join(parts), folder, parts[-1], os.path.splitext(parts[-1])[0])


def _nearness(wanted: _Name, name: _Name) -> tuple[int, float] | None:
    """The index of the difference in `_DIFFERENCES`, and the distance within that kind; None if names are not near."""
    if wanted.whole == name.whole:
        same = (
            unicodedata.normalize("NFC", wanted.text) == unicodedata.normalize("NFC", name.text),
            wanted.text.casefold() == name.text.casefold(),
            "".join(wanted.text.split()) == "".join(name.text.split()),
            True,
        )
        return same.index(True), 0.0
    if wanted.base == name.base:
        return 4, 0.0
    if wanted.folder != name.folder:
        return None
    if wanted.stem == name.stem:
        return 5, 0.0
    matcher = difflib.SequenceMatcher(None, wanted.base, name.base, autojunk=False)
    if matcher.real_quick_ratio() < NEAR or matcher.quick_ratio() < NEAR:
        return None
    ratio = matcher.ratio()
    return (6, -ratio) if ratio >= NEAR else None
