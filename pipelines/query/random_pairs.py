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
# Lengths of runs of windows that have a scale of their own, and how many runs at least are taken of each.
RUNS = (1, 4, 16)
LEAST_RUNS = 128
# Distances are kept at so many equal steps of the share of pairs.
STEPS = 1000
_MIX = np.uint64(0x9E3779B97F4A7C15)


def scales(dataset: Any) -> dict[int, list[float]]:
    """`distances` of single windows, and of the means of runs of `RUNS` windows."""
    names = _sample(dataset)
    return {count: _distances(dataset, names, count) for count in RUNS}


def distances(dataset: Any, count: int = 1) -> list[float]:
    """Distances of random pairs of a table's windows, as quantiles: entry i of `STEPS` + 1 has i / `STEPS` below it.

    Parameters
    ----------
    dataset : lance.LanceDataset
    count : int
        Windows of a run, whose means are compared.

    Returns
    -------
    list of float
        Squared L2 distances, ascending; empty for a table with fewer than two windows.
    """
    return _distances(dataset, _sample(dataset), count)


def _distances(dataset: Any, names: list[str], count: int) -> list[float]:
    """`distances` of the runs that begin with the windows of a sample."""
    # Of runs fewer: each is more to read.
    chosen = [(name, int(window)) for name, window in (text.split(":") for text in names)]
    chosen = chosen[: max(LEAST_RUNS, SAMPLE // count)]
    around = [[f"{name}:{place}" for place in range(window - count + 1, window + count)] for name, window in chosen]
    wanted = sorted({text for run in around for text in run})
    vectors = {
        row["id"]: row["embedding"]
        for batch in table.rows_of(dataset, "id", wanted, ["id", "embedding"])
        for row in batch.to_pylist()
    }
    of, means = [], []
    for (name, window), run in zip(chosen, around, strict=True):
        there = [text for text in run if text in vectors]
        own = f"{name}:{window}"
        if own in there:
            # A run that begins with the window; one that ends with the recording where that is nearer.
            first = max(0, min(there.index(own), len(there) - count))
            of.append(name)
            means.append(np.mean([vectors[text] for text in there[first : first + count]], axis=0, dtype=np.float64))
    if len(means) < 2:
        return []
    recordings = np.unique(of, return_inverse=True)[1]
    points = np.array(means)
    norms = np.square(points).sum(axis=1)
    squares = np.maximum(0, norms[:, None] + norms[None, :] - 2 * points @ points.T)
    pairs = np.triu(np.ones(squares.shape, bool), 1)
    # Windows of one recording overlap: they are no random pair, unless there is nothing else.
    apart = pairs & (recordings[:, None] != recordings[None, :])
    found = squares[apart if apart.any() else pairs]
    return [float(f"{value:.6g}") for value in np.quantile(found, np.linspace(0, 1, STEPS + 1))]


def _sample(dataset: Any) -> list[str]:
    """Ids of the sampled windows, those whose mixed digests are least."""
    kept: list[tuple[int, str]] = []
    for batch in dataset.to_batches(columns=["recording_id", "window"]):
        names = batch.column("recording_id").to_pylist()
        if not names:
            continue
        mixed = _mixed(names, batch.column("window").to_numpy(zero_copy_only=False))
        # A recording with several names has several rows of one window.
        least = np.unique(mixed, return_index=True)[1][:SAMPLE]
        windows = batch.column("window").to_pylist()
        fresh = [(int(mixed[i]), f"{names[i]}:{windows[i]}") for i in least]
        kept = heapq.nsmallest(SAMPLE, set(kept) | set(fresh))
    return [name for _, name in kept]


def _mixed(names: Sequence[str], windows: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """A number a window that looks random and follows from the recording's digest alone."""
    heads = np.frombuffer(bytes.fromhex("".join(name[:16] for name in names)), ">u8").astype(np.uint64)
    mixed = heads + windows.astype(np.uint64) * _MIX
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def scale_of(count: int, known: Mapping[int, Sequence[float]]) -> Sequence[float]:
    """The scale for runs of `count` windows: that of the two nearest lengths, in proportion to their logarithms."""
    lengths = sorted(known)
    place = float(np.interp(math.log(count), [math.log(length) for length in lengths], range(len(lengths))))
    low, high = known[lengths[math.floor(place)]], known[lengths[math.ceil(place)]]
    if not low or not high:
        return low or high
    share = place - math.floor(place)
    return list((1 - share) * np.asarray(low) + share * np.asarray(high))


def share_nearer(distance: float, scale: Sequence[float]) -> float | None:
    """Share of random pairs that are nearer to each other than a distance; None without a scale."""
    if not scale:
        return None
    return float(np.interp(distance, scale, np.linspace(0, 1, len(scale))))
