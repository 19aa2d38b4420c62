"""The ledger: one row per recording and uri, with its outcome and the place of its windows.

Workers write its rows, and the driver makes one commit (`pipelines.lake.fragments`). Readers pin a version.

A ledger that an earlier version of soundlake made lacks the later columns. Readers treat a missing column as nulls
(`read`). A run that writes rows adds the missing columns before it plans (`open_for_writing`).
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

# A declared length counts as wrong if it is off by more than LENGTH_S seconds plus LENGTH_SHARE of the length. So a
# codec's padding and an MP3's estimate are not reported.
LENGTH_S, LENGTH_SHARE = 0.2, 0.01

# With this Lance refuses a second row of the same key, even from a concurrent writer.
_KEY = {b"lance-schema:unenforced-primary-key": b"true"}

SCHEMA = pa.schema(
    [
        pa.field("uri", pa.string(), nullable=False, metadata=_KEY),
        pa.field("corpus", pa.string()),
        pa.field("recording_id", pa.string()),  # null where the bytes could not be read
        pa.field("size", pa.int64()),  # bytes
        pa.field("mtime_ns", pa.int64()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("stage", pa.string()),  # of a rejection, like reason and detail
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("container", pa.string()),
        pa.field("codec", pa.string()),
        pa.field("sample_rate", pa.int32()),  # Hz, native
        pa.field("channels", pa.int32()),
        pa.field("claimed_s", pa.float64()),  # seconds, by the header
        pa.field("duration_s", pa.float64()),  # seconds decoded
        pa.field("windows", pa.int64()),  # in the shards
        pa.field("silent_windows", pa.int64()),  # pure digital silence, not kept
        pa.field("bundles", pa.list_(pa.string())),
        pa.field("label", pa.string()),
        pa.field("group", pa.string()),
        # Later columns: nullable, and at the end, since an existing ledger gets them there.
        pa.field("decoder", pa.int32()),  # the `audio.DECODER_VERSION` that read the file; null for 1
        pa.field("notes", pa.list_(pa.string())),  # keys of `audio.NOTES`; null for none
    ]
)

# An SQL filter for rows that an older decoder made, for a ledger that has the column.
OLDER = f"(decoder IS NULL OR decoder < {DECODER_VERSION})"

Row = dict[str, Any]
# An additional key of rows on their way to the ledger: the fragment of the row that this row replaces.
REPLACES = "replaces"


def row(**values: Any) -> Row:
    """A ledger row; columns without a value are null."""
    unknown = values.keys() - set(SCHEMA.names)
    if unknown:
        raise KeyError(f"no such ledger columns: {sorted(unknown)}")
    return {name: values.get(name) for name in SCHEMA.names}


def write_rows(lake: Lake, spec_id: str, rows: Sequence[Row]) -> list[str]:
    """Write rows where no reader sees them; return the new fragments as JSON for `pipelines.lake.fragments.commit`."""
    table = pa.Table.from_pylist(sorted(rows, key=lambda r: r["uri"]), schema=SCHEMA)
    return fragments.write(lake.ledger_uri(spec_id), table)


def uris_of(lake: Lake, spec_id: str, written: Iterable[str]) -> Iterator[str]:
    """Yield the uris in uncommitted fragments from `write_rows`."""
    from lance.file import LanceFileReader

    uri = lake.ledger_uri(spec_id)
    for text in written:
        for file in fragments.checked(text).files:
            reader = LanceFileReader(f"{uri}/data/{file.path}", storage_options=lance_options(uri))
            yield from reader.read_all().to_table()["uri"].to_pylist()


def open_ledger(lake: Lake, spec_id: str, version: int | None = None) -> Any:
    """Open the ledger as a Lance dataset, at a version or at the newest; None if nothing was extracted yet."""
    return fragments.of_lake(lake, Lake.ledger(spec_id), version)


def is_older(row: Row) -> bool:
    """Whether an older decoder made a row: the same as `OLDER`, for one row."""
    return (row["decoder"] or 1) < DECODER_VERSION


def open_for_writing(lake: Lake, spec_id: str) -> Any:
    """Open the ledger for a run that writes rows, as `open_ledger` does, and add the columns that it lacks, as nulls.

    Lance refuses rows with columns that a dataset does not have, so this comes before a run plans. It changes no row
    and rewrites no file. A commit that was planned earlier conflicts with it, and its run plans again.

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
            # Another run may have added them, or an earlier try of this run whose answer was lost.
            dataset.checkout_latest()
            if _lacking(dataset):
                raise TryLaterError(
                    f"another run changed {dataset.uri} meanwhile: run the same command again"
                ) from error
    return dataset


def _lacking(dataset: Any) -> list[pa.Field]:
    return [field for field in SCHEMA if field.name not in dataset.schema.names]


def read(part: Any, columns: Sequence[str], *, where: str | None = None) -> Iterator[Row]:
    """Yield rows of a ledger or of one of its fragments; columns that it lacks are null.

    Parameters
    ----------
    part : lance.LanceDataset or lance.LanceFragment
    columns : sequence of str
        The keys of each row, in this order.
    where : str or None
        An SQL filter over columns that every ledger has.
    """
    present = [name for name in columns if name in part.schema.names]
    for batch in part.to_batches(columns=present, filter=where):
        for row in batch.to_pylist():
            yield {name: row.get(name) for name in columns}


def specs(lake: Lake) -> list[str]:
    """Sorted ids of the specs that have a ledger."""
    return [n for n in lake.names("features") if is_id(n) and fragments.is_there(lake, Lake.ledger(n))]


def only_spec(lake: Lake) -> str:
    """The id of the lake's only spec.

    Raises
    ------
    InputError
        If the lake has no spec, or several.
    """
    spec_ids = specs(lake)
    if not spec_ids:
        raise InputError(f"the lake {lake.root} has no features yet; run: {lake.command('extract AUDIO')}")
    if len(spec_ids) > 1:
        raise InputError(
            f"the lake has features of {len(spec_ids)} specs ({', '.join(spec_ids)}): choose one with --spec"
        )
    return spec_ids[0]


def summary(dataset: Any) -> dict[str, Any]:
    """Totals of a ledger: recordings, uris, hours, windows, and rejects by reason with an example of each.

    Parameters
    ----------
    dataset : lance.LanceDataset

    Returns
    -------
    dict
        ``listed`` = ``done`` + ``rejected`` counts uris; ``recordings``, ``hours`` and ``windows`` count content once.
        ``rejects`` by reason and ``notes`` by kind (keys of `pipelines.audio.reading.NOTES`, of files that are done):
        the most frequent first, each with a count and an example. ``older_decoder``: number of files that an older
        decoder read, by corpus.
    """
    import pyarrow.compute as pc

    numbers = ["duration_s", "windows", "silent_windows"]
    done = dataset.to_table(columns=["recording_id", *numbers, "bundles"], filter=f"status = '{DONE}'")
    columns = ["uri", "reason", "detail"]
    rejected = dataset.to_table(columns=columns, filter=f"status = '{REJECTED}'").sort_by("uri")
    unique = done.group_by("recording_id").aggregate([(name, "max") for name in numbers])
    reasons = {}
    for group in (
        rejected.group_by("reason", use_threads=False)
        .aggregate([("uri", "count"), ("uri", "first"), ("detail", "first")])
        .to_pylist()
    ):
        reasons[group["reason"]] = {
            "count": group["uri_count"],
            "example": group["uri_first"],
            "detail": group["detail_first"],
        }
    return {
        "listed": len(done) + len(rejected),
        "done": len(done),
        "rejected": len(rejected),
        "recordings": len(unique),
        "hours": (pc.sum(unique["duration_s_max"]).as_py() or 0.0) / 3600,
        "windows": pc.sum(unique["windows_max"]).as_py() or 0,
        "silent_windows": pc.sum(unique["silent_windows_max"]).as_py() or 0,
        "shards": pc.count_distinct(pc.list_flatten(done["bundles"])).as_py(),
        "rejects": dict(sorted(reasons.items(), key=lambda item: (-item[1]["count"], item[0]))),
        "notes": _notes(dataset),
        "older_decoder": _older(dataset),
    }


def is_other_length(claimed_s: float | None, duration_s: float) -> bool:
    """Whether a recording's length differs from the one in its header."""
    return claimed_s is not None and abs(claimed_s - duration_s) > LENGTH_S + LENGTH_SHARE * duration_s


def _older(dataset: Any) -> dict[str, int]:
    """Number of files that an older decoder read, by corpus; files that could not be read at all do not count."""
    import pyarrow.compute as pc

    where = f"(reason IS NULL OR NOT {fragments.in_list('reason', sorted(TRANSIENT))})"
    if "decoder" in dataset.schema.names:
        where += f" AND {OLDER}"
    counts: dict[str, int] = {}
    for batch in dataset.to_batches(columns=["corpus"], filter=where):
        for entry in pc.value_counts(batch.column("corpus")).to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return dict(sorted(counts.items(), key=lambda item: str(item[0])))


def _notes(dataset: Any) -> dict[str, Any]:
    """Number of finished files with each note, and the first of these files by uri."""
    # A ledger without the column for notes has the two lengths all the same, so they are compared here.
    differs = f"abs(claimed_s - duration_s) > {LENGTH_S} + {LENGTH_SHARE} * duration_s"
    noted = "notes IS NOT NULL OR " if "notes" in dataset.schema.names else ""
    columns = ["uri", "claimed_s", "duration_s", "notes"]
    kinds: dict[str, Any] = {}
    for row in read(dataset, columns, where=f"status = '{DONE}' AND ({noted}{differs})"):
        names = set(row.pop("notes") or [])
        if is_other_length(row["claimed_s"], row["duration_s"]):
            names.add("other-length")
        for name in names:
            kind = kinds.setdefault(name, {"count": 0, "example": row})
            kind["count"] += 1
            kind["example"] = min(kind["example"], row, key=lambda example: example["uri"])
    return dict(sorted(kinds.items(), key=lambda item: (-item[1]["count"], item[0])))


def partitions(dataset: Any, corpus: str) -> set[str]:
    """Partitions (`pipelines.corpus.files.partitions`) of a corpus from which a ledger has files.

    Empty if `dataset` is None, as for a lake without a ledger.
    """
    from soundlake.pipelines.corpus.files import partition_of

    known: set[str] = set()
    if dataset is not None:
        where = fragments.in_list("corpus", [corpus])
        for batch in dataset.to_batches(columns=["uri"], filter=where):
            names = (partition_of(uri, corpus) for uri in batch.column("uri").to_pylist())
            known |= {name for name in names if name is not None}
    return known


def one_place(places: Iterable[Sequence[str]]) -> list[str]:
    """Choose the bundles from which a recording is read: of the sorted lists in its files' rows, the first in order.

    Empty if there are no rows. The lists differ where one of the files was decoded again alone.
    """
    return min((sorted(bundles) for bundles in places), default=[])


def training_input(dataset: Any) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Bundles and groups of the finished recordings.

    Returns
    -------
    (dict of str to list of str, dict of str to str)
        Bundle → recording_ids to read from it, both sorted. A shard may hold further recordings, which were removed or
        have moved to another bundle. And recording_id → group (``""`` where there is none). Where files of one
        recording have different groups, these groups are merged into one, under the name that sorts first: a recording
        that shares a group with one of the files must lie on the same side of a split.
    """
    bundles: dict[str, set[str]] = {}
    groups: dict[str, str] = {}
    joins: dict[str, str] = {}

    def joined(group: str) -> str:
        while group in joins:
            group = joins[group]
        return group

    for batch in dataset.to_batches(columns=["recording_id", "bundles", "group"], filter=f"status = '{DONE}'"):
        for recording_id, bundle_names, own_group in zip(
            *(column.to_pylist() for column in batch.columns), strict=True
        ):
            for bundle in bundle_names:
                bundles.setdefault(bundle, set()).add(recording_id)
            # Many recordings share one group: its name is kept in memory once.
            group = sys.intern(own_group or "")
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
    """Warn if most recordings are in one group because copies merged several groups: their split is lopsided."""
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
    """Merge the rows of a recording's files into one row.

    It is the first row by uri, with the label on which all labelled files agree; the label is None if they disagree.
    """
    ordered = sorted(rows, key=lambda row: row["uri"])
    labels = {row["label"] for row in ordered if row["label"] is not None}
    return ordered[0] | {"label": labels.pop() if len(labels) == 1 else None}
