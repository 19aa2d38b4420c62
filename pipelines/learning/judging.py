"""Evaluate a model, and promote it if it passes the gate; each command writes its manifest."""

import logging
from typing import Any

from soundlake.model.errors import HeldError, InputError
from soundlake.pipelines.lake import models
from soundlake.pipelines.lake.forgotten import Memory
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.lookup import find_model
from soundlake.pipelines.lake.runs import forgotten_meanwhile, run_manifest
from soundlake.pipelines.lake.stages import stage
from soundlake.pipelines.learning.quiet import quiet

log = logging.getLogger(__name__)

# After a training that was too short, this many times its steps are proposed.
LONGER = 4


def evaluate(
    lake: Lake, *, spec: str | None = None, model_id: str | None = None, folds: str | None = None
) -> dict[str, Any]:
    """Judge a model beside baselines, and rewrite its ``metrics.json`` and ``report.html``.

    Parameters
    ----------
    folds : str or None
        A CSV or Parquet file with columns ``uri`` (relative uris start at the file's own folder) and ``fold``.

    Returns
    -------
    dict
        As `pipelines.learning.evaluation.Judged.found`, and ``report``.
    """
    model = find_model(lake, model_id, spec)
    try:
        model.trained()
    except InputError as error:
        raise InputError(f"{error}; train one that can be judged, run: {lake.command('train')}") from error
    fold_by_uri = _folds(folds)
    with stage("loading TensorFlow"), quiet():
        from soundlake.pipelines.learning.evaluation import evaluation
    from soundlake.model.judging import verdict
    from soundlake.model.saved import artifact
    from soundlake.pipelines.learning.showing import report

    with run_manifest(lake, "evaluate", {"model_id": model.model_id, "folds": folds}) as run:
        before = Memory.of(lake).mark
        judged = evaluation(lake, model, folds=fold_by_uri)
        if Memory.of(lake).mark != before:
            raise forgotten_meanwhile(lake)
        longer = lake.command(f"train --steps {LONGER * int(model.metrics['steps'])}")
        again = lake.command("extract AUDIO")
        sentences = verdict.sentences(judged.found, model.metrics, model.settings, longer=longer, again=again)
        judged.found.update({"verdict": sentences, "model_id": model.model_id, "run_id": run.run_id})
        run.manifest["counts"] = judged.found
        artifact.write_json(model.directory / artifact.METRICS, judged.found)
        with stage("writing the report"):
            report(model, judged)
        models.keep(lake, model, artifact.REPORT, artifact.METRICS)
        return judged.found | {"report": models.report(lake, model)}


def promote(lake: Lake, model_id: str, *, force: bool = False, folds: str | None = None) -> dict[str, Any]:
    """Put a model in use for its spec if it is not worse than the one in use.

    Parameters
    ----------
    force : bool
        Promote it whatever the comparison shows; the log in the model's folder records both.
    folds : str or None
        As for `evaluate`.

    Returns
    -------
    dict
        ``model_id``, ``spec_id``, ``instead_of`` (None if none was in use), ``measures``
        (`pipelines.learning.gate.Measure` by name; empty if there was nothing to compare with), names of the ``worse``
        ones, ``forced``.

    Raises
    ------
    HeldError
        If it is worse or cannot be compared, and `force` is not given.
    """
    model = find_model(lake, model_id)
    current = models.promoted(lake, model.spec.spec_id)
    result: dict[str, Any] = {
        "model_id": model_id,
        "spec_id": model.spec.spec_id,
        "instead_of": current,
        "measures": {},
    }
    result |= {"worse": [], "forced": False}
    fold_by_uri = _folds(folds)
    with run_manifest(lake, "promote", {"model_id": model_id, "force": force, "folds": folds}) as run:
        result["run_id"] = run.run_id
        run.manifest["counts"] = result
        if current is not None and current != model_id:
            _through_the_gate(lake, model, current, result, force=force, folds=fold_by_uri)
        if current != model_id:
            models.promote(lake, model, reason="forced" if result["forced"] else "promote")
    return result


def _through_the_gate(
    lake: Lake, model: Any, there: str, told: dict[str, Any], *, force: bool, folds: dict[str, str] | None
) -> None:
    """Compare with the model in use, log the outcome, and refuse a model that is worse or cannot be compared."""
    with stage("loading TensorFlow"), quiet():
        from soundlake.pipelines.learning import gate
    by_force = f"to promote it anyway run: {lake.command(f'promote {model.model_id} --force')}"
    try:
        current = models.load(lake, there)
        measures = gate.compare(lake, model, current, folds=folds)
    except InputError as error:
        if not force:
            _log(lake, model, told | {"promoted": False, "not_compared": str(error)})
            message = f"model {model.model_id} cannot be compared with {there}: {error}; {by_force}"
            raise HeldError(message, told) from error
        log.warning("not compared with %s: %s", there, error)
        measures = {}
    worse = [name for name, measure in measures.items() if measure.worse]
    told |= {"measures": gate.told(measures), "worse": worse, "forced": force and (bool(worse) or not measures)}
    _log(lake, model, told | {"promoted": force or not worse})
    if worse and not force:
        figures = "; ".join(gate.said(name, measures[name]) for name in worse)
        message = f"model {model.model_id} is worse than {there}, which stays in use: {figures}; {by_force}"
        raise HeldError(message, told)


def _log(lake: Lake, model: Any, entry: dict[str, Any]) -> None:
    from soundlake.model.saved import promotion

    promotion.log_promotion(model, entry)
    models.keep(lake, model, promotion.PROMOTIONS)


def _folds(path: str | None) -> dict[str, str] | None:
    from soundlake.pipelines.corpus.labels import read_folds

    return None if path is None else read_folds(path)
