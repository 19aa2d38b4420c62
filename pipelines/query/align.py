"""Whether a stretch of a recording is the very same sound as a query, and where it lies.

`align` compares log-mel frames at every place; `correlate` correlates waveforms, for short sounds. Both compare only
the overlap of the query and the recording.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.float32]
Samples = npt.NDArray[np.float32]

# Least share of the query's sound, or of the whole recording, that an overlap must hold.
COVERED = 0.9
# A value more than this many nats above the floor is clear: it shows how loud its band is.
CLEAR_NATS = 1.5
MIN_CLEAR_VALUES = 32
# Below this error no gain is tried.
SAME_LEVEL = 0.05
# Waveforms are correlated at this many lags per sample.
LAGS_A_SAMPLE = 4
# Two copies of one sound may differ in amplitude by at most this factor: 40 dB.
MAX_GAIN = 100.0


@dataclass(frozen=True)
class Fit:
    """How well log-mel agrees at one place.

    Attributes
    ----------
    error : float
        Squared differences of the whole overlap, divided by the number of bands of its sounding frames, nats².
    first : int
        Frame of the stored log-mel where the query begins; negative where the query begins before it.
    sounding : int
        Frames of the overlap that hold sound.
    gain : float
        How much louder the recording is than the query, nats of power.
    clear_error : float
        The same sum, divided by the number of values that are clear in at least one of the two. Where most bands are
        silent in both, `error` is small whatever the other bands hold. Infinite with fewer than `MIN_CLEAR_VALUES`
        clear values.
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
    """Best places of a query in stored log-mel: at the same level, and at any level.

    Parameters
    ----------
    query, stored : ndarray of float32, shapes (n, n_mels) and (m, n_mels)
        Nats above the floor: silence is 0.
    sounds : ndarray of bool, shape (n,)
        Frames of the query that hold sound. The error is divided by the number of these frames alone, since silence
        that agrees with silence proves nothing.
    enough : int
        An overlap must hold this many sounding frames, or most of the query's, or most of the whole recording.
    starts, ends : bool
        Whether the recording begins, or ends, where `stored` does: the query may then lie partly outside.

    Returns
    -------
    list of Fit
        The best fit at the same level, then the best at any level if that at least halves the error; empty if no
        overlap is large enough.
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
    sounding_before = _cumulated(sounds.astype(np.int64))
    sounding = sounding_before[high] - sounding_before[low]
    valid = (sounding >= min(enough, math.ceil(COVERED * int(sounding_before[n])))) | (
        (high - low >= COVERED * m) & (sounding > 0) & starts & ends
    )
    if not valid.any():
        return []
    # |q − x|² = |q|² + |x|² − 2 q·x, where the sum of q·x at one place is a diagonal of the product.
    cross = _diagonals(x @ q.T, places)
    query_squares, stored_squares = (_cumulated(np.square(v, dtype=np.float64).sum(axis=1)) for v in (q, x))
    squares = query_squares[high] - query_squares[low] + stored_squares[n:] - stored_squares[:places] - 2 * cross
    shared = np.maximum(sounding, 1) * query.shape[1]
    level = np.where(valid, np.maximum(squares, 0) / shared, np.inf)
    best = int(level.argmin())

    def overlap(place: int) -> tuple[int, slice, Frames]:
        begin, part = int(first[place]), slice(int(low[place]), int(high[place]))
        return begin, part, stored[part.start + begin : part.stop + begin]

    begin, part, stored_part = overlap(best)
    clear_error = _clear_error(query[part], stored_part)
    fits = [Fit(float(level[best]), begin, int(sounding[best]), 0.0, clear_error)]
    if fits[0].error < SAME_LEVEL:
        return fits
    # A gain adds roughly the same to all bands of the sounding frames: this is the least error over all gains.
    along_q = _cumulated(np.where(sounds, q.sum(axis=1), 0).astype(np.float64))
    along_x = np.correlate(x.sum(axis=1).astype(np.float64), sounds.astype(np.float64), "valid")
    offset = along_q[high] - along_q[low] - along_x
    any_level = np.where(valid, squares / shared - np.square(offset / shared), np.inf)
    best_any = int(any_level.argmin())
    # Some gain always lowers the error a little.
    if any_level[best_any] > fits[0].error / 2:
        return fits
    begin, part, stored_part = overlap(best_any)
    return [*fits, _at_gain(query[part], stored_part, first=begin, sounds=sounds[part])]


def _cumulated(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(1, values.dtype), np.cumsum(values)])


def _diagonals(product: Frames, places: int) -> npt.NDArray[np.float32]:
    """Sums of `product` along the diagonals that begin in its first `places` rows."""
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
    """The fit at one place after the louder of the two is turned down to the level of the other."""
    is_clear = (query > CLEAR_NATS) & (stored > CLEAR_NATS)
    gain = float(np.median((stored - query)[is_clear])) if int(is_clear.sum()) >= MIN_CLEAR_VALUES else 0.0
    # A gain multiplies the power above the floor. The louder one is turned down: turning the other up would not
    # restore what the floor hides of it.
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
        Normalised over the overlap, with or without its mean, whichever is less; 1 for the same samples at any level.
    lag : int
        Sample of the recording's stretch where the query begins; negative where the query begins before it.
    gain : float
        Factor that makes the query as loud as the recording.
    """

    correlation: float
    lag: int
    gain: float


def correlate(query: Samples, stored: Samples, *, starts: bool, ends: bool) -> Match | None:
    """The lag at which two waveforms agree best, and their correlation there.

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
    # Try lags between the samples, too: a cut made at another rate begins there, and high tones would cancel out.
    spectrum = fft.rfft(stored, size) * np.conj(fft.rfft(query, size))
    upsampled = fft.irfft(spectrum, LAGS_A_SAMPLE * size) * LAGS_A_SAMPLE
    cross = upsampled.reshape(size, LAGS_A_SAMPLE).max(axis=1)
    cross = np.concatenate([cross[size - n + 1 :], cross[:m]])
    lags = np.arange(-n + 1, m)
    query_squares, stored_squares = (_cumulated(np.square(v)) for v in (query, stored))
    low, high = np.maximum(0, -lags), np.minimum(n, m - lags)
    q, x = query_squares[high] - query_squares[low], stored_squares[high + lags] - stored_squares[low + lags]
    valid = q >= COVERED * query_squares[-1]
    if starts and ends:
        valid |= x >= COVERED * stored_squares[-1]
    # Where `stored` was cut out of the recording, the query must not reach beyond it: the recording goes on there.
    valid &= (starts | (low == 0)) & (ends | (high == n))
    # A side that is fainter than the other by `MAX_GAIN` or more is silence, or rounding noise.
    valid &= (q > 0) & (x > 0) & (np.maximum(q, x) < MAX_GAIN**2 * np.minimum(q, x))
    if not valid.any():
        return None
    agreement = np.where(valid, cross / np.sqrt(np.where(valid, q * x, 1.0)), -1.0)
    # Correlate without the mean of the overlap, too: any two constant offsets agree.
    length = high - low
    mean_q, mean_x = (_cumulated(v) for v in (query, stored))
    mean_q, mean_x = (mean_q[high] - mean_q[low]) / length, (mean_x[high + lags] - mean_x[low + lags]) / length
    spread = (q - length * mean_q**2) * (x - length * mean_x**2)
    valid &= spread > 1e-12 * q * x
    without_mean = (cross - length * mean_q * mean_x) / np.sqrt(np.where(valid, spread, 1.0))
    agreement = np.where(valid, np.minimum(agreement, without_mean), -1.0)
    best = int(agreement.argmax())
    return Match(float(min(1.0, agreement[best])), int(lags[best]), float(np.sqrt(x[best] / q[best])))


def alike(query: Samples, stored: Samples, *, least: float = 0.9) -> bool:
    """Whether two waveforms agree at lag 0, whatever their gain up to `MAX_GAIN`; silence agrees with silence."""
    energies = float(np.square(query, dtype=np.float64).sum()), float(np.square(stored, dtype=np.float64).sum())
    if max(energies) == 0:
        return True
    if max(energies) > MAX_GAIN**2 * min(energies):
        return False
    return float(np.dot(query.astype(np.float64), stored.astype(np.float64))) >= least * math.sqrt(
        energies[0] * energies[1]
    )
