"""Blocks of sound from the readers: mono, float32, each with the index of its first sample."""

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_FRAMES = 65536

# Yields mono blocks, each with the index of its first sample.
Blocks = Generator[tuple[int, NDArray[np.float32]], None, None]


def mean(channels: Sequence[NDArray[Any]] | NDArray[Any], scale: float, offset: float) -> NDArray[np.float32]:
    """Mean over channels of (sample + offset) × scale, as new float32; each channel is ``(frames,)``, of any type."""
    # Channel by channel, no matrix product: BLAS may round by a sample's place in the block, and slices would differ.
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(channels, np.ndarray):
            # Cast all channels at once: they are interleaved, and a cast of one channel with a stride is slow.
            values: Any = channels.astype(np.float32, copy=False)
        else:
            values = [channel.astype(np.float32, copy=False) for channel in channels]
        total: NDArray[np.float32] = values[0].copy() if len(values) == 1 else values[0] + values[1]
        for value in values[2:]:
            total += value
        if offset:
            total += np.float32(offset * len(channels))
        factor = scale / len(channels)
        if factor != 1.0:
            total *= np.float32(factor)
    return total
