"""Erasure: remove forgotten recordings and names from shards, ledgers and tables, old versions and leftovers included.

copy the rest of each shard into a new bundle ▶ ledger, one commit ▶ tables, one commit each ▶ remove the old bundles

`pipelines.lake.forgotten.Memory` decides everywhere what to erase, so the next call finishes one that was killed. The
outcomes of a bundle, which list its contents, are removed last.
"""

import logging
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from soundlake.model.features.records import DamagedShardError, read_framed, recording_of, write_framed
from soundlake.model.paths import is_id
from soundlake.pipelines.encode.encoder import read_shard, unreadable
from soundlake.pipelines.extract.bundle import read_outcomes, write_outcomes
from soundlake.pipelines.extract.plan import Segment, bundle_id
from soundlake.pipelines.lake import fragments, ledger, models, table, traces
from soundlake.pipelines.lake.forgotten import Memory
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.ledger import Row
from soundlake.pipelines.lake.lookup import spec_of_lake
from soundlake.pipelines.lake.runs import others
from soundlake.pipelines.upkeep.tidying import INDEX, without_index

log = logging.getLogger(__name__)

# Commits that are tried, since other runs may commit in between.
ATTEMPTS = 5


@dataclass
class Cleared:
    """The changes that `clear_spec` has made to the features of a spec.

    Attributes
    ----------
    spec_id : str
    emptied : dict of str to list of dict
        Bundles that held forgotten recordings, each with its outcomes. Their other recordings are in other bundles now;
        these bundles are removed when no table names them any more.
    renamed : dict of str to list of dict
        Bundles with a recording that loses one name and keeps another, each with its new outcomes.
    before, after : int
        Version of the ledger.
    made : bool
        Whether tables may have to change: a version of the ledger was made, or there is no ledger.
    """

    spec_id: str
    emptied: dict[str, list[Row]] = field(default_factory=dict)
    renamed: dict[str, list[Row]] = field(default_factory=dict)
    before: int = 0
    after: int = 0
    made: bool = True


def is_forgotten(memory: Memory, row: Row) -> bool:
    """Whether a row of outcomes or of a ledger is about a forgotten recording or name."""
    return memory.holds(uri=row["uri"], recording_id=row["recording_id"])


def bundles(
    lake: Lake, spec_id: str, *, without: Collection[str] = (), damaged: list[str] | None = None
) -> Iterator[tuple[str, list[Row]]]:
    """All bundles but some, each with its outcomes or, if those cannot be read, the recordings in its shard.

    For a damaged shard without outcomes these are the recordings before the damage; the bundle is added to `damaged`.
    """
    names: set[str] = set()
    for folder in ("outcomes", "shards"):
        names |= {name.partition(".")[0] for name in lake.names(f"{Lake.spec(spec_id)}/{folder}")}
    wanted = sorted(name for name in names if is_id(name) and name not in without)

    def rows_of(bundle: str) -> list[Row]:
        rows = read_outcomes(lake, spec_id, bundle)
        if rows is not None:
            return rows
        held: dict[str, None] = {}
        try:
            with lake.open(Lake.shard(spec_id, bundle)) as file:
                held |= {recording_of(data): None for data in read_framed(file)}
        except FileNotFoundError:
            return []
        except DamagedShardError:
            if damaged is not None:
                damaged.append(bundle)
        return [{"recording_id": recording_id, "uri": None} for recording_id in held]

    with ThreadPoolExecutor(models.SIDE_BY_SIDE) as pool:
        yield from zip(wanted, pool.map(rows_of, wanted), strict=True)


def kept_names(known: Any, memory: Memory, recordings: set[str]) -> dict[str, list[Row]]:
    """The ledger rows of some recordings that are not forgotten, by recording and in order of uri."""
    kept: dict[str, list[Row]] = {}
    if known is not None and recordings:
        columns = ["uri", "recording_id", "size", "mtime_ns", "label", "group", "bundles"]
        wanted = pa.array(sorted(recordings), pa.string())
        for batch in known.to_batches(columns=columns):
            for row in batch.filter(pc.is_in(batch["recording_id"], wanted)).to_pylist():
                if not is_forgotten(memory, row):
                    kept.setdefault(row["recording_id"], []).append(row)
    return {recording_id: sorted(rows, key=lambda row: row["uri"]) for recording_id, rows in kept.items()}


def clear_spec(lake: Lake, spec_id: str, memory: Memory, *, moment: float, step: bool) -> Cleared:
    """Remove forgotten rows from a ledger and its versions, and copy the rest of the affected shards into new bundles.

    Parameters
    ----------
    moment : float
        As for `pipelines.lake.traces.cleaned`.
    step : bool
        Whether to make a new version in any case, so that a run that was planned before plans again.

    Raises
    ------
    InputError
        If a shard that has to be rewritten is damaged.
    TryLaterError
        If other runs commit to the same ledger again and again.
    """
    damaged: list[str] = []
    scanned = bundles(lake, spec_id, damaged=damaged)
    touched = {bundle: rows for bundle, rows in scanned if any(is_forgotten(memory, r) for r in rows)}
    if damaged:
        log.warning(
            "%d damaged shards without outcomes, such as %s, may hold more of what is forgotten behind the damage; "
            "to rebuild them run: %s, then forget again",
            len(damaged),
            lake.uri(Lake.shard(spec_id, min(damaged))),
            lake.command("extract AUDIO --repair"),
        )
    with lake.locked(f"{Lake.spec(spec_id)}/ledger"):
        for _ in range(ATTEMPTS):
            known = ledger.open_ledger(lake, spec_id)
            cleared = Cleared(spec_id, before=fragments.version_of(known))
            names = kept_names(known, memory, {row["recording_id"] for rows in touched.values() for row in rows})
            for bundle, rows in touched.items():
                if all(row["recording_id"] in names for row in rows if is_forgotten(memory, row)):
                    cleared.renamed[bundle] = [_under_another_name(row, memory, names) for row in rows]
                else:
                    cleared.emptied[bundle] = [_under_another_name(row, memory, names) for row in rows]
            made = True if known is None else _clear_ledger(lake, known, memory, cleared, names, step=step)
            if made is not None:
                break
        else:
            raise others(lake)
        versions = made or bool(cleared.emptied or cleared.renamed)
        traces.cleaned(lake, Lake.ledger(spec_id), memory, moment=moment, versions=versions)
        cleared.after = fragments.version_of(ledger.open_ledger(lake, spec_id))
        cleared.made = known is None or versions or step
    return cleared


def _under_another_name(row: Row, memory: Memory, names: dict[str, list[Row]]) -> Row:
    """The outcome of a segment, with a name that its recording keeps in place of a forgotten one."""
    if not is_forgotten(memory, row) or row["recording_id"] not in names:
        return row
    return row | {name: names[row["recording_id"]][0][name] for name in ("uri", "size", "mtime_ns")}


def _clear_ledger(
    lake: Lake, known: Any, memory: Memory, told: Cleared, names: dict[str, list[Row]], *, step: bool
) -> bool | None:
    """Make one commit; return whether rows have changed, or None if another commit was faster."""
    named: dict[str, set[str]] = {}
    for recording_id, rows in names.items():
        for row in rows:
            for bundle in row["bundles"] or ():
                named.setdefault(bundle, set()).add(recording_id)
    moved = {
        (bundle, recording_id): new
        for bundle in told.emptied
        if bundle in named
        for new in [move(lake, told.spec_id, bundle, named[bundle], told.emptied[bundle])]
        for recording_id in named[bundle]
    }
    old = pa.array(sorted({bundle for bundle, _ in moved}), pa.string())

    def concerned(rows: Any) -> bool:
        return bool(pc.any(pc.is_in(pc.list_flatten(rows["bundles"]), old)).as_py())

    def after(rows: Any) -> Any:
        rows = rows.filter(pc.invert(traces.forgotten_in(memory, rows)))
        place = rows.schema.get_field_index("bundles")
        now = [
            None if row_bundles is None else sorted(moved.get((bundle, recording_id), bundle) for bundle in row_bundles)
            for recording_id, row_bundles in zip(
                rows["recording_id"].to_pylist(), rows["bundles"].to_pylist(), strict=True
            )
        ]
        return rows.set_column(place, rows.schema.field(place), pa.array(now, rows.schema.field(place).type))

    new, gone = traces.rewritten(known, memory, ["bundles"], concerned, after)
    if not (gone or step):
        return False
    made = fragments.commit(known.uri, int(known.version), known.schema, new, gone)
    return None if made is None else bool(gone)


def move(lake: Lake, spec_id: str, bundle: str, recordings: set[str], outcomes: list[Row]) -> str:
    """Copy some recordings of a shard, byte for byte, into a bundle of their own; return its name.

    Raises
    ------
    InputError
        If the shard is missing or damaged.
    """
    spec, name = spec_of_lake(lake, spec_id), Lake.shard(spec_id, bundle)
    kept = [row for row in outcomes if row["recording_id"] in recordings and row.get("windows", 1)]
    if all("first" in row for row in kept):
        segments = [Segment(r["recording_id"], r["first"], None if r["count"] < 0 else r["count"], 0) for r in kept]
    else:  # its outcomes are lost: the name of the old bundle identifies the segments
        segments = [Segment(f"{bundle}/{recording_id}", 0, None, 0) for recording_id in sorted(recordings)]
    new = bundle_id(spec, segments)
    try:
        with lake.open(name) as old, lake.create(Lake.shard(spec_id, new)) as shard:
            for data in read_framed(old):
                if recording_of(data) in recordings:
                    write_framed(shard, data)
    except (DamagedShardError, FileNotFoundError) as error:
        raise unreadable(lake, name, error) from error
    if all("first" in row for row in kept):
        write_outcomes(lake, spec_id, new, kept)
    return new


def clear_table(lake: Lake, model_id: str, cleared: Cleared, memory: Memory, *, moment: float) -> bool:
    """Remove forgotten rows from a table, its index and its versions; set the new places of records that were moved.

    Returns
    -------
    bool
        Whether a row has changed.
    """
    name, dataset = Lake.table(model_id), table.open_table(lake, model_id)
    gone: list[tuple[int, None]] = []
    with lake.locked(f"tables/{model_id}"):
        for _ in range(ATTEMPTS if dataset is not None else 0):
            dataset.checkout_latest()
            totals, version = table.said(lake, model_id), int(dataset.version)
            rows = _Rows(lake, cleared, memory, dataset)
            new, gone = traces.rewritten(dataset, memory, _Rows.COLUMNS, rows.concerned, rows.after)
            indexed = bool(gone) and any(index.name == INDEX for index in dataset.describe_indices())
            if indexed:
                fragments.changed(dataset, without_index)  # the index holds vectors
            if fragments.commit(dataset.uri, version, dataset.schema, new, gone) is not None:
                dataset.checkout_latest()
                if indexed:
                    totals["index"] = fragments.changed(dataset, table.index)
                _say(lake, model_id, totals, version, cleared, dataset)
                break
        else:
            if dataset is not None:
                raise others(lake)
        # All rows that encode has staged there are for an older version of the table.
        lake.remove(Lake.staging(model_id))
        traces.cleaned(lake, name, memory, moment=moment, versions=bool(gone))
    return bool(gone)


def _say(lake: Lake, model_id: str, said: dict[str, Any], version: int, cleared: Cleared, dataset: Any) -> None:
    """Update encode's last totals of a table, so that an encode that had nothing to do still has nothing to do."""
    if said.get("table_version") == version:
        said |= {"table_version": int(dataset.version), "rows": dataset.count_rows()}
        if said.get("ledger_version") == cleared.before:
            said["ledger_version"] = cleared.after
        table.say(lake, model_id, said)


class _Rows:
    """Changes to the rows of a table when names, recordings and bundles go.

    For each window, the row of the first name has the id without a copy (`pipelines.lake.table.row_id`). If that name
    goes, the next one is the first.
    """

    COLUMNS = ("uri", "recording_id", "bundle")

    def __init__(self, lake: Lake, cleared: Cleared, memory: Memory, dataset: Any) -> None:
        self.memory, self.emptied = memory, set(cleared.emptied)
        # Recordings that lose a name, each with the first such name in the table, and those that were moved.
        lost: dict[str, str] = {}
        moved: set[str] = set()
        for batch in dataset.to_batches(columns=list(self.COLUMNS)):
            names = traces.forgotten_in(memory, batch, [traces.URI])
            for row in batch.filter(names).to_pylist():
                recording_id = row["recording_id"]
                lost[recording_id] = min(row["uri"], lost.get(recording_id, row["uri"]))
            moved |= set(batch["recording_id"].filter(self._in_emptied(batch)).to_pylist())
        lost = {recording_id: uri for recording_id, uri in lost.items() if not memory.holds(recording_id=recording_id)}
        known = ledger.open_ledger(lake, cleared.spec_id)
        self.lost, self.names = lost, kept_names(known, memory, moved | lost.keys())
        self.there: set[tuple[str, str]] = set()
        wanted = pa.array(sorted(lost), pa.string())
        for batch in dataset.to_batches(columns=["recording_id", "uri"]) if lost else ():
            matches = batch.filter(pc.is_in(batch["recording_id"], wanted))
            self.there |= set(zip(matches["recording_id"].to_pylist(), matches["uri"].to_pylist(), strict=True))
        spec = spec_of_lake(lake, cleared.spec_id) if moved and known is not None else None
        current = {
            bundle
            for recording_id in moved
            for row in self.names.get(recording_id, ())
            for bundle in row["bundles"] or ()
        }
        # (recording_id, window) → bundle and offset of its record.
        self.places = {
            (record.recording_id, record.window): (bundle, offset)
            for bundle in sorted(current)
            for record, offset in (read_shard(lake, spec, bundle) if spec is not None else ())
            if record.recording_id in moved
        }

    def _in_emptied(self, rows: Any) -> Any:
        return pc.is_in(rows["bundle"], pa.array(sorted(self.emptied), pa.string()))

    def concerned(self, rows: Any) -> bool:
        """Whether rows of a fragment change other than those that are forgotten."""
        lost = pc.is_in(rows["recording_id"], pa.array(sorted(self.lost), pa.string()))
        return bool(pc.any(lost).as_py() or pc.any(self._in_emptied(rows)).as_py())

    def after(self, rows: Any) -> Any:
        """The rows that stay, with their new values."""
        rows = rows.filter(pc.invert(traces.forgotten_in(self.memory, rows, [traces.RECORDING_ID])))
        unnamed = traces.forgotten_in(self.memory, rows, [traces.URI]).to_pylist()
        changing = ("id", "uri", "label", "group", "bundle", "record_offset")
        columns = {name: rows[name].to_pylist() for name in (*changing, "recording_id", "window")}
        stays = []
        for i, (recording_id, window) in enumerate(zip(columns["recording_id"], columns["window"], strict=True)):
            now = self._now(recording_id, columns["uri"][i], unnamed=unnamed[i])
            place = columns["bundle"][i], columns["record_offset"][i]
            if place[0] in self.emptied:
                place = self.places.get((recording_id, window), (None, None))
            stays.append(now is not None and place[0] is not None)
            if stays[-1]:
                columns["bundle"][i], columns["record_offset"][i] = place
                if now:
                    columns["id"][i] = table.row_id(recording_id, window)
                    for name in ("uri", "label", "group"):
                        columns[name][i] = now[name]
        for name in changing:
            field = rows.schema.field(name)
            rows = rows.set_column(rows.schema.get_field_index(name), field, pa.array(columns[name], field.type))
        return rows.filter(pa.array(stays, pa.bool_()))

    def _now(self, recording_id: str, uri: str, *, unnamed: bool) -> Row | None:
        """The first name, if the row gets or has it; an empty dict if it keeps its own name; None if the row goes."""
        if recording_id not in self.lost:
            return {}
        names = self.names.get(recording_id, [])
        in_table = [row for row in names if (recording_id, row["uri"]) in self.there]
        if in_table:
            return None if unnamed else in_table[0] if uri == in_table[0]["uri"] else {}
        # No name that stays has rows: the rows of the first name that goes get the first name that stays.
        return names[0] if names and unnamed and uri == self.lost[recording_id] else None if unnamed else {}


def remove_bundles(lake: Lake, cleared: Cleared) -> None:
    """Remove bundles that held forgotten recordings, shards first; write other outcomes without forgotten names."""
    for bundle, rows in cleared.renamed.items():
        if "first" in rows[0]:
            write_outcomes(lake, cleared.spec_id, bundle, rows)
    for bundle in cleared.emptied:
        _remove(lake, cleared.spec_id, bundle)


def _remove(lake: Lake, spec_id: str, bundle: str) -> None:
    models.uncache(lake, Lake.shard(spec_id, bundle))
    for name in (Lake.shard(spec_id, bundle), Lake.outcome(spec_id, bundle)):
        lake.path(name)
        lake.store.delete(name)


def mark_swept(lake: Lake, spec_id: str, *, again: bool = False) -> str:
    """Remove finished bundles of killed runs that hold forgotten recordings, before an extract would reuse them.

    Parameters
    ----------
    again : bool
        Whether this run has written rows that it could not commit: those that are forgotten are removed, too.

    Returns
    -------
    str
        `pipelines.lake.forgotten.Memory.mark`.
    """
    memory = Memory.of(lake)
    if memory:
        known = ledger.open_ledger(lake, spec_id)
        named: set[str] = set()
        for batch in known.to_batches(columns=["bundles"]) if known is not None else ():
            named |= set(batch["bundles"].flatten().to_pylist())
        for bundle, rows in bundles(lake, spec_id, without=named):
            if any(is_forgotten(memory, row) for row in rows):
                _remove(lake, spec_id, bundle)
        if again:
            traces.cleaned(lake, Lake.ledger(spec_id), memory, moment=0.0, versions=False)
    return memory.mark
