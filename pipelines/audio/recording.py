"""Facts about a recording: the content of its file, notes about it, or the reason for its rejection."""

import functools
from dataclasses import dataclass
from typing import Any

from soundlake.model.errors import SoundlakeError

RATE_RANGE = (1000, 768_000)
CHANNELS_RANGE = (1, 1024)

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
    "format-changes": "The sample rate changes part of the way through one stream.",
    "time-stamps": "Its time stamps jump back, or leave gaps of more than an hour beyond the sound that it holds.",
    "silent": "Every sample is zero, or the channels cancel each other out: there is no sound to learn from.",
    "too-loud": "The samples go far beyond full scale; floating-point audio must be scaled to ±1.",
    "decoder-crashed": "The decoder crashed on it, twice, each time in a process of its own.",
    "decoder-hangs": "The decoder gave no block of samples for a minute, twice.",
    "too-much-memory": "Decoding asks for far more memory than any recording needs.",
}
# These reasons concern the machine, not the bytes of the file: the next run tries the recording again.
TRANSIENT = frozenset({"missing", "no-permission", "unreadable"})


NOTES = {
    "other-length": "Holds more or less sound than its header declares.",
    "cut-short": "The file ends before the sound that its header declares does, or within a packet.",
    "more-data": "Data follows the sound that the header declares; it was not decoded, and may be sound.",
    "size-wrapped": "The size field of its header is too small for the data that there is; all of it was decoded.",
    "several-tracks": "Holds more than one audio track; only the default one was decoded.",
    "starts-late": "The sound starts later than the file; silence stands before it.",
    "gaps": "Its time stamps leave gaps; silence of their length stands there.",
    "overlaps": "Some of its sound has the same time stamps as sound before it, and was left out.",
    "chained": "Several streams follow each other in one file; they were decoded as one recording.",
}


class Rejected(SoundlakeError):
    """A recording that cannot be used, with the reason.

    Parameters
    ----------
    stage, reason : str
        ``'probe'``, ``'decode'`` or ``'features'``, and a key of `REASONS`.
    detail : str
        Details for a log; may contain a decoder's own message.
    """

    def __init__(self, stage: str, reason: str, *, detail: str = "") -> None:
        if reason not in REASONS:
            raise ValueError(f"unknown reason {reason!r}")
        super().__init__(stage, reason, detail)
        self.stage, self.reason, self.detail = stage, reason, detail

    def __str__(self) -> str:
        return f"{self.stage}: {self.reason}: {self.detail or REASONS[self.reason]}"

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls __init__ with three positional arguments, which fails: a worker process could not send the
        # exception to its parent.
        return functools.partial(Rejected, detail=self.detail), (self.stage, self.reason)


@dataclass(frozen=True)
class Probe:
    """The facts about a file that its header declares.

    Attributes
    ----------
    container, codec : str
        Names in the spelling of the reader (``'WAV'``, ``'PCM_16'``; ``'mov,mp4,…'``, ``'aac'``).
    sample_rate, channels : int
        Native rate in Hz, and number of channels.
    claimed_frames : int or None
        Number of frames by the header, only a claim; None where unknown.
    seekable, reader : bool, str
        True only where seeking is exact to the sample; ``'soundfile'`` or ``'pyav'``.
    links : tuple of int
        Positions in bytes where the streams after the first begin, if several are chained in one file.
    notes : tuple of str
        Notes about the file, by its header: keys of `NOTES`.
    """

    container: str
    codec: str
    sample_rate: int
    channels: int
    claimed_frames: int | None
    seekable: bool
    reader: str
    links: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # JSON gives them as lists.
        object.__setattr__(self, "links", tuple(self.links))
        object.__setattr__(self, "notes", tuple(self.notes))
