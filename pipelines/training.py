"""Train: a model of the lake's windows, with its manifest; or nothing, where there is one that will do."""

import contextlib
from pathlib import Path
from typing import Any

from model.errors import InputError
from pipelines import ledger
from pipelines.lake import Lake, run_manifest
from pipelines.lookup import models_dir, spec_of_lake
from pipelines.quiet import quiet


def train(
    lake: Lake,
    *,
    spec: str | None = None,
    settings: dict[str, Any],
    if_missing: bool = False,
    if_grown: float | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Train a model on the lake's features; the first of a spec is promoted.

    Parameters
    ----------
    if_missing : bool
        Do nothing if the spec has a promoted model, whatever it was trained on.
    if_grown : float or None
        Do nothing if the spec has a model, promoted or held, and the lake has fewer than this share more windows than
        the one of them that saw the most.

    Returns
    -------
    dict
        ``model_id``, ``trained`` (False if it was there already), ``promoted``, ``judged`` (whether the gate has ever
        seen it), ``metrics``, ``report``; with `if_grown` also ``windows`` of the lake and ``seen``, of them by that
        model (0 if there was none).
    """
    from pydantic import ValidationError

    folder = models_dir(lake)
    found = spec_of_lake(lake, spec)
    from model import artifact

    there = artifact.promoted(folder, found.spec_id)
    if if_missing and there is not None:
        return _told(artifact.find(folder, there), trained=False, run_id=None)
    dataset = ledger.open_ledger(lake, found.spec_id)
    grown: dict[str, Any] = {}
    if if_grown is not None:
        windows, known = ledger.summary(dataset)["windows"], _trained_most(folder, found.spec_id)
        grown = {"windows": windows, "seen": 0 if known is None else _seen(known)}
        if known is not None and windows < (1 + if_grown) * grown["seen"]:
            return _told(known, trained=False, run_id=None) | grown
    bundles, groups = ledger.training_input(dataset)
    with quiet():
        from model.train import TrainSettings
        from model.train import train as train_model

    try:
        resolved = TrainSettings(**{k: v for k, v in settings.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        place, said = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
        raise InputError(f"{place}: {said}" if place else said) from error
    with run_manifest(lake, "train", {"spec_id": found.spec_id, **resolved.model_dump()}) as run:
        result = train_model(
            {lake.path(Lake.shard(found.spec_id, bundle)): recordings for bundle, recordings in bundles.items()},
            found,
            groups=groups,
            models_dir=folder,
            settings=resolved,
            origin={"lake": lake.root, "ledger_version": int(dataset.version)},
            progress=progress,
        )
        model = artifact.load(result.directory)
        if artifact.promoted(folder, found.spec_id) is None:
            artifact.promote(folder, model, reason="the first model of its spec")
        run.manifest["counts"] = {"model_id": result.model_id, "metrics": result.metrics}
    return _told(model, trained=result.trained, run_id=run.run_id) | grown


def _told(model: Any, *, trained: bool, run_id: str | None) -> dict[str, Any]:
    from model import artifact

    return {
        "model_id": model.model_id,
        "trained": trained,
        "promoted": artifact.promoted(model.directory.parent, model.spec.spec_id) == model.model_id,
        "judged": (model.directory / artifact.PROMOTIONS).exists(),
        "metrics": model.metrics,
        "report": str(model.directory / artifact.REPORT),
        "run_id": run_id,
    }


def _seen(model: Any) -> int:
    """Windows of all splits that a model was trained and judged on."""
    return int(sum(model.metrics["windows"].values()))


def _trained_most(folder: Path, spec_id: str) -> Any:
    """The readable model of a spec that saw the most windows, promoted or not; None if there is none."""
    from model import artifact

    found = []
    for model_id in artifact.models(folder):
        with contextlib.suppress(InputError):
            found.append(artifact.find(folder, model_id))
    of_spec = [model for model in found if model.spec.spec_id == spec_id]
    return max(of_spec, key=lambda model: (_seen(model), model.model_id), default=None)
