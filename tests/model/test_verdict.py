"""What figures mean, in sentences: each follows from its interval, and none says more."""

from typing import Any

import pytest

from model.verdict import sentences


def figures(behind: tuple[float, float, float], ahead: tuple[float, float, float] | None) -> dict[str, Any]:
    score = dict(zip(("value", "low", "high"), behind, strict=True))
    found: dict[str, Any] = {"mse_behind": score, "held_out_recordings": 19, "probes": None, "labelled": 96}
    if ahead is not None:
        one = {"baseline": "log-mel, 3 statistics", **dict(zip(("value", "low", "high"), ahead, strict=True))}
        found |= {"probes": {}, "ahead_of": {name: one for name in ("linear", "knn", "map", "search")}}
    return found


def metrics(**changed: Any) -> dict[str, Any]:
    return {"steps": 600, "best_step": 600, "stopped": "step budget", "windows": {"train": 400}} | changed


def test_better_in_all_needs_no_advice() -> None:
    told = sentences(figures((-0.1, -0.2, -0.05), (0.1, 0.05, 0.2)), metrics(), longer="LONGER")
    assert len(told) == 2
    assert "smaller error than principal components" in told[0]
    assert "ahead of every baseline in linear probe by 10.0 points (5.0–20.0); 5 nearest by 10.0" in told[1]


def test_worse_is_said_with_what_to_do() -> None:
    told = sentences(figures((0.1, 0.05, 0.2), (-0.1, -0.2, -0.05)), metrics(), longer="LONGER")
    assert told[0].startswith("Principal components, as many")
    assert (
        "a baseline is ahead of the embedding in linear probe by 10.0 points (5.0–20.0; log-mel statistics)" in told[1]
    )
    assert told[2] == "The model was still improving at its last step, 600: train longer, for example with `LONGER`."


def test_an_interval_around_nothing_decides_nothing() -> None:
    told = sentences(figures((-0.01, -0.1, 0.1), (-0.02, -0.1, 0.1)), metrics(best_step=200), longer="LONGER")
    assert told[0].endswith("on 19 held-out recordings its 95 % interval contains 0.")
    assert told[1].endswith("on 96 labelled recordings its 95 % interval contains 0.")
    assert "linear probe (-2.0 points beside log-mel statistics)" in told[1]
    assert "best at step 200 of 600" in told[2]
    assert "more recordings" in told[2]
    assert not any("ahead" in one or "smaller" in one for one in told)


@pytest.mark.parametrize("windows", [400, 100_000])
def test_a_training_that_was_over_is_not_to_be_longer(windows: int) -> None:
    stopped = metrics(stopped="no better validation ELBO", best_step=300, windows={"train": windows})
    told = sentences(figures((0.1, 0.05, 0.2), None), stopped, longer="LONGER")
    assert "LONGER" not in told[-1]
    assert ("more recordings" in told[-1]) == (windows < 5000)
    assert ("--contrastive" in told[-1]) == (windows > 5000)
