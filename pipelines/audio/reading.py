"""Read any recording as mono at its own rate, in bounded memory, or reject it with a reason.

`probe` examines a file without decoding it, and `mono_blocks` decodes a span. Any fault of a file raises one exception,
`Rejected`. The length in a header is only a claim: a recording ends where the decoder stops yielding samples. Samples
lie on the time line that a player shows. A span that is read alone equals, bit for bit, the same span of the whole
recording.
"""

import contextlib
import errno
import math
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BufferedReader
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from soundlake.model.errors import OF_THE_MACHINE
from soundlake.pipelines.audio import containers, ffmpeg
from soundlake.pipelines.audio.blocks import BLOCK_FRAMES, Blocks, mean
from soundlake.pipelines.audio.recording import CHANNELS_RANGE, NOTES, RATE_RANGE, REASONS, Probe, Rejected

__all__ = [
    "BLOCK_FRAMES",
    "DECODER_VERSION",
    "FLAC_FRAMES_PER_BYTE",
    "NOTES",
    "REASONS",
    "SEEKABLE_CODECS",
    "Probe",
    "Rejected",
    "mono_blocks",
    "opened",
    "probe",
]

# Increased whenever a file is decoded differently than before. `extract --recheck` decodes the files again that an
# older version read. Version 1 read only the first of chained streams, and ignored gaps between time stamps.
DECODER_VERSION = 2

# A FLAC frame has at most 65,535 samples and at least about 11 bytes: no genuine file claims more samples per byte.
FLAC_FRAMES_PER_BYTE = 8192

SEEKABLE_CONTAINERS = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF"})
# Bytes per sample.
SEEKABLE_CODECS = {"PCM_S8": 1, "PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}
SEEKABLE_CODECS |= {"ULAW": 1, "ALAW": 1}


def _say(error: BaseException) -> str:
    """The text of an exception in one line, without the path and without surrogates, which no UTF-8 table can store."""
    text = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())[:300]


_OS_REASONS = {errno.ENOENT: "missing", errno.ENOTDIR: "missing", errno.ELOOP: "link-loop"}
_OS_REASONS |= {errno.EACCES: "no-permission", errno.EPERM: "no-permission"}


def opened(path: str | os.PathLike[str], stage: str) -> BufferedReader:
    """Open a regular, non-empty file, or raise `Rejected`."""
    try:
        # Check before opening: opening a FIFO waits for ever, and a device never ends.
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            pipe = stat.S_ISFIFO(info.st_mode) or stat.S_ISSOCK(info.st_mode)
            raise Rejected(stage, "directory" if stat.S_ISDIR(info.st_mode) else "named-pipe" if pipe else "device")
        if info.st_size == 0:
            raise Rejected(stage, "empty")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in OF_THE_MACHINE:
            raise  # the file is not to blame
        reason = _OS_REASONS.get(getattr(error, "errno", None) or 0, "unreadable")
        raise Rejected(stage, reason, detail=_say(error)) from error


def _refuse_unreadable(file: BinaryIO, stage: str, *, most: float = math.inf) -> None:
    """Raise `Rejected` if the system cannot read a file, since decoders treat that as its end or as damage.

    Parameters
    ----------
    most : float
        Greatest number of bytes to read.
    """
    number, at = file.fileno(), 0
    try:
        while at < most and (read := len(os.pread(number, 1 << 20, at))):
            at += read
    except OSError as error:
        raise Rejected(stage, "unreadable", detail=_say(error)) from error


def _probe_soundfile(file: BinaryIO, size: int) -> Probe | None:
    """Probe by libsndfile; None if FFmpeg should read the file."""
    import soundfile

    try:
        # An open file, not a path: soundfile cannot open names that are not UTF-8.
        with soundfile.SoundFile(file) as sound:
            container, codec, frames = sound.format, sound.subtype, int(sound.frames)
            rate, channels = sound.samplerate, sound.channels
    except MemoryError:
        raise
    except Exception:
        return None
    # 0 may come from a recorder that crashed before it wrote the size; FFmpeg reads to the end of the file.
    if frames <= 0:
        return None
    # libsndfile reads only the first of chained streams, leaves no gap where Vorbis pages are lost, and decodes Opus at
    # the rate of the encoder's input, which is only informative. It begins and ends a whole Vorbis stream at the sample
    # that the pages declare, where FFmpeg may be some hundred samples off.
    if container == "OGG" and (codec != "VORBIS" or not containers.is_whole_ogg(file) or ffmpeg.has_gaps(file)):
        return None
    # libsndfile silently stops at the length that the first frame declares, or that it estimates from that frame.
    if container == "MP3" and not containers.tells_its_length(file):
        return None
    # Unknown and absurd totals make libsndfile fail or request 256 GiB of memory.
    if container == "FLAC" and (frames > size * FLAC_FRAMES_PER_BYTE or containers.links(file)):
        return None
    # libFLAC treats a tag after the last frame as damage.
    if container == "FLAC" and containers.closing_tags(file, size):
        return None
    seekable = (container in SEEKABLE_CONTAINERS and codec in SEEKABLE_CODECS) or container == "FLAC"
    result = Probe(container, codec, rate, channels, None if frames >= 2**62 else frames, seekable, "soundfile")
    return _with_data(file, size, result) if container in SEEKABLE_CONTAINERS else result


def _with_data(file: BinaryIO, size: int, found: Probe) -> Probe:
    """Add to a probe by libsndfile the notes and the length that follow from the sizes of the container's chunks."""
    data = containers.pcm_data(file, size)
    if data is None:
        return found
    note, width = data.note, SEEKABLE_CODECS.get(found.codec, 0) * found.channels
    if note == "size-wrapped":
        if width:
            return replace(found, claimed_frames=data.length // width, notes=(note,))
        note = "more-data"
    # In some containers libsndfile uses other fields.
    read = (found.claimed_frames or 0) * width
    if note == "more-data" and read >= data.length + containers.WORTH_TELLING:
        note = None
    if note is None and width and read + containers.WORTH_TELLING <= data.length:
        note = "more-data"
    return replace(found, notes=() if note is None else (note,))


def _probe_ffmpeg(file: BinaryIO) -> Probe:
    """Probe by FFmpeg, or raise `Rejected`."""
    try:
        links = containers.links(file)
        container = ffmpeg.opened_by_ffmpeg(file, links)
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        reason = "no-samples" if isinstance(error, EOFError) else "not-audio"
        raise Rejected("probe", reason, detail=_say(error)) from error
    with contextlib.closing(container):
        try:
            if not container.streams.audio:
                raise Rejected("probe", "no-audio-stream", detail=str(container.format.name))
            stream = ffmpeg.track(container)
            if stream is None:
                raise Rejected("probe", "unknown-codec", detail=str(container.format.name))
            codec, rate, channels = stream.codec_context.name, stream.codec_context.sample_rate, stream.channels
            claimed = None if links else ffmpeg.claimed_seconds(container, stream)
            notes = ["chained"] if links else []
            notes += ["several-tracks"] if len(container.streams.audio) > 1 else []
            data = containers.pcm_data(file, os.fstat(file.fileno()).st_size)
            notes += [data.note] if data is not None and data.note else []
            return Probe(
                container.format.name,
                codec,
                int(rate or 0),
                int(channels or 0),
                int((claimed or 0) * (rate or 0)) or None,
                False,
                "pyav",
                links,
                tuple(notes),
            )
        except (Rejected, MemoryError):
            raise
        except Exception as error:
            raise Rejected("probe", "unknown-codec", detail=_say(error)) from error


def probe(path: str | os.PathLike[str]) -> Probe:
    """Examine a file without decoding it.

    Parameters
    ----------
    path : str or os.PathLike
        Any name that the system allows, UTF-8 or not.

    Returns
    -------
    Probe
        Format, native rate in Hz, channels, claimed length in frames, and the reader to use.

    Raises
    ------
    Rejected
        For any fault of the file, with stage ``'probe'``.
    """
    with opened(path, "probe") as file:
        try:
            result = _probe_soundfile(file, os.fstat(file.fileno()).st_size) or _probe_ffmpeg(file)
        except Rejected:
            _refuse_unreadable(file, "probe", most=1 << 20)
            raise
    if not RATE_RANGE[0] <= result.sample_rate <= RATE_RANGE[1]:
        raise Rejected("probe", "unsupported-rate", detail=f"{result.sample_rate} Hz")
    if not CHANNELS_RANGE[0] <= result.channels <= CHANNELS_RANGE[1]:
        raise Rejected("probe", "unsupported-channels", detail=f"{result.channels} channels")
    return result


def _sound(file: BinaryIO, found: Probe) -> Any:
    """Open a file by libsndfile."""
    import soundfile

    class Sound(soundfile.SoundFile):
        """A file that reports itself as not seekable; otherwise soundfile seeks to its position after each read.

        In MP3 such a seek decodes some frames again.
        """

        def seekable(self) -> bool:
            return False

    if "size-wrapped" in found.notes:
        data = containers.pcm_data(file, os.fstat(file.fileno()).st_size)
        assert data is not None
        return Sound(
            containers.Part(file, data.begin, data.begin + data.length),
            samplerate=found.sample_rate,
            channels=found.channels,
            format="RAW",
            subtype=found.codec,
            endian=data.endian,
        )
    # By its descriptor: libsndfile then reads the file directly, without a call to Python for every few kilobytes.
    return Sound(file.fileno(), closefd=False)


def _goes_on(file: BinaryIO) -> bool:
    """Whether a decoder that stopped at the declared length has left much of the file unread."""
    # libsndfile reads through this descriptor, so its position is taken before any other read.
    read = os.lseek(file.fileno(), 0, os.SEEK_CUR)
    size = os.fstat(file.fileno()).st_size
    return read + containers.closing_tags(file, size) + containers.WORTH_TELLING <= size


def _soundfile_blocks(
    file: BinaryIO, found: Probe, start: int, stop: int | None, note: Callable[[str], None]
) -> Blocks:
    """Decode by libsndfile, from `start` where seeking is exact, else from the beginning."""
    pcm16 = found.codec == "PCM_16"
    frames = min(BLOCK_FRAMES, max(512, 2**19 // found.channels))
    values = np.empty((frames, found.channels), np.float32)
    buffer = np.empty(values.shape, np.int16) if pcm16 else values
    at = 0
    with contextlib.closing(_sound(file, found)) as sound:
        if found.seekable and start:
            at = min(start, sound.frames)
            sound.seek(at)
        while stop is None or at < stop:
            want = frames if stop is None else min(frames, stop - at)
            # Not soundfile.blocks(): it ignores short reads, and yields the old content of the buffer.
            got = len(sound.read(want, out=buffer))
            if got:
                if pcm16:
                    values[:got] = buffer[:got]
                yield at, mean(values[:got].T, 1 / 32768 if pcm16 else 1.0, 0.0)
                at += got
            if got < want:
                # Where the length is exact, fewer frames mean that the decoder stopped early without an error.
                if found.seekable and at < sound.frames:
                    raise EOFError(f"{at} of {sound.frames} frames")
                if found.container in ("FLAC", "MP3") and _goes_on(file):
                    note("more-data")
                return


def mono_blocks(
    path: str | os.PathLike[str],
    probe: Probe,
    *,
    start: int = 0,
    stop: int | None = None,
    note: Callable[[str], None] = lambda note: None,
) -> Iterator[NDArray[np.float32]]:
    """Decode samples [start, stop) at the recording's own rate, mixed down by a plain mean.

    Parameters
    ----------
    path, probe : str or os.PathLike, Probe
        The file, and the result of `probe` for it.
    start, stop : int, int or None
        Span in native samples; None reads to the end. A span beyond the end is cut, without an error.
    note : callable
        Called with keys of `NOTES`, in addition to the notes of the probe; perhaps several times with the same key.

    Yields
    ------
    numpy.ndarray
        float32, shape ``(n,)``, full scale 1, n at most about 65,536 plus one codec frame. The array is not reused.

    Raises
    ------
    Rejected
        With stage ``'decode'``: damaged, not-finite, no-samples, format-changes, time-stamps, or the file can no longer
        be opened.
    """
    if start < 0 or (stop is not None and stop < start):
        raise ValueError(f"span [{start}, {stop})")
    if stop == start:
        return
    end = start if probe.seekable else 0
    integers = probe.reader == "soundfile" and probe.codec.startswith("PCM_")
    with opened(path, "decode") as file:
        if probe.reader == "soundfile":
            blocks = _soundfile_blocks(file, probe, start, stop, note)
        else:
            blocks = ffmpeg.blocks(file, probe, stop=stop, note=note)
        with contextlib.closing(blocks):
            while True:
                try:
                    at, block = next(blocks)
                except StopIteration:
                    break
                except (Rejected, ImportError, MemoryError):
                    raise
                except Exception as error:
                    _refuse_unreadable(file, "decode")
                    detail = f"after {end / probe.sample_rate:.3f} s: {_say(error)}"
                    raise Rejected("decode", "damaged", detail=detail) from error
                end = at + len(block)
                skip = max(0, start - at)
                part = block[skip : None if stop is None else max(0, stop - at)]
                if not integers and not (finite := np.isfinite(part)).all():
                    second = (at + skip + int(np.argmin(finite))) / probe.sample_rate
                    raise Rejected("decode", "not-finite", detail=f"at {second:.3f} s")
                if len(part):
                    yield part
    # Only if the read began at 0: after a seek past the end nothing is read, although the recording may have samples.
    if end == 0:
        raise Rejected("decode", "no-samples")
