"""The end of extract, after its pipeline: check the results, commit them, and record the totals.

The driver does this if it has waited for the pipeline. If nobody waits (a template that a service starts later), the
pipeline's own last step does it, on a worker. That step is called again if its answer is lost, so all of it may happen
twice.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from soundlake.model.errors import InputError
from soundlake.pipelines.corpus.files import listing
from soundlake.pipelines.corpus.labels import without_file
from soundlake.pipelines.extract import account, plan
from soundlake.pipelines.extract.cost import cpu_seconds, error, rates_of
from soundlake.pipelines.lake import forgotten, fragments, ledger
from soundlake.pipelines.lake.forgotten import Memory
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.ledger import DONE, REJECTED, Row
from soundlake.pipelines.lake.runs import Run
from soundlake.pipelines.lake.stages import stage

# Missing files that an error names at most.
NAMED = 5


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
    """Check the results of extract's pipeline in the run's folder, and commit them.

    Parameters
    ----------
    run : Run
    spec_id, corpus, partition, allow_empty, retried, include_forgotten
        As for `pipelines.extract.pipeline.extract`.
    planned : str or None
        `pipelines.lake.forgotten.Memory.mark` at the time of the plan; None to accept any.
    version : int
        Version of the ledger that the pipeline was planned from; 0 for none.

    Returns
    -------
    dict or None
        As `pipelines.extract.pipeline.extract`; None if another run was faster. A new plan then takes that run's commit
        into account, and the bundles that this run decoded are kept.
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
    new_version: int | None = version
    digests = summary["forgotten"]
    if not (new or dropped or digests):
        return totals | {"ledger_version": version}
    uri = lake.ledger_uri(spec_id)
    with stage("committing to the ledger"), lake.locked(f"{Lake.spec(spec_id)}/ledger"):
        # Recordings forgotten meanwhile must not come back. Forget changes the memory before it waits for the lock.
        if planned is not None and Memory.of(lake).mark != planned:
            return None
        if digests:
            update = forgotten.without if include_forgotten else forgotten.with_files
            forgotten.change(lake, lambda memory: update(memory, digests))
        if new or dropped:
            new_version = fragments.commit(uri, version, ledger.SCHEMA, new, dropped, run_id=run.run_id)
    return None if new_version is None else totals | {"ledger_version": new_version}


def _accounted(totals: dict[str, Any]) -> int:
    """Number of files that are accounted for."""
    return int(totals["unchanged"] + totals[DONE] + totals[REJECTED] + totals["forgotten"])


def _refuse_to_empty(corpus: str, totals: dict[str, Any]) -> None:
    """Raise `InputError` if all files are gone: an unmounted disk must not empty the ledger, and then the table."""
    if totals["gone"] and not totals["listed"]:
        raise InputError(
            f"the corpus {corpus} is empty, but the ledger has {totals['gone']} files of it: is it mounted? "
            "To remove them from the ledger, add --allow-empty"
        )


def totalled(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Totals of a run: files by state and outcome, costs by container, and notes about its labels."""
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
    """Some listed files that neither the old ledger nor the new rows account for: a runner has lost them."""
    accounted = set(ledger.uris_of(lake, spec_id, written))
    known: dict[str, Row] = {}
    if before is not None:
        known = {row["uri"]: row for row in ledger.read(before, ["uri", *account.KNOWN])}
    missing = []
    memory = Memory.of(lake)
    for item in listing(corpus, partition):
        if item is None or item[0] in accounted:
            continue
        uri, entry = item
        if memory.known(uri, entry.size, entry.mtime_ns):
            continue
        if uri not in known or not plan.is_known(entry.size, entry.mtime_ns, known[uri], retried=retried):
            missing.append(uri)
            if len(missing) == NAMED:
                break
    return missing


def note_extract(run: Run, spec_id: str, totals: dict[str, Any], *, rates: dict[str, float]) -> None:
    """Add the new rates, and the error of the estimate by `rates`, to the totals; keep them in the manifest."""
    totals["rates"] = rates_of(totals["cpu_s"], totals["audio_s"])
    took = sum(totals["cpu_s"].values())
    totals["estimate"] = error(cpu_seconds(totals["planned_s"], rates), took)
    totals |= {"spec_id": spec_id, "run_id": run.run_id}
    # The lake must not keep names that only the label file contains: `forget` would not look for them.
    run.manifest["counts"] = {name: value for name, value in totals.items() if name != "unmatched_labels"}
