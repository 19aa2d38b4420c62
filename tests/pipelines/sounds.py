"""Recordings with clicks at known times, and files of them as the world has them: cut, joined, with lost packets."""

import base64
import itertools
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import soundfile

# Where the clicks are, in seconds.
CLICKS = (0.5, 1.9, 3.1)
SECONDS = 4.0
# A tone of 0.3 s at 8,000 Hz, by speexenc: no library here writes Speex.
SPEEX = base64.b64decode(
    "T2dnUwACAAAAAAAAAACrP1lqAAAAAEaV5kMBUFNwZWV4ICAgMS4yLjEAAAAAAAAAAAAAAAAAAAABAAAAUAAAAEAfAAAAAAAABAAA"
    "AAEAAAD/////oAAAAAAAAAABAAAAAAAAAAAAAAAAAAAAT2dnUwAAAAAAAAAAAACrP1lqAQAAAACOopYBIBgAAABFbmNvZGVkIHdp"
    "dGggU3BlZXggMS4yLjEAAAAAT2dnUwAEYAkAAAAAAACrP1lqAgAAAF/Vbm8QCgoKCgoKCgoKCgoKCgoKCkBUiAbtnKcIVaxAVIgH"
    "ZnABKcIQQFSIB2arHABKcEBUiAdmhCrHABJAVIgHZpwhCrHAQFSIB2YEpwhCrEBUiAdmcAEpwhBAVIgHZqscAEpwQFSIB2aEKscA"
    "EkBUiAdmnCEKscBAVIgHZgSnCEKsQFSIB2ZwASnCEEBUiAdmqxwASnBAVIgHZoQqxwASQFSIB2acIQqxwEBEidQ298ZqhY4="
)


def clicks(rate: int, *, seconds: float = SECONDS, at: tuple[float, ...] = CLICKS, seed: int = 1) -> np.ndarray:
    """Bursts of noise of 0.15 s in faint noise, ``(frames,)``."""
    rng = np.random.default_rng(seed)
    sound = rng.standard_normal(round(rate * seconds)) * 0.01
    for second in (second for second in at if second < seconds):
        begin = round(second * rate)
        sound[begin : begin + round(0.15 * rate)] += 0.3 * rng.standard_normal(round(0.15 * rate))
    return sound.clip(-0.9, 0.9)


def onsets(sound: np.ndarray, rate: int) -> list[float]:
    """Seconds at which it gets loud after a quiet while."""
    loud = np.flatnonzero(np.abs(sound) > 0.08)
    return [] if not len(loud) else [float(i) / rate for i in loud[np.diff(loud, prepend=-rate) > 0.3 * rate]]


def encode(
    path: Path,
    codec: str,
    rate: int,
    sound: np.ndarray,
    *,
    container: str | None = None,
    options: dict[str, str] | None = None,
    late: float = 0.0,
    video: str | None = None,
    tracks: tuple[np.ndarray, ...] = (),
) -> Path:
    """Write mono sound by PyAV (Vorbis by libsndfile), with pictures and further tracks of the same codec if asked."""
    if codec == "vorbis":
        return remuxed(
            vorbis(path.with_suffix(".vorbis"), rate, sound), path, lambda second: second, container=container
        )
    with av.open(str(path), "w", format=container, options=options or {}) as out:
        if video:
            picture = out.add_stream(video, rate=10)
            picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        streams = [out.add_stream(codec, rate=rate, layout="mono") for _ in (sound, *tracks)]
        if codec == "wmav2":
            streams[0].bit_rate = 128_000
        if tracks:
            for stream in streams:
                stream.disposition = 0
            streams[-1].disposition = av.stream.Disposition.default
        packets = []
        if video:
            for i in range(round(10 * (late + len(sound) / rate))):
                image = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i % 256, np.uint8))
                packets += picture.encode(image)
            packets += picture.encode()
        for stream, track in zip(streams, (sound, *tracks), strict=True):
            frame = av.AudioFrame.from_ndarray(track[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = rate, 0
            size = stream.codec_context.frame_size or 1024
            resampler = av.AudioResampler(stream.codec_context.format, "mono", rate, frame_size=size)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                part.pts += round(late * rate)
                packets += stream.encode(part)
            packets += stream.encode()
        for packet in sorted(packets, key=lambda packet: float((packet.dts or 0) * packet.time_base)):
            out.mux(packet)
    return path


def remuxed(source: Path, path: Path, stamp: Callable[[float], float | None], *, container: str | None = None) -> Path:
    """The packets of a file in another one, each with the time that `stamp` makes of its own; None leaves it out."""
    with av.open(str(source)) as read, av.open(str(path), "w", format=container) as out:
        stream = out.add_stream_from_template(read.streams.audio[0])
        for packet in read.demux(read.streams.audio[0]):
            if packet.pts is None:
                continue
            second = stamp(float(packet.pts * packet.time_base))
            if second is not None:
                packet.pts = packet.dts = round(second / packet.time_base)
                packet.stream = stream
                out.mux(packet)
    return path


def vorbis(path: Path, rate: int, sound: np.ndarray, codec: str = "VORBIS") -> Path:
    """Vorbis or Opus in Ogg, by libsndfile."""
    with soundfile.SoundFile(path, "w", rate, 1, codec, format="OGG") as out:
        # All at once is too much for libvorbis' stack.
        for begin in range(0, len(sound), rate):
            out.write(sound[begin : begin + rate])
    return path


def _crc_table() -> Iterator[int]:
    for value in range(256):
        crc = value << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc & 1 << 31 else 0)) & 0xFFFFFFFF
        yield crc


_TABLE = tuple(_crc_table())


def sealed(page: bytes) -> bytes:
    """A page of Ogg with the checksum of RFC 3533."""
    crc, page = 0, page[:22] + bytes(4) + page[26:]
    for byte in page:
        crc = (crc << 8 & 0xFFFFFFFF) ^ _TABLE[crc >> 24 ^ byte]
    return page[:22] + struct.pack("<I", crc) + page[26:]


def pages(data: bytes) -> list[bytes]:
    """The pages of an Ogg."""
    found, at = [], 0
    while at < len(data):
        count = data[at + 26]
        end = at + 27 + count + sum(data[at + 27 : at + 27 + count])
        found.append(data[at:end])
        at = end
    return found


def granule(page: bytes) -> int:
    """The sample that a page of Ogg ends at."""
    return int(struct.unpack("<q", page[6:14])[0])


def with_serial(data: bytes, serial: int) -> bytes:
    """An Ogg whose pages have another serial number."""
    return b"".join(sealed(page[:14] + struct.pack("<I", serial) + page[18:]) for page in pages(data))


def closed_by_an_empty_packet(data: bytes, segments: bytes) -> bytes:
    """An Ogg with one page more, of these segments and no bytes, as the end of its stream."""
    *before, last = pages(data)
    (number,) = struct.unpack("<I", last[18:22])
    end = b"OggS\0\4" + last[6:18] + struct.pack("<I", number + 1) + bytes(4) + bytes([len(segments)]) + segments
    return b"".join(before) + sealed(last[:5] + bytes([last[5] & ~4]) + last[6:]) + sealed(end)


def wav(sound: np.ndarray, rate: int, *, declared: int | None = None, after: bytes = b"") -> bytes:
    """A WAV of 16 bits, byte by byte; `declared` stands in its size fields in place of the size of the data."""
    data = (sound * 32767).astype("<i2").tobytes()
    size = len(data) if declared is None else declared
    form = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    return (
        b"RIFF"
        + struct.pack("<I", (36 + size) % 2**32)
        + b"WAVE"
        + form
        + b"data"
        + struct.pack("<I", size)
        + data
        + after
    )


def runs_of_zeros(sound: np.ndarray) -> list[int]:
    """Lengths of stretches of digital silence of 100 samples or more."""
    lengths = (len(list(group)) for zero, group in itertools.groupby(sound == 0) if zero)
    return [length for length in lengths if length >= 100]
