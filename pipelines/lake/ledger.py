"""The ledger: one row a recording and uri, what became of it and where its windows are.

Workers write its rows, the driver makes one commit (`pipelines.lake.fragments`). Readers pin a version.

A ledger that an earlier version of soundlake made lacks the columns that came later. Readers take a missing column for
one of nulls (`read`); a run that writes rows adds it before it plans (`open_for_writing`).
"""

import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from soundlake.model.errors import InputError, TryLaterError
from soundlake.model.paths import is_id
from soundlake.pipelines.audio.reading import DECODER_VERSION
from soundlake.pipelines.audio.recording import TRANSIENT
from soundlake.pipelines.lake import fragments
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.storage.bucket import lance_options

log = logging.getLogger(__name__)

DONE, REJECTED = "done", "rejected"

# A declared length is told as wrong beyond this: a codec's padding and an MP3's guess are not worth a word.
LENGTH_S, LENGTH_SHARE = 0.2, 0.01

# Lance then refuses a second row of the same key, even from a second writer at the same time.
_KEY = {b"lance-schema:unenforced-primary-key": b"true"}

SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False, metadata=_KEY),
        pa.field("corpus", pa.string()),
        pa.field("recording_id", pa.string()),  # null where the bytes could not be read
        pa.field("size", pa.int64()),  # bytes
        pa.field("mtime_ns", pa.int64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("stage", pa.string()),  # of a rejection, and so are reason and detail
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("container", pa.string()),
        pa.field("codec", pa.string()),
        pa.field("sample_rate", pa.int32()),  # Hz, native
        pa.field("channels", pa.int32()),
        pa.field("claimed_s", pa.float64()),  # seconds by the header
        pa.field("duration_s", pa.float64()),  # seconds decoded
        pa.field("windows", pa.int64()),  # in the shards
        pa.field("silent_windows", pa.int64()),  # pure digital silence, not kept
        pa.field("bundles", pa.list_(pa.string())),
        pa.field("label", pa.string()),
        pa.field("group", pa.string()),
        # Later columns: nullable, and at the end, since that is where they are added to an existing ledger.
        pa.field("decoder", pa.int32()),  # `audio.DECODER_VERSION` that read the file; null for 1
        pa.field("notes", pa.list_(pa.string())),  # keys of `audio.NOTES`; null for none
    ]
)

# An SQL filter for what an older decoder read, for a ledger that has the column.
OLDER = f"(decoder IS NULL OR decoder < {DECODER_VERSION})"

Row = dict[str, Any]
# Beside the columns, on the way to the ledger: the fragment that holds the row that this one replaces.
REPLACES = "replaces"


def row(**values: Any) -> Row:
    """A ledger row; columns not given are null."""
    unknown = values.keys() - set(SCHEMA.names)
    if unknown:
        raise KeyError(f"no such ledger columns: {sorted(unknown)}")
    return {name: values.get(name) for name in SCHEMA.names}


def write_rows(lake: Lake, spec_id: str, rows: Sequence[Row]) -> list[str]:
    """Write rows where no reader sees them; return the fragments as JSON for `pipelines.lake.fragments.commit`."""
    table = pa.Table.from_pylist(sorted(rows, key=lambda r: r["uri"]), schema=SCHEMA)
    return fragments.write(lake.ledger_uri(spec_id), table)


def uris_of(lake: Lake, spec_id: str, written: Iterable[str]) -> Iterator[str]:
    """The uris in fragments from `write_rows` that are not committed."""
    from lance.file import LanceFileReader

    uri = lake.ledger_uri(spec_id)
    for text in written:
        for file in fragments.checked(text).files:
            reader = LanceFileReader(f"{uri}/data/{file.path}", storage_options=lance_options(uri))
            yield from reader.read_all().to_table()["uri"].to_pylist()


def open_ledger(lake: Lake, spec_id: str, version: int | None = None) -> Any:
    """The ledger as a Lance dataset, at a version or the newest; None if nothing was extracted yet."""
    return fragments.of_lake(lake, Lake.ledger(spec_id), version)


def is_older(row: Row) -> bool:
    """Whether an older decoder made a row; `OLDER`, for one row."""
    return (row["decoder"] or 1) < DECODER_VERSION


def open_for_writing(lake: Lake, spec_id: str) -> Any:
    """`open_ledger` for a run that writes rows: columns that the ledger lacks are added, as nulls.

    Lance refuses rows with columns that a dataset does not have, so this comes before a run plans. It changes no row
    and rewrites no file. A commit that was planned before it conflicts with it, and its run plans again.

    Raises
    ------
    TryLaterError
        If another run changes the ledger at the same moment.
    """
    dataset = open_ledger(lake, spec_id)
    if dataset is None or not _lacking(dataset):
        return dataset

    def add(dataset: Any) -> None:
        lacking = _lacking(dataset)
        if lacking:
            dataset.add_columns(pa.schema(lacking))

    with lake.locked(f"{Lake.spec(spec_id)}/ledger"):
        try:
            fragments.changed(dataset, add)
        except (OSError, ValueError, RuntimeError) as error:
            if not fragments.is_conflict(error):
                raise
            # Another run may have added them, or this one in a try whose answer was lost.
            dataset.checkout_latest()
            if _lacking(dataset):
                raise TryLaterError(
                    f"another run changed {dataset.uri} meanwhile: run the same command again"
                ) from error
    return dataset


def _lacking(dataset: Any) -> list[pa.Field]:
    return [field for field in SCHEMA if field.name not in dataset.schema.names]


def read(part: Any, columns: Sequence[str], *, where: str | None = None) -> Iterator[Row]:
    """Rows of a ledger or of one of its fragments; columns that it lacks are null.

    Parameters
    ----------
    part : lance.LanceDataset or lance.LanceFragment
    columns : sequence of str
        The keys of each row, in this order.
    where : str or None
        An SQL filter over columns that every ledger has.
    """
    there = [name for name in columns if name in part.schema.names]
    for batch in part.to_batches(columns=there, filter=where):
        for row in batch.to_pylist():
            yield {name: row.get(name) for name in columns}


def specs(lake: Lake) -> list[str]:
    """Ids of the specs that have a ledger, sorted."""
    return [n for n in lake.names("features") if is_id(n) and fragments.is_there(lake, Lake.ledger(n))]


def only_spec(lake: Lake) -> str:
    """The lake's one spec.

    Raises
    ------
    InputError
        If the lake holds none, or several.
    """
    found = specs(lake)
    if not found:
        raise InputError(f"the lake {lake.root} has no features yet; run: {lake.command('extract AUDIO')}")
    if len(found) > 1:
        raise InputError(f"the lake has features of {len(found)} specs ({', '.join(found)}): choose one with --spec")
    return found[0]


def summary(dataset: Any) -> dict[str, Any]:
    """Totals of a ledger: recordings, uris, hours, windows, rejects by reason with an example of each.

    Parameters
    ----------
    dataset : lance.LanceDataset

    Returns
    -------
    dict
        ``listed`` = ``done`` + ``rejected`` counts uris; ``recordings``, ``hours`` and ``windows`` count content once.
        ``rejects`` by reason and ``notes`` by kind (keys of `pipelines.audio.reading.NOTES`, of files that are done),
        the most frequent first, each with a count and an example. ``older_decoder``: by corpus, how many files an older
        decoder read.
    """
    import pyarrow.compute as pc

    numbers = ["duration_s", "windows", "silent_windows"]
    done = dataset.to_table(columns=["recording_id", *numbers, "bundles"], filter=f"status = '{DONE}'")
    columns = ["uri", "reason", "detail"]
    rejected = dataset.to_table(columns=columns, filter=f"status = '{REJECTED}'").sort_by("uri")
    once = done.group_by("recording_id").aggregate([(name, "max") for name in numbers])
    reasons = {}
    for r in (
        rejected.group_by("reason", use_threads=False)
        .aggregate([("uri", "count"), ("uri", "first"), ("detail", "first")])
        .to_pylist()
    ):
        reasons[r["reason"]] = {"count": r["uri_count"], "example": r["uri_first"], "detail": r["detail_first"]}
    return {
        "listed": len(done) + len(rejected),
        "done": len(done),
        "rejected": len(rejected),
        "recordings": len(once),
        "hours": (pc.sum(once["duration_s_max"]).as_py() or 0.0) / 3600,
        "windows": pc.sum(once["windows_max"]).as_py() or 0,
        "silent_windows": pc.sum(once["silent_windows_max"]).as_py() or 0,
        "shards": pc.count_distinct(pc.list_flatten(done["bundles"])).as_py(),
        "rejects": dict(sorted(reasons.items(), key=lambda item: (-item[1]["count"], item[0]))),
        "notes": _notes(dataset),
        "older_decoder": _older(dataset),
    }


def is_other_length(claimed_s: float | None, duration_s: float) -> bool:
    """Whether a recording's length is not what its header declares."""
    return claimed_s is not None and abs(claimed_s - duration_s) > LENGTH_S + LENGTH_SHARE * duration_s


def _older(dataset: Any) -> dict[str, int]:
    """How many files of each corpus an older decoder read; those that no decoder could read do not count."""
    import pyarrow.compute as pc

    where = f"(reason IS NULL OR NOT {fragments.in_list('reason', sorted(TRANSIENT))})"
    if "decoder" in dataset.schema.names:
        where += f" AND {OLDER}"
    found: dict[str, int] = {}
    for batch in dataset.to_batches(columns=["corpus"], filter=where):
        for one in pc.value_counts(batch.column("corpus")).to_pylist():
            found[one["values"]] = found.get(one["values"], 0) + one["counts"]
    return dict(sorted(found.items(), key=lambda item: str(item[0])))


def _notes(dataset: Any) -> dict[str, Any]:
    """How many files that are done have each note, and the first of them by name."""
    # Rows of a ledger that had no column for notes have lengths to compare all the same.
    differs = f"abs(claimed_s - duration_s) > {LENGTH_S} + {LENGTH_SHARE} * duration_s"
    noted = "notes IS NOT NULL OR " if "notes" in dataset.schema.names else ""
    columns = ["uri", "claimed_s", "duration_s", "notes"]
    found: dict[str, Any] = {}
    for one in read(dataset, columns, where=f"status = '{DONE}' AND ({noted}{differs})"):
        names = set(one.pop("notes") or [])
        if is_other_length(one["claimed_s"], one["duration_s"]):
            names.add("other-length")
        for name in names:
            kind = found.setdefault(name, {"count": 0, "example": one})
            kind["count"] += 1
            kind["example"] = min(kind["example"], one, key=lambda example: example["uri"])
    return dict(sorted(found.items(), key=lambda item: (-item[1]["count"], item[0])))


def partitions(dataset: Any, corpus: str) -> set[str]:
    """Partitions (`pipelines.corpus.files.partitions`) of a corpus that a ledger has files of; None without one."""
    from soundlake.pipelines.corpus.files import partition_of

    found: set[str] = set()
    if dataset is not None:
        where = fragments.in_list("corpus", [corpus])
        for batch in dataset.to_batches(columns=["uri"], filter=where):
            named = (partition_of(uri, corpus) for uri in batch.column("uri").to_pylist())
            found |= {name for name in named if name is not None}
    return found


def one_place(places: Iterable[Sequence[str]]) -> list[str]:
    """The bundles that a recording is read from, sorted, of those that the rows of its files name; empty for none.

    They differ where one of the files was decoded again by itself.
    """
    return min((sorted(bundles) for bundles in places), default=[])


def training_input(dataset: Any) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Bundles and groups of what is done.

    Returns
    -------
    (dict of str to list of str, dict of str to str)
        Bundle → recording_ids that are to be read from it, both sorted: a shard may hold more, of recordings that have
        gone, or have come back in another bundle. And recording_id → group (``""`` where there is none). Where files of
        one recording name different groups these are one group, by the name that sorts first: whatever shares a group
        with one of the files shares it with the recording, and must lie on its side of a split.
    """
    bundles: dict[str, set[str]] = {}
    groups: dict[str, str] = {}
    joins: dict[str, str] = {}

    def joined(group: str) -> str:
        while group in joins:
            group = joins[group]
        return group

    for batch in dataset.to_batches(columns=["recording_id", "bundles", "group"], filter=f"status = '{DONE}'"):
        for recording_id, held_by, named in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            for bundle in held_by:
                bundles.setdefault(bundle, set()).add(recording_id)
            # Many recordings name one group: its text is kept once.
            group = sys.intern(named or "")
            before = groups.setdefault(recording_id, group) or group
            groups[recording_id] = before
            if group:
                first, second = sorted((joined(before), joined(group)))
                if first != second:
                    joins[second] = first
    if joins:
        groups = {recording_id: joined(group) for recording_id, group in groups.items()}
        _tell_large(groups, {*joins, *joins.values()})
    return {bundle: sorted(bundles.pop(bundle)) for bundle in sorted(bundles)}, groups


def _tell_large(groups: Mapping[str, str], linked: set[str]) -> None:
    """Say if most recordings are of one group because copies link what were several: a split of them is lopsided."""
    group, count = Counter(groups.values()).most_common(1)[0]
    if group in linked and 2 * count > len(groups):
        log.warning(
            "files with the same content name different groups, which count as one: %d of %d recordings are in the "
            "group %r now and stay on one side of the split",
            count,
            len(groups),
            group,
        )


def merged(rows: Iterable[Row]) -> Row:
    """One row for a recording from those of its files.

    The first by uri, with the label that all files agree on which have one; None where they do not.
    """
    each = sorted(rows, key=lambda row: row["uri"])
    labels = {row["label"] for row in each if row["label"] is not None}
    return each[0] | {"label": labels.pop() if len(labels) == 1 else None}
