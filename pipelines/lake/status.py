"""Status: the lake at a glance, read without an engine and without TensorFlow."""

from typing import Any

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import PRESETS
from soundlake.model.paths import is_id
from soundlake.model.saved import artifact
from soundlake.pipelines.lake import ledger, models, table
from soundlake.pipelines.lake.forgotten import Memory
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.lookup import spec_of_lake
from soundlake.pipelines.lake.runs import manifests


def status(lake: Lake, *, spec: str | None = None) -> dict[str, Any]:
    """The lake at a glance: its features, models and tables, or only those of one spec."""
    lake.check()
    specs = {}
    for spec_id in ledger.specs(lake) if spec is None else [spec_of_lake(lake, spec).spec_id]:
        dataset = ledger.open_ledger(lake, spec_id)
        preset = next((name for name, spec in PRESETS.items() if spec.spec_id == spec_id), None)
        specs[spec_id] = {"preset": preset, "ledger_version": int(dataset.version), **ledger.summary(dataset)}
        specs[spec_id]["estimate"] = _last_estimate(lake, spec_id)
        # Here too, since the spec of a model that cannot be read is unknown.
        specs[spec_id]["promoted"] = models.promoted(lake, spec_id)
    found_models: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    for model_id in models.known(lake):
        try:
            model = models.told(lake, model_id)
        except InputError as error:
            found_models[model_id] = {"unreadable": str(error)}
            continue
        if spec is not None and model.spec.spec_id not in specs:
            continue
        found_models[model_id] = {
            "spec_id": model.spec.spec_id,
            "promoted": models.promoted(lake, model.spec.spec_id) == model_id,
            "validation": model.metrics["validation"],
            "active_dimensions": model.metrics["active_dimensions"],
            "report": models.report(lake, model) if lake.exists(f"models/{model_id}/{artifact.REPORT}") else None,
            "trained_forgotten": int(model.manifest.get(artifact.STRUCK, 0)),
        }
    for name in lake.names("tables"):
        model_id = name.removesuffix(".lance")
        if name.endswith(".lance") and is_id(model_id):
            dataset = table.open_table(lake, model_id)
            if dataset is None or (spec is not None and model_id not in found_models):
                continue
            last_totals = table.said(lake, model_id)
            tables[model_id] = {"rows": dataset.count_rows(), "table_version": int(dataset.version)}
            tables[model_id]["index"] = last_totals.get("index")
            ledger_version = specs.get(found_models.get(model_id, {}).get("spec_id", ""), {}).get("ledger_version")
            current = {"ledger_version": ledger_version, "row_format": table.ROW_FORMAT}
            fresh = ledger_version is not None and current == {name: last_totals.get(name) for name in current}
            # The spec of a model that cannot be read is unknown.
            tables[model_id]["up_to_date"] = None if "unreadable" in found_models.get(model_id, {}) else fresh
    memory = Memory.of(lake)
    forgotten = {"recordings": len(memory.recordings), "names": len(memory.names)}
    return {"lake": lake.root, "specs": specs, "models": found_models, "tables": tables, "forgotten": forgotten}


def _last_estimate(lake: Lake, spec_id: str) -> dict[str, Any] | None:
    """The error of the newest estimate of extract (`pipelines.extract.cost.error`); None if no manifest has one."""
    for manifest in manifests(lake, "extract"):
        if manifest["settings"].get("spec_id") == spec_id and manifest["counts"].get("estimate"):
            return dict(manifest["counts"]["estimate"])
    return None
