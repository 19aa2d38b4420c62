"""Files that exist as numbers only: what a listing and a probe would tell of any of them, from its number alone.

A row is a pure function of its number (SplitMix64), so that a hundred million need no memory and can be made in any
order, by anybody. The mix is of clips, tracks, podcasts and recordings that run for hours; see `KINDS`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from soundlake.pipelines.audio.reading import Probe

# Container, codec, Hz, channels, whether seeking is exact, reader, bytes a second.
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
        Of all files.
    median, spread : float
        Seconds; and the standard deviation of their logarithm.
    formats : dict of str to float
        Names of the formats of this room, and their shares.
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
# Of kind and format together, in one draw.
CHOICES = [(kind, FORMATS[name], kind.share * share) for kind in KINDS for name, share in kind.formats.items()]
_BOUNDS = np.cumsum([share for *_, share in CHOICES])[:-1]


def _mixed(numbers: npt.NDArray[np.uint64], stream: int) -> npt.NDArray[np.uint64]:
    """SplitMix64's output for each number, another one for each stream."""
    with np.errstate(over="ignore"):
        z = numbers * np.uint64(8) + np.uint64(stream + 1)
        z *= np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def ids(numbers: npt.NDArray[np.uint64]) -> list[str]:
    """recording_ids of rows: 64 hexadecimal digits."""
    text = np.stack([_mixed(numbers, i) for i in range(4)], axis=1).astype(">u8").tobytes().hex()
    return [text[at : at + 64] for at in range(0, len(text), 64)]


def drawn(numbers: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """Of each row the place in `CHOICES`, and its frames."""
    first, second = ((_mixed(numbers, stream) >> np.uint64(11)) * 2.0**-53 for stream in (4, 5))
    choice = np.searchsorted(_BOUNDS, first, side="right")
    median, spread, rate = (
        np.array(values)[choice]
        for values in zip(*((kind.median, kind.spread, found[2]) for kind, found, _ in CHOICES), strict=True)
    )
    seconds = median * np.exp(spread * ndtri(second + 2.0**-54))
    return choice, np.maximum(1, np.round(seconds * rate)).astype(np.int64)


def seconds(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Seconds of sound of rows."""
    choice, frames = drawn(numbers)
    return frames / np.array([found[2] for _, found, _ in CHOICES])[choice]


def headers(numbers: npt.NDArray[np.uint64]) -> list[tuple[Probe, int]]:
    """What a probe of each row tells, and its size in bytes."""
    choice, frames = drawn(numbers)
    made = []
    for place, count in zip(choice.tolist(), frames.tolist(), strict=True):
        container, codec, rate, channels, seekable, reader, a_second = CHOICES[place][1]
        probe = Probe(container, codec, rate, channels, count, seekable, reader)
        made.append((probe, 128 + count * a_second // rate))
    return made


def uri(number: int) -> str:
    """Where a row's file lies: a bucket of a thousand files a folder."""
    return f"s3://a-large-corpus/audio/{number // 1000:06d}/{number:09d}.audio"
