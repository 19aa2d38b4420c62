"""Resample a recording chunk by chunk, so that a slice equals, bit for bit, the same slice of the whole."""

import math
import os
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from soundlake.pipelines.audio.reading import Probe, mono_blocks

# Each chunk is resampled alone, with at least this many native samples of context on both sides.
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
    rates) is resampled alone with context on both sides, and its own part is kept. So a slice computes only the chunks
    that it touches, and equals the slice of the whole bit for bit. The whole has ceil(frames · sample_rate / native)
    samples. Memory is bounded by a chunk and its context. Errors are those of `mono_blocks`.

    Parameters
    ----------
    path, probe, note : str or os.PathLike, Probe, callable
        As for `mono_blocks`.
    sample_rate, start, stop : int, int, int or None
        Target rate in Hz, and span in samples at that rate; None reads to the end.

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
    # When the rate falls, the filter's length grows with the ratio. Whole units keep the two sample grids aligned.
    context = math.ceil(CONTEXT_FRAMES * max(1.0, native / sample_rate) / unit_in) * unit_in
    index = start // chunk_out
    last = None if stop is None else (stop - 1) // chunk_out
    base = max(0, index * chunk_in - context)
    end = None if last is None else (last + 1) * chunk_in + context
    source = mono_blocks(path, probe, start=base, stop=end, note=note)
    # Blocks that the previous chunk read and this chunk needs again; the first begins at sample `base`.
    held: list[NDArray[np.float32]] = []
    while last is None or index <= last:
        begin, finish = index * chunk_in, (index + 1) * chunk_in
        left, right = max(0, begin - context), finish + context
        low, high = max(0, start - index * chunk_out), chunk_out
        if stop is not None:
            high = min(high, stop - index * chunk_out)
        # A stream that is fed block by block gives the same bits as one call, and no whole chunk is ever copied.
        stream = soxr.ResampleStream(native, sample_rate, 1, dtype="float32", quality="HQ")
        # Index, within the chunk, of the next sample from the stream; samples below 0 belong to the previous chunk.
        at = -((begin - left) // unit_in * unit_out)
        read_end, reused, ended = base, [], False
        while not ended:
            block = None
            if read_end < right:
                block = held.pop(0) if held else next(source, None)
            ended = block is None
            if block is not None:
                part = block[max(0, left - read_end) : right - read_end]
                read_end += len(block)
                if read_end > finish - context:
                    reused.append(block)
            else:
                high = min(high, -(-(min(read_end, finish) - begin) * sample_rate // native))
                # Past the recording's end soxr assumes zeros and rounds the length down. If the zeros are passed in,
                # it rounds up.
                part = np.zeros(2 * math.ceil(native / sample_rate) + 2 if read_end < right else 0, np.float32)
            out = stream.resample_chunk(part, last=ended)
            if max(at, low) < min(at + len(out), high):
                yield out[max(0, low - at) : high - at]
            at += len(out)
        if read_end <= begin:
            return
        held, base, index = [*reused, *held], read_end - sum(map(len, reused)), index + 1
