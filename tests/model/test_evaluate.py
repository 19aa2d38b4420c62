"""Probes and their neighbours: against scikit-learn's own, by hand, and by the sound itself."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import PRESETS, log_mel
from soundlake.model.judging import evaluate

SPEC = PRESETS["general"]


def clips(count: int = 90, labels: int = 3, spread: float = 1.0) -> tuple[np.ndarray, list[str], list[str]]:
    """Clips around a centre for each label; groups of three."""
    rng = np.random.default_rng(1)
    codes = np.arange(count) % labels
    centres = rng.standard_normal((labels, 8))
    values = centres[codes] + spread * rng.standard_normal((count, 8))
    return values, [f"label {code}" for code in codes], [f"group {i // 3}" for i in range(count)]


def test_no_group_is_in_two_folds() -> None:
    _, labels, groups = clips()
    fold = evaluate.fold_of(labels, groups)
    assert set(fold) == set(range(evaluate.FOLDS))
    assert all(len({f for f, g in zip(fold, groups, strict=True) if g == group}) == 1 for group in groups)
    np.testing.assert_array_equal(fold, evaluate.fold_of(labels, groups))


@pytest.mark.parametrize(
    ("labels", "groups"), [([], []), (["a", "b"], ["g", "h"]), (["a", "a", "b"], ["g"] * 3), (["a", "a"], ["g", "h"])]
)
def test_too_few_to_probe(labels: list[str], groups: list[str]) -> None:
    with pytest.raises(InputError, match="at least two labels"):
        evaluate.fold_of(labels, groups)


def test_clear_labels_are_read_and_chance_is_chance() -> None:
    values, labels, groups = clips(spread=0.01)
    fold = evaluate.fold_of(labels, groups)
    found = evaluate.probe(values, labels, groups=groups, fold=fold)
    assert all(score == evaluate.Score(1.0, 1.0, 1.0) for score in found.values())
    noise = np.random.default_rng(2).standard_normal((900, 8))
    _, labels, groups = clips(900)
    fold = evaluate.fold_of(labels, groups)
    for score in evaluate.probe(noise, labels, groups=groups, fold=fold).values():
        assert score.low < 1 / 3 + 0.03
        assert score.high > 1 / 3 - 0.03
        assert score.low < score.value < score.high


def test_the_same_as_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "NEIGHBOURS", 1)
    values, labels, groups = clips(spread=1.5)
    codes = np.array(labels)
    fold = evaluate.fold_of(labels, groups)
    right, precisions = [], []
    for number in range(evaluate.FOLDS):
        test = fold == number
        scaler = StandardScaler().fit(values[~test])
        learned, asked = scaler.transform(values[~test]), scaler.transform(values[test])
        # One neighbour: no vote is tied.
        one = KNeighborsClassifier(1, metric="cosine").fit(learned, codes[~test])
        right += list(one.predict(asked) == codes[test])
        for query, label in zip(asked, codes[test], strict=True):
            cosine = learned @ query / np.linalg.norm(learned, axis=1)
            precisions.append(average_precision_score(codes[~test] == label, cosine))
    found = evaluate.probe(values, labels, groups=groups, fold=fold)
    assert 0.4 < found["knn"].value < 1
    assert found["knn"].value == pytest.approx(np.mean(right))
    assert found["map"].value == pytest.approx(np.mean(precisions))


def test_a_label_of_one_clip_is_no_query() -> None:
    values, labels, groups = clips()
    labels[0] = "alone"
    found = evaluate.probe(values, labels, groups=groups, fold=evaluate.fold_of(labels, groups))
    assert all(np.isfinite(score.value) for score in found.values())


def test_labels_that_are_groups_cannot_be_probed() -> None:
    values, labels, _ = clips()
    fold = evaluate.fold_of(labels, labels)
    with pytest.raises(InputError, match="every label occurs in one group only"):
        evaluate.probe(values, labels, groups=labels, fold=fold)


def test_statistics_of_frames() -> None:
    frames = np.array([[0, 1], [2, 1], [1, 4]], np.float32)
    wanted = [1, 2, np.std([0, 2, 1]), np.std([1, 1, 4]), np.std([2, -1]), np.std([0, 3])]
    np.testing.assert_allclose(evaluate.log_mel_statistics(frames), wanted, rtol=1e-6)
    np.testing.assert_array_equal(evaluate.log_mel_statistics(frames[:1]), [0, 1, 0, 0, 0, 0])


def test_fidelity_is_the_share_of_variance() -> None:
    rng = np.random.default_rng(0)
    turned, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    means = rng.standard_normal((20_000, 3)) * np.sqrt([6, 3, 1]) @ turned
    np.testing.assert_allclose(evaluate.fidelity(means.astype(np.float32)), [0.6, 0.9, 1.0], atol=0.01)


def test_a_level_is_that_of_the_sound() -> None:
    sound = np.random.default_rng(0).standard_normal(SPEC.hop_length * 127).astype(np.float32) * 0.1
    window = log_mel(sound, SPEC)[None]
    found = evaluate.disturbed(window, SPEC)
    np.testing.assert_allclose(found["level"][0], log_mel(sound / 2, SPEC), atol=1e-3)
    added = np.exp(found["noise"]) - np.exp(window)
    assert 10 * np.log10(added.mean() / (np.exp(window) - SPEC.log_offset).mean()) == pytest.approx(-20, abs=0.2)
    assert added.min() > -1e-6


def test_found_again() -> None:
    gallery = np.eye(4, dtype=np.float32)
    assert evaluate.found_again(3 * gallery, gallery) == 1.0
    assert evaluate.found_again(gallery[[1, 0, 2, 3]], gallery) == 0.5


def test_points_ahead() -> None:
    """Of the baselines; parts of the model are none."""
    values = {"embedding": 0.6, "latent": 0.9, "statistics": 0.9, "untrained": 0.9, "MFCC": 0.5, "PCA": 0.3}
    scores = {name: {"knn": evaluate.Score(value, 0, 1)} for name, value in values.items()}
    assert evaluate.baselines(scores) == ["MFCC", "PCA"]
    assert evaluate.beaten(scores) == {"knn": pytest.approx(0.1)}
    assert evaluate.beaten(scores | {"log-mel": {"knn": evaluate.Score(0.8, 0, 1)}}) == {"knn": pytest.approx(-0.2)}


def test_mfcc_statistics_are_librosas() -> None:
    """Up to the decibels and the floor that librosa takes: of log-mel that is given to both."""
    import librosa

    frames = np.random.default_rng(3).normal(-5, 2, (50, 40)).astype(np.float32)
    cepstra = librosa.feature.mfcc(S=frames.T, n_mfcc=20)
    wanted = np.concatenate([cepstra.mean(axis=1), cepstra.std(axis=1), np.diff(cepstra, axis=1).std(axis=1)])
    np.testing.assert_allclose(evaluate.mfcc_statistics(frames), wanted, rtol=1e-4, atol=1e-4)


def test_distances_of_runs_of_windows() -> None:
    """Each pair written out: the query's mean, and every stretch of the other that is as long, or all of it."""
    rng = np.random.default_rng(4)
    clips = [rng.standard_normal((count, 5)).astype(np.float32) for count in (1, 4, 2, evaluate.MOST_RUN + 3)]

    def apart(query: np.ndarray, other: np.ndarray) -> float:
        count = min(len(query), len(other), evaluate.MOST_RUN)
        stretches = [other[first : first + count] for first in range(len(other) - count + 1)]
        return min(float(np.sum((query.mean(axis=0) - part.mean(axis=0)) ** 2)) for part in stretches)

    wanted = [[apart(query, other) for other in clips] for query in clips]
    np.testing.assert_allclose(evaluate.run_distances(clips), wanted, rtol=1e-4, atol=1e-4)
    # A long clip is asked by all of it, and compared with stretches of itself.
    assert wanted[3][3] > 0 == wanted[1][1]


def test_the_first_hit_of_a_search_is_of_another_fold() -> None:
    clips = np.array([[0.0], [0.1], [0.4], [5.0], [5.2], [9.0]], np.float32)
    labels, fold = ["a", "b", "a", "b", "b", "a"], np.array([0, 0, 1, 1, 0, 1])
    found = evaluate.hits(clips, labels, fold=fold)["search"]
    np.testing.assert_array_equal(found, [1, 0, 0, 1, 1, 0])
    given = np.ones((6, 6)) - np.eye(6)
    given[2, 0] = given[5, 0] = 0.5
    np.testing.assert_array_equal(evaluate.hits(clips, labels, fold=fold, distances=given)["search"][[2, 5]], [1, 1])


def test_active_dimensions() -> None:
    assert evaluate.active_dimensions([0.0, 0.009, 0.011, 3.0]) == 2
