"""Whether a stretch of a recording is the very same sound as a query, and where it lies.

Log-mel frames are laid over each other at every place; where little sound overlaps, the waveforms are correlated. Both
look only at what lies inside the query and inside the recording.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.float32]
Samples = npt.NDArray[np.float32]

# Share of the query's sound, or of the whole recording, that an overlap must hold.
COVERED = 0.9
# Nats above the floor from which on a band tells how loud it is.
CLEAR_NATS = 1.5
MIN_CLEAR_VALUES = 32
# Error below which no gain is tried.
SAME_LEVEL = 0.05
# Waveforms are correlated at so many lags a sample.
LAGS_A_SAMPLE = 4
# By how much two copies of one sound may differ in level: 40 dB.
MAX_GAIN = 100.0


@dataclass(frozen=True)
class Fit:
    """How well log-mel agrees at one place.

    Attributes
    ----------
    error : float
        Mean square difference a band over the overlap, nats², shared among the sounding frames.
    first : int
        Frame of the stored log-mel where the query begins; negative where the query begins before it.
    sounding : int
        Frames of the overlap that hold sound.
    gain : float
        Nats of power by which the recording is louder than the query.
    clear_error : float
        The same difference shared among the values that are clear in either of the two: where most bands are silent in
        both, `error` is small whatever the others hold. Infinite where hardly any is.
    """

    error: float
    first: int
    sounding: int
    gain: float
    clear_error: float


def align(
    query: Frames,
    stored: Frames,
    *,
    sounds: npt.NDArray[np.bool_],
    enough: int,
    starts: bool = False,
    ends: bool = False,
) -> list[Fit]:
    """Where a query fits best into stored log-mel: at the same level, and at any.

    Parameters
    ----------
    query, stored : ndarray of float32, shapes (n, n_mels) and (m, n_mels)
        Nats above the floor: silence is 0.
    sounds : ndarray of bool, shape (n,)
        Frames of the query that hold sound. Silence that agrees with silence proves nothing, so the differences of all
        frames are shared among these alone.
    enough : int
        Sounding frames that an overlap must hold, if it holds neither most of the query's nor the whole recording.
    starts, ends : bool
        Whether the recording begins, or ends, where `stored` does: the query may then lie half outside.

    Returns
    -------
    list of Fit
        Empty if nothing overlaps enough.
    """
    n, m = len(query), len(stored)
    before, after = (n - 1 if starts else 0), (n - 1 if ends else 0)
    if m + before + after < n or not sounds.any():
        return []
    q, x = query, np.pad(stored, ((before, after), (0, 0)))
    places = len(x) - n + 1
    # The overlap at a place: frames [low, high) of the query.
    first = np.arange(places) - before
    low, high = np.maximum(0, -first), np.minimum(n, m - first)
    held = _cumulated(sounds.astype(np.int64))
    sounding = held[high] - held[low]
    valid = (sounding >= min(enough, math.ceil(COVERED * int(held[n])))) | (
        (high - low >= COVERED * m) & (sounding > 0) & starts & ends
    )
    if not valid.any():
        return []
    # |q − x|² = |q|² + |x|² − 2 q·x, where the sum of q·x at one place is a diagonal of the product.
    cross = _diagonals(x @ q.T, places)
    of_query, of_stored = (_cumulated(np.square(v, dtype=np.float64).sum(axis=1)) for v in (q, x))
    squares = of_query[high] - of_query[low] + of_stored[n:] - of_stored[:places] - 2 * cross
    shared = np.maximum(sounding, 1) * query.shape[1]
    level = np.where(valid, np.maximum(squares, 0) / shared, np.inf)
    best = int(level.argmin())

    def overlap(place: int) -> tuple[int, slice, Frames]:
        begin, part = int(first[place]), slice(int(low[place]), int(high[place]))
        return begin, part, stored[part.start + begin : part.stop + begin]

    begin, part, other = overlap(best)
    clear = _clear_error(query[part], other)
    found = [Fit(float(level[best]), begin, int(sounding[best]), 0.0, clear)]
    if found[0].error < SAME_LEVEL:
        return found
    # A gain adds the same to all bands of the sounding frames: the least squares over all gains, roughly.
    along_q = _cumulated(np.where(sounds, q.sum(axis=1), 0).astype(np.float64))
    along_x = np.correlate(x.sum(axis=1).astype(np.float64), sounds.astype(np.float64), "valid")
    moved = along_q[high] - along_q[low] - along_x
    any_level = np.where(valid, squares / shared - np.square(moved / shared), np.inf)
    near = int(any_level.argmin())
    # Some gain always helps a little.
    if any_level[near] > found[0].error / 2:
        return found
    begin, part, other = overlap(near)
    return [*found, _at_gain(query[part], other, first=begin, sounds=sounds[part])]


def _cumulated(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(1, values.dtype), np.cumsum(values)])


def _diagonals(product: Frames, places: int) -> npt.NDArray[np.float32]:
    """Sums of `product` along its diagonals, from the first rows on."""
    product = np.ascontiguousarray(product)
    rows, columns = product.strides
    shape = (places, product.shape[1])
    return np.asarray(
        np.lib.stride_tricks.as_strided(product, shape, (rows, rows + columns), writeable=False).sum(axis=1)
    )


def _clear_error(query: Frames, stored: Frames) -> float:
    count = int(((query > CLEAR_NATS) | (stored > CLEAR_NATS)).sum())
    if count < MIN_CLEAR_VALUES:
        return math.inf
    return float(np.square(query - stored, dtype=np.float64).sum()) / count


def _at_gain(query: Frames, stored: Frames, *, first: int, sounds: npt.NDArray[np.bool_]) -> Fit:
    """The fit at one place if one of the two is made as quiet as the other."""
    clear = (query > CLEAR_NATS) & (stored > CLEAR_NATS)
    gain = float(np.median((stored - query)[clear])) if int(clear.sum()) >= MIN_CLEAR_VALUES else 0.0
    # Power above the floor is what a gain multiplies; the louder one is turned down, since the other has lost what the
    # floor hides.
    louder, quieter = (query, stored) if gain < 0 else (stored, query)
    turned = np.log1p(np.expm1(louder) * np.float32(math.exp(-abs(gain))))
    sounding = max(1, int(sounds.sum()))
    squares = float(np.square(turned - quieter, dtype=np.float64).sum())
    clear_error = _clear_error(turned, quieter)
    return Fit(squares / (sounding * query.shape[1]), first, int(sounds.sum()), gain, clear_error)


@dataclass(frozen=True)
class Match:
    """How well waveforms agree at the lag where they do best.

    Attributes
    ----------
    correlation : float
        Normalised over the overlap, with its mean or without, whichever is less: 1 for the same samples at any level.
    lag : int
        Sample of the recording's stretch where the query begins; negative where it begins before.
    gain : float
        What the query is multiplied by to be as loud as the recording.
    """

    correlation: float
    lag: int
    gain: float


def correlate(query: Samples, stored: Samples, *, starts: bool, ends: bool) -> Match | None:
    """The lag at which two waveforms agree best, and how well they do.

    Parameters
    ----------
    query, stored : ndarray of float32
        Mono waveforms at one rate.
    starts, ends : bool
        Whether the recording begins, or ends, where `stored` does: the query may then lie partly outside. If both, the
        recording may also lie inside the query.

    Returns
    -------
    Match or None
        None if no overlap holds enough of the query's sound, or of the recording's.
    """
    from scipy import fft

    n, m = len(query), len(stored)
    if not (query.any() and stored.any()):
        return None
    query, stored = query.astype(np.float64), stored.astype(np.float64)
    size = fft.next_fast_len(n + m - 1, real=True)
    # Between the samples, too: a cut made at another rate begins there, and high tones would cancel each other out.
    spectrum = fft.rfft(stored, size) * np.conj(fft.rfft(query, size))
    between = fft.irfft(spectrum, LAGS_A_SAMPLE * size) * LAGS_A_SAMPLE
    cross = between.reshape(size, LAGS_A_SAMPLE).max(axis=1)
    cross = np.concatenate([cross[size - n + 1 :], cross[:m]])
    lags = np.arange(-n + 1, m)
    of_query, of_stored = (_cumulated(np.square(v)) for v in (query, stored))
    low, high = np.maximum(0, -lags), np.minimum(n, m - lags)
    q, x = of_query[high] - of_query[low], of_stored[high + lags] - of_stored[low + lags]
    valid = q >= COVERED * of_query[-1]
    if starts and ends:
        valid |= x >= COVERED * of_stored[-1]
    # Where `stored` was cut out of the recording, sound that is not in it goes on there.
    valid &= (starts | (low == 0)) & (ends | (high == n))
    # Beside sound, what is fainter by more than that is silence, or what rounding leaves of it.
    valid &= (q > 0) & (x > 0) & (np.maximum(q, x) < MAX_GAIN**2 * np.minimum(q, x))
    if not valid.any():
        return None
    agreement = np.where(valid, cross / np.sqrt(np.where(valid, q * x, 1.0)), -1.0)
    # And without the mean of the overlap: a constant offset agrees with any other.
    length = high - low
    mean_q, mean_x = (_cumulated(v) for v in (query, stored))
    mean_q, mean_x = (mean_q[high] - mean_q[low]) / length, (mean_x[high + lags] - mean_x[low + lags]) / length
    spread = (q - length * mean_q**2) * (x - length * mean_x**2)
    valid &= spread > 1e-12 * q * x
    without = (cross - length * mean_q * mean_x) / np.sqrt(np.where(valid, spread, 1.0))
    agreement = np.where(valid, np.minimum(agreement, without), -1.0)
    best = int(agreement.argmax())
    return Match(float(min(1.0, agreement[best])), int(lags[best]), float(np.sqrt(x[best] / q[best])))


def alike(query: Samples, stored: Samples, *, least: float = 0.9) -> bool:
    """Whether two stretches agree as they lie; silence agrees with silence."""
    squares = float(np.square(query, dtype=np.float64).sum()), float(np.square(stored, dtype=np.float64).sum())
    if max(squares) == 0:
        return True
    if max(squares) > MAX_GAIN**2 * min(squares):
        return False
    return float(np.dot(query.astype(np.float64), stored.astype(np.float64))) >= least * math.sqrt(
        squares[0] * squares[1]
    )
