"""Near copies: recordings that hold the same sound, trimmed, encoded again, or a little softer.

A near copy has different bytes, hence another recording_id and perhaps another side of the split. A model that was
trained on one of the two proves nothing when it is tested on the other.
"""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from soundlake.model.reports import Report, unheard

# Windows of other recordings that each window is compared with: those with the most similar statistics.
CANDIDATES = 3
# Least cosine between statistics for a candidate. Below it, sounds are plainly different.
LEAST_COSINE = 0.5
# Least overlap of two pieces: as a share of the frames with sound of the piece that has fewer of them, and in frames.
LEAST_OVERLAP, LEAST_FRAMES = 0.75, 8
# Largest `difference` of two near copies. Of 112 copies of drums, digits and instruments (MP3, Vorbis, trimmed, a bit
# softer) 81 lie below it. Of 1,875 other pairs with similar statistics 17 do, such as two strokes on the same cowbell.
NEAR = 0.02
# Rows of the table of cosines that are in memory at a time.
BLOCK = 1024

Array = npt.NDArray[np.float32]


def statistics(windows: Array, valid: npt.NDArray[np.int64]) -> Array:
    """Mean and deviation of each mel band over the frames with sound: they hardly depend on where a window was cut.

    Parameters
    ----------
    windows : ndarray of float32, shape (n, window_frames, n_mels)
    valid : ndarray of int64, shape (n,)
        Number of frames with sound in each window.

    Returns
    -------
    ndarray of float32, shape (n, 2 * n_mels)
    """
    rows = [
        np.concatenate([window[:count].mean(axis=0), window[:count].std(axis=0)])
        for window, count in zip(windows, valid, strict=True)
    ]
    return np.asarray(rows, np.float32)


def difference(a: Array, b: Array, *, floor: Array) -> float:
    """How much two pieces of log-mel differ at the shift that aligns them best.

    Parameters
    ----------
    a, b : ndarray of float32, shape (frames, n_mels)
        Normalised: a mel band has a variance of 1.
    floor : ndarray of float32, shape (n_mels,)
        A fainter value counts as this one. A frame in which every band is fainter counts as silent.

    Returns
    -------
    float
        The squared difference of the parts above the floor, divided by the mean of their own squares: 0 for the same
        sound, 2 for two sounds that share nothing. Infinite if too few frames with sound overlap.
    """
    if len(a) > len(b):
        a, b = b, a
    size = len(a) + len(b)
    # A value below the floor in one piece may be an encoder's noise in the other.
    x, y = (np.maximum(part - floor, 0) for part in (a, b))
    loud_x, loud_y = (np.asarray(part.any(axis=1), np.float64) for part in (x, y))
    least_frames = max(LEAST_FRAMES, int(np.ceil(LEAST_OVERLAP * min(loud_x.sum(), loud_y.sum()))))
    if len(x) < least_frames:
        return float("inf")
    # At each shift, frame i of `a` is compared with frame i + shift of `b`.
    shifts = np.arange(least_frames - len(x), len(y) - least_frames + 1)

    def correlated(one: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        spectrum = np.conj(np.fft.rfft(one, size, axis=0)) * np.fft.rfft(other, size, axis=0)
        scores = np.fft.irfft(spectrum if spectrum.ndim == 1 else spectrum.sum(axis=1), size)
        return np.asarray(scores[shifts])

    squares = correlated(np.square(x).sum(axis=1), np.ones(len(y)))
    squares += correlated(np.ones(len(x)), np.square(y).sum(axis=1))
    distances = 2 - 4 * correlated(x, y) / np.maximum(squares, 1e-6)
    scores = np.where(correlated(loud_x, loud_y) >= least_frames - 0.5, distances, np.inf)
    return max(0.0, float(scores.min()))


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
        Returns the normalised frames with sound of a window, (frames, n_mels), given its number.
    known_by : ndarray of float32, shape (n, size)
        `statistics` of all windows.
    clip, group : ndarray of int64, shape (n,)
        The recording of each window, and the group of that recording.
    floor : ndarray of float32, shape (n_mels,)
        As for `difference`.
    report : Report
        Receives the progress.

    Returns
    -------
    list of (int, int)
        Numbers of recordings, the smaller one first; the list is sorted.
    """
    from sklearn.preprocessing import StandardScaler, normalize

    name = "looking for near copies"
    unit = normalize(StandardScaler().fit_transform(known_by)).astype(np.float32)
    # For each pair of recordings, the two windows that are most alike.
    best: dict[tuple[int, int], tuple[float, int, int]] = {}
    for begin in range(0, len(unit), BLOCK):
        report(name, begin, len(unit), f"{begin} of {len(unit)} windows compared")
        cosines = unit[begin : begin + BLOCK] @ unit.T
        cosines[group[begin : begin + BLOCK, None] == group] = -1
        count = min(CANDIDATES, len(unit))
        nearest = np.argpartition(-cosines, count - 1, axis=1)[:, :count]
        for row, columns in enumerate(nearest):
            for column in columns[cosines[row, columns] >= LEAST_COSINE]:
                first, second = sorted((begin + row, int(column)), key=lambda number: int(clip[number]))
                candidate = (float(cosines[row, column]), first, second)
                key = int(clip[first]), int(clip[second])
                best[key] = max(candidate, best.get(key, candidate))
    near = []
    for number, (key, (_, first, second)) in enumerate(sorted(best.items())):
        report(name, number, len(best), f"{number} of {len(best)} pairs laid against each other")
        if difference(windows(first), windows(second), floor=floor) <= NEAR:
            near.append(key)
    return near


def joined(count: int, linked: Iterable[tuple[int, int]]) -> npt.NDArray[np.int64]:
    """A number for each of `count` items: items that links join, directly or through others, have the same number."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = np.array(list(linked), np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)
