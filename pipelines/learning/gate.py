"""The promotion gate: compare a candidate with the model in use on the same recordings.

Error and ELBO are measured on the held-out recordings. A candidate is worse in a measure if it is behind by more than
the measure's margin, and the 95 % interval of the difference, recording by recording, lies above 0. One worse measure
holds the candidate.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from soundlake.model.errors import InputError
from soundlake.model.judging import evaluate
from soundlake.model.saved.artifact import Model
from soundlake.pipelines.lake import ledger
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.stages import stage
from soundlake.pipelines.learning.evaluation import folds_of
from soundlake.pipelines.learning.sampling import (
    BATCH_WINDOWS,
    Clip,
    apart,
    batches,
    by_clip,
    held_out_of,
    near_copies,
    sample,
)

# How far a candidate may be behind: a share for the error, nats per number of the window for the ELBO, points for
# probes.
MARGINS = {"error": 0.01, "negative_elbo": 0.001, "linear": 0.01, "knn": 0.01, "map": 0.01, "search": 0.01}

# Least number of held-out groups: fewer give no interval.
LEAST_GROUPS = 2

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Measure:
    """One measure of both models.

    Attributes
    ----------
    candidate, current : float
        Means over the recordings.
    behind : evaluate.Score
        How far the candidate is behind, in the measure's unit: above 0 is worse.
    margin : float
    worse : bool
    """

    candidate: float
    current: float
    behind: evaluate.Score
    margin: float
    worse: bool


def _each(clips: list[Clip], model: Model, unit: Array) -> Iterator[tuple[float, float, Array]]:
    """For each recording: error of its sounding frames in `unit`, negative ELBO a window, embeddings of its windows."""
    encoder, decoder = model.encoder(threads=0), model.decoder(threads=0)
    noise = np.random.default_rng(0)
    variance = float(model.metrics["observation_variance"])
    # With this constant the likelihood is that of log-mel in nats, whatever the model normalises by.
    constant = model.spec.window_frames * float(np.log(model.std).sum())
    name, total = f"comparing: {model.model_id}", sum(len(clip.values) for clip in clips)
    errors, losses, embeddings = [], [], []
    with stage(name) as report:
        for number, values in enumerate(batches(clips, model.spec)):
            done = number * BATCH_WINDOWS
            report(name, done, total, f"{done} of {total} windows")
            mean, log_variance, embedding = encoder.encode(values)
            embeddings.append(embedding)
            errors.append(np.square((values - model.denormalise(decoder.decode(mean))) / unit).mean(axis=2))
            drawn = noise.standard_normal(mean.shape).astype(np.float32)
            rebuilt = decoder.decode(mean + drawn * np.exp(0.5 * log_variance))
            square = np.square(model.normalise(values) - rebuilt).sum(axis=(1, 2), dtype=np.float64)
            nll = 0.5 * (values[0].size * np.log(2 * np.pi * variance) + square / variance) + constant
            kl = 0.5 * (np.exp(log_variance) + np.square(mean) - 1 - log_variance).sum(axis=1, dtype=np.float64)
            losses.append(nll + kl)
    rows = (by_clip(clips, np.concatenate(parts)) for parts in (errors, losses, embeddings))
    for clip, error, loss, embedding in zip(clips, *rows, strict=True):
        sound = np.arange(error.shape[1]) < clip.valid[:, None]
        yield float(error[sound].sum()) / float(clip.valid.sum()), float(loss.mean()), embedding


def compare(
    lake: Lake, candidate: Model, current: Model, *, folds: Mapping[str, str] | None = None
) -> dict[str, Measure]:
    """Compare both models on the same recordings: error and ELBO on those held out, probes if there are labels.

    Parameters
    ----------
    lake : Lake
    candidate, current : Model
        Of one spec.
    folds : mapping of str to str or None
        As for `pipelines.learning.evaluation.evaluation`.

    Raises
    ------
    InputError
        If the lake holds too little to judge by.
    """
    spec = candidate.spec
    dataset = ledger.open_ledger(lake, spec.spec_id)
    if dataset is None:
        raise InputError(
            f"the lake {lake.root} has no features of spec {spec.spec_id}: there is nothing to compare models on"
        )
    _, groups = ledger.training_input(dataset)
    with stage("reading the sample"):
        clips = sample(lake, spec, dataset, groups)
    held_out = held_out_of(clips, groups, candidate, current)
    clips, left_out = apart(clips, near_copies(clips, current), np.flatnonzero(held_out).tolist())
    held_out[list(left_out)] = False
    groups_held_out = len({clip.group for clip, held in zip(clips, held_out, strict=True) if held})
    if groups_held_out < LEAST_GROUPS:
        raise InputError(f"{groups_held_out} groups of recordings are held out: at least {LEAST_GROUPS} are needed")
    if folds is not None:
        folds_of(clips, folds)  # reports unusable folds before the work, not after it
    results = [list(_each(clips, model, current.std)) for model in (candidate, current)]
    groups_of_clips = np.array([clip.group for clip in clips])
    measures: dict[str, Measure] = {}
    for index, name in enumerate(("error", "negative_elbo")):
        new, old = (np.array([row[index] for row in per_clip])[held_out] for per_clip in results)
        margin = MARGINS[name] * (old.mean() if name == "error" else spec.window_frames * spec.n_mels)
        measures[name] = _measure(new, old, new - old, groups_of_clips[held_out], margin)
    embeddings = [
        (model, [row[2] for row in per_clip]) for model, per_clip in zip((candidate, current), results, strict=True)
    ]
    return measures | _probed(clips, embeddings, folds)


def _probed(
    clips: list[Clip], embeddings: list[tuple[Model, list[Array]]], folds: Mapping[str, str] | None
) -> dict[str, Measure]:
    """Probes of both models, recording by recording; empty if the labels allow none."""
    try:
        labelled, labels, groups, fold, _ = folds_of(clips, folds)
        with stage("probes"):
            new, old = (
                evaluate.hits(
                    np.stack([model.pooled(windows[i]) for i in labelled]),
                    labels,
                    fold=fold,
                    distances=evaluate.run_distances([windows[i] for i in labelled]),
                )
                for model, windows in embeddings
            )
    except InputError:
        if folds is not None:
            raise
        return {}
    return {
        name: _measure(new[name], old[name], old[name] - new[name], np.array(groups), MARGINS[name]) for name in new
    }


def _measure(new: Any, old: Any, behind: Any, groups: Any, margin: float) -> Measure:
    score = evaluate.interval(behind, groups)
    worse = bool(score.value > margin and score.low > 0)
    return Measure(float(np.nanmean(new)), float(np.nanmean(old)), score, float(margin), worse)


def told(found: Mapping[str, Measure]) -> dict[str, Any]:
    """The measures as plain numbers, for a manifest."""
    return {name: asdict(measure) for name, measure in found.items()}


def said(name: str, one: Measure) -> str:
    """A measure in words."""
    digits = 1 if name == "negative_elbo" else 4
    return f"{evaluate.GATE_WORDS[name]} {one.candidate:.{digits}f}, in use {one.current:.{digits}f}"
