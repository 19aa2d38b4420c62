"""Sound in blocks, as the readers give it: mono, float32, each with the sample it begins at."""

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_FRAMES = 65536

# Each mono block with the sample it begins at.
Blocks = Generator[tuple[int, NDArray[np.float32]], None, None]


def mean(channels: Sequence[NDArray[Any]] | NDArray[Any], scale: float, offset: float) -> NDArray[np.float32]:
    """Mean of channels, each ``(frames,)`` in any sample type, as new float32; samples are scaled after an offset."""
    # Channel by channel, no matrix product: BLAS may round by a sample's place in the block, and slices would differ.
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(channels, np.ndarray):
            # All channels at once: they lie interleaved, and a cast that steps over the others is slow.
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
