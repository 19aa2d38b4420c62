"""Which candidates of a search hold the very same sound as the query, and where.

The candidates with the nearest log-mel are judged by their waveforms, which are decoded from the files. Where that is
not possible, half a second of sound or more is judged by its log-mel, which the shards hold. A shorter sound needs the
waveform: many sounds have nearly the same log-mel for so short a time.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from soundlake.model.errors import InputError, TryLaterError
from soundlake.model.features.log_mel import PRESETS, FeatureSpec, dequantise, log_mel
from soundlake.model.features.records import DamagedShardError, Record, decode, read_framed
from soundlake.pipelines.audio.reading import Rejected
from soundlake.pipelines.corpus.files import at_hand
from soundlake.pipelines.lake import ledger, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.query import align
from soundlake.pipelines.query.query import Query, decoded, digest, loudness

# Half a second or more of log-mel is the same sound if its `clear_error`, nats² (`query.align.Fit`), is below this. For
# cuts of files of four labelled sets, 97 of 100 were below 0.14, half a hop of misalignment included; for other sounds,
# hardly any were below 0.19, and most were above 1.
SAME_SOUND = 0.15
# From this many seconds of sound on, log-mel alone decides if the file is not at hand.
ENOUGH_SECONDS = 0.5
# From this normalised correlation on, waveforms are the same sound, unless their log-mel at that lag differs by the
# second number, nats², or more: waveforms of a few low waves, or with a constant offset, are all alike.
SAME_WAVEFORM, SAME_SPECTRUM = 0.91, 2.0
# A lossy codec changes phases, and hardly the level: then this correlation is enough, if log-mel and level agree.
LOSSY_WAVEFORM, LOSSY_SPECTRUM, LOSSY_LEVEL_DB = 0.7, 0.25, 3.0
# That rule needs at least this many seconds, and sound in at least this share of the log-mel's values.
LOSSY_SECONDS, LOSSY_CLEAR = 0.1, 0.25
# Waveforms are compared at this rate, and their log-mel by this spec, whatever the spec of the lake is.
WAVEFORM_SPEC = PRESETS["general"]
WAVEFORM_RATE = WAVEFORM_SPEC.sample_rate
# At most this many candidates are decoded, the nearest log-mel first; more if the query has no undistorted frame.
MAX_DECODED, MAX_DECODED_TINY = 32, 96
# A candidate is decoded only if its log-mel differs by less than this, nats²: for short sounds, and for long ones.
NEAR, NEAR_LONG = 8.0, 1.5
# A part of a query longer than this is compared first.
LONG_SECONDS = 4.0
# Threads that read shards, and bytes per request to a bucket: most of the time is spent waiting for its answers.
READERS, BLOCK = 16, 1 << 17
# A gain below this counts as none.
SAME_LEVEL_DB = 0.5

Row = dict[str, Any]
Key = tuple[str, int]


@dataclass(frozen=True)
class Mark:
    """The very same sound in a recording.

    Attributes
    ----------
    error : float
        How much the two differ: 0 for the same bits.
    start_s, end_s : float
        Seconds from the recording's start, inside the recording.
    gain_db : float
        How much louder the recording is than the query; 0 for the same level.
    """

    error: float
    start_s: float
    end_s: float
    gain_db: float


@dataclass(frozen=True)
class _Told:
    """Duration and codec of a recording, from the ledger."""

    seconds: float
    codec: str | None


_UNKNOWN = _Told(float("inf"), None)


@dataclass(frozen=True)
class _Fit:
    """The best fit of a candidate's log-mel: the second where the query begins, and figures of `query.align.Fit`."""

    error: float
    sounding: int
    begin: float
    gain: float
    clear_error: float


# Codecs that keep every sample, as libsndfile and FFmpeg call them.
_EXACT = ("pcm", "float", "double", "flac", "alac", "wavpack", "tta", "ape", "tak", "mlp", "truehd", "shorten")


def _loses(codec: str | None) -> bool:
    return codec is None or not codec.lower().startswith(_EXACT)


def _spectral_difference(first: align.Samples, second: align.Samples) -> tuple[float, float]:
    """Difference between the log-mel of two waveforms at lag 0.

    Returns
    -------
    (float, float)
        Mean square difference per band and sounding frame, nats²; and the share of values that hold sound in both.
    """
    spec = WAVEFORM_SPEC
    frames = [log_mel(np.ascontiguousarray(sound, np.float32), spec) for sound in (first, second)]
    sounding = loudness(np.maximum(*frames), spec) > 0
    count = max(1, int(sounding.sum())) * spec.n_mels
    squares = float(np.square(frames[0] - frames[1], dtype=np.float64).sum())
    clear = int((np.minimum(*frames)[sounding] > spec.floor + align.CLEAR_NATS).sum())
    return squares / count, clear / count


def _decibels(gain: float) -> float:
    """A gain rounded to a tenth of a decibel; 0 below `SAME_LEVEL_DB`."""
    return 0.0 if abs(gain) < SAME_LEVEL_DB else round(gain, 1)


def key(row: Row) -> Key:
    """The key of a row's window; rows of several names of one recording share it."""
    return row["recording_id"], row["window"]


class Judge:
    """Compares a query with candidates.

    Parameters
    ----------
    lake, spec, dataset : Lake, FeatureSpec, lance.LanceDataset
        The table, and the spec of its features.
    note : callable
        Called with each message for the user.
    """

    def __init__(self, lake: Lake, spec: FeatureSpec, dataset: Any, note: Callable[[str], None]) -> None:
        self.lake, self.spec, self.dataset, self.note = lake, spec, dataset, note
        self._unchanged: dict[tuple[str, str], bool] = {}
        self._not_there: dict[str, None] = {}
        # Reasons by uri.
        self._unreadable: dict[str, str] = {}

    def marks(self, query: Query, rows: Sequence[Row]) -> dict[Key, Mark]:
        """Marks of the candidates that hold the same sound.

        Parameters
        ----------
        query : Query
        rows : sequence of dict
            Rows of the table, with the `pipelines.query.query.Cut` that found the row as ``cut``.
        """
        recordings = self._told(rows)
        fits = []
        for row, stored, base, ends in self._stitched(rows, recordings):
            fit = self._fit(query, row, stored, base, ends)
            if fit is not None and fit.error < NEAR:
                fits.append((row, fit))
        fits.sort(key=lambda item: (item[1].clear_error if self._is_long(item[1]) else item[1].error, item[0]["id"]))
        marks: dict[Key, Mark] = {}
        left_to_decode = MAX_DECODED if query.edge else MAX_DECODED_TINY
        for row, fit in fits:
            is_long = self._is_long(fit)
            if left_to_decode > 0 and (not is_long or fit.error < NEAR_LONG):
                left_to_decode -= 1
                verdict = self._by_waveform(query, row, recordings.get(row["recording_id"], _UNKNOWN))
                if verdict is not None:
                    marks |= {key(row): verdict} if isinstance(verdict, Mark) else {}
                    continue
            if is_long and fit.clear_error < SAME_SOUND:
                marks[key(row)] = self._mark(query, row, fit, recordings)
        return marks

    @property
    def not_there(self) -> list[str]:
        """Notes on the files that could not be compared."""
        notes, no_mark = [], "a short sound in them gets no mark (=)"
        if self._not_there:
            count, first = len(self._not_there), next(iter(self._not_there))
            files = f"{count} files, such as {first}, are" if count > 1 else f"{first} is"
            notes.append(f"{files} not there, or changed since extract: {no_mark}")
        if self._unreadable:
            count, (first, reason) = len(self._unreadable), next(iter(self._unreadable.items()))
            files = f"{count} files, such as {first}," if count > 1 else first
            notes.append(f"{files} cannot be read now ({reason}): {no_mark}")
        return notes

    @property
    def _hop_s(self) -> float:
        return self.spec.hop_length / self.spec.sample_rate

    def _told(self, rows: Sequence[Row]) -> dict[str, _Told]:
        """Duration and codec of each recording, from the ledger."""
        dataset = ledger.open_ledger(self.lake, self.spec.spec_id)
        recording_ids = sorted({row["recording_id"] for row in rows})
        if dataset is None or not recording_ids:
            return {}
        columns = ["recording_id", "duration_s", "codec"]
        return {
            row["recording_id"]: _Told(row["duration_s"], row["codec"])
            for batch in table.rows_of(dataset, "recording_id", recording_ids, columns)
            for row in batch.to_pylist()
            if row["duration_s"] is not None
        }

    def _fit(self, query: Query, row: Row, stored: align.Frames, base: int, ends: bool) -> _Fit | None:
        """The best fit of a candidate's log-mel."""
        spec = self.spec
        enough_frames = round(ENOUGH_SECONDS / self._hop_s)
        span = row["cut"].frames
        best: _Fit | None = None
        for phase in (0, 1):
            # Try the frames half a hop later only if the fit is near but not exact.
            if best is not None and not align.SAME_LEVEL < best.error < NEAR:
                break
            part = query.inner(phase)[span]
            sounds = loudness(part, spec) > 0
            above = part - np.float32(spec.floor)
            for fit in align.align(above, stored, sounds=sounds, enough=enough_frames, starts=base == 0, ends=ends):
                frame = base + fit.first - span.start - query.edge
                begin = frame * self._hop_s - query.first_frame(phase) / spec.sample_rate
                if best is None or fit.error < best.error:
                    best = _Fit(fit.error, fit.sounding, begin, fit.gain, fit.clear_error)
        return best

    def _is_long(self, fit: _Fit) -> bool:
        return fit.sounding * self._hop_s >= ENOUGH_SECONDS

    def _mark(self, query: Query, row: Row, fit: _Fit, told: dict[str, _Told]) -> Mark:
        length = told.get(row["recording_id"], _UNKNOWN).seconds
        start, end = max(0.0, fit.begin), min(length, fit.begin + query.seconds)
        return Mark(fit.error, start, end, _decibels(10 * fit.gain / np.log(10)))

    def _by_waveform(self, query: Query, row: Row, told: _Told) -> Mark | bool | None:
        """Judge by waveform: a mark; False if it is another sound; None if the file cannot be compared."""
        spec, rate = self.spec, WAVEFORM_RATE
        reach = (spec.window_frames / 2 + spec.window_step) * self._hop_s
        middle = row["window"] * spec.step_seconds + spec.window_frames / 2 * self._hop_s
        sound = self._of_query(query)
        # In a long query, compare the part that found the row; then extend the match around it.
        first, last = 0, len(sound)
        if query.seconds > LONG_SECONDS:
            span = row["cut"].frames
            first = min(len(sound), max(0, round((span.start + query.edge) * self._hop_s * rate)))
            last = min(len(sound), round((span.stop + query.edge) * self._hop_s * rate))
        part = sound[first:last]
        reach += len(part) / rate
        begin, end = max(0.0, middle - reach), min(told.seconds, middle + reach)
        stored = self._waveform(row, begin, end)
        if stored is None:
            return None
        ends = len(stored) < round(end * rate) - round(begin * rate) or end == told.seconds
        match = align.correlate(part, stored, starts=begin == 0, ends=ends)
        if match is None or not self._agrees(query, told, match, part, stored):
            return False
        offset = round(begin * rate) + match.lag - first
        low, high = 0, len(sound)
        if query.seconds > LONG_SECONDS:
            low, high = self._extent(row, sound, offset, first, last, told)
        start = max(0, offset + low) / rate
        stop = min(told.seconds, (offset + high) / rate)
        gain = _decibels(20 * float(np.log10(match.gain)))
        return Mark(1 - match.correlation, start, stop, gain)

    def _agrees(
        self, query: Query, told: _Told, match: align.Match, part: align.Samples, stored: align.Samples
    ) -> bool:
        """Whether two waveforms are the same sound at the lag where they agree best."""
        if match.correlation < LOSSY_WAVEFORM:
            return False
        low, high = max(0, -match.lag), min(len(part), len(stored) - match.lag)
        query_part, stored_part = part[low:high] * np.float32(match.gain), stored[low + match.lag : high + match.lag]
        error, clear = _spectral_difference(query_part, stored_part)
        if match.correlation >= SAME_WAVEFORM:
            return error < SAME_SPECTRUM
        # The log-mel of faint sounds, and of sounds that fill few bands, hardly differs whatever they are. They do not
        # need this rule: codecs keep their phases.
        enough_sound = clear >= LOSSY_CLEAR and high - low >= LOSSY_SECONDS * WAVEFORM_RATE
        as_loud = abs(20 * np.log10(match.gain)) < LOSSY_LEVEL_DB
        lossy = _loses(query.codec) or _loses(told.codec)
        return bool(lossy and enough_sound and as_loud and error < LOSSY_SPECTRUM)

    def _extent(
        self, row: Row, sound: align.Samples, offset: int, first: int, last: int, told: _Told
    ) -> tuple[int, int]:
        """Samples [low, high) of a long query that agree: a part that agrees, extended second by second."""
        rate = WAVEFORM_RATE
        low, high = max(0, -offset), len(sound)
        if np.isfinite(told.seconds):
            high = min(high, round(told.seconds * rate) - offset)
        stored = self._waveform(row, (offset + low) / rate, (offset + high) / rate)
        if stored is None:
            return first, last
        stored_sound = np.zeros(len(sound), np.float32)
        stored_sound[low : low + len(stored)] = stored[: high - low]
        while last < high:
            step = slice(last, min(high, last + rate))
            if not align.alike(sound[step], stored_sound[step]):
                break
            last = step.stop
        while first > low:
            step = slice(max(low, first - rate), first)
            if not align.alike(sound[step], stored_sound[step]):
                break
            first = step.start
        return first, last

    def _of_query(self, query: Query) -> align.Samples:
        if self.spec.sample_rate == WAVEFORM_RATE:
            return query.samples
        import soxr

        return np.asarray(soxr.resample(query.samples, self.spec.sample_rate, WAVEFORM_RATE), np.float32)

    def _waveform(self, row: Row, start: float, end: float) -> align.Samples | None:
        """A stretch of a recording's file; None, and a note, if the file is missing, changed or unreadable."""
        uri, recording_id = row["uri"], row["recording_id"]
        try:
            with at_hand(uri) as local:
                file = (uri, recording_id)
                if file not in self._unchanged:
                    self._unchanged[file] = digest(local) == recording_id
                if self._unchanged[file]:
                    rate = WAVEFORM_RATE
                    return decoded(local, rate, start=round(start * rate), stop=round(end * rate))
        except (FileNotFoundError, NotADirectoryError, InputError):
            self._not_there.setdefault(uri)
        except Rejected as error:
            if error.reason == "missing":
                self._not_there.setdefault(uri)
            else:
                self._unreadable.setdefault(uri, error.detail or error.reason)
        except (TryLaterError, OSError) as error:
            # The ranking is valid without it: the search goes on, and a note quotes the system's error.
            self._unreadable.setdefault(uri, getattr(error, "strerror", None) or str(error))
        else:
            self._not_there.setdefault(uri)
        return None

    def _stitched(self, rows: Sequence[Row], told: dict[str, _Told]) -> Iterator[tuple[Row, align.Frames, int, bool]]:
        """Candidates with the stored log-mel around them, in nats above the floor, inside the recording.

        Each comes with the frame at which that log-mel begins, and whether it ends where the recording does.
        """
        spec = self.spec
        reach = -(-spec.window_frames // spec.window_step) // 2 or 1
        around = {
            key(row): [w for w in range(row["window"] - reach, row["window"] + reach + 1) if w >= 0] for row in rows
        }
        held_records = self._records({(name, w) for (name, _), windows in around.items() for w in windows})
        for row in rows:
            name, windows = row["recording_id"], around[key(row)]
            base = windows[0] * spec.window_step
            limit = base + (len(windows) - 1) * spec.window_step + spec.window_frames
            stored_records = [held_records[name, w] for w in windows if (name, w) in held_records]
            if name in told:
                end = spec.n_frames(round(told[name].seconds * spec.sample_rate))
            else:
                end = max((r.window * spec.window_step + r.valid_frames for r in stored_records), default=base)
            # Windows that the shards do not hold are digital silence.
            stored = np.zeros((max(0, min(limit, end) - base), spec.n_mels), np.uint16)
            for record in stored_records:
                offset = record.window * spec.window_step - base
                part = stored[offset : offset + record.valid_frames]
                np.maximum(part, record.values[: len(part)], out=part)
            yield row, dequantise(stored, spec) - np.float32(spec.floor), base, end <= limit

    def _records(self, wanted: set[Key]) -> dict[Key, Record]:
        ids = sorted(f"{name}:{window}" for name, window in wanted)
        offsets: dict[str, set[int]] = {}
        for batch in table.rows_of(self.dataset, "id", ids, ["id", "bundle", "record_offset"]):
            for row in batch.to_pylist():
                offsets.setdefault(row["bundle"], set()).add(row["record_offset"])
        with ThreadPoolExecutor(READERS) as readers:
            by_shard = list(
                readers.map(lambda bundle: self._of_shard(bundle, sorted(offsets[bundle])), sorted(offsets))
            )
        return {(record.recording_id, record.window): record for records in by_shard for record in records}

    def _of_shard(self, bundle: str, offsets: Sequence[int]) -> list[Record]:
        """Windows of a shard, as many as can be read; adds a note if the shard is missing or damaged."""
        name, records, complete = Lake.shard(self.spec.spec_id, bundle), [], True
        try:
            with self.lake.open(name, block=BLOCK) as file:
                for offset in offsets:
                    file.seek(offset)
                    try:
                        data = next(read_framed(file))
                        records.append(decode(data, window_frames=self.spec.window_frames, n_mels=self.spec.n_mels))
                    except (DamagedShardError, StopIteration):
                        complete = False
        except OSError:
            complete = False
        if not complete:
            self.note(f"the shard {self.lake.uri(name)} cannot be read: its windows are ranked by embedding alone")
        return records
