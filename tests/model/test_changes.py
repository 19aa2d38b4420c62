"""The same sound otherwise: each change alone, by what it does to mel power."""

import numpy as np
import pytest

from soundlake.model.features.log_mel import PRESETS, FeatureSpec
from soundlake.model.network import changes

SPEC = PRESETS["general"]
OFF = {"PITCH": 0, "LEVEL": 0.0, "TEMPO": 0.0, "ROOM_SHARE": 0.0, "BACKGROUND": 0.0}


def power(nats: np.ndarray, spec: FeatureSpec = SPEC) -> np.ndarray:
    return np.exp(nats.astype(np.float64)) - spec.log_offset


def alone(monkeypatch: pytest.MonkeyPatch, **kept: float) -> None:
    """All changes off but these."""
    for name, value in (OFF | kept).items():
        monkeypatch.setattr(changes, name, value)


@pytest.fixture
def windows() -> np.ndarray:
    """A burst of noise in the middle of each, on a faint floor."""
    rng = np.random.default_rng(1)
    nats = rng.normal(-9, 0.3, (40, SPEC.window_frames, SPEC.n_mels)).astype(np.float32)
    nats[:, 40:80] = rng.normal(-1, 1, (40, 40, SPEC.n_mels))
    return nats


def test_nothing_changed_is_the_same(windows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch)
    np.testing.assert_allclose(changes.changed(windows, SPEC, np.random.default_rng(2)), windows, atol=1e-3)


def test_the_same_generator_gives_the_same(windows: np.ndarray) -> None:
    first, second = (changes.changed(windows, SPEC, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, changes.changed(windows, SPEC, np.random.default_rng(4)))
    assert (first.dtype, np.isfinite(first).all()) == (np.float32, True)


def test_a_level_is_one_factor_a_window(windows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch, LEVEL=3.0)
    found = power(changes.changed(windows, SPEC, np.random.default_rng(2)))[:, 40:80] / power(windows)[:, 40:80]
    factor = found.mean(axis=(1, 2))
    np.testing.assert_allclose(found, np.broadcast_to(factor[:, None, None], found.shape), rtol=1e-2)
    assert 2 < (10 * np.log10(factor)).std() < 4


def test_a_tempo_moves_what_comes_later(windows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch, TEMPO=0.1)
    loud = power(changes.changed(windows, SPEC, np.random.default_rng(2))).mean(axis=2) > np.exp(-4)
    begins, lasts = loud.argmax(axis=1), loud.sum(axis=1)
    assert (begins.min(), begins.max()) == (pytest.approx(36, abs=1), pytest.approx(44, abs=1))
    assert (lasts.min(), lasts.max()) == (pytest.approx(36, abs=2), pytest.approx(44, abs=2))


def test_a_room_holds_what_has_sounded(windows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch, ROOM_SHARE=0.5)
    found = power(changes.changed(windows, SPEC, np.random.default_rng(2)))
    # Nothing before the sound; after it an exponential decay, of at most 60 dB in 0.05 to 0.6 s.
    assert found[:, :40].max() < 1.01 * power(windows)[:, :40].max()
    level = 10 * np.log10(found.mean(axis=2))
    after = level[:, 81:84]
    fall = (after[:, 0] - after[:, 2]) / 2 * SPEC.sample_rate / SPEC.hop_length
    clear = after[:, 2] > 10 * np.log10(power(windows)[:, 90:].mean()) + 15
    assert clear.sum() > 5
    assert (fall[clear] > 60 / 0.6 * 0.8).all()
    assert (fall[clear] < 60 / 0.05 * 1.2).all()


def test_a_background_is_as_far_below_as_it_says(windows: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    alone(monkeypatch, BACKGROUND=1.0)
    added = power(changes.changed(windows, SPEC, np.random.default_rng(2))) - power(windows)
    below = 10 * np.log10(power(windows).mean(axis=(1, 2)) / added.mean(axis=(1, 2)))
    assert (below > 9.9).all()
    assert (below < 40.5).all()
    alone(monkeypatch, BACKGROUND=0.3)
    many = np.repeat(windows, 10, axis=0)
    added = power(changes.changed(many, SPEC, np.random.default_rng(2))) - power(many)
    assert (np.abs(added).mean(axis=(1, 2)) > 1e-5).mean() == pytest.approx(0.3, abs=0.08)


def test_silence_gets_no_background() -> None:
    silent = np.full((10, SPEC.window_frames, SPEC.n_mels), SPEC.floor, np.float32)
    np.testing.assert_allclose(changes.changed(silent, SPEC, np.random.default_rng(2)), silent, atol=1e-4)


def test_speckles_are_small(windows: np.ndarray) -> None:
    found = changes.speckled(windows, np.random.default_rng(2)) - windows
    deviation = found.std(axis=(1, 2))
    assert (deviation.min() > 0, deviation.max() < 1.1 * changes.NOISE) == (True, True)
