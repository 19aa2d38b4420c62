"""The ledger: one row a recording and uri, what became of it and where its windows are.

Workers write rows as Parquet parts, one writer merges them in one Lance commit. Readers pin a version.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from model.errors import InputError
from pipelines.lake import Lake

DONE, REJECTED, GONE = "done", "rejected", "gone"

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
    ]
)

Row = dict[str, Any]


def row(**values: Any) -> Row:
    """A ledger row; columns not given are null."""
    unknown = values.keys() - set(SCHEMA.names)
    if unknown:
        raise KeyError(f"no such ledger columns: {sorted(unknown)}")
    return {name: values.get(name) for name in SCHEMA.names}


def write_part(lake: Lake, folder: str, rows: Sequence[Row]) -> str:
    """Write rows as one Parquet file named by its content; return its name in the lake."""
    from pyarrow import parquet

    table = pa.Table.from_pylist(sorted(rows, key=lambda r: r["uri"]), schema=SCHEMA)
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    name = f"{folder}/ledger-{hashlib.sha256(sink.getvalue()).hexdigest()[:16]}.parquet"
    lake.write(name, sink.getvalue())
    return name


def read_parts(lake: Lake, parts: Iterable[str]) -> Iterator[pa.RecordBatch]:
    """Rows of Parquet parts, part by part."""
    from pyarrow import parquet

    for part in parts:
        with lake.open(part) as file:
            yield from parquet.ParquetFile(file).iter_batches(batch_size=16_384)


def open_ledger(lake: Lake, spec_id: str, version: int | None = None) -> Any:
    """The ledger as a Lance dataset, at a version or the newest; None if nothing was extracted yet."""
    import lance

    if not lake.exists(f"{Lake.spec(spec_id)}/ledger.lance/_versions"):
        return None
    return lance.dataset(lake.ledger_uri(spec_id), version=version)


def fragment_of(uri: str, version: int, fragment: int) -> Any:
    """One fragment of a Lance dataset at a pinned version: what a worker reads of it."""
    import lance

    return lance.dataset(uri, version=version).get_fragment(fragment)


def commit(lake: Lake, spec_id: str, parts: Sequence[str]) -> int:
    """Merge parts into the ledger in one commit, drop the rows that are gone; return the new version."""
    import lance

    dataset = open_ledger(lake, spec_id)
    if dataset is None:
        empty = pa.Table.from_pylist([], schema=SCHEMA)
        dataset = lance.write_dataset(empty, lake.ledger_uri(spec_id), schema=SCHEMA)
    source = pa.RecordBatchReader.from_batches(SCHEMA, read_parts(lake, parts))
    (dataset.merge_insert("uri").when_matched_update_all().when_not_matched_insert_all().execute(source))
    # Readers take `done` and `rejected` only: a crash between the two commits leaves tombstones, no harm.
    if dataset.count_rows(f"status = '{GONE}'"):
        dataset.delete(f"status = '{GONE}'")
    return int(dataset.version)


def specs(lake: Lake) -> list[str]:
    """Ids of the specs that have a ledger, sorted."""
    return [name for name in lake.names("features") if lake.exists(f"{Lake.spec(name)}/ledger.lance/_versions")]


def only_spec(lake: Lake) -> str:
    """The lake's one spec.

    Raises
    ------
    InputError
        If the lake holds none, or several.
    """
    found = specs(lake)
    if not found:
        raise InputError(f"the lake {lake.root} holds no features yet: soundlake extract AUDIO --lake {lake.root}")
    if len(found) > 1:
        raise InputError(f"the lake holds features of {len(found)} specs ({', '.join(found)}): name one with --spec")
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
    """
    import pyarrow.compute as pc

    columns = [
        "uri",
        "recording_id",
        "status",
        "reason",
        "detail",
        "duration_s",
        "windows",
        "silent_windows",
        "bundles",
    ]
    rows = dataset.to_table(columns=columns, filter=f"status IN ('{DONE}', '{REJECTED}')")
    done = rows.filter(pc.equal(rows["status"], DONE))
    rejected = rows.filter(pc.equal(rows["status"], REJECTED)).sort_by("uri")
    once = done.group_by("recording_id").aggregate([(c, "max") for c in ("duration_s", "windows", "silent_windows")])
    reasons = {}
    for r in (
        rejected.group_by("reason", use_threads=False)
        .aggregate([("uri", "count"), ("uri", "first"), ("detail", "first")])
        .to_pylist()
    ):
        reasons[r["reason"]] = {"count": r["uri_count"], "example": r["uri_first"], "detail": r["detail_first"]}
    return {
        "listed": len(rows),
        "done": len(done),
        "rejected": len(rejected),
        "recordings": len(once),
        "hours": (pc.sum(once["duration_s_max"]).as_py() or 0.0) / 3600,
        "windows": pc.sum(once["windows_max"]).as_py() or 0,
        "silent_windows": pc.sum(once["silent_windows_max"]).as_py() or 0,
        "shards": pc.count_distinct(pc.list_flatten(done["bundles"])).as_py(),
        "rejects": dict(sorted(reasons.items(), key=lambda item: (-item[1]["count"], item[0]))),
    }


def training_input(dataset: Any) -> tuple[list[str], Mapping[str, str]]:
    """Bundles and groups of what is done.

    Returns
    -------
    (list of str, mapping of str to str)
        Sorted bundle ids, and recording_id → group (``""`` where there is none).
    """
    bundles: set[str] = set()
    groups: dict[str, str] = {}
    for batch in dataset.to_batches(columns=["uri", "recording_id", "bundles", "group"], filter=f"status = '{DONE}'"):
        for r in sorted(batch.to_pylist(), key=lambda r: r["uri"]):
            bundles |= set(r["bundles"])
            # Copies of one recording may name different groups: the smallest, whatever the order of the rows.
            group = r["group"] or ""
            groups[r["recording_id"]] = min(groups.get(r["recording_id"], group), group)
    return sorted(bundles), groups
