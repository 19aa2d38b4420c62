"""A scale for distances: how far apart two random windows of a table are, or the means of two random runs of windows.

The sample is chosen by digests, so that it stays the same as long as the recordings do.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from soundlake.pipelines.lake import table

# Windows of the sample; every pair of them counts.
SAMPLE = 512
# Lengths of runs, in windows, that have a scale of their own; the least number of runs taken of each length.
RUNS = (1, 4, 16)
LEAST_RUNS = 128
# A scale keeps the distances at this many equal steps of the share of pairs.
STEPS = 1000
_MIX = np.uint64(0x9E3779B97F4A7C15)


def scales(dataset: Any) -> dict[int, list[float]]:
    """`distances` of single windows, and of the means of runs of `RUNS` windows."""
    names = _sample(dataset)
    return {count: _distances(dataset, names, count) for count in RUNS}


def distances(dataset: Any, count: int = 1) -> list[float]:
    """Quantiles of the distances of random pairs of a table's windows: a share i / `STEPS` is below entry i.

    Parameters
    ----------
    dataset : lance.LanceDataset
    count : int
        Windows of a run; the means of two runs are compared.

    Returns
    -------
    list of float
        `STEPS` + 1 squared L2 distances, ascending; empty for a table with fewer than two windows.
    """
    return _distances(dataset, _sample(dataset), count)


def _distances(dataset: Any, names: list[str], count: int) -> list[float]:
    """`distances` of the runs that begin with the windows of a sample."""
    # The longer the runs, the fewer: each needs more windows to be read.
    chosen = [(name, int(window)) for name, window in (window_id.split(":") for window_id in names)]
    chosen = chosen[: max(LEAST_RUNS, SAMPLE // count)]
    around = [[f"{name}:{place}" for place in range(window - count + 1, window + count)] for name, window in chosen]
    wanted = sorted({window_id for run in around for window_id in run})
    vectors = {
        row["id"]: row["embedding"]
        for batch in table.rows_of(dataset, "id", wanted, ["id", "embedding"])
        for row in batch.to_pylist()
    }
    owners, means = [], []
    for (name, window), run in zip(chosen, around, strict=True):
        present = [window_id for window_id in run if window_id in vectors]
        own_id = f"{name}:{window}"
        if own_id in present:
            # The run begins with the window, or ends with the recording if the recording ends sooner.
            first = max(0, min(present.index(own_id), len(present) - count))
            owners.append(name)
            means.append(
                np.mean([vectors[window_id] for window_id in present[first : first + count]], axis=0, dtype=np.float64)
            )
    if len(means) < 2:
        return []
    recordings = np.unique(owners, return_inverse=True)[1]
    points = np.array(means)
    norms = np.square(points).sum(axis=1)
    squares = np.maximum(0, norms[:, None] + norms[None, :] - 2 * points @ points.T)
    pairs = np.triu(np.ones(squares.shape, bool), 1)
    # Windows of one recording overlap: they are no random pair, and count only if there are no other pairs.
    apart = pairs & (recordings[:, None] != recordings[None, :])
    selected = squares[apart if apart.any() else pairs]
    return [float(f"{value:.6g}") for value in np.quantile(selected, np.linspace(0, 1, STEPS + 1))]


def _sample(dataset: Any) -> list[str]:
    """Ids of the sampled windows: those with the least numbers from `_mixed`."""
    kept: list[tuple[int, str]] = []
    for batch in dataset.to_batches(columns=["recording_id", "window"]):
        names = batch.column("recording_id").to_pylist()
        if not names:
            continue
        mixed = _mixed(names, batch.column("window").to_numpy(zero_copy_only=False))
        # A recording with several names has several rows for each window.
        least = np.unique(mixed, return_index=True)[1][:SAMPLE]
        windows = batch.column("window").to_pylist()
        candidates = [(int(mixed[i]), f"{names[i]}:{windows[i]}") for i in least]
        kept = heapq.nsmallest(SAMPLE, set(kept) | set(candidates))
    return [name for _, name in kept]


def _mixed(names: Sequence[str], windows: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """A pseudo-random number for each window that depends only on the recording's digest and the window's number."""
    heads = np.frombuffer(bytes.fromhex("".join(name[:16] for name in names)), ">u8").astype(np.uint64)
    mixed = heads + windows.astype(np.uint64) * _MIX
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def scale_of(count: int, known: Mapping[int, Sequence[float]]) -> Sequence[float]:
    """The scale for runs of `count` windows, interpolated between the nearest lengths by their logarithms."""
    lengths = sorted(known)
    place = float(np.interp(math.log(count), [math.log(length) for length in lengths], range(len(lengths))))
    low, high = known[lengths[math.floor(place)]], known[lengths[math.ceil(place)]]
    if not low or not high:
        return low or high
    share = place - math.floor(place)
    return list((1 - share) * np.asarray(low) + share * np.asarray(high))


def share_nearer(distance: float, scale: Sequence[float]) -> float | None:
    """Share of random pairs that are less than a distance apart; None without a scale."""
    if not scale:
        return None
    return float(np.interp(distance, scale, np.linspace(0, 1, len(scale))))
