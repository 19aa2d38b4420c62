"""Forget: recordings and names leave everything that the lake keeps, and the next extract leaves them out.

look ▶ remember ▶ models' lists and reports ▶ texts of runs ▶ shards, ledgers and tables (`pipelines.erasure`)

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

from model.errors import InputError
from model.paths import is_id, no_links
from pipelines import corpus, erasure, forgotten, ledger, leftovers, remnants, traces
from pipelines.forgotten import Memory
from pipelines.lake import Lake, run_manifest

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


def uri_of(name: str) -> str:
    """The uri of a file that a user names: a path, a ``file://`` URI, or one in a bucket."""
    if name.startswith("file://"):
        path = corpus.local_path(name)
        assert path is not None
        return corpus.uri_of(os.path.abspath(path))
    return name if "://" in name else corpus.uri_of(os.fsencode(os.path.abspath(os.path.expanduser(name))))


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
        ``models`` that were trained on some of it (`pipelines.remnants.Models`), ``tables`` with rows that went or
        changed, ``run_id``.

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
    by_name = {uri_of(name): name for name in (*uris, *(name for name in listed if name not in ids))}
    asked = Asked(set(by_name), ids)
    if not (asked.uris or asked.recordings):
        raise InputError("nothing to forget: give a file, --recording ID, or --file LIST")
    _look(lake, asked)
    memory = Memory.of(lake)
    already = {uri for uri in asked.uris if memory.holds(uri=uri)}
    already |= {one for one in asked.recordings if memory.holds(recording_id=one)}
    unknown = sorted((asked.uris - asked.contents.keys()) | (asked.recordings - asked.called.keys()))
    unknown = [one for one in unknown if one not in already]
    _refuse(lake, [one for one in unknown if by_name.get(one, one) not in listed], already, asked, unknown)
    known = Asked(asked.uris - set(unknown), asked.recordings - set(unknown), asked.contents, asked.called, asked.rows)
    known.specs = asked.specs
    goes = known.recordings | _left_without_a_name(memory, known)
    memory = forgotten.change(lake, lambda before: _with(before, known, goes))
    moment = time.time()
    told: dict[str, Any] = {
        "recordings": len(goes),
        "names": len(known.uris | set().union(*(asked.called.get(one, ()) for one in goes))),
        "already": sum(one in already for one in known.uris | known.recordings),
        "unknown": [by_name.get(one, one) for one in unknown],
    }
    with run_manifest(lake, "forget", {"uris": len(known.uris), "recordings": len(known.recordings)}) as run:
        # A second call waits here, and finds little to do.
        with lake.locked("runs/forget"):
            told |= _erase(lake, memory, known, goes, moment)
        told["run_id"] = run.run_id
        run.manifest["counts"] = told | {"unknown": len(unknown)}
    return told


def _refuse(lake: Lake, named: list[str], already: set[str], asked: Asked, unknown: list[str]) -> None:
    """Raise `InputError` for what is not known and was named by itself, or if nothing is known."""
    if not named and len(unknown) == len(asked.uris | asked.recordings):
        named = unknown
    if named:
        more = f", and {len(named) - 1} more" if len(named) > 1 else ""
        what = "recording" if named[0] in asked.recordings else "file"
        raise InputError(
            f"the lake {lake.root} knows no {what} {named[0]}{more}: nothing was forgotten; name files as extract does"
        )


def _with(memory: Memory, asked: Asked, goes: set[str]) -> Memory:
    rows = [row for one in goes for row in asked.rows.get(one, ())]
    return replace(
        memory,
        names=memory.names | {memory.name(uri) for uri in asked.uris},
        recordings=memory.recordings | {memory.recording(one) for one in goes},
        files=memory.files | {memory.file(row["uri"], row["size"], row["mtime_ns"]) for row in rows},
        former=memory.former | {memory.name(uri) for one in goes for uri in asked.called.get(one, ())},
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


def _look(lake: Lake, asked: Asked) -> None:
    """Fill in what the lake knows of what is asked."""
    for wanted in (asked.recordings, None):
        uris = pa.array(sorted(asked.uris), pa.string())
        more = set().union(*asked.contents.values()) if wanted is None else set()
        ids = pa.array(sorted(asked.recordings | more), pa.string())
        if wanted is None and not more - asked.recordings:
            break  # the first look has found all
        for spec_id, rows in _sources(lake):
            there = pc.or_(pc.is_in(rows["uri"], uris), pc.is_in(rows["recording_id"], ids))
            for row in rows.filter(there).to_pylist():
                asked.specs.add(spec_id)
                if row["uri"] is not None:
                    asked.contents.setdefault(row["uri"], set()).update({row["recording_id"]} - {None})
                if row["recording_id"] is not None:
                    asked.called.setdefault(row["recording_id"], set()).update({row["uri"]} - {None})
    wanted_ids = pa.array(sorted(asked.called), pa.string())
    columns = [*traces.ABOUT, "size", "mtime_ns"]
    for spec_id in ledger.specs(lake):
        known = ledger.open_ledger(lake, spec_id)
        for batch in known.to_batches(columns=columns):
            for row in batch.filter(pc.is_in(batch["recording_id"], wanted_ids)).to_pylist():
                asked.rows.setdefault(row["recording_id"], []).append(row)


def _erase(lake: Lake, memory: Memory, asked: Asked, goes: set[str], moment: float) -> dict[str, Any]:
    """Remove what the memory holds from everything; what it says of models and tables."""
    stays = {row["uri"] for one, rows in asked.rows.items() if one not in goes for row in rows} - asked.uris
    names = asked.uris | set().union(*(asked.called.get(one, ()) for one in goes)) - stays
    trained = remnants.clear_models(lake, goes, asked.specs, moment=moment)
    remnants.clear_texts(lake, names, goes, memory, moment=moment)
    changed = []
    for spec_id in filter(is_id, lake.names("features")):
        cleared = erasure.clear_spec(lake, spec_id, memory, moment=moment)
        tables = [one for one in remnants.tables(lake) if remnants.spec_of(lake, one) in (spec_id, None)]
        changed += [one for one in tables if erasure.clear_table(lake, one, cleared, memory, moment=moment)]
        erasure.remove_bundles(lake, cleared)
    return {"models": trained, "tables": sorted(set(changed))}
