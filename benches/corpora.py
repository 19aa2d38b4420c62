"""Synthetic corpora for the benches: many different files, or a few long ones, written fast."""

import io
import struct
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from benches.sounds import sound

MINUTE = 60
# Suffixes of a mixed corpus, in turn. Vorbis is the slowest to encode, so it is rare.
MIXED = ("ogg", *("flac", "wav", "mp3", "wav", "wav") * 3, "flac", "wav", "mp3", "wav")
# Frames per write: libsndfile's Vorbis encoder puts as many on its stack.
BLOCK = 65_536


def minute(*, rate: int, channels: int = 1) -> NDArray[np.int16]:
    """A minute of sound, shape (60 * rate, channels)."""
    return (np.concatenate(list(sound(rate=rate, seconds=MINUTE, channels=channels))) * 32767).astype(np.int16)


def _wav_header(frames: int, *, rate: int, channels: int) -> bytes:
    size, step = frames * channels * 2, channels * 2
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * step, step, 16)
    return struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + form + struct.pack("<4sI", b"data", size)


def short_files(folder: Path, *, count: int, seconds: float = 0.5, rate: int = 16_000) -> None:
    """Write `count` short WAV files, each different, with a thousand per folder; the first folder is ``000``."""
    base = minute(rate=rate)[:, 0]
    frames = round(seconds * rate)
    header = _wav_header(frames, rate=rate, channels=1)
    for first in range(0, count, 1000):
        part = folder / f"{first // 1000:03d}"
        part.mkdir(parents=True)
        for number in range(first, min(first + 1000, count)):
            place = number * 997 % (len(base) - frames)
            values = base[place : place + frames].copy()
            values[:2] = number % 20_000, number // 20_000  # makes each file unique
            (part / f"{number:06d}.wav").write_bytes(header + values.tobytes())


def _turned(values: NDArray[np.int16], number: int) -> NDArray[np.int16]:
    """The same minute, rotated: it counts as a different recording."""
    return np.roll(values, number * 7919, axis=0)


def wav_files(folder: Path, *, count: int, minutes: int, rate: int, channels: int = 1, first: int = 0) -> None:
    """Write `count` WAV files of whole minutes, each different."""
    folder.mkdir(parents=True)
    base = minute(rate=rate, channels=channels)
    header = _wav_header(minutes * len(base), rate=rate, channels=channels)
    for number in range(first, first + count):
        values = _turned(base, number).tobytes()
        with open(folder / f"{number:04d}.wav", "wb") as file:
            file.write(header)
            for _ in range(minutes):
                file.write(values)


def _mp3_minute(values: NDArray[np.int16], rate: int) -> list[bytes]:
    """Frames of an MP3 with a constant bit rate: its length then follows from the size, without a table of contents."""
    file = io.BytesIO()
    soundfile.write(
        file, values, rate, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="CONSTANT", compression_level=0.8
    )
    return _mp3_frames(file.getvalue())[1:]  # the first frame contains the encoder's information on the length


def _mp3(path: Path, frames: list[bytes], *, number: int, count: int) -> None:
    """Write `count` frames: the given frames repeatedly, from the `number`-th on."""
    with open(path, "wb") as file:
        for place in range(number, number + count, len(frames)):
            part = frames[number:] + frames[:number]
            file.write(b"".join(part[: number + count - place]))


def mp3_files(folder: Path, *, count: int, minutes: int, rate: int) -> None:
    """Write `count` MP3 files of whole minutes, each different, from one encoded minute; MP3 cannot be cut exactly."""
    folder.mkdir(parents=True)
    frames = _mp3_minute(minute(rate=rate), rate)
    for number in range(count):
        _mp3(folder / f"{number:04d}.mp3", frames, number=number, count=minutes * len(frames))


def _mp3_frames(data: bytes) -> list[bytes]:
    """Frames of a Layer III stream of MPEG 1 or 2."""
    kbits_mpeg1 = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]
    kbits_mpeg2 = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160]
    offset, frames = 0, []
    while offset + 4 <= len(data):
        version = data[offset + 1] >> 3 & 3  # 3 is MPEG 1; 2 is MPEG 2, with half the rates and half the samples
        kbits = (kbits_mpeg1 if version == 3 else kbits_mpeg2)[data[offset + 2] >> 4]
        rate = (44_100, 48_000, 32_000)[data[offset + 2] >> 2 & 3] // (1 if version == 3 else 2)
        size = (144_000 if version == 3 else 72_000) * kbits // rate + (data[offset + 2] >> 1 & 1)
        frames.append(data[offset : offset + size])
        offset += size
    return frames


def mixed(folder: Path, *, count: int, seconds: int = 60, rate: int = 44_100, channels: int = 2) -> float:
    """Write `count` files of `seconds` to 2 × `seconds` in several formats in turn; return their total seconds."""
    folder.mkdir(parents=True)
    base = minute(rate=rate, channels=channels)
    frames = _mp3_minute(base, rate)
    total = 0
    for number in range(count):
        suffix = MIXED[number % len(MIXED)]
        length = seconds + number * 37 % (seconds + 1)
        total += length
        path = folder / f"{number:04d}.{suffix}"
        if suffix == "mp3":
            _mp3(path, frames, number=number, count=length * len(frames) // MINUTE)
            continue
        values = np.resize(_turned(base, number), (length * rate, channels))
        if suffix == "wav":
            path.write_bytes(_wav_header(len(values), rate=rate, channels=channels) + values.tobytes())
            continue
        with soundfile.SoundFile(path, "w", rate, channels) as file:
            for place in range(0, len(values), BLOCK):
                file.write(values[place : place + BLOCK])
    return float(total)
