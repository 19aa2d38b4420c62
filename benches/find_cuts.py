"""Whether search knows its own: `make bench-cuts`, for labelled sets, or `make bench-cuts AUDIO=folder LAKE=lake`.

Asked for, of each set: files of the lake as they are, copies of them in another format with and without loss, and
cuts of several lengths at random places. Counted: how often the file comes first, how far its place is off, and
whether each mark (`=`) is right. It is if the normalised cross-correlation of the two waveforms at 16 kHz has a peak
of 0.9 or more, over the stretch that the mark names and 50 ms to either side; of a query of more than four seconds a
mark may name a part, wherever it lies in the query. That peak is sought at whole samples. A mark that is wrong by it
is counted as wrong, and beside that as "between samples" if the peak between them, in steps of a quarter, has 0.9:
the same high sound that was cut half a sample later. Of a copy with loss the mark on the file that it was made of is
right. A mark is lost where the file that the query was made of has none. Cuts for which search says that they hold no
sound are counted apart and replaced.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from benches.harness import RESULTS
from benches.lakes import soundlake
from soundlake.model.errors import InputError
from soundlake.pipelines.audio.reading import mono_blocks, probe
from soundlake.pipelines.corpus.files import corpus_root, local_path
from soundlake.pipelines.lake import ledger, lookup, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.query.query import load_query
from soundlake.pipelines.query.search import Hit, Searcher

SETS = ("esc10", "instruments", "drums", "digits", "berklee")
LENGTHS = (0.05, 0.1, 0.3, 0.5, 1.0, 2.0)
RATE, SLACK_S, RIGHT, K = 16_000, 0.05, 0.9, 10
# In longer queries a part may be marked, if its power is above this share of the query's peak power: -60 dB.
LONG_S, FAINT = 4.0, 1e-6
# Lossy copies: suffix, PyAV's codec, and bit rate; Vorbis is encoded by libsndfile, at medium quality.
LOSSY: dict[str, tuple[str, str, int]] = {
    "MP3, 128 kbit/s": ("mp3", "libmp3lame", 128_000),
    "MP3, 48 kbit/s": ("mp3", "libmp3lame", 48_000),
    "Vorbis": ("ogg", "vorbis", 0),
    "Opus, 32 kbit/s": ("opus", "libopus", 32_000),
    "AAC, 64 kbit/s": ("m4a", "aac", 64_000),
}

Sound = NDArray[np.float32]


@dataclass
class Count:
    """Counts of search results for one kind of query."""

    queries: int = 0
    first: int = 0
    no_sound: int = 0
    right: int = 0
    wrong: int = 0
    between_samples: int = 0
    lost: int = 0
    offsets_ms: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """The counts as plain numbers, for JSON."""
        numbers = {name: value for name, value in asdict(self).items() if isinstance(value, int)}
        offsets, seconds = (np.array(values or [np.nan]) for values in (self.offsets_ms, self.seconds))
        numbers |= {"within_50_ms": int((offsets <= 50).sum()), "worst_offset_ms": round(float(offsets.max()), 1)}
        return numbers | {"median_seconds": round(float(np.median(seconds)), 3)}


def peak(query: Sound, stored: Sound, hit: Hit) -> float:
    """Peak of the normalised cross-correlation over the stretch of a hit and 50 ms on both sides, lag by lag."""
    slack = round(SLACK_S * RATE)
    # The start or end of the file may cut the stretch off, so the query may begin at either of these places.
    begins = {round(hit.start_s * RATE), round(hit.end_s * RATE) - len(query)}
    best = -1.0
    for lag in (begin + off for off in sorted(range(-slack, slack + 1), key=abs) for begin in begins):
        low, high = max(0, -lag), min(len(query), len(stored) - lag)
        if high - low > 1:
            a, b = query[low:high], stored[low + lag : high + lag]
            norm = float(np.sqrt(float(a @ a) * float(b @ b)))
            best = max(best, float(a @ b) / norm) if norm > 0 else best
        if best >= RIGHT:
            break
    return best


def later(sound: Sound, samples: float) -> Sound:
    """A waveform delayed by a fraction of a sample, with the phases of its spectrum."""
    spectrum = np.fft.rfft(sound, 2 * len(sound))
    turns = np.arange(len(spectrum)) * samples / (2 * len(sound))
    return np.fft.irfft(spectrum * np.exp(-2j * np.pi * turns))[: len(sound)].astype(np.float32)


def inside(query: Sound, stored: Sound, hit: Hit) -> float:
    """The same peak if a long query and a recording share only the stretch of a hit, anywhere in the query.

    0 if that stretch is too faint compared with the loudest place of the query; -1 if the query is short.
    """
    from scipy.signal import correlate

    part = stored[round(hit.start_s * RATE) : round(hit.end_s * RATE)]
    if len(query) <= LONG_S * RATE or not 0 < len(part) <= len(query):
        return -1.0
    cross = correlate(query, part, "valid")
    sums = np.concatenate([[0.0], np.cumsum(np.square(query, dtype=np.float64))])
    energy = sums[len(part) :] - sums[: len(cross)]
    least_energy = FAINT * float(np.abs(query).max()) ** 2 * len(part)
    agreement = np.where(
        energy > least_energy, cross / np.sqrt(np.maximum(energy, 1e-12) * float(part @ part) + 1e-12), 0.0
    )
    return float(agreement.max())


class Bench:
    """One set and its lake."""

    def __init__(self, audio: str, lake: str, *, seed: int) -> None:
        self.lake, self.root = Lake.at(lake), corpus_root(audio)
        model = lookup.find_model(self.lake, None)
        self.spec = model.spec
        self.searcher = Searcher(self.lake, model, table.need_table(self.lake, model.model_id))
        rows = ledger.open_ledger(self.lake, model.spec.spec_id).to_table(filter="status = 'done'").to_pylist()
        self.rows = sorted((row for row in rows if row["corpus"] == self.root), key=lambda row: row["uri"])
        self.rng = np.random.default_rng(seed)
        self._at_rate: dict[str, Sound] = {}

    def native(self, uri: str) -> tuple[Sound, int]:
        """A file's mono waveform at its own sample rate."""
        path = os.fsdecode(local_path(uri) or b"")
        header = probe(path)
        return np.concatenate(list(mono_blocks(path, header))), header.sample_rate

    def at_rate(self, uri: str) -> Sound:
        """The same waveform at 16 kHz, by a different resampler than soundlake's."""
        if uri not in self._at_rate:
            self._at_rate[uri] = resampled(*self.native(uri))
        return self._at_rate[uri]

    def ask(self, count: Count, path: str, row: dict[str, Any], sound: Sound, start: float | None) -> bool:
        """Search for a file and count the result; False if search rejects the query as silent or too short.

        Parameters
        ----------
        count : Count
            Receives the result.
        row : dict
            Ledger row of the file that the query was made from.
        sound : ndarray
            The query at 16 kHz.
        start : float or None
            Second of the file at which the query was cut; None for a lossy copy.
        """
        began = time.perf_counter()
        try:
            hits = self.searcher.by_sound(load_query(path, self.spec), k=K, where=None, by="recordings")
        except InputError as error:
            if "no sound" not in str(error) and "too short" not in str(error):
                raise
            count.no_sound += 1
            return False
        count.seconds.append(time.perf_counter() - began)
        count.queries += 1
        marked = [hit for hit in hits if hit.same_sound]
        for hit in marked:
            # The correlation test is for lossless queries. For a lossy copy, a mark on its source is always right.
            if start is None and hit.recording_id == row["recording_id"]:
                count.right += 1
                continue
            stored = self.at_rate(hit.uri)
            agreement = max(peak(sound, stored, hit), inside(sound, stored, hit))
            if agreement >= RIGHT:
                count.right += 1
                continue
            agreement_between = max(peak(sound, later(stored, samples), hit) for samples in (0.25, 0.5, 0.75))
            count.wrong += 1
            count.between_samples += agreement_between >= RIGHT
            if verbose:
                print("wrong:", path, row["uri"], start, hit, agreement, agreement_between)
        source_hit = next((hit for hit in marked if hit.recording_id == row["recording_id"]), None)
        count.lost += source_hit is None
        if source_hit is None and verbose:
            print("lost:", row["uri"], start, len(sound) / RATE, np.abs(sound).max(), hits[0].same_sound)
        # A hit that is an identical copy of the file also counts as first.
        count.first += hits[0].recording_id == row["recording_id"] or (
            source_hit is not None and self._alike(hits, source_hit)
        )
        if source_hit is not None and start is not None:
            count.offsets_ms.append(1000 * abs(source_hit.start_s - start))
        return True

    def _alike(self, hits: list[Hit], own: Hit) -> bool:
        """Whether all hits before `own` are copies of it, sample by sample."""
        reference = self.at_rate(own.uri)
        for hit in hits[: hits.index(own)]:
            candidate = self.at_rate(hit.uri)
            n = min(len(reference), len(candidate))
            if n == 0 or float(np.abs(reference[:n] - candidate[:n]).max()) > 1e-4:
                return False
        return True

    def own(self, folder: str, number: int) -> dict[str, Count]:
        """Search for files of the lake unchanged, and as WAV with floating-point samples."""
        counts = {"as it is": Count(), "as WAV": Count()}
        copy = os.path.join(folder, "copy.wav")
        for row in self._chosen(number):
            path = os.fsdecode(local_path(row["uri"]) or b"")
            sound, rate = self.native(row["uri"])
            soundfile.write(copy, sound, rate, subtype="FLOAT")
            self.ask(counts["as it is"], path, row, self.at_rate(row["uri"]), 0.0)
            self.ask(counts["as WAV"], copy, row, self.at_rate(row["uri"]), 0.0)
        return counts

    def lossy(self, folder: str, number: int) -> dict[str, Count]:
        """Search for lossy copies."""
        counts = {name: Count() for name in LOSSY}
        for row in self._chosen(number):
            sound, rate = self.native(row["uri"])
            for name, (suffix, codec, bits) in LOSSY.items():
                copy = os.path.join(folder, f"copy.{suffix}")
                encoded(copy, resampled(sound, rate, to=48_000), codec, bits)
                self.ask(counts[name], copy, row, resampled(*self.native(copy)), None)
        return counts

    def cuts(self, folder: str, number: int, seconds: float) -> Count:
        """Search for cuts at random places."""
        count, cut = Count(), os.path.join(folder, "cut.wav")
        rows = [row for row in self.rows if row["duration_s"] > seconds]
        while rows and count.queries < number and count.no_sound < 10 * number:
            row = rows[self.rng.integers(len(rows))]
            sound, rate = self.native(row["uri"])
            length = round(seconds * rate)
            start = int(self.rng.integers(0, len(sound) - length + 1))
            part = sound[start : start + length]
            soundfile.write(cut, part, rate, subtype="FLOAT")
            begin = round(start / rate * RATE)
            self.ask(count, cut, row, self.at_rate(row["uri"])[begin : begin + round(seconds * RATE)], start / rate)
        return count

    def _chosen(self, number: int) -> Iterator[dict[str, Any]]:
        places = self.rng.permutation(len(self.rows))[:number]
        yield from (self.rows[int(place)] for place in sorted(places))


def resampled(sound: Sound, rate: int, *, to: int = RATE) -> Sound:
    """A waveform at another sample rate, by SciPy's polyphase filter."""
    from scipy.signal import resample_poly

    if rate == to:
        return sound
    common = int(np.gcd(rate, to))
    return np.asarray(resample_poly(sound, to // common, rate // common), np.float32)


def encoded(path: str, sound: Sound, codec: str, bits: int) -> None:
    """Write 48 kHz mono with a lossy codec."""
    if codec == "vorbis":
        soundfile.write(path, np.clip(sound, -1, 1), 48_000, format="OGG", subtype="VORBIS", compression_level=0.5)
        return
    import av

    with av.open(path, "w") as container:
        stream: Any = container.add_stream(codec, rate=48_000, layout="mono")
        stream.bit_rate = bits
        sample_format = stream.codec_context.format.name if stream.codec_context.format else "fltp"
        sound = np.clip(sound, -1, 1).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(sound[None, :], format="fltp", layout="mono")
        frame.sample_rate = 48_000
        resampler = av.AudioResampler(
            format=sample_format, layout="mono", rate=48_000, frame_size=stream.frame_size or 1024
        )
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))


def made(folder: Path, audio: Path, steps: int) -> str:
    """The lake of a set; if it does not exist, it is made, with a short training."""
    lake = folder / audio.name / "lake"
    if not (folder / audio.name / "ready").exists():
        soundlake("extract", str(audio), "--lake", str(lake))
        soundlake("train", "--lake", str(lake), "--steps", str(steps))
        soundlake("encode", "--lake", str(lake))
        (folder / audio.name / "ready").touch()
    return str(lake)


def show(found: dict[str, dict[str, Count]]) -> None:
    """Print a table with one line per set and kind of query."""
    from rich.console import Console
    from rich.table import Table

    headings = (
        "set",
        "query",
        "queries",
        "no sound",
        "first",
        "marks right",
        "wrong",
        "between samples",
        "lost",
        "within 50 ms",
    )
    lines = Table(*headings, "worst, ms", "median, s", title="Search that knows its own")
    for name, counts in found.items():
        for kind, count in counts.items():
            numbers = count.told()
            keys = ("queries", "no_sound", "first", "right", "wrong", "between_samples", "lost", "within_50_ms")
            cells = [numbers[key] for key in (*keys, "worst_offset_ms", "median_seconds")]
            lines.add_row(name, kind, *(str(cell) for cell in cells))
    Console(width=140).print(lines)


verbose = False


def main() -> None:
    """Run all searches; print a table, and write it as JSON."""
    global verbose
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--audio", help="a corpus, with --lake")
    parser.add_argument("--lake")
    parser.add_argument("--corpora", help="a folder of labelled sets, whose lakes are made")
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--lakes", default=str(RESULTS.parent / "lakes"), help="where those lakes lie")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--cuts", type=int, default=100, help="queries of a kind")
    parser.add_argument("--copies", type=int, default=25, help="files that are copied with loss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lengths", type=float, nargs="*", default=LENGTHS)
    parser.add_argument("--verbose", action="store_true", help="a line for each mark that is wrong or lost")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    call = parser.parse_args()
    verbose = call.verbose
    if call.corpora:
        corpora = {name: Path(call.corpora, name).resolve() for name in call.sets}
        places = {name: (str(audio), made(Path(call.lakes), audio, call.steps)) for name, audio in corpora.items()}
    elif call.audio and call.lake:
        places = {Path(call.audio).name: (call.audio, call.lake)}
    else:
        parser.error("name --corpora, or --audio and --lake")
    counts_of: dict[str, dict[str, Count]] = {}
    for name, (audio, lake) in places.items():
        bench = Bench(audio, lake, seed=call.seed)
        if not bench.rows:
            raise SystemExit(f"the lake {lake} holds no recording of {audio}")
        with tempfile.TemporaryDirectory() as folder:
            counts_of[name] = bench.own(folder, call.cuts)
            for seconds in call.lengths:
                counts_of[name][f"cuts of {seconds:g} s"] = bench.cuts(folder, call.cuts, seconds)
            counts_of[name] |= bench.lossy(folder, call.copies)
    numbers = {name: {kind: count.told() for kind, count in counts.items()} for name, counts in counts_of.items()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "find_cuts.json").write_text(json.dumps(numbers | {"seed": call.seed}, indent=1) + "\n")
    if call.json:
        print(json.dumps(numbers))
    else:
        show(counts_of)


if __name__ == "__main__":
    main()
