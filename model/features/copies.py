"""Near copies: recordings that hold the same sound, trimmed, encoded again, or a little softer.

Such a recording has other bytes, and so another recording_id and perhaps another side of the split. What was learned
from the one says nothing when it is tried on the other.
"""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from soundlake.model.reports import Report, unheard

# Windows of other recordings that each recording is laid against, those with the most alike statistics.
CANDIDATES = 3
# Least cosine of statistics that makes a candidate: below, sounds are plainly different.
LEAST_COSINE = 0.5
# Of the frames of sound of the one that has fewer, the share at least that lies on sound of the other; and how many.
LEAST_OVERLAP, LEAST_FRAMES = 0.75, 8
# `difference` of two near copies, at most. 81 of 112 copies of drums, digits and instruments (MP3, Vorbis, trimmed, a
# little softer) lie below; of 1,875 other pairs with like statistics 17 do, such as two strokes on the same cowbell.
NEAR = 0.02
# Rows of the table of cosines that are held.
BLOCK = 1024

Array = npt.NDArray[np.float32]


def statistics(windows: Array, valid: npt.NDArray[np.int64]) -> Array:
    """What windows are known by wherever they were cut: mean and deviation of each mel band over the frames of sound.

    Parameters
    ----------
    windows : ndarray of float32, shape (n, window_frames, n_mels)
    valid : ndarray of int64, shape (n,)
        Frames of each that hold sound.

    Returns
    -------
    ndarray of float32, shape (n, 2 * n_mels)
    """
    found = [
        np.concatenate([window[:count].mean(axis=0), window[:count].std(axis=0)])
        for window, count in zip(windows, valid, strict=True)
    ]
    return np.asarray(found, np.float32)


def difference(a: Array, b: Array, *, floor: Array) -> float:
    """How far two pieces of log-mel differ where they lie on each other best.

    Parameters
    ----------
    a, b : ndarray of float32, shape (frames, n_mels)
        Normalised: a mel band has a variance of 1.
    floor : ndarray of float32, shape (n_mels,)
        What is fainter counts as this, and a frame that is so in every band as silent.

    Returns
    -------
    float
        Squares of the difference of what lies above the floor, over the mean of its own squares: 0 for the same sound,
        2 for two that share nothing. Infinite where too few frames of sound lie on each other.
    """
    if len(a) > len(b):
        a, b = b, a
    size = len(a) + len(b)
    # What is fainter than the floor in one may be an encoder's noise in the other.
    x, y = (np.maximum(part - floor, 0) for part in (a, b))
    loud_x, loud_y = (np.asarray(part.any(axis=1), np.float64) for part in (x, y))
    least = max(LEAST_FRAMES, int(np.ceil(LEAST_OVERLAP * min(loud_x.sum(), loud_y.sum()))))
    if len(x) < least:
        return float("inf")
    # Of each shift: frame i of `a` lies on frame i + shift of `b`.
    shifts = np.arange(least - len(x), len(y) - least + 1)

    def correlated(one: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        spectrum = np.conj(np.fft.rfft(one, size, axis=0)) * np.fft.rfft(other, size, axis=0)
        found = np.fft.irfft(spectrum if spectrum.ndim == 1 else spectrum.sum(axis=1), size)
        return np.asarray(found[shifts])

    squares = correlated(np.square(x).sum(axis=1), np.ones(len(y)))
    squares += correlated(np.ones(len(x)), np.square(y).sum(axis=1))
    apart = 2 - 4 * correlated(x, y) / np.maximum(squares, 1e-6)
    found = np.where(correlated(loud_x, loud_y) >= least - 0.5, apart, np.inf)
    return max(0.0, float(found.min()))


def pairs(
    windows: Callable[[int], Array],
    known_by: Array,
    *,
    clip: npt.NDArray[np.int64],
    group: npt.NDArray[np.int64],
    floor: Array,
    report: Report = unheard,
) -> list[tuple[int, int]]:
    """Pairs of recordings of different groups that are near copies of each other.

    Parameters
    ----------
    windows : callable
        Of a window's number gives its normalised frames of sound, (frames, n_mels).
    known_by : ndarray of float32, shape (n, size)
        `statistics` of all windows.
    clip, group : ndarray of int64, shape (n,)
        Of each window, its recording and that one's group.
    floor : ndarray of float32, shape (n_mels,)
        As for `difference`.
    report : Report
        Told how far it is.

    Returns
    -------
    list of (int, int)
        Recordings, the smaller number first; sorted.
    """
    from sklearn.preprocessing import StandardScaler, normalize

    name = "looking for near copies"
    unit = normalize(StandardScaler().fit_transform(known_by)).astype(np.float32)
    # Of two recordings the two windows that are most alike.
    best: dict[tuple[int, int], tuple[float, int, int]] = {}
    for begin in range(0, len(unit), BLOCK):
        report(name, begin, len(unit), f"{begin} of {len(unit)} windows compared")
        cosines = unit[begin : begin + BLOCK] @ unit.T
        cosines[group[begin : begin + BLOCK, None] == group] = -1
        count = min(CANDIDATES, len(unit))
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        for row, places in enumerate(nearest):
            for place in places[cosines[row, places] >= LEAST_COSINE]:
                first, second = sorted((begin + row, int(place)), key=lambda number: int(clip[number]))
                found = (float(cosines[row, place]), first, second)
                key = int(clip[first]), int(clip[second])
                best[key] = max(found, best.get(key, found))
    near = []
    for number, (key, (_, first, second)) in enumerate(sorted(best.items())):
        report(name, number, len(best), f"{number} of {len(best)} pairs laid against each other")
        if difference(windows(first), windows(second), floor=floor) <= NEAR:
            near.append(key)
    return near


def joined(count: int, linked: Iterable[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """A number for each of `count` things: the same for those that links join, also by way of others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array(list(linked), np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)
