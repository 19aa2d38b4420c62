"""Read any recording as mono at its own rate, in bounded memory, or say in one word why not.

`probe` looks at a file without decoding it, `mono_blocks` decodes a span. Whatever is wrong with a file ends in one
exception, `Rejected`. A header's length is treated as a claim: the end of a recording is where the decoder stops giving
samples. A span read alone holds, bit for bit, what the whole recording has there.
"""

import contextlib
import errno
import functools
import os
import re
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

# Counted up when some file is decoded otherwise than before: `extract --recheck` decodes again what an older one read.
DECODER_VERSION = 2

BLOCK_FRAMES = 65536
RATE_RANGE = (1000, 768_000)
CHANNELS_RANGE = (1, 1024)
# A FLAC frame holds at most 65,535 samples and takes at least about 11 bytes: no honest file claims more a byte.
FLAC_FRAMES_PER_BYTE = 8192

SEEKABLE_CONTAINERS = frozenset({"WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF"})
SEEKABLE_CODECS = frozenset({"PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"})

REASONS = {
    "missing": "There is no file here, or the link points to nothing.",
    "link-loop": "The link leads back to itself.",
    "directory": "This is a folder, not a file.",
    "named-pipe": "This is a named pipe or a socket, not a file.",
    "device": "This is a device, not a file.",
    "no-permission": "The file may not be read by this user.",
    "unreadable": "The system could not open or read the file.",
    "empty": "The file holds 0 bytes.",
    "not-audio": "No decoder recognises the content as audio.",
    "no-audio-stream": "The file is a picture or a video without sound.",
    "unknown-codec": "The sound is stored in a way no decoder here knows.",
    "unsupported-rate": f"The sample rate is outside {RATE_RANGE[0]} to {RATE_RANGE[1]} Hz.",
    "unsupported-channels": f"The number of channels is outside {CHANNELS_RANGE[0]} to {CHANNELS_RANGE[1]}.",
    "no-samples": "The file opens as audio and holds no samples.",
    "not-finite": "The samples include NaN or infinity.",
    "damaged": "The decoder gave up part of the way through.",
    "format-changes": "The sample rate changes part of the way through.",
    "silent": "Every sample is zero, or the channels cancel each other out: there is no sound to learn from.",
    "too-loud": "The samples go far beyond full scale; floating-point audio must be scaled to ±1.",
    "decoder-crashed": "The decoder crashed on it, twice, each time in a process of its own.",
    "decoder-hangs": "The decoder gave no block of samples for a minute, twice.",
    "too-much-memory": "Decoding asks for far more memory than any recording needs.",
}


class Rejected(Exception):
    """A recording that cannot be used, with the reason.

    Parameters
    ----------
    stage, reason : str
        ``'probe'``, ``'decode'`` or ``'features'``, and a key of `REASONS`.
    detail : str
        What was seen, for a log; may hold a decoder's own words.
    """

    def __init__(self, stage: str, reason: str, *, detail: str = "") -> None:
        if reason not in REASONS:
            raise ValueError(f"unknown reason {reason!r}")
        super().__init__(stage, reason, detail)
        self.stage, self.reason, self.detail = stage, reason, detail

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}: {self.detail or REASONS[self.reason]}"

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls __init__ with three positionals, and a worker process could not send this home.
        return functools.partial(Rejected, detail=self.detail), (self.stage, self.reason)


@dataclass(frozen=True)
class Probe:
    """What a file says about itself.

    Attributes
    ----------
    container, codec : str
        Names as the reader gives them (``'WAV'``, ``'PCM_16'``; ``'mov,mp4,…'``, ``'aac'``).
    sample_rate, channels : int
        Native rate in Hz, and number of channels.
    claimed_frames : int or None
        Frames by the header, a claim only; None where unknown.
    seekable, reader : bool, str
        True only where seeking is exact to the sample; ``'soundfile'`` or ``'pyav'``.
    """

    container: str
    codec: str
    sample_rate: int
    channels: int
    claimed_frames: int | None
    seekable: bool
    reader: str


def _say(error: BaseException) -> str:
    """One line of an exception, without the path; a name with surrogates would not fit a UTF-8 table."""
    text = f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}"
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())[:300]


_OS_REASONS = {errno.ENOENT: "missing", errno.ENOTDIR: "missing", errno.ELOOP: "link-loop"}
_OS_REASONS |= {errno.EACCES: "no-permission", errno.EPERM: "no-permission"}


def opened(path: str | os.PathLike[str], stage: str) -> BufferedReader:
    """Open a regular, non-empty file, or raise `Rejected`."""
    try:
        # Before opening: to open a FIFO waits for ever, and a device never ends.
        info = os.stat(path)
        if not stat.S_ISREG(info.st_mode):
            pipe = stat.S_ISFIFO(info.st_mode) or stat.S_ISSOCK(info.st_mode)
            raise Rejected(stage, "directory" if stat.S_ISDIR(info.st_mode) else "named-pipe" if pipe else "device")
        if info.st_size == 0:
            raise Rejected(stage, "empty")
        return open(path, "rb")
    except (OSError, ValueError) as error:
        reason = _OS_REASONS.get(getattr(error, "errno", None) or 0, "unreadable")
        raise Rejected(stage, reason, detail=_say(error)) from error


def _open_pyav(file: BinaryIO) -> Any:
    import av

    # A playlist could name other files or addresses: no protocol is allowed beyond the file already open.
    return av.open(file, metadata_errors="replace", options={"protocol_whitelist": "none"})


def _id3_bytes(head: bytes) -> int:
    """Length of the ID3v2 tag that begins with these ten bytes, from the tag's own header; 0 if none does."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + functools.reduce(lambda total, byte: total << 7 | byte & 0x7F, head[6:10], 0)


def _tells_its_length(file: BinaryIO) -> bool:
    """Whether an MP3 says in its first frame how long it is, and ends there: files joined into one go on.

    The headers Xing (Info, at a constant bit rate) and VBRI, as FFmpeg's mp3dec.c reads them.
    """
    start, tag = 0, -1
    while tag:
        file.seek(start)
        # The largest frame of MPEG audio has 1,441 bytes.
        first = file.read(1441)
        start += (tag := _id3_bytes(first))
    found = re.search(rb"(?:Xing|Info)...([\x03\x07\x0b\x0f])....(....)|VBRI.{6}(....)", first, re.DOTALL)
    if found is None:
        return False
    # Bytes of the frames, this one included; behind them come tags, or nothing.
    file.seek(start + int.from_bytes(found[2] or found[3]))
    after = file.read(3)
    return after != b"ID3" and not (after[:1] == b"\xff" and after[1:2] >= b"\xe0")


def _probe_soundfile(file: BinaryIO, size: int) -> Probe | None:
    """Probe by libsndfile; None where PyAV should have the file."""
    import soundfile

    try:
        # An open file, not a path: soundfile cannot take names that are not UTF-8.
        with soundfile.SoundFile(file) as sound:
            container, codec, frames = sound.format, sound.subtype, int(sound.frames)
            rate, channels = sound.samplerate, sound.channels
    except MemoryError:
        raise
    except Exception:
        return None
    # 0 may be a recorder that crashed before it wrote the size: PyAV reads on to the end of the file.
    if frames <= 0:
        return None
    seekable = (container in SEEKABLE_CONTAINERS and codec in SEEKABLE_CODECS) or container == "FLAC"
    # libsndfile stops in silence at the length that the first frame tells, or that it guesses from that frame.
    if container == "MP3" and not _tells_its_length(file):
        return None
    # Unknown totals and absurd ones make libsndfile fail or ask for 256 GiB.
    if container == "FLAC" and frames > size * FLAC_FRAMES_PER_BYTE:
        return None
    return Probe(container, codec, rate, channels, None if frames >= 2**62 else frames, seekable, "soundfile")


def _probe_pyav(file: BinaryIO) -> Probe:
    """Probe by FFmpeg, or raise `Rejected`."""
    try:
        file.seek(0)
        container = _open_pyav(file)
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        reason = "no-samples" if isinstance(error, EOFError) else "not-audio"
        raise Rejected("probe", reason, detail=_say(error)) from error
    with contextlib.closing(container):
        try:
            if not container.streams.audio:
                raise Rejected("probe", "no-audio-stream", detail=str(container.format.name))
            stream = container.streams.audio[0]
            codec, rate, channels = stream.codec_context.name, stream.codec_context.sample_rate, stream.channels
            seconds = (stream.duration or 0) * (stream.time_base or 0)
            claimed = max(0, int(seconds * (rate or 0))) or None
            return Probe(container.format.name, codec, int(rate or 0), int(channels or 0), claimed, False, "pyav")
        except (Rejected, MemoryError):
            raise
        except Exception as error:
            # A stream of a codec FFmpeg lacks has no codec context: an AttributeError, not an av error.
            raise Rejected("probe", "unknown-codec", detail=_say(error)) from error


def probe(path: str | os.PathLike[str]) -> Probe:
    """Say what a file holds, without decoding it.

    Parameters
    ----------
    path : str or os.PathLike
        Any name the system allows, UTF-8 or not.

    Returns
    -------
    Probe
        Format, native rate in Hz, channels, claimed length in frames, and which reader takes it. Whatever is wrong is
        raised as `Rejected` with stage ``'probe'``.
    """
    with opened(path, "probe") as file:
        found = _probe_soundfile(file, os.fstat(file.fileno()).st_size) or _probe_pyav(file)
    if not RATE_RANGE[0] <= found.sample_rate <= RATE_RANGE[1]:
        raise Rejected("probe", "unsupported-rate", detail=f"{found.sample_rate} Hz")
    if not CHANNELS_RANGE[0] <= found.channels <= CHANNELS_RANGE[1]:
        raise Rejected("probe", "unsupported-channels", detail=f"{found.channels} channels")
    return found


def _mean(channels: NDArray[Any], scale: float, offset: float) -> NDArray[np.float32]:
    """Mean over the first axis as new float32, ``(frames,)``, of ``(channels, frames)`` in any sample type."""
    # Channel by channel, no matrix product: BLAS may round by a sample's place in the block, and slices would differ.
    with np.errstate(over="ignore", invalid="ignore"):
        # All channels at once: they lie interleaved, and a cast that steps over the others is slow.
        values = channels.astype(np.float32, copy=False)
        total = values[0].copy() if len(values) == 1 else values[0] + values[1]
        for value in values[2:]:
            total += value
        if offset:
            total += np.float32(offset * len(channels))
        factor = scale / len(channels)
        if factor != 1.0:
            total *= np.float32(factor)
    return total


# Each mono block with the frame it begins at.
_Blocks = Generator[tuple[int, NDArray[np.float32]], None, None]


def _soundfile_blocks(file: BinaryIO, found: Probe, start: int, stop: int | None) -> _Blocks:
    """Decode by libsndfile, from `start` where seeking is exact, else from the beginning."""
    import soundfile

    class Sound(soundfile.SoundFile):
        """After each read soundfile seeks to where it is, if the file says that it can be sought in.

        In MP3 that decodes some frames again. In a damaged Ogg it finds back to the right place, and stays.
        """

        def seekable(self) -> bool:
            return found.container == "OGG"

    pcm16 = found.codec == "PCM_16"
    frames = min(BLOCK_FRAMES, max(512, 2**19 // found.channels))
    values = np.empty((frames, found.channels), np.float32)
    buffer = np.empty(values.shape, np.int16) if pcm16 else values
    at = 0
    # By its descriptor: libsndfile reads by itself, instead of calling back to Python for every few kilobytes.
    with Sound(file.fileno(), closefd=False) as sound:
        if found.seekable and start:
            at = min(start, sound.frames)
            sound.seek(at)
        while stop is None or at < stop:
            want = frames if stop is None else min(frames, stop - at)
            # Never soundfile.blocks(): it ignores short reads and hands out what the buffer held before.
            got = len(sound.read(want, out=buffer))
            if got:
                if pcm16:
                    values[:got] = buffer[:got]
                yield at, _mean(values[:got].T, 1 / 32768 if pcm16 else 1.0, 0.0)
                at += got
            if got < want:
                # Where the length is exact, less of it means the decoder stopped early without a word.
                if found.seekable and at < sound.frames:
                    raise EOFError(f"{at} of {sound.frames} frames")
                return


_PYAV_SCALES = {"u8": (1 / 128, -128.0), "s16": (1 / 32768, 0.0), "s32": (2.0**-31, 0.0), "s64": (2.0**-63, 0.0)}
_PYAV_SCALES |= {"flt": (1.0, 0.0), "dbl": (1.0, 0.0)}


def _pyav_frames(container: Any, codec: str) -> Iterator[Any]:
    """Frames of the first audio stream. Tags between MP3s that were joined into one are no sound, and are left out."""
    tag_end = 0
    for packet in container.demux(container.streams.audio[0]):
        if codec.startswith("mp3") and packet.pos is not None:
            tag_end = max(tag_end, packet.pos + _id3_bytes(bytes(packet)[:10]))
            if packet.pos < tag_end:
                continue
        yield from packet.decode()


def _pyav_blocks(file: BinaryIO, found: Probe, start: int, stop: int | None) -> _Blocks:
    """Decode by FFmpeg, always from the beginning."""
    at, waiting, parts = 0, 0, []
    with contextlib.closing(_open_pyav(file)) as container:
        for frame in _pyav_frames(container, found.codec):
            if frame.sample_rate != found.sample_rate:
                change = f"{found.sample_rate} to {frame.sample_rate} Hz after {at + waiting} frames"
                raise Rejected("decode", "format-changes", detail=change)
            if not frame.samples:
                continue
            scale, offset = _PYAV_SCALES[frame.format.name.removesuffix("p")]
            values = frame.to_ndarray()
            if not frame.format.is_planar:
                values = values.reshape(-1, len(frame.layout.channels)).T
            parts.append(_mean(values, scale, offset))
            waiting += len(parts[-1])
            if waiting >= BLOCK_FRAMES or (stop is not None and at + waiting >= stop):
                yield at, np.concatenate(parts)
                at, waiting, parts = at + waiting, 0, []
                if stop is not None and at >= stop:
                    return
    if parts:
        yield at, np.concatenate(parts)


def mono_blocks(
    path: str | os.PathLike[str], probe: Probe, *, start: int = 0, stop: int | None = None
) -> Iterator[NDArray[np.float32]]:
    """Decode samples [start, stop) at the recording's own rate, mixed down by a plain mean.

    Parameters
    ----------
    path, probe : str or os.PathLike, Probe
        The file, and what `probe` returned for it.
    start, stop : int, int or None
        Span in native samples; None reads to the end. A span beyond the end is cut, without an error.

    Yields
    ------
    numpy.ndarray
        float32, shape ``(n,)``, full scale 1, n at most about 65,536 plus one codec frame; the caller's to keep. Raises
        `Rejected` with stage ``'decode'``: damaged, not-finite, no-samples, format-changes, or no longer to be opened.
    """
    if start < 0 or (stop is not None and stop < start):
        raise ValueError(f"span [{start}, {stop})")
    if stop == start:
        return
    end = start if probe.seekable else 0
    integers = probe.reader == "soundfile" and probe.codec.startswith("PCM_")
    with opened(path, "decode") as file:
        blocks = (_soundfile_blocks if probe.reader == "soundfile" else _pyav_blocks)(file, probe, start, stop)
        with contextlib.closing(blocks):
            while True:
                try:
                    at, block = next(blocks)
                except StopIteration:
                    break
                except (Rejected, ImportError, MemoryError):
                    raise
                except Exception as error:
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
    # Only from the beginning: a seek past the end reads nothing of a recording that may hold plenty.
    if end == 0:
        raise Rejected("decode", "no-samples")
