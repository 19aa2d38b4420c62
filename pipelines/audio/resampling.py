"""A recording at another rate, chunk by chunk, so that a slice is bit for bit what the whole has there."""

import math
import os
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from soundlake.pipelines.audio.reading import Probe, mono_blocks

# Each chunk is resampled alone, with so many native samples of context on both sides at least.
CHUNK_SECONDS = 20
CONTEXT_FRAMES = 4096


def resampled(
    path: str | os.PathLike[str],
    probe: Probe,
    sample_rate: int,
    *,
    start: int = 0,
    stop: int | None = None,
    note: Callable[[str], None] = lambda note: None,
) -> Iterator[NDArray[np.float32]]:
    """Decode samples [start, stop) of the recording at another rate, as mono.

    The resampled waveform is defined chunk by chunk: each 20 s of native samples (a whole number of samples at both
    rates) is resampled alone with context on both sides, and its own part is kept. A slice therefore computes the
    chunks it touches and equals the slice of the whole bit for bit. The whole has ceil(frames · sample_rate / native)
    samples. Memory is bounded by a chunk and its context.

    Parameters
    ----------
    path, probe, note : str or os.PathLike, Probe, callable
        As for `mono_blocks`, and so is what it raises.
    sample_rate, start, stop : int, int, int or None
        Rate wanted in Hz, and span in samples at that rate; None reads to the end.

    Yields
    ------
    numpy.ndarray
        float32, shape ``(n,)``, full scale 1, at most 20 s each (native blocks where the rates agree).
    """
    if sample_rate < 1 or start < 0 or (stop is not None and stop < start):
        raise ValueError(f"{sample_rate} Hz, span [{start}, {stop})")
    native = probe.sample_rate
    if native == sample_rate or stop == start:
        yield from mono_blocks(path, probe, start=start, stop=stop, note=note)
        return
    import soxr

    common = math.gcd(native, sample_rate)
    unit_in, unit_out = native // common, sample_rate // common
    # 20 s is 20 · common units: a whole number of samples at both rates, whatever they are.
    chunk_in, chunk_out = CHUNK_SECONDS * native, CHUNK_SECONDS * sample_rate
    # The filter lengthens with the ratio when the rate falls; whole units keep the two grids in step.
    context = math.ceil(CONTEXT_FRAMES * max(1.0, native / sample_rate) / unit_in) * unit_in
    index = start // chunk_out
    last = None if stop is None else (stop - 1) // chunk_out
    base = max(0, index * chunk_in - context)
    end = None if last is None else (last + 1) * chunk_in + context
    source = mono_blocks(path, probe, start=base, stop=end, note=note)
    # Blocks that the chunk before read and this one needs again; the first begins at sample `base`.
    held: list[NDArray[np.float32]] = []
    while last is None or index <= last:
        begin, finish = index * chunk_in, (index + 1) * chunk_in
        left, right = max(0, begin - context), finish + context
        low, high = max(0, start - index * chunk_out), chunk_out
        if stop is not None:
            high = min(high, stop - index * chunk_out)
        # Fed block by block, a stream gives the bits of one call, and nothing as long as a chunk is ever copied.
        stream = soxr.ResampleStream(native, sample_rate, 1, dtype="float32", quality="HQ")
        # Which of the chunk's own samples the stream gives next: those below 0 belong to the chunk before.
        at = -((begin - left) // unit_in * unit_out)
        have, again, ended = base, [], False
        while not ended:
            block = None
            if have < right:
                block = held.pop(0) if held else next(source, None)
            ended = block is None
            if block is not None:
                part = block[max(0, left - have) : right - have]
                have += len(block)
                if have > finish - context:
                    again.append(block)
            else:
                high = min(high, -(-(min(have, finish) - begin) * sample_rate // native))
                # Past the recording's end soxr assumes zeros and rounds the length down: say them, and it rounds up.
                part = np.zeros(2 * math.ceil(native / sample_rate) + 2 if have < right else 0, np.float32)
            out = stream.resample_chunk(part, last=ended)
            if max(at, low) < min(at + len(out), high):
                yield out[max(0, low - at) : high - at]
            at += len(out)
        if have <= begin:
            return
        held, base, index = [*again, *held], have - sum(map(len, again)), index + 1
