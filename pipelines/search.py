"""Search: what sounds like this?

Two steps. The query is encoded at several shifts, since the windows of the table start every half window and the
query's sound may lie anywhere between: the nearest embeddings are the candidates. Then the candidates' stored log-mel
is laid against the query frame by frame: where they agree, the very same sound is there, and it comes first, with its
exact place. The rest follow by distance of the embeddings.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from model.errors import InputError, storage_errors
from model.features import FeatureSpec, dequantise, log_mel, windows
from model.records import DamagedShardError, decode, read_framed
from pipelines import fragments, table
from pipelines.audio import REASONS, Rejected, probe
from pipelines.corpus import at_hand, local_path, uri_of
from pipelines.lake import Lake
from pipelines.resampling import resampled
from pipelines.secrecy import refuse_secrets
from pipelines.store import is_bucket

# Mean square difference, of unit variance a mel band, below which two stretches of log-mel are the same sound. A cut of
# a file differs from it by less than 0.005 (half a hop of misalignment), other files of one class by more than 0.03.
SAME_SOUND = 0.02
# Shifts of the query to a step of the table's windows.
SHIFTS_A_STEP = 16
MAX_SHIFTS = 64
# Share of the query's sound that a shift must see, of what the best one sees.
MIN_SOUND_SEEN = 0.6
# Nats above the spec's floor below which a frame holds no sound that the features could tell.
SILENT_NATS = 0.5
MIN_CANDIDATES = 128
MIN_SOUNDING_FRAMES = 4
MAX_QUERY_SECONDS = 600.0
# No recording is longer, and samples up to here can be counted.
MAX_PLACE_SECONDS = 1e9

COLUMNS = ["id", "recording_id", "window", "uri", "label", "group", "start_s", "end_s", "bundle", "record_offset"]

Frames = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Hit:
    """A stretch of a recording that answers a query.

    Attributes
    ----------
    uri, recording_id, window : str, str, int
    start_s, end_s : float
        Seconds from the recording's start.
    distance : float
        Squared L2 distance of the embeddings; None for a search without a sound.
    same_sound : bool
        Whether the stored log-mel agrees with the query's, frame by frame.
    label, group : str or None
    """

    uri: str
    recording_id: str
    window: int
    start_s: float
    end_s: float
    distance: float | None
    same_sound: bool
    label: str | None
    group: str | None


@dataclass(frozen=True)
class _Shift:
    """The query at one shift: what the encoder sees, and the frames of the query in it."""

    seen: Frames
    frames: slice


def parse_query(query: str) -> tuple[str, float | None, float | None]:
    """``FILE`` or ``FILE@start-end`` as path, start and end in seconds (None where not given).

    Raises
    ------
    InputError
        If the part after ``@`` is no span, there is no such file, or a URI names none or holds a password.
    """
    refuse_secrets(query)
    path = query
    start = end = None
    if not os.path.exists(query) and "@" in query:
        path, _, span = query.rpartition("@")
        first, dash, last = span.partition("-")
        wrong = f"cannot read the span {span!r} of {query}: write FILE@start-end in seconds"
        try:
            start, end = float(first), float(last) if last else None
        except ValueError:
            raise InputError(wrong) from None
        # In this way round not-a-number is refused, too.
        if not dash or not 0 <= start < (MAX_PLACE_SECONDS if end is None else end) <= MAX_PLACE_SECONDS:
            raise InputError(f"{wrong}, start before end")
    if not path:
        raise InputError(f"the query {query!r} names no file: give FILE, FILE@start-end in seconds, or a recording_id")
    if is_bucket(path) and not path.partition("://")[2].partition("/")[2].rpartition("/")[2]:
        raise InputError(f"cannot search for {path}: name a file in the bucket, as s3://BUCKET/FILE")
    if "://" not in path and not os.path.exists(path):
        raise InputError(f"cannot search for {path}: there is no such file, and no recording of the table has this id")
    return path, start, end


def load_query(query: str, spec: FeatureSpec) -> npt.NDArray[np.float32]:
    """The waveform of a query, mono float32 at the spec's rate, shape (n_samples,).

    Raises
    ------
    InputError
        If it cannot be read or decoded, is empty, or lasts longer than ten minutes.
    """
    path, start, end = parse_query(query)
    if end is not None and round(end * spec.sample_rate) == round((start or 0) * spec.sample_rate):
        raise InputError(f"cannot search for {query}: shorter than a sample; name a longer part")
    uri = path if "://" in path else uri_of(os.path.abspath(os.fsencode(path)))
    try:
        with storage_errors(path):
            samples = stretch(uri, spec, start=start or 0, end=end)
    except Rejected as error:
        said = error.detail or REASONS[error.reason]
        raise InputError(f"cannot search for {query}: {error.reason}: {said}") from error
    if len(samples) == 0:
        raise InputError(f"cannot search for {query}: the recording ends before {start:.3f} s")
    if len(samples) > MAX_QUERY_SECONDS * spec.sample_rate:
        raise InputError(
            f"cannot search for {query}: longer than {MAX_QUERY_SECONDS:.0f} s; name a part of it, FILE@start-end"
        )
    return samples


def stretch(uri: str, spec: FeatureSpec, *, start: float, end: float | None = None) -> npt.NDArray[np.float32]:
    """A stretch of a recording, mono float32 at the spec's rate, shape (n_samples,); shorter where the sound ends.

    Parameters
    ----------
    start, end : float, float or None
        Seconds; without an end a little more than a query may last.

    Raises
    ------
    Rejected
        If it cannot be decoded.
    """
    rate = spec.sample_rate
    first = round(start * rate)
    stop = first + round(MAX_QUERY_SECONDS * rate) + 1 if end is None else round(end * rate)
    with at_hand(uri) as local:
        found = probe(local)  # type: ignore[arg-type]
        blocks = list(resampled(os.fsdecode(local), found, rate, start=first, stop=stop))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def query_frames(samples: npt.NDArray[np.float32], spec: FeatureSpec) -> Frames:
    """Log-mel of a query without the frames that its cut edges distort, shape (n_frames, n_mels)."""
    frames = log_mel(samples, spec)
    edge = -(-spec.n_fft // 2 // spec.hop_length)
    return frames[edge:-edge] if len(frames) > 6 * edge else frames


def _shifts(frames: Frames, spec: FeatureSpec) -> list[_Shift]:
    """The query as windows at many shifts, without those that hold only silence."""
    size, step = spec.window_frames, spec.window_step
    places = range(-step // 2, max(0, len(frames) - size) + step // 2 + 1, max(1, step // SHIFTS_A_STEP))
    if len(places) > MAX_SHIFTS:
        places = [places[i * (len(places) - 1) // (MAX_SHIFTS - 1)] for i in range(MAX_SHIFTS)]  # type: ignore[assignment]
    # As extract would cut it: a short recording's own window ends in silence.
    found = [_Shift(windows(frames[:size], spec)[0], slice(0, min(size, len(frames))))]
    # Elsewhere sound goes on beyond the query: a reflection is the best guess of it.
    mode: Any = "reflect" if len(frames) > 1 else "edge"
    padded = np.pad(frames, ((size, size), (0, 0)), mode=mode)
    for place in places:
        held = slice(max(0, place), min(len(frames), place + size))
        found.append(_Shift(padded[place + size : place + 2 * size], held))
    # Where sound fills only a part of the query, shifts that miss it would find whatever else is silent.
    sound = _loudness(frames, spec)
    if sound.max() == 0:
        return []
    seen = [sound[shift.frames].sum() for shift in found]
    return [shift for shift, held in zip(found, seen, strict=True) if held > MIN_SOUND_SEEN * max(seen)]


def _loudness(frames: Frames, spec: FeatureSpec) -> npt.NDArray[np.float32]:
    """Nats of each frame's loudest band above the floor, shape (n_frames,); 0 where that is silence."""
    above = frames.max(axis=1) - np.float32(spec.floor)
    return np.where(above < SILENT_NATS, np.float32(0), above)


def align(query: Frames, stored: Frames, *, sounding: int) -> tuple[float, int]:
    """Where a query fits best into stored log-mel.

    Parameters
    ----------
    query, stored : ndarray of float32, shapes (n, n_mels) and (m, n_mels), m ≥ n
        Normalised to unit variance a band.
    sounding : int
        Frames of the query that hold sound: silence that agrees with silence proves nothing, so the differences of all
        frames are shared among these alone.

    Returns
    -------
    (float, int)
        The least mean square difference over all places, and the frame of `stored` where the query then begins.
    """
    n, places = len(query), len(stored) - len(query) + 1
    # |q − x|² = |q|² + |x|² − 2 q·x, where the sum of q·x at one place is a diagonal of the product.
    product = np.ascontiguousarray(stored @ query.T)
    rows, columns = product.strides
    cross = np.lib.stride_tricks.as_strided(product, (places, n), (rows, rows + columns), writeable=False).sum(axis=1)
    energy = np.concatenate([[0.0], np.cumsum(np.square(stored, dtype=np.float64).sum(axis=1))])
    squares = np.square(query, dtype=np.float64).sum() + energy[n:] - energy[:places] - 2 * cross
    best = int(squares.argmin())
    return max(0.0, float(squares[best])) / (max(1, sounding) * query.shape[1]), best


class Searcher:
    """A table, its model and the shards behind it, ready for queries.

    Parameters
    ----------
    lake : Lake
    model : model.artifact.Model or None
        None for filters and recordings of the table alone, which need none.
    dataset : lance.LanceDataset
        The model's table.
    """

    def __init__(self, lake: Lake, model: Any, dataset: Any) -> None:
        self.lake, self.model, self.dataset = lake, model, dataset
        if model is not None:
            self.spec: FeatureSpec = model.spec
        self.notes: list[str] = []

    def by_filter(self, where: str, *, k: int, by: str) -> list[Hit]:
        """The first `k` recordings with a row that passes a filter, in order of uri; or rows, in the table's order."""
        found: dict[str, dict[str, Any]] = {}
        given = table.whole(where)
        try:
            if by == "windows":
                rows = self.dataset.to_table(columns=COLUMNS, filter=given, limit=k).to_pylist()
                return [_hit(row, None, False) for row in rows]
            batches = self.dataset.to_batches(columns=COLUMNS, filter=given)
            for batch in batches:
                for row in batch.to_pylist():
                    known = found.setdefault(row["recording_id"], row)
                    known["end_s"] = max(known["end_s"], row["end_s"])
                    known["start_s"] = min(known["start_s"], row["start_s"])
        except (ValueError, OSError) as error:
            raise table.filter_error(self.dataset, where, error) from error
        rows = sorted(found.values(), key=lambda row: row["uri"])[:k]
        return [_hit(row, None, False) for row in rows]

    def by_recording(self, recording_id: str, *, k: int, where: str | None, by: str) -> list[Hit]:
        """What sounds like a recording of the table; the recording itself is left out."""
        columns = ["recording_id", "embedding"]
        vectors = [
            vector
            for batch in table.rows_of(self.dataset, "recording_id", [recording_id], columns)
            for vector in batch.column("embedding").to_pylist()
        ]
        asked = [(vector, None) for vector in vectors[:: -(-len(vectors) // MAX_SHIFTS)]]
        found = self._nearest(asked, wanted=max(k, 16), k=k, where=where, by=by, without=[recording_id])
        return _ranked([_hit(row, row["_distance"], False) for row in found.values()], by)[:k]

    def by_sound(self, samples: npt.NDArray[np.float32], *, k: int, where: str | None, by: str) -> list[Hit]:
        """What sounds like a waveform at the spec's rate; windows that hold the very same sound come first.

        Raises
        ------
        InputError
            If the query is silent, or too short to tell.
        """
        frames = query_frames(samples, self.spec)
        shifts = _shifts(frames, self.spec)
        if not shifts and len(samples) < self.spec.hop_length:
            seconds = len(samples) / self.spec.sample_rate
            raise InputError(f"the query lasts {seconds:.2g} s, too short to hold a sound: choose a longer stretch")
        if not shifts:
            raise InputError("the query holds no sound, only silence: choose another stretch")
        asked = self.model.encoder().encode(np.stack([shift.seen for shift in shifts])).embedding
        wanted = max(MIN_CANDIDATES, 2 * k)
        found = self._nearest(list(zip(asked, shifts, strict=True)), wanted=wanted, k=k, where=where, by=by)
        rows = sorted(found.values(), key=lambda row: (row["_distance"], row["id"]))
        # By place among a shift's own answers: shifts that see less of the query have nearer neighbours all over.
        candidates = sorted(rows, key=lambda row: (row["rank"], row["_distance"], row["id"]))[:wanted]
        same = self._same_sound(samples, frames, candidates)
        hits = [same.get(row["id"]) or (np.inf, _hit(row, row["_distance"], False)) for row in rows]
        hits.sort(key=lambda pair: pair[0])
        return _ranked([hit for _, hit in hits], by)[:k]

    def _nearest(
        self,
        asked: Sequence[tuple[Any, _Shift | None]],
        *,
        wanted: int,
        k: int,
        where: str | None,
        by: str,
        without: Sequence[str] = (),
    ) -> dict[str, dict[str, Any]]:
        """Rows near any of these embeddings, by id: `wanted` of each, and more until there are `k` recordings."""
        found: dict[str, dict[str, Any]] = {}
        out = set(without)
        while True:
            given = table.whole(where)
            rank, before, others = len(found), len(out), given
            if out:
                others = f"NOT {fragments.in_list('recording_id', sorted(out))}"
                others = others if given is None else f"{others} AND {given}"
            for vector, shift in asked:
                rows = table.nearest(self.dataset, vector, k=wanted, where=others, columns=COLUMNS)
                _keep_nearest(found, rows, shift, rank)
            out |= {row["recording_id"] for row in found.values()}
            # All that is near may be windows of one long recording: then the others are asked for, without it.
            if by == "windows" or len(out) == before or len(out) - len(without) >= k:
                return found

    def _same_sound(
        self, samples: npt.NDArray[np.float32], frames: Frames, rows: Sequence[dict[str, Any]]
    ) -> dict[str, tuple[float, Hit]]:
        """Of the candidates, those whose log-mel agrees with the query's: row id → (difference, hit)."""
        spec, hop = self.spec, self.spec.hop_length
        # The query's frames may lie half a hop beside the stored ones.
        later = query_frames(samples[hop // 2 :], spec)
        phases = [(self.model.normalise(part), _loudness(part, spec) > 0) for part in (frames, later)]
        edge = (len(log_mel(samples, spec)) - len(frames)) // 2
        found: dict[str, tuple[float, Hit]] = {}
        for row, stored, base in self._stitched(rows):
            held = row["shift"].frames
            for phase, (normalised, sounds) in enumerate(phases):
                part = normalised[held]
                if len(part) > len(stored) or sounds[held].sum() < MIN_SOUNDING_FRAMES:
                    continue
                error, place = align(part, stored, sounding=int(sounds[held].sum()))
                if error < SAME_SOUND and error < found.get(row["id"], (np.inf,))[0]:
                    begin = ((base + place - held.start - edge) * hop - phase * hop // 2) / spec.sample_rate
                    begin = max(0.0, begin)
                    end = begin + len(samples) / spec.sample_rate
                    found[row["id"]] = (error, _hit(row | {"start_s": begin, "end_s": end}, row["_distance"], True))
        return found

    def _stitched(self, rows: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Frames, int]]:
        """Candidates with the stored log-mel around them, normalised, and the frame at which that begins."""
        spec = self.spec
        reach = -(-spec.window_frames // spec.window_step) // 2 or 1
        around = {
            row["id"]: [w for w in range(row["window"] - reach, row["window"] + reach + 1) if w >= 0] for row in rows
        }
        wanted = sorted({f"{r['recording_id']}:{w}" for r in rows for w in around[r["id"]]})
        places = {
            found["id"]: found
            for batch in table.rows_of(self.dataset, "id", wanted, ["id", "bundle", "record_offset"])
            for found in batch.to_pylist()
        }
        held: dict[str, npt.NDArray[np.uint16]] = {}
        for name, place in sorted(places.items(), key=lambda item: (item[1]["bundle"], item[1]["record_offset"])):
            record = self._record(place["bundle"], place["record_offset"])
            if record is not None:
                held[name] = record
        for row in rows:
            first = around[row["id"]][0]
            length = (around[row["id"]][-1] - first) * spec.window_step + spec.window_frames
            # What is not in the table is digital silence, or lies beyond the recording.
            stored = np.zeros((length, spec.n_mels), np.uint16)
            for w in around[row["id"]]:
                values = held.get(f"{row['recording_id']}:{w}")
                if values is not None:
                    at = (w - first) * spec.window_step
                    stored[at : at + spec.window_frames] = np.maximum(stored[at : at + spec.window_frames], values)
            yield row, self.model.normalise(dequantise(stored, spec)), first * spec.window_step

    def _record(self, bundle: str, offset: int) -> npt.NDArray[np.uint16] | None:
        """One window from a shard; None, and a note, where the shard is gone or damaged."""
        name = Lake.shard(self.spec.spec_id, bundle)
        try:
            with self.lake.open(name, block=1 << 18) as file:
                file.seek(offset)
                data = next(read_framed(file))
            return decode(data, window_frames=self.spec.window_frames, n_mels=self.spec.n_mels).values
        except (OSError, DamagedShardError, StopIteration):
            note = f"the shard {self.lake.uri(name)} cannot be read: its windows are ranked by embedding alone"
            if note not in self.notes:
                self.notes.append(note)
            return None


def _keep_nearest(
    found: dict[str, dict[str, Any]], rows: Sequence[dict[str, Any]], shift: _Shift | None, first_rank: int
) -> None:
    """Add rows to what was found; of a row found twice, the shift that ranks it higher and the least distance stay."""
    for rank, row in enumerate(rows, start=first_rank):
        known = found.get(row["id"])
        if known is None:
            found[row["id"]] = row | {"shift": shift, "rank": rank}
            continue
        known["_distance"] = min(known["_distance"], row["_distance"])
        if rank < known["rank"]:
            known |= {"shift": shift, "rank": rank}


def _hit(row: dict[str, Any], distance: float | None, same_sound: bool) -> Hit:
    return Hit(
        uri=row["uri"],
        recording_id=row["recording_id"],
        window=row["window"],
        start_s=row["start_s"],
        end_s=row["end_s"],
        distance=distance,
        same_sound=same_sound,
        label=row["label"],
        group=row["group"],
    )


def _ranked(hits: list[Hit], by: str) -> list[Hit]:
    """Hits, best first: same sound before the rest, then by distance; by recording, the best of each."""
    hits.sort(key=lambda hit: (not hit.same_sound, 0.0 if hit.same_sound else (hit.distance or 0.0)))
    if by == "windows":
        return hits
    best: dict[str, Hit] = {}
    for hit in hits:
        best.setdefault(hit.recording_id, hit)
    return list(best.values())


def as_json(hits: Sequence[Hit]) -> list[dict[str, Any]]:
    """Hits as plain dicts, with their rank."""
    return [{"rank": rank, **asdict(hit)} for rank, hit in enumerate(hits, start=1)]


def playlist(hits: Sequence[Hit]) -> str:
    """Hits as an extended M3U: a player such as VLC opens each file at its stretch."""
    lines = ["#EXTM3U"]
    for hit in hits:
        path = local_path(hit.uri)
        place = hit.uri if path is None else os.fsdecode(path)
        name = os.path.basename(place).replace("\n", " ").replace("\r", " ")
        # No line of a list can hold it as it is; or it would be an option to the player.
        if "\n" in place or "\r" in place or place.startswith("#"):
            place = "file://" + "/".join(_quoted(part) for part in place.split("/"))
        lines.append(f"#EXTINF:{max(1, round(hit.end_s - hit.start_s))},{name} {hit.start_s:.2f}-{hit.end_s:.2f} s")
        lines.append(f"#EXTVLCOPT:start-time={hit.start_s:.3f}")
        lines.append(f"#EXTVLCOPT:stop-time={hit.end_s:.3f}")
        lines.append(place)
    return "\n".join(lines) + "\n"


def _quoted(part: str) -> str:
    from urllib.parse import quote

    return quote(part)
