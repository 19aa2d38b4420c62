"""A scale for distances: how far apart two random windows of a table are.

The sample is chosen by digests, so that it stays the same as long as the recordings do.
"""

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines import table

# Windows of the sample; every pair of them counts.
SAMPLE = 512
# Distances are kept at so many equal steps of the share of pairs.
STEPS = 1000
_MIX = np.uint64(0x9E3779B97F4A7C15)


def distances(dataset: Any) -> list[float]:
    """Distances of random pairs of a table's windows, as quantiles: entry i of `STEPS` + 1 has i / `STEPS` below it.

    Parameters
    ----------
    dataset : lance.LanceDataset

    Returns
    -------
    list of float
        Squared L2 distances, ascending; empty for a table with fewer than two windows.
    """
    names = _sample(dataset)
    rows = {
        row["id"]: row
        for batch in table.rows_of(dataset, "id", names, ["id", "recording_id", "embedding"])
        for row in batch.to_pylist()
    }
    chosen = [rows[name] for name in names if name in rows]
    if len(chosen) < 2:
        return []
    vectors = np.array([row["embedding"] for row in chosen], np.float64)
    recordings = np.unique([row["recording_id"] for row in chosen], return_inverse=True)[1]
    norms = np.square(vectors).sum(axis=1)
    squares = np.maximum(0, norms[:, None] + norms[None, :] - 2 * vectors @ vectors.T)
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


def share_nearer(distance: float, scale: Sequence[float]) -> float | None:
    """Share of random pairs that are nearer to each other than a distance; None without a scale."""
    if not scale:
        return None
    return float(np.interp(distance, scale, np.linspace(0, 1, len(scale))))
