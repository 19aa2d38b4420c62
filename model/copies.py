"""Near copies: recordings that hold the same sound, trimmed, at another level, or encoded again.

Such a recording has other bytes, and so another recording_id and perhaps another side of the split. What was learned
from the one says nothing when it is tried on the other.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from model.reports import Report, unheard

# Windows of other recordings that each recording is laid against, those with the most alike statistics.
CANDIDATES = 3
# Least cosine of statistics that makes a candidate: below, sounds are plainly different.
LEAST_COSINE = 0.5
# Of the frames of sound of the one that has fewer, the share at least that lies on sound of the other; and how many.
LEAST_OVERLAP, LEAST_FRAMES = 0.75, 8
# `difference` of two near copies, at most. Of ESC-10, drums, instruments and digits, trimmed, encoded again and at
# another level, half have 0.01 to 0.05; of two recordings of a set that are no copies one in a hundred has 0.23.
NEAR = 0.12
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
    """How far two pieces of log-mel differ where they lie on each other best; a change of level is no difference.

    Parameters
    ----------
    a, b : ndarray of float32, shape (frames, n_mels)
        Normalised: a mel band has a variance of 1.
    floor : ndarray of float32, shape (n_mels,)
        What is fainter counts as this, and a frame that is so in every band as silent.

    Returns
    -------
    float
        Variance of the difference of frames that lie on each other, over the mean of their own variances: 0 for the
        same sound, 2 for two that have nothing to do with each other. Silent frames on silent ones do not count.
        Infinite where too few frames of sound lie on each other.
    """
    if len(a) > len(b):
        a, b = b, a
    size = len(a) + len(b)
    # What is fainter than the floor in one may be an encoder's noise in the other.
    a, b = np.maximum(a, floor), np.maximum(b, floor)
    loud_a, loud_b = (np.asarray((part > floor).any(axis=1), np.float64) for part in (a, b))
    least = max(LEAST_FRAMES, int(np.ceil(LEAST_OVERLAP * min(loud_a.sum(), loud_b.sum()))))
    if len(a) < least:
        return float("inf")
    # Of each shift: frame i of `a` lies on frame i + shift of `b`.
    shifts = np.arange(least - len(a), len(b) - least + 1)

    def correlated(x: npt.NDArray[np.floating], y: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        spectrum = np.conj(np.fft.rfft(x, size, axis=0)) * np.fft.rfft(y, size, axis=0)
        found = np.fft.irfft(spectrum if spectrum.ndim == 1 else spectrum.sum(axis=1), size)
        return np.asarray(found[shifts])

    both = correlated(loud_a, loud_b)
    count = (correlated(np.ones(len(a)), np.ones(len(b))) - correlated(1 - loud_a, 1 - loud_b)) * a.shape[1]
    # Where both are silent they are the same, whatever there is to count.
    x, y = a * loud_a[:, None], b * loud_b[:, None]
    here, there = np.ones(len(a)), np.ones(len(b))
    count = np.maximum(count, 1)
    square_x, square_y = correlated(np.square(x).sum(axis=1), there), correlated(here, np.square(y).sum(axis=1))
    mean_x, mean_y = correlated(x.sum(axis=1), there) / count, correlated(here, y.sum(axis=1)) / count
    own = ((square_x + square_y) / count - np.square(mean_x) - np.square(mean_y)) / 2
    apart = (square_x + square_y - 2 * correlated(x, y)) / count - np.square(mean_x - mean_y)
    found = np.where(both >= least - 0.5, apart / np.maximum(own, 1e-6), np.inf)
    return max(0.0, float(found.min()))


def _smoothed(frames: Array) -> Array:
    """Each frame with half of its neighbours: what is cut elsewhere lies up to half a frame beside the other."""
    padded = np.pad(frames, ((1, 1), (0, 0)), mode="edge")
    return np.asarray((padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4, np.float32)


def pairs(
    windows: Callable[[int], Array],
    known_by: Array,
    *,
    clip: npt.NDArray[np.int64],
    group: npt.NDArray[np.int64],
    floors: Sequence[Array],
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
    floors : sequence of ndarray of float32, shape (n_mels,)
        As for `difference`; near copies are near above one of them. A low one is for copies at another level, a higher
        one for those with an encoder's noise.
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
        one, other = (_smoothed(windows(place)) for place in (first, second))
        if any(difference(one, other, floor=floor) <= NEAR for floor in floors):
            near.append(key)
    return near


def joined(count: int, linked: Iterable[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """A number for each of `count` things: the same for those that links join, also by way of others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array(list(linked), np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)
