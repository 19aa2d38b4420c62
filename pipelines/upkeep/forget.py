"""Forget: recordings and names leave everything that the lake keeps, and the next extract leaves them out.

look ▶ remember ▶ models' lists and reports ▶ texts of runs ▶ shards, ledgers and tables (`pipelines.upkeep.erasure`)

The memory is written first: whatever happens then, no extract brings anything back, and the same call goes on.
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
    """What is to be forgotten, and what the lake knows of it.

    Attributes
    ----------
    uris, recordings : set of str
        As they were named.
    contents : dict of str to set of str
        Uris that the lake knows, each with the recordings that it holds or held.
    called : dict of str to set of str
        Recordings, each with every uri that it has or had.
    rows : dict of str to list of dict
        Recordings, each with its rows in the ledgers of now.
    specs : set of str
        Where any of it is.
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
    found = [line for line in lines if line.strip()]
    if not found:
        raise InputError(f"{path} names nothing: write one uri or recording_id a line")
    return found


def forget(
    lake: Lake, uris: Sequence[str] = (), *, recordings: Sequence[str] = (), listed: Sequence[str] = ()
) -> dict[str, Any]:
    """Remove recordings and names from a lake, and remember by keyed digests to leave them out.

    A uri that is forgotten is left out whatever the file holds later; a recording, whatever it is called. The content
    of a uri goes with it, unless the ledger knows another name of it.

    Parameters
    ----------
    uris, recordings : sequence of str
        What users name: paths or uris, and recording_ids.
    listed : sequence of str
        Both, from a list, which may name what the lake does not know.

    Returns
    -------
    dict
        ``recordings`` and ``names`` that were forgotten now, ``already`` forgotten before, ``unknown`` (of the list),
        ``models`` (`pipelines.upkeep.remnants.clear_models`), ``tables`` with rows that went or changed, ``run_id``.

    Raises
    ------
    InputError
        If the lake does not know something that was named, or anything of the list: nothing is forgotten then. If there
        is a link in the lake, or a shard that has to be written anew is damaged.
    TryLaterError
        If other runs change the lake again and again, or storage fails: the same call goes on.
    """
    lake.check()
    if lake.is_local:
        # What is below is deleted: nothing from outside may seem to be.
        for folder in leftovers.FOLDERS:
            no_links(lake.path(folder))
    ids = {name for name in listed if _RECORDING.fullmatch(name)} | set(recordings)
    named = {uri_of(name): name for name in (*uris, *(name for name in listed if name not in ids))}
    if not (named or ids):
        raise InputError("nothing to forget: give a file, --recording ID, or --file LIST")
    # One at a time: the next waits, and looks at what this one has left.
    with lake.locked("runs/forget"):
        asked = _look(lake, Asked(set(named), ids))
        before = Memory.of(lake)
        already = {one for one in named if before.holds(uri=one)} | {
            one for one in ids if before.holds(recording_id=one)
        }
        unknown = (named.keys() - asked.contents.keys() | ids - asked.called.keys()) - already
        by_itself = {one for one in unknown if named.get(one, one) in (*uris, *recordings)}
        if by_itself or unknown == named.keys() | ids:
            raise _not_known(lake, by_itself or unknown, ids)
        asked = replace(asked, uris=asked.uris - unknown, recordings=ids - unknown)
        goes = asked.recordings | _left_without_a_name(before, asked)
        memory = forgotten.change(lake, lambda now: _with(now, asked, goes))
        moment = time.time()
        told: dict[str, Any] = {
            "recordings": sum(not before.holds(recording_id=one) for one in goes),
            "names": sum(not before.is_former(one) for one in asked.uris.union(*map(asked.names_of, goes))),
            "already": len(already),
            "unknown": sorted(named.get(one, one) for one in unknown),
        }
        with run_manifest(lake, "forget", {"uris": len(asked.uris), "recordings": len(asked.recordings)}) as run:
            told |= _erase(lake, memory, asked, goes, moment)
            told["run_id"] = run.run_id
            # What the lake does not know has nothing to seek in it either.
            run.manifest["counts"] = told | {"unknown": len(unknown)}
    return told


def _not_known(lake: Lake, unknown: set[str], recordings: set[str]) -> InputError:
    first = min(unknown)
    more = f" (nor {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    what = "recording" if first in recordings else "file"
    return InputError(f"the lake {lake.root} knows no {what} {first}{more}; nothing was forgotten")


def _with(memory: Memory, asked: Asked, goes: set[str]) -> Memory:
    rows = [row for one in goes for row in asked.rows.get(one, ())]
    return replace(
        memory,
        names=memory.names | {memory.name(uri) for uri in asked.uris},
        recordings=memory.recordings | {memory.recording(one) for one in goes},
        files=memory.files | {memory.file(row["uri"], row["size"], row["mtime_ns"]) for row in rows},
        former=memory.former | {memory.name(uri) for one in goes for uri in asked.names_of(one)},
    )


def _left_without_a_name(memory: Memory, asked: Asked) -> set[str]:
    """Recordings that some of the uris hold or held, and that no ledger knows under a name that stays."""
    contents = set().union(*(asked.contents.get(uri, ()) for uri in asked.uris))
    return {
        one
        for one in contents
        if all(row["uri"] in asked.uris or memory.holds(uri=row["uri"]) for row in asked.rows.get(one, ()))
    }


def _sources(lake: Lake) -> Iterator[tuple[str, Any]]:
    """(spec_id, uris and recording_ids) of all that the lake keeps rows about, deleted and superseded ones, too."""
    for spec_id in filter(is_id, lake.names("features")):
        for rows in _rows_of(lake, Lake.ledger(spec_id)):
            yield spec_id, rows
        for _, outcomes in erasure.bundles(lake, spec_id):
            yield spec_id, pa.table({n: pa.array([row[n] for row in outcomes], pa.string()) for n in traces.ABOUT})
    for model_id in remnants.tables(lake):
        of_model = remnants.spec_of(lake, model_id) or ""
        for rows in _rows_of(lake, Lake.table(model_id)):
            yield of_model, rows


def _rows_of(lake: Lake, name: str) -> Iterator[Any]:
    for info in lake.store.below(f"{name}/data", recursive=False):
        rows = None if info.is_folder else traces.rows_in(lake.path(name), info.name.rpartition("/")[2])
        if rows is not None:
            yield rows.select(traces.ABOUT).group_by(traces.ABOUT).aggregate([])


def _look(lake: Lake, asked: Asked) -> Asked:
    """The same with what the lake knows of it."""
    _look_for(lake, asked, asked.recordings)
    held = set().union(*asked.contents.values())
    if held - asked.recordings:
        # Their other names.
        _look_for(lake, asked, asked.recordings | held)
    wanted = pa.array(sorted(asked.called), pa.string())
    columns = [*traces.ABOUT, "size", "mtime_ns"]
    for spec_id in ledger.specs(lake):
        for batch in ledger.open_ledger(lake, spec_id).to_batches(columns=columns):
            for row in batch.filter(pc.is_in(batch["recording_id"], wanted)).to_pylist():
                asked.rows.setdefault(row["recording_id"], []).append(row)
    return asked


def _look_for(lake: Lake, asked: Asked, recordings: set[str]) -> None:
    uris, ids = (pa.array(sorted(some), pa.string()) for some in (asked.uris, recordings))
    for spec_id, rows in _sources(lake):
        there = pc.or_(pc.is_in(rows["uri"], uris), pc.is_in(rows["recording_id"], ids))
        for row in rows.filter(there).to_pylist():
            uri, recording_id = row["uri"], row["recording_id"]
            asked.specs.add(spec_id)
            if uri is not None:
                asked.contents.setdefault(uri, set()).update({recording_id} - {None})
            if recording_id is not None:
                asked.called.setdefault(recording_id, set()).update({uri} - {None})


def _erase(lake: Lake, memory: Memory, asked: Asked, goes: set[str], moment: float) -> dict[str, Any]:
    """Remove what the memory holds from everything; what it says of models and tables."""
    stays = {row["uri"] for one, rows in asked.rows.items() if one not in goes for row in rows} - asked.uris
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
