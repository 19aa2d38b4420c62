"""Synthetic files without content: the results of listing and probing each file, computed from its number alone.

A row is a pure function of its number (SplitMix64). So a hundred million rows need no memory, and any process can make
them in any order. The mix contains clips, tracks, podcasts and recordings of hours; see `KINDS`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from soundlake.pipelines.audio.reading import Probe

# Container, codec, Hz, channels, whether seeking is exact, reader, bytes per second.
Format = tuple[str, str, int, int, bool, str, int]
WAV: Format = ("WAV", "PCM_16", 44_100, 2, True, "soundfile", 176_400)
FLAC: Format = ("FLAC", "PCM_16", 44_100, 2, True, "soundfile", 97_000)
MP3: Format = ("MP3", "MPEG_LAYER_III", 44_100, 2, False, "soundfile", 16_000)
OGG: Format = ("OGG", "VORBIS", 44_100, 2, False, "soundfile", 14_000)
M4A: Format = ("mov,mp4,m4a,3gp,3g2,mj2", "aac", 44_100, 2, False, "pyav", 16_000)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes
    ----------
    name : str
    share : float
        Share of all files.
    median, spread : float
        Median duration in seconds, and standard deviation of its logarithm.
    formats : dict of str to float
        Names of formats of this module, and their shares.
    """

    name: str
    share: float
    median: float
    spread: float
    formats: dict[str, float]


KINDS = (
    Kind("clip", 0.85, 6, 0.8, {"WAV": 0.6, "MP3": 0.3, "OGG": 0.1}),
    Kind("track", 0.13, 220, 0.35, {"MP3": 0.7, "FLAC": 0.2, "M4A": 0.1}),
    Kind("podcast", 0.019, 3000, 0.5, {"MP3": 0.8, "M4A": 0.2}),
    Kind("long", 0.001, 28_800, 0.5, {"WAV": 0.5, "FLAC": 0.3, "MP3": 0.2}),
)
FORMATS = {"WAV": WAV, "FLAC": FLAC, "MP3": MP3, "OGG": OGG, "M4A": M4A}
# Every pair of kind and format with its share, so that one draw chooses both.
CHOICES = [(kind, FORMATS[name], kind.share * share) for kind in KINDS for name, share in kind.formats.items()]
_BOUNDS = np.cumsum([share for *_, share in CHOICES])[:-1]


def _mixed(numbers: npt.NDArray[np.uint64], stream: int) -> npt.NDArray[np.uint64]:
    """SplitMix64's output for each number; each stream gives a different one."""
    with np.errstate(over="ignore"):
        z = numbers * np.uint64(8) + np.uint64(stream + 1)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def ids(numbers: npt.NDArray[np.uint64]) -> list[str]:
    """recording_ids of rows: 64 hexadecimal digits."""
    text = np.stack([_mixed(numbers, i) for i in range(4)], axis=1).astype(">u8").tobytes().hex()
    return [text[start : start + 64] for start in range(0, len(text), 64)]


def drawn(numbers: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """For each row, its index in `CHOICES` and its number of frames."""
    first, second = ((_mixed(numbers, stream) >> np.uint64(11)) * 2.0**-53 for stream in (4, 5))
    choice = np.searchsorted(_BOUNDS, first, side="right")
    median, spread, rate = (
        np.array(values)[choice]
        for values in zip(*((kind.median, kind.spread, form[2]) for kind, form, _ in CHOICES), strict=True)
    )
    seconds = median * np.exp(spread * ndtri(second + 2.0**-54))
    return choice, np.maximum(1, np.round(seconds * rate)).astype(np.int64)


def seconds(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Duration of each row in seconds."""
    choice, frames = drawn(numbers)
    return frames / np.array([form[2] for _, form, _ in CHOICES])[choice]


def headers(numbers: npt.NDArray[np.uint64]) -> list[tuple[Probe, int]]:
    """For each row, the result of a probe and the size in bytes."""
    choice, frames = drawn(numbers)
    probes = []
    for place, count in zip(choice.tolist(), frames.tolist(), strict=True):
        container, codec, rate, channels, seekable, reader, a_second = CHOICES[place][1]
        probe = Probe(container, codec, rate, channels, count, seekable, reader)
        probes.append((probe, 128 + count * a_second // rate))
    return probes


def uri(number: int) -> str:
    """URI of a row's file: in a bucket, with a thousand files per folder."""
    return f"s3://a-large-corpus/audio/{number // 1000:06d}/{number:09d}.audio"
