"""Decode by FFmpeg (PyAV), on the time line that a player shows.

Each decoded frame has a time stamp. A gap between stamps becomes silence of its length, also before sound that starts
later than the file. Streams that are chained in one file follow each other.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from soundlake.pipelines.audio.blocks import BLOCK_FRAMES, Blocks, mean
from soundlake.pipelines.audio.containers import Part, id3_bytes, sound_end
from soundlake.pipelines.audio.recording import Probe, Rejected

# A difference of up to this many seconds between a stamp and the end of the samples before it is ignored. Matroska and
# FLV round stamps to 1 ms, FFmpeg reports those of Ogg Vorbis up to 11 ms late within a page, and recorders stamp by a
# clock that is off by one packet of 20 ms. Inserting or dropping samples for that would spoil the sound. Samples stay
# within 50 ms of their stamps.
TOLERANCE_S = 0.03
# Greatest silence in gaps, in seconds, beyond the length of the sound: a file with more is no recording. And the
# greatest step, in seconds, by which stamps may go back.
GAPS_S, OVERLAP_S = 3600.0, 1.0
# Seconds of late start from which a note is made. Shorter delays are normal: WMA's first frames belong to the decoder.
LATE_S = 0.2
# These formats have no stamps. FFmpeg computes stamps from the preceding data, and damage makes them wrong: only the
# first stamp counts.
UNSTAMPED = frozenset({"aac", "ac3", "aiff", "amr", "ape", "au", "avi", "dts", "eac3", "flac", "mp3"})
UNSTAMPED |= {"tta", "w64", "wav", "wv"}
# Formats whose length FFmpeg only estimates.
GUESSED = frozenset({"aac", "ac3", "amr", "dts", "eac3"})
# Greatest number of frames to hold back until the first frame with a stamp, and number of samples to mix down at once.
UNPLACED, BATCH = 64, 16384

# Type, scale and offset of the samples of each format.
_FORMATS: dict[str, tuple[Any, float, float]] = {
    "u8": (np.uint8, 1 / 128, -128.0),
    "s16": (np.int16, 1 / 32768, 0.0),
    "s32": (np.int32, 2.0**-31, 0.0),
    "s64": (np.int64, 2.0**-63, 0.0),
    "flt": (np.float32, 1.0, 0.0),
    "dbl": (np.float64, 1.0, 0.0),
}


def opened_by_ffmpeg(file: BinaryIO, links: tuple[int, ...] = (), link: int = 0) -> Any:
    """Open a file, or one of the streams that are chained in it, as a PyAV container."""
    import av

    size = file.seek(0, 2)
    begin, end = (0, *links)[link], (*links, size)[link]
    end = sound_end(file, begin, end)
    if (begin, end) != (0, size):
        file = Part(file, begin, end)  # type: ignore[assignment]
    else:
        file.seek(0)
    # A playlist could name other files or addresses, so no protocol is allowed: only the open file is read.
    return av.open(file, metadata_errors="replace", options={"protocol_whitelist": "none"})


def track(container: Any) -> Any:
    """The audio stream that a player plays: the first marked as default, else the first; None if there is none."""
    import av

    # A stream whose codec FFmpeg lacks has no codec context.
    known = [stream for stream in container.streams.audio if stream.codec_context is not None]
    marked = (stream for stream in known if stream.disposition & av.stream.Disposition.default)
    return next(marked, known[0] if known else None)


def has_gaps(file: BinaryIO) -> bool:
    """Whether the time stamps of a file's packets leave gaps that no codec explains; nothing is decoded."""
    with contextlib.closing(opened_by_ffmpeg(file)) as container:
        stream, end = track(container), None
        # In ticks of the stream: computing a fraction for each packet would take as long as everything else.
        tolerance = int(TOLERANCE_S / stream.time_base)
        for packet in container.demux(stream):
            begin, length = packet.pts, packet.duration
            if begin is None or length is None:
                continue
            if end is not None and begin - end > tolerance:
                return True
            end = begin + length
    return False


def claimed_seconds(container: Any, stream: Any) -> float | None:
    """The end of the sound by the header, in seconds from the container's start; None where no header declares it."""
    import av

    # FFmpeg estimates these by the bit rate of their first frames.
    if container.format.name in GUESSED:
        return None
    # For an Ogg that was cut out of a longer one, FFmpeg reports its end in the longer one.
    if container.format.name == "ogg" and (container.start_time or 0) > av.time_base:
        return None
    if stream.duration is None:
        is_only_stream = len(container.streams) == 1 and container.duration is not None
        return container.duration / av.time_base if is_only_stream else None
    delay = (stream.start_time or 0) * stream.time_base - Fraction(container.start_time or 0, av.time_base)
    return float(max(0, delay) + stream.duration * stream.time_base)


def _counts_first_page(container: Any, stream: Any) -> bool:
    """Whether FFmpeg counts the frames of the first page from 0, whatever position the page declares: FLAC in Ogg."""
    return container.format.name == "ogg" and stream.codec_context.name == "flac" and len(container.streams) == 1


def _frames(container: Any, stream: Any, note: Callable[[str], None]) -> Iterator[tuple[Any, int | None]]:
    """Yield the decoded frames of a stream, each with its time stamp, or None if it has no reliable stamp.

    Tags between MP3s that were joined into one file are no sound, and are left out. So is the last packet of an Ogg if
    it cannot be decoded, since its writer may have been stopped in the middle.
    """
    import av

    ogg, failed = container.format.name == "ogg", None
    mp3, tag_end = stream.codec_context.name.startswith("mp3"), 0
    unsure, first_page = _counts_first_page(container, stream), None
    for packet in container.demux(stream):
        if mp3 and packet.pos is not None:
            tag_end = max(tag_end, packet.pos + id3_bytes(bytes(packet)[:10]))
            if packet.pos < tag_end:
                continue
        # Skip empty packets, except the one at the end, which has no position: it flushes the decoder.
        if packet.size == 0 and packet.pos is not None:
            continue
        if failed is not None and packet.pos is not None:
            raise failed
        first_page = packet.pos if first_page is None else first_page
        try:
            frames = packet.decode()
        except av.FFmpegError as error:
            if not ogg:
                raise
            failed = error
            continue
        for frame in frames:
            if frame.samples:
                yield frame, None if unsure and packet.pos == first_page else frame.pts
    if failed is not None:
        note("cut-short")


def _format(frame: Any) -> tuple[str, int]:
    """The name of a frame's sample format, and its number of channels."""
    return frame.format.name, frame.layout.nb_channels


def _mono(frames: list[Any]) -> NDArray[np.float32]:
    """The mono sound of frames of one format: many at once, since some codecs have frames of only 64 samples."""
    name, count = _format(frames[0])
    dtype, scale, offset = _FORMATS[name.removesuffix("p")]
    if name.endswith("p"):
        parts = [[np.frombuffer(plane, dtype, frame.samples) for plane in frame.planes] for frame in frames]
        return mean([np.concatenate(channel) for channel in zip(*parts, strict=True)], scale, offset)
    together = [np.frombuffer(frame.planes[0], dtype, frame.samples * count) for frame in frames]
    return mean(np.concatenate(together).reshape(-1, count).T, scale, offset)


class _TimeLine:
    """Places the sound of a recording's streams by its time stamps, with silence in the gaps.

    Parameters
    ----------
    note : callable
        Called with keys of `pipelines.audio.recording.NOTES`.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        # Seconds of sound and of inserted silence so far, over all streams.
        self._sound_s = self._silence_s = 0.0

    def _silence(self, frames: int, rate: int, at: int) -> Iterator[NDArray[np.float32]]:
        """Yield the silence of a gap in blocks, so that a wrong stamp alone cannot use up the memory."""
        self._silence_s += frames / rate
        if frames > GAPS_S * rate or self._silence_s > GAPS_S + self._sound_s:
            gap = f"a gap of {frames / rate:.0f} s after {at / rate:.3f} s, {self._silence_s:.0f} s of gaps in all"
            raise Rejected("decode", "time-stamps", detail=gap)
        if at or frames >= LATE_S * rate:
            self._note("gaps" if at else "starts-late")
        while frames > 0:
            yield np.zeros(min(frames, BLOCK_FRAMES), np.float32)
            frames -= BLOCK_FRAMES

    def of(self, container: Any, stream: Any) -> Iterator[NDArray[np.float32]]:
        """Yield the sound of one stream from the container's start on, at the stream's rate."""
        import av

        rate = stream.codec_context.sample_rate
        ticks, seconds = stream.time_base.denominator, stream.time_base.numerator
        tolerance = round(TOLERANCE_S * rate)
        restarts = bool(container.format.flags & av.format.Flags.ts_discont.value)
        only_first = container.format.name in UNSTAMPED
        # In samples: the origin of the stamps, and the position of the next sample.
        start = None if _counts_first_page(container, stream) else container.start_time
        origin = None if start is None else round(start * rate / av.time_base)
        at = 0
        # Frames that are placed but not yielded yet, their number of samples, and frames before the first stamp.
        placed: list[Any] = []
        samples, waiting = 0, []  # type: int, list[Any]
        for frame, stamp in _frames(container, stream, self._note):
            if frame.sample_rate != rate:
                change = f"{rate} to {frame.sample_rate} Hz after {at / rate:.3f} s"
                raise Rejected("decode", "format-changes", detail=change)
            self._sound_s += frame.samples / rate
            if not at and stamp is None and len(waiting) < UNPLACED:
                waiting.append(frame)
                continue
            ahead = 0
            if stamp is not None and not (at and only_first):
                place = stamp * seconds * rate // ticks - sum(frame.samples for frame in waiting)
                # No sound lies before the start; where no start is known, this frame is the start.
                if origin is None or (not at and place < origin):
                    origin = place - at
                ahead = place - origin - at
                if ahead < -OVERLAP_S * rate:
                    if not restarts:
                        back = f"back by {-ahead / rate:.3f} s after {at / rate:.3f} s"
                        raise Rejected("decode", "time-stamps", detail=back)
                    # A transport stream continues with another programme, which has its own clock.
                    self._note("chained")
                    origin, ahead = origin + ahead, 0
            ready, waiting = [*waiting, frame], []
            if placed and (abs(ahead) > tolerance or samples >= BATCH or _format(frame) != _format(placed[0])):
                yield _mono(placed)
                placed, samples = [], 0
            if ahead > tolerance:
                yield from self._silence(ahead, rate, at)
                at += ahead
            elif ahead < -tolerance:
                self._note("overlaps")
                values = _mono(ready)[-ahead:]
                yield values
                at += len(values)
                continue
            placed += ready
            new = sum(frame.samples for frame in ready)
            samples, at = samples + new, at + new
        if placed or waiting:
            yield _mono([*placed, *waiting])


def _at_rate(blocks: Iterator[NDArray[np.float32]], rate: int, wanted: int) -> Iterator[NDArray[np.float32]]:
    """Yield the sound of a chained stream at the rate of the first stream."""
    if rate == wanted:
        yield from blocks
        return
    import soxr

    resampler = soxr.ResampleStream(rate, wanted, 1, dtype="float32", quality="HQ")
    for block in blocks:
        yield resampler.resample_chunk(block)
    yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _streams(file: BinaryIO, found: Probe, note: Callable[[str], None]) -> Generator[NDArray[np.float32], None, None]:
    """Yield the sound of a file, stream after stream."""
    line = _TimeLine(note)
    for link in range(1 + len(found.links)):
        with contextlib.closing(opened_by_ffmpeg(file, found.links, link)) as container:
            stream = track(container)
            if stream is None:
                raise Rejected("decode", "damaged", detail=f"stream {link + 1} of the chain holds no sound")
            rate = stream.codec_context.sample_rate
            yield from _at_rate(line.of(container, stream), rate, found.sample_rate)


def blocks(file: BinaryIO, found: Probe, *, stop: int | None, note: Callable[[str], None]) -> Blocks:
    """Decode by FFmpeg, always from the beginning, to `stop` or a little beyond it."""
    at, waiting = 0, 0
    parts: list[NDArray[np.float32]] = []
    with contextlib.closing(_streams(file, found, note)) as streams:
        for values in streams:
            # Silence comes in whole blocks; do not join two of them into one.
            if parts and (waiting >= BLOCK_FRAMES or len(values) >= BLOCK_FRAMES):
                yield at, np.concatenate(parts)
                at, waiting, parts = at + waiting, 0, []
            parts.append(values)
            waiting += len(values)
            if stop is not None and at + waiting >= stop:
                break
    if waiting:
        yield at, np.concatenate(parts)
