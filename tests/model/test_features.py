"""Features against librosa in float64, on golden files and on fresh signals; windows by counting."""

import math
from pathlib import Path

import librosa
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from soundlake.model.features.log_mel import PRESETS, FeatureSpec, LogMel, dequantise, log_mel, quantise, windows

GOLDEN = Path(__file__).with_name("golden")
# Frames kept in a golden file, spread over the signal.
KEPT = slice(0, None, 7)
MOST, USUAL = 3e-4, 5e-5


def signal(spec: FeatureSpec) -> np.ndarray:
    """Two seconds of everything: tones, a sweep, noise, clicks, near-silence and digital silence, float32."""
    rate = spec.sample_rate
    t = np.arange(2 * rate) / rate
    rng = np.random.Generator(np.random.PCG64(11))
    y = 0.3 * np.sin(2 * np.pi * 440 * t) + 0.2 * np.sin(2 * np.pi * (100 + 0.2 * rate * t) * t)
    y += 0.05 * rng.standard_normal(len(t))
    y[:: rate // 5] += 0.5
    y[len(t) // 2 : len(t) * 5 // 8] = 0
    y[len(t) * 5 // 8 : len(t) * 6 // 8] *= 1e-4
    return y.astype(np.float32)


def reference(y: np.ndarray, spec: FeatureSpec) -> np.ndarray:
    """librosa's power mel spectrogram, natural logarithm, every step in float64; (n_frames, n_mels)."""
    stft = librosa.stft(
        y.astype(np.float64),
        n_fft=spec.n_fft,
        hop_length=spec.hop_length,
        win_length=spec.win_length,
        dtype=np.complex128,
    )
    bank = librosa.filters.mel(
        sr=spec.sample_rate, n_fft=spec.n_fft, n_mels=spec.n_mels, fmin=spec.f_min, fmax=spec.f_max, dtype=np.float64
    )
    return np.log(bank @ np.abs(stft) ** 2 + spec.log_offset).T


def write_golden() -> None:
    """Write the golden files: `python -c "from tests.model.test_features import *; write_golden()"`."""
    GOLDEN.mkdir(exist_ok=True)
    for name, spec in PRESETS.items():
        frames = reference(signal(spec), spec)[KEPT].astype(np.float32)
        np.savez_compressed(GOLDEN / f"{name}.npz", frames=frames)


def hold(found: np.ndarray, wanted: np.ndarray) -> None:
    error = np.abs(found.astype(np.float64) - wanted)
    assert error.max() <= MOST
    assert np.quantile(error, 0.999) <= USUAL


@pytest.mark.parametrize("name", PRESETS)
def test_golden(name: str) -> None:
    golden = np.load(GOLDEN / f"{name}.npz", allow_pickle=False)["frames"]
    assert golden.shape[0] > 15
    hold(log_mel(signal(PRESETS[name]), PRESETS[name])[KEPT], golden)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("length", [1, 100, 5_000, 50_001])
def test_librosa_in_float64(name: str, length: int) -> None:
    spec = PRESETS[name]
    y = np.random.default_rng(length).uniform(-1, 1, length).astype(np.float32)
    found = log_mel(y, spec)
    assert found.dtype == np.float32
    assert found.shape == (spec.n_frames(length), spec.n_mels)
    hold(found, reference(y, spec))


@pytest.mark.parametrize("offset", [1e-10, 1e-8, 9e-6])
def test_small_offsets_are_computed_in_float64(offset: float) -> None:
    """An FFT in float32 errs by up to 1e-2 here."""
    spec = FeatureSpec(**PRESETS["general"].model_dump() | {"log_offset": offset})
    y = signal(spec)
    error = np.abs(log_mel(y, spec) - reference(y, spec))
    assert error.max() < 5e-6


@pytest.mark.parametrize("name", PRESETS)
def test_single_precision_beside_pure_tones(name: str) -> None:
    """The hardest for it: all power in one place, next to bands that hold none. At a tenth of full scale within the
    bounds of all else; at full scale 5e-4 nats was the worst of 60 tones a preset."""
    spec = PRESETS[name]
    times = np.arange(spec.sample_rate) / spec.sample_rate
    for frequency in np.random.default_rng(4).uniform(100, spec.sample_rate / 2.2, 12):
        tone = np.sin(2 * np.pi * frequency * times)
        quiet = (0.1 * tone).astype(np.float32)
        hold(log_mel(quiet, spec), reference(quiet, spec))
        loud = tone.astype(np.float32)
        assert np.abs(log_mel(loud, spec) - reference(loud, spec)).max() < 1e-3


@pytest.mark.parametrize("name", PRESETS)
def test_no_band_is_empty(name: str) -> None:
    spec = PRESETS[name]
    bank = librosa.filters.mel(
        sr=spec.sample_rate, n_fft=spec.n_fft, n_mels=spec.n_mels, fmin=spec.f_min, fmax=spec.f_max
    )
    assert bank.any(axis=1).all()


def test_spec_ids_are_pinned() -> None:
    """A changed id is another lake: it must not happen by accident."""
    assert {name: spec.spec_id for name, spec in PRESETS.items()} == PINNED


PINNED = {
    "speech": "bfa24fb0730176c6",
    "music": "0d81655510be39f3",
    "wildlife": "e5ce57d4cfa2629e",
    "oneshots": "8003494b748d78d2",
    "general": "52f4880091087462",
}


def test_a_frame_does_not_depend_on_its_company() -> None:
    spec = PRESETS["general"]
    y = signal(spec)
    whole = log_mel(y, spec, centred=False)
    for first, count in ((0, 1), (5, 3), (40, 50)):
        part = y[first * spec.hop_length : (first + count - 1) * spec.hop_length + spec.n_fft]
        np.testing.assert_array_equal(log_mel(part, spec, centred=False), whole[first : first + count])


def test_buffers_that_are_used_again_leave_no_trace() -> None:
    spec = PRESETS["general"]
    y, compute = signal(spec), LogMel(spec)
    first = compute(y)
    kept = first.copy()
    compute(np.full(3000, np.nan, np.float32))
    np.testing.assert_array_equal(compute(y[:5000]), log_mel(y[:5000], spec))
    np.testing.assert_array_equal(first, kept)


def test_silence_is_the_floor() -> None:
    spec = PRESETS["speech"]
    found = log_mel(np.zeros(4000, np.float32), spec)
    np.testing.assert_allclose(found, math.log(1e-5), rtol=1e-6)
    assert not quantise(found, spec).any()


def test_log_mel_takes_mono_alone() -> None:
    with pytest.raises(ValueError, match="mono"):
        log_mel(np.zeros((2, 100), np.float32), PRESETS["general"])
    assert log_mel(np.zeros(0, np.float32), PRESETS["general"]).shape == (0, 128)


def test_quantise_errs_by_half_a_step_at_most() -> None:
    spec = PRESETS["general"]
    x = np.linspace(spec.floor, spec.floor + spec.value_span, 100_003, dtype=np.float32)
    error = np.abs(dequantise(quantise(x, spec), spec).astype(np.float64) - x)
    # float32 itself adds a little at the far end.
    assert error.max() <= spec.value_span / 65_535 / 2 + 4e-6


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e3])
def test_quantise_refuses(bad: float) -> None:
    with pytest.raises(ValueError, match="far beyond full scale"):
        quantise(np.array([[0.0, bad]], np.float32), PRESETS["general"])


@given(st.integers(0, 400_000), st.sampled_from(sorted(PRESETS)))
def test_counts_by_counting(samples: int, name: str) -> None:
    spec = PRESETS[name]
    # librosa, centred: a frame at every hop from 0 to the length, inclusive.
    frames = len(range(0, samples + 1, spec.hop_length)) if samples else 0
    assert spec.n_frames(samples) == frames
    count, covered = 0, 0
    while covered < frames:
        covered = count * spec.window_step + spec.window_frames
        count += 1
    assert spec.n_windows(samples) == count


@pytest.mark.parametrize("frames", [0, 1, 127, 128, 129, 192, 193, 500])
def test_windows_hold_every_frame(frames: int) -> None:
    spec = PRESETS["general"]
    x = np.random.default_rng(0).standard_normal((frames, 128)).astype(np.float32)
    cut = windows(x, spec)
    assert len(cut) == spec.n_windows(max(0, (frames - 1) * spec.hop_length + 1) if frames else 0)
    for i, window in enumerate(cut):
        part = x[i * 64 : i * 64 + 128]
        np.testing.assert_array_equal(window[: len(part)], part)
        assert (window[len(part) :] == np.float32(spec.floor)).all()


@pytest.mark.parametrize(
    "bad",
    [
        {"win_length": 4096},
        {"hop_length": 2048},
        {"f_max": 9_000.0},
        {"f_min": 8_000.0},
        {"window_step": 200},
        {"sample_rate": 10},
        {"log_offset": 0.0},
        {"version": 1},
        {"colour": 1},
    ],
)
def test_a_spec_refuses(bad: dict) -> None:
    with pytest.raises(ValidationError):
        FeatureSpec(**(PRESETS["general"].model_dump() | bad))


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError):
        PRESETS["general"].hop_length = 1
