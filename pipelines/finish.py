"""After a pipeline: what it has left is judged, committed and noted.

By the driver, which waited for it. Or, where nobody waits (a template that a service starts later), by the pipeline's
own last step, on a worker: that is called again if its answer is lost, so all of it may happen twice.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from soundlake.model.errors import InputError, TryLaterError
from soundlake.pipelines import account, plan, random_pairs
from soundlake.pipelines.corpus.files import listing
from soundlake.pipelines.corpus.labels import without_file
from soundlake.pipelines.lake import forgotten, fragments, ledger, table
from soundlake.pipelines.lake.forgotten import Memory
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.ledger import DONE, REJECTED, Row
from soundlake.pipelines.lake.runs import Run
from soundlake.pipelines.lake.stages import stage

# How many missing files an error names.
NAMED = 5


def last_step(run: Run, committed: Callable[[], dict[str, Any] | None], note: Callable[[dict[str, Any]], None]) -> None:
    """What the driver does else, on a worker; it cannot plan again.

    Parameters
    ----------
    run : Run
        Ended here.
    committed : callable
        `extract` or `encode`, of what the pipeline was planned from.
    note : callable
        `note_extract` or `note_encode`.

    Raises
    ------
    TryLaterError
        If another run was faster.
    """
    totals = committed()
    if totals is None:
        raise others(run.lake)
    note(totals)
    run.end("done")


def others(lake: Lake) -> TryLaterError:
    """What to say if other runs were faster, each time."""
    return TryLaterError(
        f"other runs keep changing the lake {lake.root}: run the same command again when they are done"
    )


def extract(
    run: Run,
    spec_id: str,
    corpus: str,
    *,
    version: int,
    partition: str | None,
    allow_empty: bool,
    retried: frozenset[str],
    include_forgotten: bool = False,
    planned: str | None = None,
) -> dict[str, Any] | None:
    """Judge what extract's pipeline has left in the run's folder, and commit it.

    Parameters
    ----------
    run : Run
    spec_id, corpus, partition, allow_empty, retried, include_forgotten
        As for `pipelines.extract.extract`.
    planned : str or None
        `pipelines.lake.forgotten.Memory.mark` that the pipeline was planned with; None if any will do.
    version : int
        Of the ledger that the pipeline was planned from; 0 for none.

    Returns
    -------
    dict or None
        As `pipelines.extract.extract`; None if another run was faster: what that one did is known then, and what this
        one decoded is kept.
    """
    lake = run.lake
    summary = json.loads(lake.read(f"{run.folder}/summary.json"))
    totals = totalled(summary)
    if totals["listed"] != _accounted(totals):
        before = ledger.open_ledger(lake, spec_id, version) if version else None
        missing = _missing(lake, spec_id, corpus, before, summary["fragments"], partition, retried=retried)
        raise RuntimeError(
            f"{totals['listed']} files were listed and {_accounted(totals)} accounted for, nothing was committed; "
            f"missing: {', '.join(missing) or 'none by name'}"
        )
    if not allow_empty:
        _refuse_to_empty(corpus if partition is None else f"{corpus}/{partition}", totals)
    totals["unmatched_labels"] = without_file(summary["unmatched"], corpus)
    new, dropped = summary["fragments"], summary["dropped"]
    made: int | None = version
    digests = summary["forgotten"]
    if not (new or dropped or digests):
        return totals | {"ledger_version": version}
    uri = lake.ledger_uri(spec_id)
    with stage("committing to the ledger"), lake.locked(f"{Lake.spec(spec_id)}/ledger"):
        # What was forgotten meanwhile must not come back. Forget changes the memory first, and then waits for the lock.
        if planned is not None and Memory.of(lake).mark != planned:
            return None
        if digests:
            what = forgotten.without if include_forgotten else forgotten.with_files
            forgotten.change(lake, lambda memory: what(memory, digests))
        if new or dropped:
            made = fragments.commit(uri, version, ledger.SCHEMA, new, dropped, run_id=run.run_id)
    return None if made is None else totals | {"ledger_version": made}


def _accounted(totals: dict[str, Any]) -> int:
    """Files that something has become of."""
    return int(totals["unchanged"] + totals[DONE] + totals[REJECTED] + totals["forgotten"])


def _refuse_to_empty(corpus: str, totals: dict[str, Any]) -> None:
    """A disk that is not mounted looks like this, and must not empty the ledger, and the table after it."""
    if totals["gone"] and not totals["listed"]:
        raise InputError(
            f"the corpus {corpus} is empty, but the ledger has {totals['gone']} files of it: is it mounted? "
            "To remove them from the ledger, add --allow-empty"
        )


def totalled(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Files of a run by what they were and what became of them, and what is odd about its labels."""
    counts = summary["counts"]
    names = ("listed", "unchanged", "new", "changed", "relabelled", "forgotten", "gone", "recordings")
    totals: dict[str, Any] = {name: counts.get(name, 0) for name in names}
    totals |= {name: counts.get(f"rows {name}", 0) for name in (DONE, REJECTED)}
    totals |= {"left_out": counts.get("left out", 0), "labels_without_file": counts.get("labels without a file", 0)}
    totals["label_notes"] = summary["label_notes"]
    totals["tried_again"] = counts.get("tried again", 0)
    totals["short_recordings"] = counts.get("short recordings", 0)
    totals["older_decoder"] = counts.get("older decoder", 0)
    for group, prefix in (("planned_s", "planned_s "), ("cpu_s", "cpu_s "), ("audio_s", "audio_s ")):
        totals[group] = {
            name.removeprefix(prefix): value for name, value in sorted(counts.items()) if name.startswith(prefix)
        }
    totals["planned_windows"] = counts.get("planned windows", 0)
    return totals


def _missing(
    lake: Lake,
    spec_id: str,
    corpus: str,
    before: Any,
    written: Iterable[str],
    partition: str | None,
    *,
    retried: frozenset[str],
) -> list[str]:
    """Some listed files that neither the ledger as it was nor the new rows account for: a runner has lost them."""
    accounted = set(ledger.uris_of(lake, spec_id, written))
    known: dict[str, Row] = {}
    if before is not None:
        known = {row["uri"]: row for row in ledger.read(before, ["uri", *account.KNOWN])}
    missing = []
    memory = Memory.of(lake)
    for found in listing(corpus, partition):
        if found is None or found[0] in accounted:
            continue
        uri, entry = found
        if memory.known(uri, entry.size, entry.mtime_ns):
            continue
        if uri not in known or not plan.is_known(entry.size, entry.mtime_ns, known[uri], retried=retried):
            missing.append(uri)
            if len(missing) == NAMED:
                break
    return missing


def note_extract(run: Run, spec_id: str, totals: dict[str, Any], *, rates: dict[str, float]) -> None:
    """Add to the totals what extract was estimated to take, by `rates`, and took; keep them in the manifest."""
    from soundlake.pipelines import estimate

    totals["rates"] = estimate.rates_of(totals["cpu_s"], totals["audio_s"])
    took = sum(totals["cpu_s"].values())
    totals["estimate"] = estimate.error(estimate.cpu_seconds(totals["planned_s"], rates), took)
    totals |= {"spec_id": spec_id, "run_id": run.run_id}
    # The lake keeps no name that only the label file knows, which `forget` would not look for.
    run.manifest["counts"] = {name: value for name, value in totals.items() if name != "unmatched_labels"}


def encode(run: Run, model_id: str, *, version: int, ledger_version: int) -> dict[str, Any] | None:
    """Commit what encode's pipeline has left in the run's folder.

    Parameters
    ----------
    run : Run
    model_id : str
    version, ledger_version : int
        Of the table and the ledger that the pipeline was planned from.

    Returns
    -------
    dict or None
        As `pipelines.encode.encode`; None if another run was faster, and has done part of this or all of it.
    """
    lake = run.lake
    summary = json.loads(lake.read(f"{run.folder}/summary.json"))
    with stage("committing to the table"), lake.locked(f"tables/{model_id}"):
        dataset = table.need_table(lake, model_id)
        try:
            pieces = [json.loads(lake.read(name)) for name in summary["pieces"]]
        except FileNotFoundError:
            if dataset.version == version:
                raise
            return None  # swept: maintain has made a version without them, and what they tell of is gone
        new = [text for piece in pieces for text in piece["fragments"]]
        # With nothing to commit, all that the table was compared with must still hold.
        made: int | None = version if dataset.version == version else None
        if new or summary["dropped"]:
            made = fragments.commit(dataset.uri, version, dataset.schema, new, summary["dropped"], run_id=run.run_id)
    if made is None:
        return None
    # Of older versions: another run may be on its way from this one, and finds out when it is done.
    for name in lake.names(Lake.staging(model_id)):
        if name.isdecimal() and int(name) < version:
            lake.remove(f"{Lake.staging(model_id)}/{name}")
    totals = {name: sum(piece[name] for piece in pieces) for name in ("encoded", "renamed")}
    totals |= {"stale_recordings": summary["stale"], "row_format": table.ROW_FORMAT}
    totals["rows"] = table.need_table(lake, model_id).count_rows()
    return totals | {"ledger_version": ledger_version, "table_version": made}


def note_encode(run: Run, model_id: str, totals: dict[str, Any], *, whole: bool) -> None:
    """Bring the index up to the table, if the table is the `whole` one; add that to the totals, and keep them."""
    lake = run.lake
    dataset = table.need_table(lake, model_id)
    index = table.said(lake, model_id).get("index")
    if whole:
        with stage("bringing the index up to date"), lake.locked(f"tables/{model_id}"):
            index = fragments.changed(dataset, table.index)
    totals |= {"model_id": model_id, "index": index, "run_id": run.run_id}
    totals["table_version"] = int(table.need_table(lake, model_id).version)
    run.manifest["counts"] = totals
    if whole:
        # What the next call compares with: nothing changed, nothing to do, no pipeline started. And for search, how far
        # apart random windows are.
        scales = random_pairs.scales(table.need_table(lake, model_id))
        table.say(lake, model_id, totals | {table.RANDOM_PAIRS: {str(count): one for count, one in scales.items()}})
