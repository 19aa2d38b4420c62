"""Forget: remove recordings and names from everything that the lake keeps, and make later extracts leave them out.

look up ▶ remember ▶ models' lists and reports ▶ texts of runs ▶ shards, ledgers and tables (`pipelines.upkeep.erasure`)

The memory is written first. If a call fails after that, no extract brings anything back, and the same call, made again,
goes on.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from soundlake.model.errors import InputError
from soundlake.model.paths import is_id, no_links
from soundlake.pipelines.corpus import files
from soundlake.pipelines.lake import forgotten, ledger, traces
from soundlake.pipelines.lake.forgotten import Memory
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.runs import run_manifest
from soundlake.pipelines.upkeep import erasure, leftovers, remnants

_RECORDING = re.compile(r"[0-9a-f]{64}")


@dataclass
class Asked:
    """The names and recordings to forget, and the lake's data about them.

    Attributes
    ----------
    uris, recordings : set of str
        As the user named them.
    contents : dict of str to set of str
        Uris that the lake has data about, each with the recordings that it holds or held.
    called : dict of str to set of str
        Recordings, each with every uri that it has or had.
    rows : dict of str to list of dict
        Recordings, each with its rows in the current ledgers.
    specs : set of str
        Specs that have data about any of these.
    """

    uris: set[str]
    recordings: set[str]
    contents: dict[str, set[str]] = field(default_factory=dict)
    called: dict[str, set[str]] = field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    specs: set[str] = field(default_factory=set)

    def names_of(self, recording_id: str) -> set[str]:
        """Every uri that a recording has or had."""
        return self.called.get(recording_id, set())


def uri_of(name: str) -> str:
    """The uri of a file that a user names: a path, a ``file://`` URI, or one in a bucket."""
    if name.startswith("file://"):
        path = files.local_path(name)
        assert path is not None
        return files.uri_of(os.path.abspath(path))
    return name if "://" in name else files.uri_of(os.fsencode(os.path.abspath(os.path.expanduser(name))))


def read_list(path: str) -> list[str]:
    """The lines of a file of names.

    Raises
    ------
    InputError
        If it cannot be read, or holds none.
    """
    try:
        with open(path, "rb") as file:
            lines = [os.fsdecode(line.rstrip(b"\r")) for line in file.read().split(b"\n")]
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    names = [line for line in lines if line.strip()]
    if not names:
        raise InputError(f"{path} names nothing: write one uri or recording_id a line")
    return names


def forget(
    lake: Lake, uris: Sequence[str] = (), *, recordings: Sequence[str] = (), listed: Sequence[str] = ()
) -> dict[str, Any]:
    """Remove recordings and names from a lake, and remember their keyed digests, so that extracts leave them out.

    A forgotten uri is left out whatever its file holds later, and a forgotten recording whatever its name. The content
    of a forgotten uri is forgotten, too, unless the ledger has another name for it.

    Parameters
    ----------
    uris, recordings : sequence of str
        Named by the user: paths or uris, and recording_ids.
    listed : sequence of str
        Both, from a list; names on it may be unknown to the lake.

    Returns
    -------
    dict
        ``recordings`` and ``names`` that were forgotten now, ``already`` forgotten before, ``unknown`` (of the list),
        ``models`` (`pipelines.upkeep.remnants.clear_models`), ``tables`` with changed or removed rows, ``run_id``.

    Raises
    ------
    InputError
        If the lake has no data about a name from the user, or about any name on the list: nothing is forgotten then. If
        there is a link in the lake, or a shard that has to be rewritten is damaged.
    TryLaterError
        If other runs change the lake again and again, or storage fails: the same call, made again, goes on.
    """
    lake.check()
    if lake.is_local:
        # Files in these folders are deleted: no link may make files from outside appear there.
        for folder in leftovers.FOLDERS:
            no_links(lake.path(folder))
    ids = {name for name in listed if _RECORDING.fullmatch(name)} | set(recordings)
    named = {uri_of(name): name for name in (*uris, *(name for name in listed if name not in ids))}
    if not (named or ids):
        raise InputError("nothing to forget: give a file, --recording ID, or --file LIST")
    # One call at a time: the next waits, and looks up the state that this one has left.
    with lake.locked("runs/forget"):
        asked = _look(lake, Asked(set(named), ids))
        before = Memory.of(lake)
        already = {uri for uri in named if before.holds(uri=uri)} | {
            recording_id for recording_id in ids if before.holds(recording_id=recording_id)
        }
        unknown = (named.keys() - asked.contents.keys() | ids - asked.called.keys()) - already
        named_directly = {item for item in unknown if named.get(item, item) in (*uris, *recordings)}
        if named_directly or unknown == named.keys() | ids:
            raise _not_known(lake, named_directly or unknown, ids)
        asked = replace(asked, uris=asked.uris - unknown, recordings=ids - unknown)
        goes = asked.recordings | _left_without_a_name(before, asked)
        memory = forgotten.change(lake, lambda now: _with(now, asked, goes))
        moment = time.time()
        totals: dict[str, Any] = {
            "recordings": sum(not before.holds(recording_id=recording_id) for recording_id in goes),
            "names": sum(not before.is_former(uri) for uri in asked.uris.union(*map(asked.names_of, goes))),
            "already": len(already),
            "unknown": sorted(named.get(item, item) for item in unknown),
        }
        with run_manifest(lake, "forget", {"uris": len(asked.uris), "recordings": len(asked.recordings)}) as run:
            totals |= _erase(lake, memory, asked, goes, moment)
            totals["run_id"] = run.run_id
            # Names that are unknown to the lake must not get into its manifest either.
            run.manifest["counts"] = totals | {"unknown": len(unknown)}
    return totals


def _not_known(lake: Lake, unknown: set[str], recordings: set[str]) -> InputError:
    first = min(unknown)
    more = f" (nor {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    kind = "recording" if first in recordings else "file"
    return InputError(f"the lake {lake.root} knows no {kind} {first}{more}; nothing was forgotten")


def _with(memory: Memory, asked: Asked, goes: set[str]) -> Memory:
    rows = [row for recording_id in goes for row in asked.rows.get(recording_id, ())]
    return replace(
        memory,
        names=memory.names | {memory.name(uri) for uri in asked.uris},
        recordings=memory.recordings | {memory.recording(recording_id) for recording_id in goes},
        files=memory.files | {memory.file(row["uri"], row["size"], row["mtime_ns"]) for row in rows},
        former=memory.former | {memory.name(uri) for recording_id in goes for uri in asked.names_of(recording_id)},
    )


def _left_without_a_name(memory: Memory, asked: Asked) -> set[str]:
    """Recordings that some of the uris hold or held, and for which no ledger has a name that stays."""
    contents = set().union(*(asked.contents.get(uri, ()) for uri in asked.uris))
    return {
        recording_id
        for recording_id in contents
        if all(row["uri"] in asked.uris or memory.holds(uri=row["uri"]) for row in asked.rows.get(recording_id, ()))
    }


def _sources(lake: Lake) -> Iterator[tuple[str, Any]]:
    """(spec_id, uris and recording_ids) of all rows that the lake keeps, deleted and superseded ones, too."""
    for spec_id in filter(is_id, lake.names("features")):
        for rows in _rows_of(lake, Lake.ledger(spec_id)):
            yield spec_id, rows
        for _, outcomes in erasure.bundles(lake, spec_id):
            yield (
                spec_id,
                pa.table({name: pa.array([row[name] for row in outcomes], pa.string()) for name in traces.ABOUT}),
            )
    for model_id in remnants.tables(lake):
        spec_of_model = remnants.spec_of(lake, model_id) or ""
        for rows in _rows_of(lake, Lake.table(model_id)):
            yield spec_of_model, rows


def _rows_of(lake: Lake, name: str) -> Iterator[Any]:
    for info in lake.store.below(f"{name}/data", recursive=False):
        rows = None if info.is_folder else traces.rows_in(lake.path(name), info.name.rpartition("/")[2])
        if rows is not None:
            yield rows.select(traces.ABOUT).group_by(traces.ABOUT).aggregate([])


def _look(lake: Lake, asked: Asked) -> Asked:
    """Add the lake's data about the names and recordings asked for."""
    _look_for(lake, asked, asked.recordings)
    held = set().union(*asked.contents.values())
    if held - asked.recordings:
        # Look up the other names of these recordings.
        _look_for(lake, asked, asked.recordings | held)
    wanted = pa.array(sorted(asked.called), pa.string())
    columns = [*traces.ABOUT, "size", "mtime_ns"]
    for spec_id in ledger.specs(lake):
        for batch in ledger.open_ledger(lake, spec_id).to_batches(columns=columns):
            for row in batch.filter(pc.is_in(batch["recording_id"], wanted)).to_pylist():
                asked.rows.setdefault(row["recording_id"], []).append(row)
    return asked


def _look_for(lake: Lake, asked: Asked, recordings: set[str]) -> None:
    uris, ids = (pa.array(sorted(values), pa.string()) for values in (asked.uris, recordings))
    for spec_id, rows in _sources(lake):
        matching = pc.or_(pc.is_in(rows["uri"], uris), pc.is_in(rows["recording_id"], ids))
        for row in rows.filter(matching).to_pylist():
            uri, recording_id = row["uri"], row["recording_id"]
            asked.specs.add(spec_id)
            if uri is not None:
                asked.contents.setdefault(uri, set()).update({recording_id} - {None})
            if recording_id is not None:
                asked.called.setdefault(recording_id, set()).update({uri} - {None})


def _erase(lake: Lake, memory: Memory, asked: Asked, goes: set[str], moment: float) -> dict[str, Any]:
    """Remove everything in the memory from the lake; return the affected models and tables."""
    stays = {
        row["uri"] for recording_id, rows in asked.rows.items() if recording_id not in goes for row in rows
    } - asked.uris
    names = asked.uris | set().union(*map(asked.names_of, goes)) - stays
    trained = remnants.clear_models(lake, goes, asked.specs, moment=moment)
    remnants.clear_texts(lake, names, goes, memory, moment=moment)
    changed = []
    for spec_id in filter(is_id, lake.names("features")):
        cleared = erasure.clear_spec(lake, spec_id, memory, moment=moment, step=spec_id in asked.specs)
        for model_id in remnants.tables(lake) if cleared.made else ():
            if remnants.spec_of(lake, model_id) in (spec_id, None) and erasure.clear_table(
                lake, model_id, cleared, memory, moment=moment
            ):
                changed.append(model_id)
        erasure.remove_bundles(lake, cleared)
    return {"models": trained, "tables": sorted(set(changed))}
