"""The end of encode, after its pipeline: commit its results, record the totals (as in `pipelines.extract.finish`)."""

import json
from typing import Any

from soundlake.pipelines.lake import fragments, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.runs import Run
from soundlake.pipelines.lake.stages import stage
from soundlake.pipelines.query import random_pairs


def encode(run: Run, model_id: str, *, version: int, ledger_version: int) -> dict[str, Any] | None:
    """Commit the results of encode's pipeline in the run's folder.

    Parameters
    ----------
    run : Run
    model_id : str
    version, ledger_version : int
        Versions of the table and the ledger that the pipeline was planned from.

    Returns
    -------
    dict or None
        As `pipelines.encode.pipeline.encode`; None if another run was faster, and has done part of this or all of it.
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
            return None  # swept: maintain has made a version without these pieces, and their rows are gone
        new = [text for piece in pieces for text in piece["fragments"]]
        # Without anything to commit, the result holds only if the table has not changed since it was compared.
        new_version: int | None = version if dataset.version == version else None
        if new or summary["dropped"]:
            new_version = fragments.commit(
                dataset.uri, version, dataset.schema, new, summary["dropped"], run_id=run.run_id
            )
    if new_version is None:
        return None
    # Only pieces for older versions go: another run may still work from this version, and its commit will fail.
    for name in lake.names(Lake.staging(model_id)):
        if name.isdecimal() and int(name) < version:
            lake.remove(f"{Lake.staging(model_id)}/{name}")
    totals = {name: sum(piece[name] for piece in pieces) for name in ("encoded", "renamed")}
    totals |= {"stale_recordings": summary["stale"], "row_format": table.ROW_FORMAT}
    totals["rows"] = table.need_table(lake, model_id).count_rows()
    return totals | {"ledger_version": ledger_version, "table_version": new_version}


def note_encode(run: Run, model_id: str, totals: dict[str, Any], *, whole: bool) -> None:
    """Add the index to the totals, and keep them; after a run over the `whole` ledger, update the index first."""
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
        # The next call compares the lake with these totals: if nothing has changed, it starts no pipeline. Search needs
        # the distances between random windows.
        scales = random_pairs.scales(table.need_table(lake, model_id))
        table.say(lake, model_id, totals | {table.RANDOM_PAIRS: {str(count): scale for count, scale in scales.items()}})
