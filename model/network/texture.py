"""Statistics of a window, in backend-neutral Keras: what a sound is like."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from keras import ops

# What keeps deviations and log powers of modulation finite where nothing varies; of unit variance.
VARIANCE_FLOOR, MODULATION_FLOOR = 1e-4, 1e-3
# Of the bands that `_together` leaves, those taken together for the change from band to band, for modulation in time,
# and along frequency.
CHANGE_BANDS, TIME_BANDS, FREQUENCY_BANDS = 4, 8, 16
# Borders of the bands of modulation in time, periods a window: half octaves.
RATES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Mel bands left at least where neighbours are taken together.
BANDS = 32
# Decibels below the loudest place of a window at which sound fades out, and what makes the rest of unit variance.
RANGE_DB, RELATIVE_SCALE = 30.0, 1.5
# Spectra by when they sound.
ORDERS = 4
# Numbers that a processor takes at once, at most.
VECTOR = 16
# A statistic that varies less is taken as it is; of unit variance.
MIN_DEVIATION = 1e-3
# Mean variance that is added to what changes do.
RIDGE = 0.05


def mean_over_time(x: Any) -> Any:
    """Mean over the first axis after the batch's.

    By a product: ONNX Runtime adds up a plain mean in an order that depends on the size of the batch, and a window's
    embedding must not.
    """
    _, frames, *rest = x.shape
    mean = ops.matmul(np.full((1, frames), 1 / frames, np.float32), ops.reshape(x, (-1, frames, math.prod(rest))))
    return ops.reshape(mean, (-1, *rest))


def statistics(x: Any, nats: Any) -> list[Any]:
    """What a window sounds like: its texture, whatever happens when in it, and in outline what follows what.

    Texture: McDermott and Simoncelli, Sound Texture Perception via Statistics of the Auditory Periphery (2011): moments
    of the envelopes of bands, and the power of their modulation, by rate; along frequency, too, which tells tones from
    noise: Chi, Ru and Shamma, Multiresolution Spectrotemporal Analysis of Complex Sounds (2005). It is taken twice: of
    the log-mel as it is, and relative to the window's loudest place, where what is `RANGE_DB` below fades out. A faint
    background changes the first all over, and the second hardly.

    Parameters
    ----------
    x, nats : tensor, shape (batch, n_frames, n_mels)
        Log-mel, normalised and in nats.

    Returns
    -------
    list of tensors, each (batch, n)
        `_texture` of both, and `_order`. All of means of neighbouring bands: fewer numbers say as much, take a quarter
        of the time, and learn less by heart.
    """
    size = _together(x.shape[-1])
    # No spec has log-mel above 64 nats, whose power is finite in float32: it needs no scale before it is grouped.
    x, power = _grouped(x, size), _grouped(ops.exp(nats), size)
    # From the loudest place to where sound fades out it is as far above 1 as below.
    middle = 10 ** (RANGE_DB / 20)
    power = power / (ops.max(power, axis=(1, 2), keepdims=True) / middle)
    relative = ops.log(power + 1 / middle) / RELATIVE_SCALE
    return [*_texture(x), *_texture(relative), *_order(relative, power)]


def _together(bands: int) -> int:
    """How many neighbouring mel bands are taken together, so that `BANDS` or more are left."""
    return max([size for size in range(1, bands + 1) if bands % (8 * size) == 0 and bands // size >= BANDS], default=1)


def _texture(x: Any) -> list[Any]:
    """Statistics that do not tell when in a window something happens.

    Mean, deviation, deviation of the change from frame to frame, and maximum over time, a number a band; mean change
    from a band to the next; log power of modulation in time, a number a rate and group of bands; log power of
    modulation along frequency, a number a rate and group of bands.
    """
    _, frames, bands = x.shape
    mean, change = mean_over_time(x), x[:, 1:] - x[:, :-1]
    variance = mean_over_time(ops.square(x - mean[:, None]))
    # A mean change is next to nothing: its square taken off costs no precision. The square of a mean would.
    of_change = mean_over_time(ops.square(change)) - ops.square(mean_over_time(change))
    parts = [mean, *(ops.sqrt(ops.maximum(one, 0) + VARIANCE_FLOOR) for one in (variance, of_change))]
    parts.append(ops.max(x, axis=1))
    # A product is faster than a difference of slices: rows of a few bands are copied one by one.
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
    along = mean_over_time(ops.square(_waves(ops.reshape(x, (-1, frames, bands // size, size)))))
    parts.append(_log(along[..., : size // 2] + along[..., size // 2 :], bands // 2))
    return parts


def _order(relative: Any, power: Any) -> list[Any]:
    """Spectra by when they sound, on a clock that runs with the sound: `ORDERS` tensors (batch, bands).

    The clock is the share c(t) of the window's amplitude that has sounded by frame t: it stands still in silence, so
    neither where in the window a sound begins nor what follows it counts. With p(t) the frame's share of the
    amplitude, the k-th is Σ_t p(t) cos(π k c(t)) times the spectrum at t: the mean spectrum of what sounds, its trend,
    and so on, as a cosine transform.
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
    """Means of `size` neighbours along the last axis, by a product for the same reason as `mean_over_time`'s.

    Of as many numbers at once as make a vector of the processor, where they go into that: most of the whole matrix is
    zeros.
    """
    n = x.shape[-1]
    block = VECTOR * size if n % (VECTOR * size) == 0 else n
    kernel = np.repeat(np.eye(block // size, dtype=np.float32), size, axis=0) / np.float32(size)
    blocks = ops.matmul(ops.reshape(x, (-1, *x.shape[1:-1], n // block, block)), kernel)
    return ops.reshape(blocks, (-1, *x.shape[1:-1], n // size))


def _waves(x: Any) -> Any:
    """Cosine and, after all of them, sine parts of the last axis at 1, 2, … n // 2 periods.

    Its mean taken out, under a Hann window; the sum of both squares is the power of modulation.
    """
    n = x.shape[-1]
    turns = 2 * np.pi * np.outer(np.arange(n), np.arange(1, n // 2 + 1)) / n
    # The mean and the window are part of the kernels: they see what is left when the plain mean is gone.
    kernels = (np.eye(n) - 1 / n) @ (np.hanning(n)[:, None] * np.concatenate([np.cos(turns), np.sin(turns)], axis=1))
    return ops.matmul(x, kernels.astype(np.float32))


def _log(power: Any, size: int) -> Any:
    """Log powers in rows of `size`.

    Filled up to whole vectors of the processor: ONNX Runtime takes logarithms of what is left over one by one, to
    another last bit, and which numbers those are depends on the size of the batch.
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
    """Kernel and bias that make `size` numbers of standardised statistics, in which the same sound changed stays near.

    Relevant component analysis: with S_w the covariance of what the changes do, (S_w + λ I)^-½ makes small in which
    the same sound differs. Bar-Hillel et al., Learning Distance Functions using Equivalence Relations (2003); here
    with λ, `RIDGE` times the mean variance, for directions that no change moves. Of that the first principal
    components, turned at random, so that every number has a share of each, and of all together the variance of a
    standard normal.

    Parameters
    ----------
    parts : sequence of ndarray of float32, shapes (windows, n)
        Of `statistics_of`. None counts for more than the first, however many numbers it has.
    changed : sequence of ndarray of float32, shapes (windows, n)
        Of the same windows changed into what is still to be the same sound.
    size : int

    Returns
    -------
    (ndarray, ndarray), float32, shapes (all statistics, size) and (size,)
        Of the parts laid side by side; zeros where the windows do not differ.
    """
    most = parts[0].shape[1]
    weight = np.concatenate([np.full(part.shape[1], min(1.0, most / part.shape[1]) ** 0.5) for part in parts])
    found = np.concatenate(parts, axis=1).astype(np.float64)
    mean, deviation = found.mean(axis=0), found.std(axis=0)
    scale = weight / np.where(deviation > MIN_DEVIATION, deviation, 1)
    moved = (np.concatenate(changed, axis=1) - found) * scale
    found = (found - mean) * scale
    covariance = found.T @ found / len(found)
    variance = float(np.trace(covariance)) / len(mean)
    if variance < MIN_DEVIATION**2:
        # Windows that are all the same: what differs from them is like none of it, and any scale is a guess.
        return np.zeros((len(mean), size), np.float32), np.zeros(size, np.float32)
    ridge = RIDGE * variance
    within, basis = np.linalg.eigh(moved.T @ moved / len(moved))
    nearer = (basis / np.sqrt(within.clip(0) + ridge)) @ basis.T
    variances, directions = np.linalg.eigh(nearer @ covariance @ nearer)
    count = min(size, len(mean))
    kernel = np.zeros((len(mean), size))
    kernel[:, :count] = nearer @ directions[:, ::-1][:, :count]
    turned = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0]
    kernel = scale[:, None] * kernel @ turned * np.sqrt(size / float(variances[-count:].sum()))
    return kernel.astype(np.float32), (-mean @ kernel).astype(np.float32)
