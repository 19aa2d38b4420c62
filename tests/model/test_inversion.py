"""Sound from log-mel: it has that log-mel, and a tone stays where it was."""

import numpy as np
import pytest

from soundlake.model.features.inversion import bins_of_bands, sound_of
from soundlake.model.features.log_mel import PRESETS, log_mel, mel_filters

SPEC = PRESETS["general"]


def test_bins_have_the_mel_power() -> None:
    power = np.random.default_rng(0).chisquare(2, (5, SPEC.n_fft // 2 + 1)).astype(np.float32)
    mel = power @ mel_filters(SPEC).T
    found = bins_of_bands(mel, SPEC)
    assert found.min() >= 0
    # The lowest bands share bins, so that some mel powers have no spectrum that fits all.
    assert np.median(np.abs(found @ mel_filters(SPEC).T / mel - 1)) < 0.01
    np.testing.assert_allclose(found @ mel_filters(SPEC).T, mel, rtol=0.5)


@pytest.mark.parametrize("hertz", [440.0, 1500.0, 5000.0])
def test_a_tone_keeps_its_pitch(hertz: float) -> None:
    time = np.arange(2 * SPEC.sample_rate) / SPEC.sample_rate
    wanted = log_mel((0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32), SPEC)
    found = sound_of(wanted, SPEC)
    assert len(found) == (len(wanted) - 1) * SPEC.hop_length
    loudest = np.argmax(np.abs(np.fft.rfft(found))) * SPEC.sample_rate / len(found)
    # As near as the mel bands lie there.
    assert loudest == pytest.approx(hertz, rel=0.05)


def test_noise_has_the_log_mel_that_it_was_made_from() -> None:
    noise = (0.1 * np.random.default_rng(1).standard_normal(SPEC.sample_rate)).astype(np.float32)
    wanted = log_mel(noise, SPEC)
    found = log_mel(sound_of(wanted, SPEC), SPEC)[: len(wanted)]
    assert np.abs(found - wanted).mean() < 0.5
    assert np.abs(found.mean() - wanted.mean()) < 0.2


def test_silence_is_silent() -> None:
    silent = np.full((40, SPEC.n_mels), SPEC.floor, np.float32)
    assert np.abs(sound_of(silent, SPEC)).max() < 1e-3
