"""Train a model on the lake's windows, with its manifest; or do nothing if an existing model will do."""

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

    If TF_CONFIG names several hosts (`model.training.hosts`), each of them makes this call; only the chief writes.

    Parameters
    ----------
    if_missing : bool
        Do nothing if the spec has a promoted model that can be used, whatever it was trained on.
    if_grown : float or None
        Do nothing if the spec has a model, promoted or held, and the lake has grown by less than this share beyond the
        windows of the model that saw the most.

    Returns
    -------
    dict
        ``model_id``, ``trained`` (False if it existed already), ``promoted``, ``judged`` (whether the gate has ever
        compared it), ``metrics``, ``report``; with `if_grown` also ``windows`` of the lake and ``seen``, the windows
        that the compared model saw (0 if there was none). On a host that only helped: ``model_id``, and ``host``, its
        index.
    """
    host = hosts.from_environment()
    from pydantic import ValidationError

    feature_spec = spec_of_lake(lake, spec)
    usable = models.usable(lake, feature_spec.spec_id)
    if if_missing and usable is not None:
        return _told(lake, models.told(lake, usable), trained=False, run_id=None)
    dataset = ledger.open_ledger(lake, feature_spec.spec_id)
    grown: dict[str, Any] = {}
    if if_grown is not None:
        windows, most_trained = ledger.summary(dataset)["windows"], _trained_most(lake, feature_spec.spec_id)
        grown = {"windows": windows, "seen": 0 if most_trained is None else _seen(most_trained)}
        if most_trained is not None and windows < (1 + if_grown) * grown["seen"]:
            return _told(lake, most_trained, trained=False, run_id=None) | grown
    bundles, groups = ledger.training_input(dataset)
    with stage("loading TensorFlow"), quiet():
        from soundlake.model.saved.artifact import model_id as id_of
        from soundlake.model.training.places import BadShardError
        from soundlake.model.training.train import TrainSettings, identity
        from soundlake.model.training.train import train as train_model
    # TensorFlow writes temporary modules, and removes them at the end, but not their bytecode.
    sys.dont_write_bytecode = True

    try:
        resolved = TrainSettings(**{k: v for k, v in settings.items() if v is not None})
    except ValidationError as error:
        first = error.errors()[0]
        place, message = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
        raise InputError(f"{place}: {message}" if place else message) from error
    resolved.check(feature_spec)
    names = {Lake.shard(feature_spec.spec_id, bundle): recordings for bundle, recordings in bundles.items()}
    model_id = id_of(identity(names, feature_spec, groups, resolved))

    def trained(saved: Callable[[Path], None]) -> bool:
        with stage("fetching the shards"):
            shards = models.shards(lake, feature_spec.spec_id, bundles)
        try:
            with stage("preparing the training") as report:
                return train_model(
                    shards,
                    feature_spec,
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
    if not host.is_chief:
        if new:
            trained(lambda directory: None)
        return {"model_id": model_id, "host": host.index}
    with run_manifest(lake, "train", {"spec_id": feature_spec.spec_id, **resolved.model_dump()}) as run:
        if new:
            with models.being_trained(lake, model_id) as saved:
                new = trained(saved)
        _strike_off(lake, model_id, groups)
        model = models.load(lake, model_id)
        reason = "the first model of its spec"
        if (previous := models.promoted(lake, feature_spec.spec_id)) is not None:
            reason = f"the model in use, {previous}, has a format that is not read"
        models.promote(lake, model, reason=reason, first=True)
        run.manifest["counts"] = {"model_id": model_id, "metrics": model.metrics}
    return _told(lake, model, trained=new, run_id=run.run_id) | grown


def _strike_off(lake: Lake, model_id: str, groups: Iterable[str]) -> None:
    """Remove recordings that were forgotten during a model's training from its list, and delete its report."""
    memory = Memory.of(lake)
    forgotten = [recording_id for recording_id in groups if memory.holds(recording_id=recording_id)]
    if forgotten:
        from soundlake.pipelines.upkeep import remnants

        remnants.clear_model(lake, model_id, forgotten)
        log.warning(
            "%d recordings were forgotten while the model %s was trained on them, and its weights may keep traces: "
            "train again",
            len(forgotten),
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
    """Number of windows, of all splits, that a model was trained and judged on."""
    return int(sum(model.metrics["windows"].values()))


def _trained_most(lake: Lake, spec_id: str) -> Any:
    """The readable model of a spec that saw the most windows, promoted or not; None if there is none."""
    readable = []
    for model_id in models.known(lake):
        with contextlib.suppress(InputError):
            readable.append(models.told(lake, model_id))
    of_spec = [model for model in readable if model.spec.spec_id == spec_id]
    return max(of_spec, key=lambda model: (_seen(model), model.model_id), default=None)
