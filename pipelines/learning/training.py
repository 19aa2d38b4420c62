"""Train: a model of the lake's windows, with its manifest; or nothing, where there is one that will do."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from soundlake.model.errors import InputError
from soundlake.model.training import hosts
from soundlake.pipelines.lake import ledger, models
from soundlake.pipelines.lake.forgotten import Memory
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.lookup import spec_of_lake
from soundlake.pipelines.lake.runs import run_manifest
from soundlake.pipelines.lake.stages import stage
from soundlake.pipelines.learning.quiet import quiet

log = logging.getLogger(__name__)


def train(
    lake: Lake,
    *,
    spec: str | None = None,
    settings: dict[str, Any],
    if_missing: bool = False,
    if_grown: float | None = None,
) -> dict[str, Any]:
    """Train a model on the lake's features; it is promoted if the spec has no promoted model that can be used.

    Where TF_CONFIG names several hosts (`model.training.hosts`), each makes this call; the chief alone writes.

    Parameters
    ----------
    if_missing : bool
        Do nothing if the spec has a promoted model that can be used, whatever it was trained on.
    if_grown : float or None
        Do nothing if the spec has a model, promoted or held, and the lake has fewer than this share more windows than
        the one of them that saw the most.

    Returns
    -------
    dict
        ``model_id``, ``trained`` (False if it was there already), ``promoted``, ``judged`` (whether the gate has ever
        seen it), ``metrics``, ``report``; with `if_grown` also ``windows`` of the lake and ``seen``, of them by that
        model (0 if there was none). Of a host that has only helped: ``model_id``, and ``host``, which one it is.
    """
    here = hosts.from_environment()
    from pydantic import ValidationError

    found = spec_of_lake(lake, spec)
    there = models.usable(lake, found.spec_id)
    if if_missing and there is not None:
        return _told(lake, models.told(lake, there), trained=False, run_id=None)
    dataset = ledger.open_ledger(lake, found.spec_id)
    grown: dict[str, Any] = {}
    if if_grown is not None:
        windows, known = ledger.summary(dataset)["windows"], _trained_most(lake, found.spec_id)
        grown = {"windows": windows, "seen": 0 if known is None else _seen(known)}
        if known is not None and windows < (1 + if_grown) * grown["seen"]:
            return _told(lake, known, trained=False, run_id=None) | grown
    bundles, groups = ledger.training_input(dataset)
    with stage("loading TensorFlow"), quiet():
        from soundlake.model.saved.artifact import model_id as id_of
        from soundlake.model.training.places import BadShardError
        from soundlake.model.training.train import TrainSettings, identity
        from soundlake.model.training.train import train as train_model
    # TensorFlow writes modules among the temporary files, and takes them away at the end, but not their bytecode.
    sys.dont_write_bytecode = True

    try:
        resolved = TrainSettings(**{k: v for k, v in settings.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        place, said = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
        raise InputError(f"{place}: {said}" if place else said) from error
    resolved.check(found)
    names = {Lake.shard(found.spec_id, bundle): recordings for bundle, recordings in bundles.items()}
    model_id = id_of(identity(names, found, groups, resolved))

    def trained(saved: Callable[[Path], None]) -> bool:
        with stage("fetching the shards"):
            shards = models.shards(lake, found.spec_id, bundles)
        try:
            with stage("preparing the training") as report:
                return train_model(
                    shards,
                    found,
                    groups=groups,
                    models_dir=models.folder(lake),
                    settings=resolved,
                    origin={"lake": lake.root, "ledger_version": int(dataset.version)},
                    report=report,
                    saved=saved,
                ).trained
        except BadShardError as error:
            raise InputError(f"{error}; to rebuild it run: {lake.command('extract AUDIO --repair')}") from error

    new = model_id not in models.known(lake)
    if not here.is_chief:
        if new:
            trained(lambda directory: None)
        return {"model_id": model_id, "host": here.index}
    with run_manifest(lake, "train", {"spec_id": found.spec_id, **resolved.model_dump()}) as run:
        if new:
            with models.being_trained(lake, model_id) as saved:
                new = trained(saved)
        _strike_off(lake, model_id, groups)
        model = models.load(lake, model_id)
        reason = "the first model of its spec"
        if (before := models.promoted(lake, found.spec_id)) is not None:
            reason = f"the model in use, {before}, has a format that is not read"
        models.promote(lake, model, reason=reason, first=True)
        run.manifest["counts"] = {"model_id": model_id, "metrics": model.metrics}
    return _told(lake, model, trained=new, run_id=run.run_id) | grown


def _strike_off(lake: Lake, model_id: str, groups: Iterable[str]) -> None:
    """Take recordings that were forgotten while a model was trained on them off its list, and its report away."""
    memory = Memory.of(lake)
    gone = [recording_id for recording_id in groups if memory.holds(recording_id=recording_id)]
    if gone:
        from soundlake.pipelines.upkeep import remnants

        remnants.clear_model(lake, model_id, gone)
        log.warning(
            "%d recordings were forgotten while the model %s was trained on them, and its weights may keep traces: "
            "train again",
            len(gone),
            model_id,
        )


def _told(lake: Lake, model: Any, *, trained: bool, run_id: str | None) -> dict[str, Any]:
    from soundlake.model.saved import promotion

    return {
        "model_id": model.model_id,
        "trained": trained,
        "promoted": models.promoted(lake, model.spec.spec_id) == model.model_id,
        "judged": (model.directory / promotion.PROMOTIONS).exists(),
        "metrics": model.metrics,
        "report": models.report(lake, model),
        "run_id": run_id,
    }


def _seen(model: Any) -> int:
    """Windows of all splits that a model was trained and judged on."""
    return int(sum(model.metrics["windows"].values()))


def _trained_most(lake: Lake, spec_id: str) -> Any:
    """The readable model of a spec that saw the most windows, promoted or not; None if there is none."""
    found = []
    for model_id in models.known(lake):
        with contextlib.suppress(InputError):
            found.append(models.told(lake, model_id))
    of_spec = [model for model in found if model.spec.spec_id == spec_id]
    return max(of_spec, key=lambda model: (_seen(model), model.model_id), default=None)
