"""Read a query, and cut it into the windows that the table is searched for.

A whole file is cut as `extract` cuts it: the same frames, bit for bit, in windows on the table's grid. The frames of a
part of a file lie where those of the whole file do, and include the sound around the part, so that the edges of the
part are not distorted.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from soundlake.model.errors import InputError, storage_errors
from soundlake.model.features.log_mel import FeatureSpec, dequantise, log_mel, quantise, windows
from soundlake.model.judging.evaluate import MOST_RUN
from soundlake.pipelines.audio.reading import REASONS, Rejected, opened, probe
from soundlake.pipelines.audio.resampling import resampled
from soundlake.pipelines.corpus.files import at_hand, uri_of
from soundlake.pipelines.storage.secrecy import refuse_secrets
from soundlake.pipelines.storage.store import is_bucket

# Shifts of the query in a step of the table's windows, and in all; windows of the query on the table's grid.
SHIFTS_A_STEP = 16
MAX_SHIFTS = 64
MAX_GRID_WINDOWS = MOST_RUN
# A sound no longer than this share of a window is short; it may begin at every 1 / `LATER` of a step of the windows.
SHORT, LATER = 0.75, 4
# A shift must contain more than this share of the sound that the best shift contains.
MIN_SOUND_SEEN = 0.6
# A frame whose loudest band is less than this many nats above the spec's floor counts as silent.
SILENT_NATS = 0.5
# A part of a query that is more than 40 dB fainter than its loudest part is the end of a fade, or codec noise.
FAINT_NATS = 9.2
MAX_QUERY_SECONDS = 600.0
# No recording is longer than this, and samples up to here can be counted.
MAX_PLACE_SECONDS = 1e9

Frames = npt.NDArray[np.float32]
Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Cut:
    """A window of the query as the encoder sees it.

    Attributes
    ----------
    seen : ndarray of float32, shape (window_frames, n_mels)
    frames : slice
        Frames of the query that the window contains.
    on_grid : bool
        Whether the window is cut as `extract` cuts a recording; otherwise it is one of many shifts.
    """

    seen: Frames
    frames: slice
    on_grid: bool


@dataclass(frozen=True)
class Query:
    """A sound to search for.

    Attributes
    ----------
    uri : str
    samples : ndarray of float32, shape (n_samples,)
        The stretch, mono, at the spec's rate.
    start : int
        Samples from the file's start to the stretch.
    around : ndarray of float32, shape (n,)
        The stretch with the sound of the file on both sides of it.
    lead : int
        Samples of `around` before the stretch.
    whole : bool
        Whether the query is a whole file.
    recording_id : str or None
        SHA-256 of the file.
    codec : str or None
        As in `pipelines.audio.reading.Probe`.
    """

    uri: str
    spec: FeatureSpec
    samples: Samples
    start: int
    around: Samples
    lead: int
    whole: bool
    recording_id: str | None
    codec: str | None

    @property
    def seconds(self) -> float:
        """Duration of the stretch."""
        return len(self.samples) / self.spec.sample_rate

    def first_frame(self, phase: int = 0) -> int:
        """Sample of the stretch at the centre of its first frame: of the whole file's frames, or half a hop later."""
        hop = self.spec.hop_length
        first = -self.start % hop
        first = first if first <= len(self.samples) else 0
        return first + phase * (hop // 2)

    @cached_property
    def phases(self) -> tuple[Frames, Frames]:
        """Log-mel frames in nats, as in shards, (n_frames, n_mels): those of the whole file, and half a hop later.

        Raises
        ------
        InputError
            If the waveform is far beyond full scale.
        """
        try:
            return self._frames(0), self._frames(1)
        except ValueError as error:
            raise InputError(f"cannot search for {self.uri}: too-loud: {error}") from error

    def _frames(self, phase: int) -> Frames:
        spec, first = self.spec, self.first_frame(phase)
        count = max(0, (len(self.samples) - first) // spec.hop_length + 1)
        begin = self.lead + first - spec.n_fft // 2
        length = (count - 1) * spec.hop_length + spec.n_fft if count else 0
        piece = self.around[max(0, begin) : max(0, begin + length)]
        before = min(length, max(0, -begin))
        piece = np.pad(piece, (before, length - before - len(piece)))
        return dequantise(quantise(log_mel(piece, spec, centred=False), spec), spec)

    @cached_property
    def edge(self) -> int:
        """Frames at each end that are distorted if the query was cut out of a sound; 0 if hardly any would remain."""
        edge = -(-self.spec.n_fft // 2 // self.spec.hop_length)
        return edge if len(self.phases[0]) > 2 * edge + 2 else 0

    def inner(self, phase: int = 0) -> Frames:
        """The frames without the `edge` frames at each end."""
        frames = self.phases[phase]
        return frames[self.edge : len(frames) - self.edge]

    @cached_property
    def digital_silence(self) -> bool:
        """Whether `extract` would keep no window of the query."""
        return not (self.phases[0] > np.float32(self.spec.floor)).any()


def parse_query(query: str) -> tuple[str, float | None, float | None]:
    """Parse ``FILE`` or ``FILE@start-end`` into path, start and end in seconds (None where not given).

    Raises
    ------
    InputError
        If the part after ``@`` is no span, the file does not exist, or a URI names no file or contains a password.
    """
    refuse_secrets(query)
    path = query
    start = end = None
    if not os.path.exists(query) and "@" in query:
        path, _, span = query.rpartition("@")
        first, dash, last = span.partition("-")
        message = f"cannot read the span {span!r} of {query}: write FILE@start-end in seconds"
        try:
            start, end = float(first), float(last) if last else None
        except ValueError:
            raise InputError(message) from None
        # Written this way, the comparison refuses not-a-number, too.
        if not dash or not 0 <= start < (MAX_PLACE_SECONDS if end is None else end) <= MAX_PLACE_SECONDS:
            raise InputError(f"{message}, start before end")
    if not path:
        raise InputError(f"the query {query!r} names no file: give FILE, FILE@start-end in seconds, or a recording_id")
    if is_bucket(path) and not path.partition("://")[2].partition("/")[2].rpartition("/")[2]:
        raise InputError(f"cannot search for {path}: name a file in the bucket, as s3://BUCKET/FILE")
    if "://" not in path and not os.path.exists(path):
        raise InputError(f"cannot search for {path}: there is no such file, and no recording of the table has this id")
    return path, start, end


def load_query(query: str, spec: FeatureSpec) -> Query:
    """Read and decode a query as given on the command line.

    Raises
    ------
    InputError
        If it cannot be read or decoded, is empty, or lasts longer than ten minutes.
    """
    path, start, end = parse_query(query)
    rate = spec.sample_rate
    first = round((start or 0) * rate)
    if end is not None and round(end * rate) == first:
        raise InputError(f"cannot search for {query}: shorter than a sample; name a longer part")
    uri = path if "://" in path else uri_of(os.path.abspath(os.fsencode(path)))
    stop = first + round(MAX_QUERY_SECONDS * rate) + 1 if end is None else round(end * rate)
    context = spec.n_fft // 2 + spec.hop_length
    lead = min(first, context)
    try:
        with storage_errors(path), at_hand(uri) as local:
            around = decoded(local, rate, start=first - lead, stop=stop + context)
            recording_id, codec = digest(local), probe(os.fsdecode(local)).codec
    except Rejected as error:
        explanation = error.detail or REASONS[error.reason]
        raise InputError(f"cannot search for {query}: {error.reason}: {explanation}") from error
    samples = around[lead : lead + stop - first]
    if len(samples) == 0:
        raise InputError(f"cannot search for {query}: the recording ends before {(start or 0):.3f} s")
    if len(samples) > MAX_QUERY_SECONDS * rate:
        raise InputError(
            f"cannot search for {query}: longer than {MAX_QUERY_SECONDS:.0f} s; name a part of it, FILE@start-end"
        )
    return Query(uri, spec, samples, first, around, lead, start is None, recording_id, codec)


def digest(local: str | bytes) -> str:
    """SHA-256 of a file, in hexadecimal digits: the recording_id of its bytes."""
    with opened(os.fsdecode(local), "probe") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def decoded(local: str | bytes, rate: int, *, start: int, stop: int | None) -> Samples:
    """Samples [start, stop) of a local file at a sample rate, mono; fewer if the sound ends before.

    Raises
    ------
    Rejected
        If it cannot be decoded.
    """
    path = os.fsdecode(local)
    blocks = list(resampled(path, probe(path), rate, start=start, stop=stop))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def recorded_sound(
    uri: str, *, start: float, end: float, recording_id: str, sample_rate: int | None = None
) -> tuple[Samples, int]:
    """Decode a stretch of a recording.

    Parameters
    ----------
    start, end : float
        Seconds.
    recording_id : str
        Of the recording: the file of this name may hold another one now.
    sample_rate : int or None
        Hz; None for the recording's own.

    Returns
    -------
    samples : ndarray of float32, shape (n_samples,)
        Mono; shorter if the sound ends.
    sample_rate : int

    Raises
    ------
    InputError
        If the file is missing, or has changed since it was extracted.
    Rejected
        If it cannot be decoded.
    """
    with storage_errors(uri), at_hand(uri) as local:
        if digest(local) != recording_id:
            raise InputError(f"{uri} has changed since it was extracted: run extract and encode again")
        rate = sample_rate or probe(os.fsdecode(local)).sample_rate
        return decoded(local, rate, start=round(start * rate), stop=round(end * rate)), rate


def load_audio(path: str | os.PathLike[str], *, sample_rate: int | None = None) -> tuple[Samples, int]:
    """Decode an audio file or a file in a bucket, as `soundlake extract` does: any format, mono.

    Parameters
    ----------
    path : str or os.PathLike
        A path, or a URI.
    sample_rate : int or None
        Hz; None for the file's own.

    Returns
    -------
    samples : ndarray of float32, shape (n_samples,)
        Full scale ±1; channels are averaged.
    sample_rate : int

    Raises
    ------
    InputError
        If there is no such file.
    Rejected
        If it cannot be decoded.

    Examples
    --------
    >>> samples, rate = soundlake.load_audio(folder / "audio/bell/bell-000.flac")
    >>> samples.dtype, samples.ndim
    (dtype('float32'), 1)
    """
    name = os.fspath(path)
    uri = name if "://" in name else uri_of(os.path.abspath(os.fsencode(name)))
    with storage_errors(name), at_hand(uri) as local:
        rate = sample_rate or probe(os.fsdecode(local)).sample_rate
        return decoded(local, rate, start=0, stop=None), rate


def loudness(frames: Frames, spec: FeatureSpec) -> npt.NDArray[np.float32]:
    """Loudest band of each frame in nats above the floor, shape (n_frames,); 0 for a silent frame."""
    above = frames.max(axis=1, initial=spec.floor) - np.float32(spec.floor)
    return np.where(above < SILENT_NATS, np.float32(0), above)


def cuts(query: Query) -> list[Cut]:
    """The query as windows: on the grid of the table, as `extract` would cut it, later in a window, and at many shifts.

    A window without sound, or with only a faint remainder of sound, is left out: it would match any other silence.
    """
    return [*_on_grid(query), *_later(query), *_shifted(query)]


def later(frames: Frames, spec: FeatureSpec) -> list[Frames]:
    """Windows in which a short sound begins later than at the start; none for a sound that fills most of a window.

    In a long recording a sound begins anywhere in a window, with silence or background noise before it.

    Parameters
    ----------
    frames : ndarray of float32, shape (n_frames, n_mels)
        The whole sound, nats.

    Returns
    -------
    list of ndarray of float32, shape (window_frames, n_mels)
        Padded with silence.
    """
    size, step = spec.window_frames, spec.window_step
    if len(frames) > SHORT * size:
        return []
    places = range(step // LATER, step, step // LATER)
    padded = (np.pad(frames, ((first, 0), (0, 0)), constant_values=spec.floor) for first in places)
    return [windows(part, spec)[0] for part in padded]


def _later(query: Query) -> list[Cut]:
    """The `later` windows of a whole file; none of a part of a file, whose sound goes on beyond its ends."""
    frames = query.phases[0]
    if not query.whole or not loudness(frames, query.spec).any():
        return []
    span = slice(0, len(frames) - 2 * query.edge)
    return [Cut(seen, span, False) for seen in later(frames, query.spec)]


def _spread(values: list[Any], most: int) -> list[Any]:
    """At most `most` of the values, evenly spaced."""
    if len(values) <= most:
        return values
    return [values[i * (len(values) - 1) // (most - 1)] for i in range(most)]


def _on_grid(query: Query) -> list[Cut]:
    frames, spec = query.phases[0], query.spec
    size, step = spec.window_frames, spec.window_step
    faint = max(spec.floor, float(frames.max(initial=spec.floor)) - FAINT_NATS)
    on_grid = []
    for first in range(0, max(1, len(frames) - size + step), step):
        part = frames[first : first + size]
        seen = np.full((size, spec.n_mels), spec.floor, np.float32)
        seen[: len(part)] = part
        inner = len(frames) - 2 * query.edge
        span = slice(max(0, first - query.edge), min(inner, first + size - query.edge))
        if (part > np.float32(faint)).any() and span.stop > span.start:
            on_grid.append(Cut(seen, span, True))
    return _spread(on_grid, MAX_GRID_WINDOWS)


def _shifted(query: Query) -> list[Cut]:
    """Windows at many shifts, since a stretch of a recording may lie anywhere between the table's windows."""
    frames, spec = query.inner(), query.spec
    size, step = spec.window_frames, spec.window_step
    sound = loudness(frames, spec)
    if not sound.any():
        return []
    places = list(range(-step // 2, max(0, len(frames) - size) + step // 2 + 1, max(1, step // SHIFTS_A_STEP)))
    # The sound goes on beyond the query: a reflection is the best guess.
    mode: Any = "reflect" if len(frames) > 1 else "edge"
    padded = np.pad(frames, ((size, size), (0, 0)), mode=mode)
    shifted = []
    for place in _spread(places, MAX_SHIFTS):
        span = slice(max(0, place), min(len(frames), place + size))
        shifted.append(Cut(padded[place + size : place + 2 * size], span, False))
    # If sound fills only a part of the query, a shift that misses it would match any other silence.
    amounts = [sound[cut.frames].sum() for cut in shifted]
    return [cut for cut, amount in zip(shifted, amounts, strict=True) if amount > MIN_SOUND_SEEN * max(amounts)]
