"""Where a query lies in a recording, against sums and correlations written out."""

import numpy as np
import pytest
from scipy.signal import butter, sosfilt

from soundlake.pipelines.query.align import MAX_GAIN, align, alike, correlate

RNG = np.random.default_rng(1)


def above_floor(frames: int, bands: int = 8) -> np.ndarray:
    return RNG.uniform(2, 9, (frames, bands)).astype(np.float32)


def level(query: np.ndarray, stored: np.ndarray, **given: object) -> object:
    """The fit at the same level."""
    sounds = given.pop("sounds", query.max(axis=1) > 0.5)
    return align(query, stored, sounds=sounds, enough=given.pop("enough", 1000), **given)[0]  # type: ignore[arg-type]


def test_against_brute_force() -> None:
    stored, query = above_floor(40), above_floor(9)
    sounds = np.arange(9) < 5
    wanted = [np.square(query - stored[i : i + 9]).sum() / (5 * 8) for i in range(32)]
    fit = level(query, stored, sounds=sounds)
    assert (fit.first, fit.sounding) == (int(np.argmin(wanted)), 5)
    assert fit.error == pytest.approx(min(wanted), rel=1e-5)
    exact = level(stored[17:26], stored)
    assert (exact.first, exact.error, exact.gain) == (17, pytest.approx(0, abs=1e-4), 0.0)


def test_a_place_lies_inside_the_recording() -> None:
    """The query goes on where the recording has ended: silence beyond an end is no part of the overlap."""
    stored = above_floor(30)
    query = np.concatenate([stored[20:], above_floor(1)])
    assert level(query, stored, ends=True).first == 20
    assert level(query, stored).first != 20
    begun = np.concatenate([above_floor(1), stored[:10]])
    assert level(begun, stored, starts=True).first == -1


def test_too_little_overlap_is_no_place() -> None:
    """A tenth of the query agrees at the recording's end, and the other nine tenths lie outside of it."""
    stored = above_floor(30)
    query = np.concatenate([stored[28:], above_floor(18)])
    assert level(query, stored, ends=True).first != 28
    assert level(query, stored, ends=True, enough=2).first == 28


def test_a_recording_within_the_query() -> None:
    stored = above_floor(10)
    query = np.concatenate([above_floor(15), stored, above_floor(15)])
    fit = level(query, stored, starts=True, ends=True)
    assert (fit.first, fit.sounding, fit.error) == (-15, 10, pytest.approx(0, abs=1e-4))


def test_silence_proves_nothing() -> None:
    """Two frames that differ, and forty of silence that agree: the error is that of the two."""
    query, stored = np.zeros((2, 42, 8), np.float32)
    query[20:22], stored[20:22] = 5.0, 7.0
    fit = level(query, stored)
    assert (fit.error, fit.sounding) == (pytest.approx(4.0), 2)
    assert align(np.zeros((5, 8), np.float32), stored, sounds=np.zeros(5, bool), enough=1) == []


def test_bands_that_are_silent_in_both_prove_nothing() -> None:
    """A whistle, and another: all other bands agree."""
    query, stored = np.zeros((2, 60, 64), np.float32)
    query[:40, 30], stored[:, 34] = 4.0, 3.0
    fit = level(query, stored)
    assert fit.error == pytest.approx((40 * 16 + 60 * 9) / (40 * 64))  # 0.46
    assert fit.clear_error == pytest.approx((40 * 16 + 60 * 9) / 100)
    # Hardly anything is clear.
    assert level(query[:, 30:32], stored[:, 30:32] + query[:, 30:32] / 4).clear_error == pytest.approx(9.0)
    assert level(query[:, 30:32] / 4, stored[:, 30:32]).clear_error == np.inf


@pytest.mark.parametrize("decibels", [-15.0, -6.0, 6.0, 15.0])
def test_a_gain_is_told(decibels: float) -> None:
    """Power over the floor is multiplied; a gain is a gain in the sound, not a sum in its logarithm."""
    power = np.exp(RNG.uniform(0, 12, (60, 32)))
    query = np.log1p(power[20:40]).astype(np.float32)
    stored = np.log1p(power * 10 ** (decibels / 10)).astype(np.float32)
    fits = align(query, stored, sounds=np.ones(20, bool), enough=1000)
    best = min(fits, key=lambda fit: fit.error)
    assert best.first == 20
    assert best.gain == pytest.approx(decibels / 10 * np.log(10), abs=0.1)
    assert best.error < 0.02 < fits[0].error


def written_out(query: np.ndarray, stored: np.ndarray) -> tuple[float, int]:
    """The best normalised correlation over lags that hold the whole query."""
    places = range(len(stored) - len(query) + 1)
    found = [float(np.corrcoef(query, stored[i : i + len(query)])[0, 1]) for i in places]
    return max(found), int(np.argmax(found))


def test_correlation_against_numpy() -> None:
    stored = sosfilt(butter(4, 0.3, output="sos"), RNG.standard_normal(3000)).astype(np.float32)
    query = (stored[700:1500] + 0.1 * RNG.standard_normal(800)).astype(np.float32)
    match = correlate(query, stored, starts=False, ends=False)
    assert match is not None
    wanted, lag = written_out(query, stored)
    assert match.lag == lag == 700
    assert match.correlation == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("gain", [0.02, 0.5, 1.0, 8.0])
def test_a_waveform_at_any_level(gain: float) -> None:
    stored = RNG.standard_normal(2000).astype(np.float32)
    match = correlate(stored[300:900] / np.float32(gain), stored, starts=True, ends=True)
    assert match is not None
    assert (match.lag, match.correlation) == (300, pytest.approx(1.0, abs=1e-6))
    assert match.gain == pytest.approx(gain, rel=1e-4)


def test_a_whole_recording_within_the_query() -> None:
    stored = RNG.standard_normal(500).astype(np.float32)
    query = np.concatenate([RNG.standard_normal(300), stored, RNG.standard_normal(300)]).astype(np.float32)
    match = correlate(query, stored, starts=True, ends=True)
    assert match is not None
    assert (match.lag, match.correlation) == (-300, pytest.approx(1.0, abs=1e-6))
    other = correlate(query, stored, starts=False, ends=False)
    assert other is None or other.correlation < 0.9


def test_what_is_left_of_a_fade_is_no_match() -> None:
    """The tail of a query that has faded to a millionth agrees with nothing."""
    query = np.concatenate([RNG.standard_normal(400), 1e-6 * np.ones(600)]).astype(np.float32)
    stored = np.linspace(0.4, 0.5, 300, dtype=np.float32)
    match = correlate(query, stored, starts=True, ends=True)
    assert match is None or match.correlation < 0.9
    assert MAX_GAIN < 1e6


def test_a_cut_between_samples() -> None:
    """Noise at a rate four times as high, cut there, and brought down: half a sample beside."""
    high = sosfilt(butter(8, 0.22, output="sos"), RNG.standard_normal(8000))
    stored, query = high[::4].astype(np.float32), high[1602:4802:4].astype(np.float32)
    assert written_out(query, stored)[0] < 0.85
    match = correlate(query, stored, starts=False, ends=False)
    assert match is not None
    assert (match.lag, match.correlation > 0.98) == (400, True)


def test_a_constant_offset_is_no_sound() -> None:
    """Two noises on the same offset correlate at 0.99 as they are, and hardly without it."""
    query, stored = (0.5 + 0.05 * RNG.standard_normal(800)).astype(np.float32), np.float32(0.5)
    stored = (stored + 0.05 * RNG.standard_normal(2000)).astype(np.float32)
    assert float(query @ stored[:800] / np.sqrt((query @ query) * (stored[:800] @ stored[:800]))) > 0.98
    match = correlate(query, stored, starts=False, ends=False)
    assert match is not None
    assert match.correlation < 0.3


def test_a_match_at_the_edge_of_what_was_cut_out() -> None:
    """The query hangs over where the stretch was cut out of the recording: what goes on there may be another sound."""
    stored = RNG.standard_normal(2000).astype(np.float32)
    query = np.concatenate([0.2 * RNG.standard_normal(60), stored[:740]]).astype(np.float32)
    inside, over = (correlate(query, stored, starts=starts, ends=False) for starts in (False, True))
    assert inside is not None
    assert over is not None
    assert (over.lag, over.correlation > 0.99) == (-60, True)
    assert (inside.lag >= 0, inside.correlation < 0.2) == (True, True)
    after = np.concatenate([stored[1260:], 0.2 * RNG.standard_normal(60)]).astype(np.float32)
    inside, over = (correlate(after, stored, starts=False, ends=ends) for ends in (False, True))
    assert inside is not None
    assert over is not None
    assert (over.lag, over.correlation > 0.99) == (1260, True)
    assert (inside.lag <= 1200, inside.correlation < 0.2) == (True, True)


def test_silence_has_no_waveform() -> None:
    assert correlate(np.zeros(100, np.float32), np.ones(200, np.float32), starts=True, ends=True) is None
    assert correlate(np.ones(100, np.float32), np.zeros(200, np.float32), starts=True, ends=True) is None
    assert alike(np.zeros(10, np.float32), np.zeros(10, np.float32))
    assert not alike(np.ones(10, np.float32), np.zeros(10, np.float32))
    assert alike(np.arange(10, dtype=np.float32), 2 * np.arange(10, dtype=np.float32))
