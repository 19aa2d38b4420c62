"""What figures mean, in sentences: each follows from its interval, and none says more."""

from typing import Any

import pytest

from soundlake.model.judging.verdict import sentences
from soundlake.model.training.trainer import TrainSettings

Interval = tuple[float, float, float]
BETTER, WORSE, UNCLEAR = (-0.1, -0.2, -0.05), (0.1, 0.05, 0.2), (-0.01, -0.1, 0.1)


def figures(behind: Interval, *ahead: Interval) -> dict[str, Any]:
    """By how much the error is behind, and the embedding ahead: one interval for all measures, or one each, or none."""
    score = dict(zip(("value", "low", "high"), behind, strict=True))
    found: dict[str, Any] = {"mse_behind": score, "held_out_recordings": 19, "probes": None, "labelled": 96}
    if not ahead:
        return found | {"no_probes": "a probe needs at least two labels"}
    each = zip(("linear", "knn", "map", "search"), ahead * (4 // len(ahead)), strict=True)
    scores = {
        name: {"baseline": "MFCC", **dict(zip(("value", "low", "high"), values, strict=True))} for name, values in each
    }
    return found | {"probes": {}, "ahead_of": scores, "trained_on": 77}


def said(found: dict[str, Any], settings: dict[str, Any] | None = None, **measured: Any) -> list[str]:
    metrics = {"steps": 600, "best_step": 600, "stopped": "step budget", "windows": {"train": 400}} | measured
    chosen = TrainSettings(**settings or {}).model_dump()
    return sentences(found, metrics, chosen, longer="LONGER", again="EXTRACT")


def test_ahead_in_all_needs_no_advice() -> None:
    embedding, rebuilding, seen = said(figures(BETTER, (0.1, 0.05, 0.2)))
    assert embedding == (
        "The embedding is ahead of the best baseline in linear probe by 10.0 points (95 % interval 5.0–20.0; MFCC "
        "statistics), 5 nearest by 10.0 (5.0–20.0; MFCC statistics), retrieval mAP by 10.0 (5.0–20.0; MFCC "
        "statistics), first hit of search by 10.0 (5.0–20.0; MFCC statistics)."
    )
    assert "smaller error than principal components" in rebuilding
    assert seen == (
        "The probes use all 96 labelled recordings of the sample, 77 of which the model was trained on, without their "
        "labels; errors of reconstruction are of the 19 recordings held out of training alone."
    )


def test_a_baseline_ahead_is_said_with_what_to_do() -> None:
    embedding, rebuilding, for_the_embedding, seen = said(figures(BETTER, (-0.1, -0.2, -0.05)))
    assert embedding.startswith(
        "A baseline is ahead of the embedding in linear probe by 10.0 points (95 % interval 5.0–20.0; MFCC "
        "statistics), 5 nearest by 10.0"
    )
    assert rebuilding.startswith("The model rebuilds")
    # The similarity vector is found before the first step.
    assert for_the_embedding.startswith("More recordings may help the embedding, which was learned from 400 windows; ")
    assert "longer training does not change it" in for_the_embedding
    assert "--pitch 0" in for_the_embedding
    assert seen.startswith("The probes use all")


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"preset": "seed"}, "`soundlake train --preset default`"),
        ({"likeness_dim": 0}, "`soundlake train --preset default`"),
        ({"contrastive": 50.0}, "training without --contrastive, or for longer: `LONGER`"),
    ],
)
def test_what_helps_depends_on_what_the_embedding_is(settings: dict[str, Any], advice: str) -> None:
    assert advice in said(figures(BETTER, (-0.1, -0.2, -0.05)), settings)[2]


def test_measures_are_told_apart() -> None:
    told = said(figures(BETTER, (0.1, 0.05, 0.2), (-0.1, -0.2, -0.05), (-0.02, -0.1, 0.1), (0.3, 0.2, 0.4)))
    assert told[0] == (
        "The embedding is ahead of the best baseline in linear probe by 10.0 points (95 % interval 5.0–20.0; MFCC "
        "statistics), first hit of search by 30.0 (20.0–40.0; MFCC statistics)."
    )
    assert told[1].startswith("A baseline is ahead of the embedding in 5 nearest by 10.0 points")
    assert "may be chance in retrieval mAP (-2.0 points, MFCC statistics)" in told[2]


def test_an_interval_around_nothing_decides_nothing() -> None:
    embedding, rebuilding, *advice, _ = said(figures(UNCLEAR, (-0.02, -0.1, 0.1)), best_step=200)
    assert embedding.endswith("on 96 labelled recordings its 95 % interval contains 0.")
    assert "linear probe (-2.0 points, MFCC statistics)" in embedding
    assert rebuilding.endswith("on 19 held-out recordings its 95 % interval contains 0.")
    assert advice[0].endswith("more labelled recordings make the intervals narrower.")
    assert "best at step 200 of 600" in advice[1]
    assert "more recordings" in advice[1]
    assert not any("ahead" in one or "smaller" in one for one in (embedding, rebuilding))


def test_without_labels_it_says_how_to_give_some() -> None:
    embedding, rebuilding, labels, seen = said(figures(BETTER))
    assert embedding == (
        "Whether the embedding is better than the baselines is not known (a probe needs at least two labels)."
    )
    assert rebuilding.startswith("The model rebuilds")
    assert "labels.csv" in labels
    assert "`EXTRACT`" in labels
    assert seen == "Errors of reconstruction are of the 19 recordings held out of training alone."


def test_a_reconstruction_that_still_improves_is_to_be_trained_longer() -> None:
    told = said(figures(WORSE))
    assert told[1].startswith("Principal components, as many")
    assert "still improving at the last step, 600: train longer, for example with `LONGER`" in told[3]


@pytest.mark.parametrize("windows", [400, 100_000])
def test_a_training_that_was_over_is_not_to_be_longer(windows: int) -> None:
    stopped = {"stopped": "no better validation ELBO", "best_step": 300, "windows": {"train": windows}}
    advice = said(figures(WORSE), **stopped)[3]
    assert "LONGER" not in advice
    assert ("more recordings" in advice) == (windows < 5000)
    assert ("--latent-dim" in advice) == (windows > 5000)
