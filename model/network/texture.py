"""Statistics that describe how a window sounds, in backend-neutral Keras."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from keras import ops

# Added to variances and to powers of modulation, so that deviations and logarithms stay finite where nothing varies;
# in units of a variance of 1.
VARIANCE_FLOOR, MODULATION_FLOOR = 1e-4, 1e-3
# How many of the bands that `_together` leaves make a group: for the change from band to band, for modulation in time,
# and for modulation along frequency.
CHANGE_BANDS, TIME_BANDS, FREQUENCY_BANDS = 4, 8, 16
# Edges of the bands of modulation in time, in periods per window: half octaves.
RATES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Least number of bands that remain after neighbouring mel bands are grouped.
BANDS = 32
# Decibels below the loudest place of a window at which sound fades out, and the divisor that gives the rest about unit
# variance.
RANGE_DB, RELATIVE_SCALE = 30.0, 1.5
# Number of spectra in `_order`.
ORDERS = 4
# Largest number of values in one vector register of a processor.
VECTOR = 16
# Statistics with a smaller standard deviation are not rescaled; in units of a variance of 1.
MIN_DEVIATION = 1e-3
# Share of the mean variance that is added to the covariance of changes.
RIDGE = 0.05


def mean_over_time(x: Any) -> Any:
    """Mean over the first axis after the batch's.

    It is a matrix product: ONNX Runtime adds up a plain mean in an order that depends on the size of the batch, and a
    window's embedding must not depend on that.
    """
    _, frames, *rest = x.shape
    mean = ops.matmul(np.full((1, frames), 1 / frames, np.float32), ops.reshape(x, (-1, frames, math.prod(rest))))
    return ops.reshape(mean, (-1, *rest))


def statistics(x: Any, nats: Any) -> list[Any]:
    """Statistics of how a window sounds: its texture, independent of time, and a rough order of events.

    Texture consists of moments of the envelopes of bands, and the power of their modulation by rate: McDermott and
    Simoncelli, Sound Texture Perception via Statistics of the Auditory Periphery (2011). It includes modulation along
    frequency, which separates tones from noise: Chi, Ru and Shamma, Multiresolution Spectrotemporal Analysis of Complex
    Sounds (2005). It is computed twice: from the plain log-mel, and relative to the window's loudest place, where sound
    fades out `RANGE_DB` below. A faint background changes the first everywhere, and the second hardly.

    Parameters
    ----------
    x, nats : tensor, shape (batch, n_frames, n_mels)
        Log-mel: `x` normalised, `nats` in nats.

    Returns
    -------
    list of tensors, each (batch, n)
        `_texture` of both, and `_order`. All are computed from means of neighbouring bands: these contain as much
        information in fewer numbers, take a quarter of the time, and overfit less.
    """
    size = _together(x.shape[-1])
    # No spec allows log-mel above 64 nats. Its power is finite in float32, so no scaling is needed before grouping.
    x, power = _grouped(x, size), _grouped(ops.exp(nats), size)
    # Power 1 is half-way, in decibels, between the loudest place and the level at which sound fades out.
    middle = 10 ** (RANGE_DB / 20)
    power = power / (ops.max(power, axis=(1, 2), keepdims=True) / middle)
    relative = ops.log(power + 1 / middle) / RELATIVE_SCALE
    return [*_texture(x), *_texture(relative), *_order(relative, power)]


def _together(bands: int) -> int:
    """The number of neighbouring mel bands to group, so that at least `BANDS` groups remain."""
    return max([size for size in range(1, bands + 1) if bands % (8 * size) == 0 and bands // size >= BANDS], default=1)


def _texture(x: Any) -> list[Any]:
    """Statistics that do not depend on when something happens in a window.

    Per band: mean, deviation, deviation of the change from frame to frame, and maximum over time. Per group of bands:
    mean change from a band to the next. Per rate and group of bands: log power of modulation in time, and log power of
    modulation along frequency.
    """
    _, frames, bands = x.shape
    mean, change = mean_over_time(x), x[:, 1:] - x[:, :-1]
    variance = mean_over_time(ops.square(x - mean[:, None]))
    # The mean change is close to 0, so subtracting its square costs no precision. Subtracting the square of a mean
    # would.
    of_change = mean_over_time(ops.square(change)) - ops.square(mean_over_time(change))
    parts = [mean, *(ops.sqrt(ops.maximum(values, 0) + VARIANCE_FLOOR) for values in (variance, of_change))]
    parts.append(ops.max(x, axis=1))
    # A product is faster than a difference of slices, which would copy rows of a few bands one by one.
    step = np.eye(bands, k=-1, dtype=np.float32) - np.eye(bands, dtype=np.float32)
    step[:, -1] = 0
    parts.append(_grouped(mean_over_time(ops.abs(ops.matmul(x, step))), CHANGE_BANDS))
    rates = [rate for rate in RATES if rate < frames // 2] + [frames // 2]
    shares = np.zeros((frames // 2, len(rates) - 1), np.float32)
    for i, (low, high) in enumerate(itertools.pairwise(rates)):
        shares[low - 1 : high - 1, i] = 1 / (high - low)
    envelopes = ops.transpose(_grouped(x, TIME_BANDS), (0, 2, 1))
    in_time = ops.matmul(ops.square(_waves(envelopes)), np.tile(shares, (2, 1)))
    parts.append(_log(in_time, bands // TIME_BANDS * shares.shape[1]))
    size = FREQUENCY_BANDS if bands % FREQUENCY_BANDS == 0 else TIME_BANDS
    along_frequency = mean_over_time(ops.square(_waves(ops.reshape(x, (-1, frames, bands // size, size)))))
    parts.append(_log(along_frequency[..., : size // 2] + along_frequency[..., size // 2 :], bands // 2))
    return parts


def _order(relative: Any, power: Any) -> list[Any]:
    """Cosine transform of the spectra over a clock that runs with the sound: `ORDERS` tensors (batch, bands).

    The clock is the share c(t) of the window's amplitude that has sounded by frame t. It stands still in silence, so
    neither the place of a sound in the window nor the silence after it matters. With p(t) the frame's share of the
    amplitude, the k-th tensor is Σ_t p(t) cos(π k c(t)) times the spectrum at t: the mean spectrum of the sound, its
    trend, and so on.
    """
    frames = power.shape[1]
    loud = ops.matmul(power, np.ones((power.shape[2], 1), np.float32))[..., 0]
    amplitude = ops.sqrt(loud / ops.max(loud, axis=1, keepdims=True))
    amplitude = ops.maximum(amplitude - 10 ** (-RANGE_DB / 20), 0.0)
    share = amplitude / ops.matmul(amplitude, np.ones((frames, 1), np.float32))
    clock = ops.matmul(share, np.triu(np.ones((frames, frames), np.float32)) - np.eye(frames, dtype=np.float32) / 2)
    turns = np.pi * np.arange(ORDERS, dtype=np.float32)
    weights = share[:, None] * ops.cos(clock[:, None] * turns[:, None])
    spectra = ops.matmul(weights, relative)
    return [spectra[:, order] for order in range(ORDERS)]


def _grouped(x: Any, size: int) -> Any:
    """Means of `size` neighbours along the last axis, by a matrix product for the same reason as in `mean_over_time`.

    If the axis is a multiple of `VECTOR` groups, the product covers that many groups at a time: most of a matrix for
    the whole axis would be zeros.
    """
    n = x.shape[-1]
    block = VECTOR * size if n % (VECTOR * size) == 0 else n
    kernel = np.repeat(np.eye(block // size, dtype=np.float32), size, axis=0) / np.float32(size)
    blocks = ops.matmul(ops.reshape(x, (-1, *x.shape[1:-1], n // block, block)), kernel)
    return ops.reshape(blocks, (-1, *x.shape[1:-1], n // size))


def _waves(x: Any) -> Any:
    """Cosine parts of the last axis at 1, 2, … n // 2 periods, then all sine parts.

    The mean is removed and a Hann window is applied. The sum of both squares is the power of modulation.
    """
    n = x.shape[-1]
    turns = 2 * np.pi * np.outer(np.arange(n), np.arange(1, n // 2 + 1)) / n
    # The kernels remove the plain mean first and then apply the window.
    kernels = (np.eye(n) - 1 / n) @ (np.hanning(n)[:, None] * np.concatenate([np.cos(turns), np.sin(turns)], axis=1))
    return ops.matmul(x, kernels.astype(np.float32))


def _log(power: Any, size: int) -> Any:
    """Log powers in rows of `size`.

    Rows are padded to whole vectors of the processor. ONNX Runtime computes logarithms of leftover values one by one,
    with a different last bit, and which values are left over depends on the size of the batch.
    """
    rows = ops.reshape(power + MODULATION_FLOOR, (-1, size))
    return ops.log(ops.pad(rows, ((0, 0), (0, -size % VECTOR)), constant_values=1.0))[:, :size]


def statistics_of(windows: npt.NDArray[np.float32], nats: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
    """`statistics` of windows (n, n_frames, n_mels), normalised and in nats, as arrays."""
    parts = statistics(ops.convert_to_tensor(windows), ops.convert_to_tensor(nats))
    return [np.asarray(ops.convert_to_numpy(part), np.float32) for part in parts]


def projection(
    parts: Sequence[npt.NDArray[np.float32]], changed: Sequence[npt.NDArray[np.float32]], size: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Kernel and bias of a map from statistics to `size` numbers that keeps changed versions of a sound close together.

    Relevant component analysis: with S_w the covariance of the differences that the changes cause, (S_w + λ I)^-½
    shrinks the directions in which the same sound differs. Bar-Hillel et al., Learning Distance Functions using
    Equivalence Relations (2003). Here λ, `RIDGE` times the mean variance, is added for directions that no change moves.
    The result consists of the first principal components of that, rotated at random so that each number contains a
    share of every component, and scaled so that the total variance is that of a standard normal.

    Parameters
    ----------
    parts : sequence of ndarray of float32, shapes (windows, n)
        From `statistics_of`. No part has more weight than the first, however many numbers it has.
    changed : sequence of ndarray of float32, shapes (windows, n)
        Statistics of the same windows after changes that should leave them the same sound.
    size : int

    Returns
    -------
    (ndarray, ndarray), float32, shapes (all statistics, size) and (size,)
        For the parts side by side; all zeros if the windows do not differ.
    """
    most = parts[0].shape[1]
    weight = np.concatenate([np.full(part.shape[1], min(1.0, most / part.shape[1]) ** 0.5) for part in parts])
    values = np.concatenate(parts, axis=1).astype(np.float64)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    scale = weight / np.where(deviation > MIN_DEVIATION, deviation, 1)
    shifts = (np.concatenate(changed, axis=1) - values) * scale
    values = (values - mean) * scale
    covariance = values.T @ values / len(values)
    variance = float(np.trace(covariance)) / len(mean)
    if variance < MIN_DEVIATION**2:
        # All windows are the same: the data gives no scale for windows that differ from them.
        return np.zeros((len(mean), size), np.float32), np.zeros(size, np.float32)
    ridge = RIDGE * variance
    within, basis = np.linalg.eigh(shifts.T @ shifts / len(shifts))
    whitening = (basis / np.sqrt(within.clip(0) + ridge)) @ basis.T
    variances, directions = np.linalg.eigh(whitening @ covariance @ whitening)
    count = min(size, len(mean))
    kernel = np.zeros((len(mean), size))
    kernel[:, :count] = whitening @ directions[:, ::-1][:, :count]
    rotation = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0]
    kernel = scale[:, None] * kernel @ rotation * np.sqrt(size / float(variances[-count:].sum()))
    return kernel.astype(np.float32), (-mean @ kernel).astype(np.float32)
