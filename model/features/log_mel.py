"""Feature specification and log-mel: waveform → log-mel frames → windows.

This is the only module that computes features. A spec is frozen and validated. Its `spec_id` is a digest of its
canonical JSON, so two lakes with the same `spec_id` contain the same numbers for the same sound.
"""

import functools
import hashlib
import json
import math
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

# Frames per mel product. Blocks are counted from the recording's first frame.
BLOCK_FRAMES = 192
# Frames per FFT call: with their spectrum they fit in the cache. A divisor of BLOCK_FRAMES.
FFT_FRAMES = 96
# From this offset on, an FFT in float32 errs by 1e-5 nats on recordings. The worst error is 5e-4: beside a pure tone of
# full scale, in bands 110 dB below it. At an offset of 1e-10 the error is 1e-2.
SINGLE_PRECISION_OFFSET = 1e-5


class FeatureSpec(BaseModel):
    """Definition of a log-mel window: sample rate, FFT, mel bands, window length.

    Attributes
    ----------
    version : int
        Version of the algorithm in this file. It is raised whenever a computed number changes.
    sample_rate : int
        Sample rate in Hz of the mono waveform that frames are taken from.
    n_fft, win_length, hop_length : int
        In samples: FFT length, length of the periodic Hann window centred in it, and distance between frames.
    n_mels : int
        Mel bands (Slaney scale, Slaney area normalisation).
    f_min, f_max : float
        Lower edge of the lowest band and upper edge of the highest band, Hz.
    log_offset : float
        Added to the mel power before the natural logarithm; digital silence becomes ``log(log_offset)``.
    window_frames, window_step : int
        Frames in a window, and frames from the start of one window to the start of the next.
    value_span : float
        Range of the stored 16-bit values, in nats above ``log(log_offset)``; louder sound is rejected, not clipped.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(default=2, ge=2, le=2)
    sample_rate: int = Field(ge=1000, le=768_000)
    n_fft: int = Field(ge=16, le=65_536)
    win_length: int = Field(ge=16, le=65_536)
    hop_length: int = Field(ge=1, le=65_536)
    n_mels: int = Field(default=128, ge=8, le=1024)
    f_min: float = Field(default=0.0, ge=0.0)
    f_max: float = Field(gt=0.0)
    log_offset: float = Field(default=1e-5, ge=1e-10, le=1.0)
    window_frames: int = Field(default=128, ge=8, le=8192)
    window_step: int = Field(default=64, ge=1)
    value_span: float = Field(default=28.0, ge=10.0, le=64.0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.win_length > self.n_fft:
            raise ValueError(f"win_length {self.win_length} is longer than n_fft {self.n_fft}")
        if self.hop_length > self.win_length:
            raise ValueError(
                f"hop_length {self.hop_length} skips samples: it is longer than win_length {self.win_length}"
            )
        if not self.f_min < self.f_max <= self.sample_rate / 2:
            raise ValueError(f"need f_min < f_max <= half the rate: {self.f_min}, {self.f_max}, {self.sample_rate / 2}")
        if self.window_step > self.window_frames:
            raise ValueError(
                f"window_step {self.window_step} leaves gaps between windows of {self.window_frames} frames"
            )
        return self

    @property
    def spec_id(self) -> str:
        """First 16 hexadecimal digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()[:16]

    @property
    def floor(self) -> float:
        """Log-mel value of digital silence, nats."""
        return math.log(self.log_offset)

    @property
    def step_seconds(self) -> float:
        """Seconds from the start of one window to the start of the next."""
        return self.window_step * self.hop_length / self.sample_rate

    @property
    def window_seconds(self) -> float:
        """Seconds from the first frame of a window to the first one after it."""
        return self.window_frames * self.hop_length / self.sample_rate

    def canonical_json(self) -> str:
        """JSON with sorted keys and no spaces: equal specs give equal text."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))

    def n_frames(self, n_samples: int) -> int:
        """Number of frames of `n_samples` samples, centred as in librosa: ``1 + n_samples // hop_length``."""
        return 1 + n_samples // self.hop_length if n_samples > 0 else 0

    def n_windows(self, n_samples: int) -> int:
        """Number of windows that cover every frame of `n_samples` samples; the last one may be padded with silence."""
        frames = self.n_frames(n_samples)
        if frames == 0:
            return 0
        return 1 + max(0, math.ceil((frames - self.window_frames) / self.window_step))


PRESETS: dict[str, FeatureSpec] = {
    # Short FFT windows: phonemes last 50-100 ms.
    "speech": FeatureSpec(sample_rate=16_000, n_fft=512, win_length=400, hop_length=160, f_min=20.0, f_max=8_000.0),
    # Long FFT windows resolve pitch; the full band covers cymbals and other high frequencies.
    "music": FeatureSpec(sample_rate=44_100, n_fft=2048, win_length=2048, hop_length=512, f_min=20.0, f_max=20_000.0),
    # Fast chirps, up to the highest frequencies of field recorders at 48 kHz.
    "wildlife": FeatureSpec(
        sample_rate=48_000, n_fft=1024, win_length=1024, hop_length=512, f_min=50.0, f_max=22_000.0
    ),
    # Windows half as long as those of `general`: otherwise most of a window would be padding.
    "oneshots": FeatureSpec(
        sample_rate=16_000,
        n_fft=1024,
        win_length=1024,
        hop_length=256,
        f_max=8_000.0,
        window_frames=64,
        window_step=32,
    ),
    "general": FeatureSpec(sample_rate=16_000, n_fft=1024, win_length=1024, hop_length=256, f_max=8_000.0),
}


def mel_filters(spec: FeatureSpec) -> npt.NDArray[np.float32]:
    """Weights of each mel band on the power of each FFT bin, float32, (n_mels, n_fft // 2 + 1)."""
    import librosa  # lazy: its first call takes seconds, and only callers that compute features need it

    return np.asarray(
        librosa.filters.mel(
            sr=spec.sample_rate,
            n_fft=spec.n_fft,
            n_mels=spec.n_mels,
            fmin=spec.f_min,
            fmax=spec.f_max,
            dtype=np.float32,
        )
    )


@functools.lru_cache(maxsize=16)
def _mel_bands(spec: FeatureSpec) -> tuple[tuple[slice, slice, npt.NDArray[np.float32]], ...]:
    """The mel filter bank cut into groups of bands: (bands, FFT bins, weights bins × bands, float32).

    A triangular filter is zero almost everywhere. A product over the bins that eight neighbouring bands use is several
    times cheaper than the dense product, and adds the same numbers.
    """
    weights = mel_filters(spec)
    groups = []
    for first in range(0, spec.n_mels, 8):
        part = weights[first : first + 8]
        used = np.flatnonzero(part.any(axis=0))
        low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        groups.append((slice(first, first + 8), slice(low, high), np.ascontiguousarray(part[:, low:high].T)))
    return tuple(groups)


def precision(spec: FeatureSpec) -> type[np.floating[Any]]:
    """The dtype of window and FFT: float32 where it is exact enough, at 1.4 times the speed; otherwise float64."""
    return np.float32 if spec.log_offset >= SINGLE_PRECISION_OFFSET else np.float64


@functools.lru_cache(maxsize=16)
def _fft_window(spec: FeatureSpec) -> npt.NDArray[Any]:
    """The window, repeated for FFT_FRAMES frames: a product of equal shapes takes half the time of a broadcast."""
    from scipy.signal import get_window

    window = np.zeros(spec.n_fft, precision(spec))
    start = (spec.n_fft - spec.win_length) // 2
    window[start : start + spec.win_length] = get_window("hann", spec.win_length, fftbins=True)
    return np.tile(window, (FFT_FRAMES, 1))


class LogMel:
    """Natural logarithm of the mel power spectrogram, with its own buffers: not thread-safe.

    Keep one instance to compute many slices; `log_mel` is for a single waveform.

    Parameters
    ----------
    spec : FeatureSpec
    """

    def __init__(self, spec: FeatureSpec) -> None:
        self.spec = spec
        self._window = _fft_window(spec)
        self._windowed = np.zeros((FFT_FRAMES, spec.n_fft), precision(spec))
        self._power = np.zeros((BLOCK_FRAMES, spec.n_fft // 2 + 1), np.float32)
        self._mels = np.empty((BLOCK_FRAMES, spec.n_mels), np.float32)
        self._products = [
            (self._power[:, bins], weights, self._mels[:, mel]) for mel, bins, weights in _mel_bands(spec)
        ]

    def __call__(self, samples: npt.NDArray[np.float32], *, centred: bool = True) -> npt.NDArray[np.float32]:
        """Log-mel frames of a waveform: parameters, result and errors as for `log_mel`."""
        spec = self.spec
        if samples.ndim != 1:
            raise ValueError(f"log_mel takes a mono waveform of shape (n_samples,), got shape {samples.shape}")
        n_frames = spec.n_frames(len(samples)) if centred else 1 + (len(samples) - spec.n_fft) // spec.hop_length
        out = np.empty((max(0, n_frames), spec.n_mels), np.float32)
        with np.errstate(over="ignore", invalid="ignore"):  # `quantise` rejects infinite power
            for first in range(0, n_frames, BLOCK_FRAMES):
                count = min(BLOCK_FRAMES, n_frames - first)
                start = first * spec.hop_length - (spec.n_fft // 2 if centred else 0)
                frames = self._frames(samples, start, count)
                for row in range(0, count, FFT_FRAMES):
                    self._powers(frames[row : row + FFT_FRAMES], row)
                # Always BLOCK_FRAMES rows, including leftovers of an earlier block: BLAS may round differently for
                # another number of rows, and a frame's values must not depend on how many frames are computed with it.
                for power, weights, mels in self._products:
                    np.matmul(power, weights, out=mels)
                self._mels += np.float32(spec.log_offset)
                np.log(self._mels[:count], out=out[first : first + count])
        return out

    def _frames(self, samples: npt.NDArray[np.float32], start: int, count: int) -> npt.NDArray[np.float32]:
        """View of `count` frames, (count, n_fft), the first one from sample `start` on; zeros beyond both ends."""
        length = (count - 1) * self.spec.hop_length + self.spec.n_fft
        piece = samples[max(0, start) : start + length]
        if len(piece) < length:
            piece = np.pad(piece, (max(0, -start), length - len(piece) - max(0, -start)))
        return np.lib.stride_tricks.sliding_window_view(piece, self.spec.n_fft)[:: self.spec.hop_length]

    def _powers(self, frames: npt.NDArray[np.float32], row: int) -> None:
        """Write power spectra of at most FFT_FRAMES frames into the rows of the block from `row` on."""
        from scipy import fft

        count = len(frames)
        windowed = self._windowed[:count]
        windowed[:] = frames
        windowed *= self._window[:count]
        # SciPy's FFT, since NumPy's computes in float64 for every dtype.
        spectrum = fft.rfft(windowed, axis=1).astype(np.complex64, copy=False)
        parts = spectrum.view(np.float32)
        np.square(parts, out=parts)
        np.add(spectrum.real, spectrum.imag, out=self._power[row : row + count])


def log_mel(samples: npt.NDArray[np.float32], spec: FeatureSpec, *, centred: bool = True) -> npt.NDArray[np.float32]:
    """Natural logarithm of the mel power spectrogram, as librosa defines it.

    ``log(librosa.feature.melspectrogram(y, power=2.0, …) + log_offset)``, transposed. The window and the FFT run in
    float32 or, for small offsets, in float64 (`precision`); power, mel and logarithm in float32.

    Parameters
    ----------
    samples : ndarray of float32, shape (n_samples,)
        Mono waveform at ``spec.sample_rate``, full scale ±1.
    spec : FeatureSpec
    centred : bool
        Frame ``t`` is centred on sample ``t * hop_length``, with zeros beyond both ends (librosa's default). If false,
        frame ``t`` starts at sample ``t * hop_length`` and only whole frames count: for a caller that passes a slice
        with its context.

    Returns
    -------
    ndarray of float32, shape (n_frames, n_mels)
        Nats. Time first, mel bands second.

    Raises
    ------
    ValueError
        If `samples` is not one-dimensional.
    """
    return LogMel(spec)(samples, centred=centred)


def windows(features: npt.NDArray[np.float32], spec: FeatureSpec) -> npt.NDArray[np.float32]:
    """Cut log-mel frames into windows; the last one is padded with silence so that every frame is in a window.

    Parameters
    ----------
    features : ndarray of float32, shape (n_frames, n_mels)
        Nats, from `log_mel`.
    spec : FeatureSpec

    Returns
    -------
    ndarray of float32, shape (n_windows, window_frames, n_mels)
    """
    n_frames = len(features)
    if n_frames == 0:
        return np.empty((0, spec.window_frames, spec.n_mels), np.float32)
    count = 1 + max(0, math.ceil((n_frames - spec.window_frames) / spec.window_step))
    out = np.full((count, spec.window_frames, spec.n_mels), spec.floor, np.float32)
    for i in range(count):
        part = features[i * spec.window_step : i * spec.window_step + spec.window_frames]
        out[i, : len(part)] = part
    return out


def quantise(features: npt.NDArray[np.float32], spec: FeatureSpec) -> npt.NDArray[np.uint16]:
    """Log-mel as 16-bit values, affine from ``floor`` to ``floor + value_span``; the error is at most half a step.

    Parameters
    ----------
    features : ndarray of float32, any shape
        Nats.
    spec : FeatureSpec

    Returns
    -------
    ndarray of uint16, the same shape
        0 is digital silence.

    Raises
    ------
    ValueError
        If a value is not finite or is above the span: the waveform is then far beyond full scale.
    """
    if features.size and not features.max() <= spec.floor + spec.value_span:  # the comparison is false for NaN, too
        raise ValueError(
            f"log-mel reaches {features.max():.1f} nats, above {spec.floor + spec.value_span:.1f}: "
            "the waveform is far beyond full scale or not finite; scale floating-point samples to ±1"
        )
    scaled = features - np.float32(spec.floor)
    scaled *= np.float32(65535 / spec.value_span)
    np.maximum(scaled, 0, out=scaled)
    return np.rint(scaled, out=scaled).astype(np.uint16)


def dequantise(values: npt.NDArray[np.uint16], spec: FeatureSpec) -> npt.NDArray[np.float32]:
    """The inverse of `quantise`: uint16, any shape → log-mel in nats, float32, the same shape."""
    return values.astype(np.float32) * np.float32(spec.value_span / 65535) + np.float32(spec.floor)
