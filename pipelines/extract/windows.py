"""A segment of a recording as quantised windows, in bounded memory, the same whether or not the recording was cut."""

import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from soundlake.model.features.log_mel import BLOCK_FRAMES, FeatureSpec, LogMel, quantise
from soundlake.model.features.records import Record, encode, write_framed
from soundlake.pipelines.audio.isolation import alive
from soundlake.pipelines.audio.reading import Probe, Rejected
from soundlake.pipelines.audio.resampling import resampled
from soundlake.pipelines.extract.plan import Segment

# Frames computed at a time: whole blocks of `log_mel`, counted from the recording's first frame.
CHUNK_FRAMES = 2 * BLOCK_FRAMES


class SegmentWindows:
    """Iterate over a segment's windows: ``(window, valid_frames, values)``.

    `values` is uint16, shape (window_frames, n_mels); frames beyond `valid_frames` are padding, digital silence.
    Frames are computed in blocks that lie on one grid for the whole recording, so that a window comes out bit for bit
    the same from any segment.

    Parameters
    ----------
    path, probe : str, bytes or os.PathLike, Probe
        The file, and the result of `pipelines.audio.reading.probe` for it.
    spec : FeatureSpec
    first, count : int, int or None
        First window, and number of windows; None for all to the end of the sound.

    Attributes
    ----------
    samples : int
        After the last window: samples at the spec's rate from the recording's start to where reading stopped.
    notes : set of str
        After the last window: keys of `pipelines.audio.reading.NOTES`, without those of the probe.

    Raises
    ------
    Rejected
        While iterating: as decoding raises it, and ``too-loud`` with stage ``'features'``.
    """

    def __init__(
        self,
        path: str | bytes | os.PathLike[str],
        probe: Probe,
        spec: FeatureSpec,
        *,
        first: int = 0,
        count: int | None = None,
    ) -> None:
        self._path, self._probe, self._spec = os.fsdecode(path), probe, spec
        self._first, self._count = first, count
        self._log_mel = LogMel(spec)
        self.samples = 0
        self.notes: set[str] = set()

    def _frames(self) -> Iterator[npt.NDArray[np.uint16]]:
        """Quantised frames from the block that holds the first one, chunk by chunk, to the end of segment or sound."""
        spec = self._spec
        hop, half = spec.hop_length, spec.n_fft // 2
        position = self._first * spec.window_step // BLOCK_FRAMES * BLOCK_FRAMES
        end = None
        if self._count is not None:
            end = (self._first + self._count - 1) * spec.window_step + spec.window_frames
        start = max(0, position * hop - half)
        stop = None if end is None else (end - 1) * hop - half + spec.n_fft
        chunk = (CHUNK_FRAMES - 1) * hop + spec.n_fft
        # The first `filled` samples are valid. The buffer is half an FFT longer than a chunk, since the last frames
        # reach that far beyond the end. Zeros fill that part, and the part before the recording's first sample.
        buffer = np.zeros(chunk + half, np.float32)
        filled = max(0, half - position * hop)
        self.samples = start
        sound = resampled(self._path, self._probe, spec.sample_rate, start=start, stop=stop, note=self.notes.add)
        for block in sound:
            alive()
            self.samples += len(block)
            while len(block):
                part, block = block[: chunk - filled], block[chunk - filled :]
                buffer[filled : filled + len(part)] = part
                filled += len(part)
                if filled == chunk:
                    yield self._quantised(buffer[:chunk], position)
                    filled, position = filled - CHUNK_FRAMES * hop, position + CHUNK_FRAMES
                    buffer[:filled] = buffer[CHUNK_FRAMES * hop : chunk]
        # There were fewer samples than asked for, or no end was asked for: the sound ends here.
        total = spec.n_frames(self.samples)
        last = total if end is None else min(end, total)
        if last > position:
            buffer[filled:] = 0
            yield self._quantised(buffer[: (last - position - 1) * hop + spec.n_fft], position)

    def _quantised(self, samples: npt.NDArray[np.float32], at: int) -> npt.NDArray[np.uint16]:
        try:
            return quantise(self._log_mel(samples, centred=False), self._spec)
        except ValueError as error:
            second = at * self._spec.hop_length / self._spec.sample_rate
            raise Rejected("features", "too-loud", detail=f"after {second:.3f} s: {error}") from error

    def __iter__(self) -> Iterator[tuple[int, int, npt.NDArray[np.uint16]]]:
        spec = self._spec
        size, step = spec.window_frames, spec.window_step
        window = self._first
        base = window * step // BLOCK_FRAMES * BLOCK_FRAMES
        held = np.empty((0, spec.n_mels), np.uint16)
        stop = None if self._count is None else self._first + self._count
        for frames in self._frames():
            held = np.concatenate([held, frames])
            while base + len(held) >= window * step + size and (stop is None or window < stop):
                yield window, size, held[window * step - base : window * step - base + size]
                window += 1
            keep = min(len(held), window * step - base)
            held, base = held[keep:], base + keep
        total = base + len(held)
        while (stop is None or window < stop) and total > max(0, (window - 1) * step + size if window else 0):
            part = held[window * step - base :]
            yield window, len(part), np.pad(part, ((0, size - len(part)), (0, 0)))
            window += 1


def write_segment(
    part: str, offset: int, path: str | bytes | os.PathLike[str], found: Probe, spec: FeatureSpec, segment: Segment
) -> tuple[dict[str, Any], int]:
    """Write a segment's windows into a shard that is being made. Runs in a sandbox.

    Parameters
    ----------
    part, offset : str, int
        Local file, and the byte where the segment's records begin; old content from there on is dropped.
    path, found, spec, segment : path, Probe, FeatureSpec, Segment

    Returns
    -------
    (dict, int)
        ``windows`` written, ``silent_windows`` left out, ``samples`` at the spec's rate from the recording's start to
        where reading stopped, ``notes``, ``cpu_s`` of the work; and the byte where the records end.

    Raises
    ------
    Rejected
        As decoding raises it.
    """
    began = time.process_time()
    outcome: dict[str, Any] = {"windows": 0, "silent_windows": 0}
    with open(part, "r+b") as shard:
        shard.seek(offset)
        windows = SegmentWindows(path, found, spec, first=segment.first, count=segment.count)
        for window, valid_frames, values in windows:
            # Digital silence is of no use for training or search, and recorders pad with hours of it.
            if not values.any():
                outcome["silent_windows"] += 1
                continue
            write_framed(shard, encode(Record(segment.recording_id, window, valid_frames, values)))
            outcome["windows"] += 1
        end = shard.tell()
        shard.truncate(end)
    outcome |= {"samples": windows.samples, "notes": sorted(windows.notes)}
    return outcome | {"cpu_s": time.process_time() - began}, end
