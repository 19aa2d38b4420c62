"""What the figures of an evaluation mean, in plain sentences, and what to do about it."""

from collections.abc import Mapping, Sequence
from typing import Any

from model.evaluate import MEASURES

# The baselines, in words.
BASELINES = {
    "log-mel": "the mean log-mel spectrum",
    "PCA": "principal components",
    "log-mel, 3 statistics": "log-mel statistics",
    "MFCC": "MFCC statistics",
}
# Below so many windows of training more recordings are the first thing to try.
FEW_WINDOWS = 5000


def sentences(found: Mapping[str, Any], metrics: Mapping[str, Any], *, longer: str) -> list[str]:
    """What the figures say and what to do; a difference counts only where its 95 % interval leaves out 0.

    Parameters
    ----------
    found : mapping
        What an evaluation found: `pipelines.evaluation.Judged`.
    metrics : mapping
        Of the model: what its training measured.
    longer : str
        The command that trains longer.
    """
    told, doubts = [_rebuilding(found)], found["mse_behind"]["high"] >= 0
    worse = found["mse_behind"]["low"] > 0
    if found["probes"] is not None:
        ahead = found["ahead_of"]
        better = [name for name in MEASURES if ahead[name]["low"] > 0]
        behind = [name for name in MEASURES if ahead[name]["high"] < 0]
        unclear = [name for name in MEASURES if name not in (*better, *behind)]
        if better:
            told.append(f"The embedding is ahead of every baseline in {_points(ahead, better, 1)}.")
        if behind:
            told.append(f"For these labels a baseline is ahead of the embedding in {_points(ahead, behind, -1)}.")
        if unclear:
            names = ", ".join(
                f"{MEASURES[name]} ({_signed(ahead[name])} points beside {BASELINES[ahead[name]['baseline']]})"
                for name in unclear
            )
            told.append(
                f"The difference between the embedding and the best baseline may be chance in {names}: on "
                f"{found['labelled']} labelled recordings its 95 % interval contains 0."
            )
        doubts, worse = doubts or bool(behind or unclear), worse or bool(behind)
    return [*told, _advice(metrics, longer, worse=worse)] if doubts else told


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


def _signed(score: Mapping[str, Any]) -> str:
    return f"{100 * score['value']:+.1f}"


def _points(ahead: Mapping[str, Any], names: Sequence[str], sign: int) -> str:
    """Of each measure by how many points one is better, with the interval."""
    return "; ".join(
        f"{MEASURES[name]} by {100 * sign * ahead[name]['value']:.1f} points "
        f"({'–'.join(f'{100 * x:.1f}' for x in sorted((sign * ahead[name]['low'], sign * ahead[name]['high'])))}"
        + (f"; {BASELINES[ahead[name]['baseline']]})" if sign < 0 else ")")
        for name in names
    )


def _advice(metrics: Mapping[str, Any], longer: str, *, worse: bool) -> str:
    steps, best, windows = metrics["steps"], metrics["best_step"], metrics["windows"]["train"]
    over = f"Longer training is unlikely to help, since the model was best at step {best} of {steps}"
    if metrics["stopped"] == "step budget" and best == steps:
        return f"The model was still improving at its last step, {steps}: train longer, for example with `{longer}`."
    if windows < FEW_WINDOWS or not worse:
        return (
            f"{over}: it was trained on {windows} windows, and more recordings would help it, and make the intervals "
            "narrower."
        )
    return f"{over}: try other options of soundlake train, such as --contrastive (docs/experiments.md)."
