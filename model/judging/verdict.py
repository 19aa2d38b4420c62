"""Plain sentences on the figures of an evaluation, and advice on what to do next."""

from collections.abc import Mapping, Sequence
from typing import Any

from soundlake.model.judging.evaluate import MEASURES

# Names of the baselines for readers.
BASELINES = {
    "log-mel": "the mean log-mel spectrum",
    "PCA": "principal components",
    "log-mel, 3 statistics": "log-mel statistics",
    "MFCC": "MFCC statistics",
}
# With fewer training windows than this, more recordings are the first thing to try.
FEW_WINDOWS = 5000


def sentences(
    found: Mapping[str, Any], metrics: Mapping[str, Any], settings: Mapping[str, Any], *, longer: str, again: str
) -> list[str]:
    """The meaning of the figures, advice, and how many of the evaluated recordings were used for training.

    A difference counts only if its 95 % interval does not contain 0.

    Parameters
    ----------
    found : mapping
        The result of an evaluation: `pipelines.learning.evaluation.Judged`.
    metrics, settings : mapping
        Of the model: the measurements of its training, and its settings.
    longer, again : str
        The commands for longer training, and for reading labels.
    """
    lines = [*_embedding(found), _rebuilding(found)]
    if found["probes"] is None:
        lines.append(
            f"To compare them, put labels of some recordings into a labels.csv (README.md), run `{again}`, and "
            "evaluate again."
        )
    elif not all(score["low"] > 0 for score in found["ahead_of"].values()):
        lines.append(_for_the_embedding(found, metrics, settings, longer))
    if found["mse_behind"]["high"] >= 0:
        lines.append(_for_rebuilding(found, metrics, longer))
    return [*lines, _seen(found)]


def _embedding(found: Mapping[str, Any]) -> list[str]:
    if found["probes"] is None:
        return [f"Whether the embedding is better than the baselines is not known ({found['no_probes']})."]
    ahead = found["ahead_of"]
    better = [name for name in MEASURES if ahead[name]["low"] > 0]
    behind = [name for name in MEASURES if ahead[name]["high"] < 0]
    unclear = [name for name in MEASURES if name not in (*better, *behind)]
    lines = []
    if better:
        lines.append(f"The embedding is ahead of the best baseline in {_points(ahead, better, 1)}.")
    if behind:
        lines.append(f"A baseline is ahead of the embedding in {_points(ahead, behind, -1)}.")
    if unclear:
        names = ", ".join(
            f"{MEASURES[name]} ({100 * ahead[name]['value']:+.1f} points, {BASELINES[ahead[name]['baseline']]})"
            for name in unclear
        )
        lines.append(
            f"The difference between the embedding and the best baseline may be chance in {names}: on "
            f"{found['labelled']} labelled recordings its 95 % interval contains 0."
        )
    return lines


def _rebuilding(found: Mapping[str, Any]) -> str:
    behind, count = found["mse_behind"], found["held_out_recordings"]
    if behind["high"] < 0:
        return (
            "The model rebuilds recordings that it was not trained on with a smaller error than principal components."
        )
    if behind["low"] > 0:
        return (
            "Principal components, as many as the latent has dimensions, rebuild recordings that the model was not "
            "trained on with a smaller error than the model."
        )
    return (
        "The difference between the errors of the model and of principal components may be chance: on "
        f"{count} held-out recordings its 95 % interval contains 0."
    )


def _points(ahead: Mapping[str, Any], names: Sequence[str], sign: int) -> str:
    """For each measure: the lead in points, its interval, and the baseline; `sign` is -1 if the baseline leads."""
    parts: list[str] = []
    for name in names:
        value, *ends = (100 * sign * ahead[name][key] for key in ("value", "low", "high"))
        lead, interval = f"{value:.1f}", "–".join(f"{end:.1f}" for end in sorted(ends))
        if not parts:
            lead, interval = f"{lead} points", f"95 % interval {interval}"
        parts.append(f"{MEASURES[name]} by {lead} ({interval}; {BASELINES[ahead[name]['baseline']]})")
    return ", ".join(parts)


def _for_the_embedding(
    found: Mapping[str, Any], metrics: Mapping[str, Any], settings: Mapping[str, Any], longer: str
) -> str:
    """Advice that may put the embedding ahead of a baseline, or at least narrow the interval."""
    more = f"More recordings may help the embedding, which was learned from {metrics['windows']['train']} windows"
    if not any(score["high"] < 0 for score in found["ahead_of"].values()):
        return f"{more}, and more labelled recordings make the intervals narrower."
    if not settings["likeness_dim"]:
        return f"{more}; so may a model with a similarity vector: `soundlake train --preset default`."
    if settings["contrastive"]:
        return f"{more}; so may training without --contrastive, or for longer: `{longer}`."
    return (
        f"{more}; longer training does not change it. Options to try: `soundlake extract --spec oneshots` if most "
        "recordings last less than half a second; of `soundlake train` --pitch 0 if labels differ by pitch, "
        "--contrastive if the sound changes within recordings (docs/experiments.md)."
    )


def _for_rebuilding(found: Mapping[str, Any], metrics: Mapping[str, Any], longer: str) -> str:
    """Advice that may reduce the error of reconstruction, or at least narrow its interval."""
    steps, best, windows = metrics["steps"], metrics["best_step"], metrics["windows"]["train"]
    if metrics["stopped"] == "step budget" and best == steps:
        return (
            f"The reconstruction was still improving at the last step, {steps}: train longer, for example with "
            f"`{longer}`."
        )
    over = f"Longer training is unlikely to help the reconstruction, which was best at step {best} of {steps}"
    if windows < FEW_WINDOWS or found["mse_behind"]["low"] <= 0:
        return f"{over}; more recordings may, since the model was trained on {windows} windows."
    return f"{over}; a larger --pitch or --latent-dim of `soundlake train` may (docs/experiments.md)."


def _seen(found: Mapping[str, Any]) -> str:
    held_out = f"of the {found['held_out_recordings']} recordings held out of training alone"
    if found["probes"] is None:
        return f"Errors of reconstruction are {held_out}."
    return (
        f"The probes use all {found['labelled']} labelled recordings of the sample, {found['trained_on']} of which the "
        f"model was trained on, without their labels; errors of reconstruction are {held_out}."
    )
