"""Corpora made from nothing for the benches: many files that differ, or few long ones, written fast."""

import struct
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from benches.sounds import sound

MINUTE = 60
# Suffix: format and coding for soundfile, and a mixed corpus' share of such files in ten.
MIXED = {
    "wav": ("WAV", "PCM_16", 6),
    "flac": ("FLAC", "PCM_16", 2),
    "ogg": ("OGG", "VORBIS", 1),
    "mp3": ("MP3", "MPEG_LAYER_III", 1),
}
# Frames that a Vorbis encoder is handed at a time: libsndfile puts as many on its stack.
BLOCK = 65_536


def minute(*, rate: int, channels: int = 1) -> NDArray[np.int16]:
    """A minute of sound, shape (60 * rate, channels)."""
    return (np.concatenate(list(sound(rate=rate, seconds=MINUTE, channels=channels))) * 32767).astype(np.int16)


def _wav_header(frames: int, *, rate: int, channels: int) -> bytes:
    size, step = frames * channels * 2, channels * 2
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * step, step, 16)
    return struct.pack("<4sI4s", b"RIFF", 36 + size, b"WAVE") + form + struct.pack("<4sI", b"data", size)


def short_files(folder: Path, *, count: int, seconds: float = 0.5, rate: int = 16_000) -> None:
    """`count` short WAV files, every one different; a thousand to a folder, the first of them ``000``."""
    base = minute(rate=rate)[:, 0]
    frames = round(seconds * rate)
    header = _wav_header(frames, rate=rate, channels=1)
    for first in range(0, count, 1000):
        part = folder / f"{first // 1000:03d}"
        part.mkdir(parents=True)
        for number in range(first, min(first + 1000, count)):
            place = number * 997 % (len(base) - frames)
            values = base[place : place + frames].copy()
            values[:2] = number % 20_000, number // 20_000  # whatever else is alike
            (part / f"{number:06d}.wav").write_bytes(header + values.tobytes())


def _turned(values: NDArray[np.int16], number: int) -> NDArray[np.int16]:
    """The same minute from another place on: a recording of its own."""
    return np.roll(values, number * 7919, axis=0)


def wav_files(folder: Path, *, count: int, minutes: int, rate: int, channels: int = 1, first: int = 0) -> None:
    """`count` WAV files of whole minutes, every one different."""
    folder.mkdir(parents=True)
    base = minute(rate=rate, channels=channels)
    header = _wav_header(minutes * len(base), rate=rate, channels=channels)
    for number in range(first, first + count):
        values = _turned(base, number).tobytes()
        with open(folder / f"{number:04d}.wav", "wb") as file:
            file.write(header)
            for _ in range(minutes):
                file.write(values)


def mp3_files(folder: Path, *, count: int, minutes: int, rate: int) -> None:
    """`count` MP3 files of whole minutes: no place to cut them exactly. One minute's frames again and again.

    Each begins at another of the frames, so that every file differs and no second minute is encoded.
    """
    folder.mkdir(parents=True)
    path = folder / "0000.mp3"
    # A constant bit rate: without a table of contents the length then still follows from the size.
    soundfile.write(
        path,
        minute(rate=rate),
        rate,
        format="MP3",
        subtype="MPEG_LAYER_III",
        bitrate_mode="CONSTANT",
        compression_level=0.8,
    )
    frames = _mp3_frames(path.read_bytes())[1:]  # the first holds the encoder's notes on the length
    for number in range(count):
        body = b"".join(frames[number:] + frames[:number])
        with open(folder / f"{number:04d}.mp3", "wb") as file:
            for _ in range(minutes):
                file.write(body)


def _mp3_frames(data: bytes) -> list[bytes]:
    """Frames of a Layer III stream of MPEG 1 or 2."""
    first = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320]
    second = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160]
    at, frames = 0, []
    while at + 4 <= len(data):
        version = data[at + 1] >> 3 & 3  # 3 is MPEG 1, 2 is MPEG 2 with half the rates and half the samples
        kbits = (first if version == 3 else second)[data[at + 2] >> 4]
        rate = (44_100, 48_000, 32_000)[data[at + 2] >> 2 & 3] // (1 if version == 3 else 2)
        size = (144_000 if version == 3 else 72_000) * kbits // rate + (data[at + 2] >> 1 & 1)
        frames.append(data[at : at + size])
        at += size
    return frames


def mixed(folder: Path, *, count: int, seconds: int = 60, rate: int = 44_100, channels: int = 2) -> float:
    """`count` files of `seconds` to twice as many, in several formats in turn; their seconds in all."""
    folder.mkdir(parents=True)
    base = minute(rate=rate, channels=channels)
    suffixes = [suffix for suffix, (_, _, share) in MIXED.items() for _ in range(share)]
    total = 0
    for number in range(count):
        suffix = suffixes[number * 3 % len(suffixes)]
        form, coding, _ = MIXED[suffix]
        length = seconds + number * 37 % (seconds + 1)
        total += length
        values = np.resize(_turned(base, number), (length * rate, channels))
        path = folder / f"{number:04d}.{suffix}"
        with soundfile.SoundFile(path, "w", rate, channels, format=form, subtype=coding) as file:
            for place in range(0, len(values), BLOCK):
                file.write(values[place : place + BLOCK])
    return float(total)
