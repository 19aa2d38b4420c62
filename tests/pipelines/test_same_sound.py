"""The very same sound: a lake of one-shots in which every file finds itself, and no stranger is marked."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from soundlake.pipelines import commands
from soundlake.pipelines.lake import lookup, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.query.query import load_query
from soundlake.pipelines.query.search import Hit, Searcher
from tests.conftest import Made

RATE = 16_000
Sound = np.ndarray


def kick(seconds: float, pitch: float, seed: int) -> Sound:
    """A falling tone with a noisy attack."""
    t = np.arange(round(seconds * RATE)) / RATE
    rng = np.random.default_rng(seed)
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 4 * np.exp(-t * 30))) / RATE
    attack = rng.standard_normal(len(t)) * np.exp(-t * 200)
    return np.asarray(0.5 * np.exp(-t * 4 / seconds) * np.sin(phase) + 0.2 * attack, np.float32)


def hat(seconds: float, seed: int) -> Sound:
    """Noise that dies away."""
    t = np.arange(round(seconds * RATE)) / RATE
    return np.asarray(0.3 * np.random.default_rng(seed).standard_normal(len(t)) * np.exp(-t * 5 / seconds), np.float32)


LENGTHS = (0.05, 0.12, 0.3, 0.46, 0.7, 1.0, 2.0)


def sounds() -> dict[str, Sound]:
    """By name; of each length a kick and two hats that differ in nothing but their noise."""
    made = {}
    for number, seconds in enumerate(LENGTHS):
        made[f"kick-{number}"] = kick(seconds, 50 + 7 * number, number)
        made |= {f"hat-{number}-{one}": hat(seconds, 100 + 10 * number + one) for one in (0, 1)}
    made["tiny"] = hat(0.012, 7)  # shorter than a hop
    loop = np.concatenate([kick(0.5, 60, 1), hat(0.3, 2), kick(0.5, 80, 3), hat(0.7, 4)])
    made |= {"loop": loop, "loop-quiet": loop * np.float32(0.25)}
    made["late-kick"] = np.concatenate([np.zeros(1200, np.float32), made["kick-2"]])  # another sample start
    silence = np.zeros(RATE, np.float32)
    made["between-silence"] = np.concatenate([silence, kick(0.3, 90, 50), silence])
    # Two whistles: faint, and silent in nearly all bands.
    t = np.arange(round(1.3 * RATE)) / RATE
    for number, pitch in enumerate((2600, 3400)):
        tone = (np.sin(2 * np.pi * pitch * t) * 0.001 * np.exp(-t * 3)).astype(np.float32)
        made[f"whistle-{number}"] = np.concatenate([tone, silence])
    # Two sounds that end in the same noise of a codec, 50 dB below, and in silence.
    rest = np.float32(1e-3) * np.random.default_rng(60).standard_normal(2 * RATE).astype(np.float32)
    for number in (0, 1):
        made[f"faint-end-{number}"] = np.concatenate([hat(0.9, 70 + number), rest, silence, silence])
    return made


@pytest.fixture(scope="module")
def shots(made: Made, tmp_path_factory: pytest.TempPathFactory) -> tuple[Lake, Path]:
    """A copy of the small lake, whose model serves, with the one-shots in it."""
    folder = tmp_path_factory.mktemp("shots")
    audio = folder / "audio"
    audio.mkdir()
    for name, sound in sounds().items():
        soundfile.write(audio / f"{name}.wav", sound, RATE, subtype="FLOAT")
    both = np.stack([hat(0.4, 200), hat(0.4, 201)], axis=1)
    soundfile.write(audio / "stereo.flac", both, RATE)
    shutil.copy(audio / "hat-3-0.wav", audio / "copy.wav")
    (audio / "labels.csv").write_text("uri,label\nhat-3-0.wav,dog\ncopy.wav,wolf\n")
    lake = made.copy(folder)
    commands.extract(lake, str(audio), spec=lookup.parse_spec("general"))
    commands.encode(lake)
    return lake, audio


@pytest.fixture(scope="module")
def ask(shots: tuple[Lake, Path]) -> Callable[..., list[Hit]]:
    lake, _ = shots
    model = lookup.find_model(lake, None)
    searcher = Searcher(lake, model, table.need_table(lake, model.model_id))

    def asked(path: Path | str, **given: object) -> list[Hit]:
        call = {"k": 10, "where": None, "by": "recordings"} | given
        return searcher.by_sound(load_query(str(path), model.spec), **call)  # type: ignore[arg-type]

    return asked


def agreement(query: Sound, stored: Sound, hit: Hit) -> float:
    """Peak normalised cross-correlation over the place that a hit names and 50 ms to either side, by numpy."""
    # Where the file's start or end cut the place off, it does not tell where the query begins.
    begins = {round(hit.start_s * RATE), round(hit.end_s * RATE) - len(query)}
    best = -1.0
    for lag in (begin + off for off in sorted(range(-800, 801), key=abs) for begin in begins):
        if best >= 0.9:
            break
        low, high = max(0, -lag), min(len(query), len(stored) - lag)
        if high - low > 1:
            a, b = query[low:high], stored[low + lag : high + lag]
            norm = float(np.linalg.norm(a) * np.linalg.norm(b))
            best = max(best, float(a @ b) / norm if norm else -1.0)
    return best


def read(path: str | Path) -> Sound:
    """Mono at 16 kHz, by another decoder and resampler than the product's."""
    sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = sound.mean(axis=1)
    return np.asarray(mono if rate == RATE else resample_poly(mono, RATE, rate), np.float32)


def check_marks(query: Sound, hits: list[Hit]) -> None:
    """Every mark is right, and its place lies inside its file."""
    for hit in hits:
        if hit.same_sound:
            stored = read(hit.uri)
            assert 0 <= hit.start_s < hit.end_s <= len(stored) / RATE + 1e-3
            assert agreement(query, stored, hit) >= 0.9, hit


def test_every_file_finds_itself(shots: tuple[Lake, Path], ask: Callable[..., list[Hit]]) -> None:
    for path in sorted(path for path in shots[1].iterdir() if path.suffix != ".csv"):
        hits = ask(path)
        assert str(path) in (hits[0].uri, *hits[0].other_uris)
        assert (hits[0].same_sound, hits[0].start_s, hits[0].gain_db) == (True, 0.0, 0.0)
        assert hits[0].end_s == pytest.approx(len(read(path)) / RATE, abs=1e-3)
        check_marks(read(path), hits)


def test_so_does_a_copy_with_other_bytes(
    shots: tuple[Lake, Path], ask: Callable[..., list[Hit]], tmp_path: Path
) -> None:
    """Known by its sound and not by its digest. What is shorter than a hop is known by its digest alone."""
    for path in sorted(path for path in shots[1].iterdir() if path.suffix != ".csv"):
        sound, copy = read(path), tmp_path / "copy.wav"
        soundfile.write(copy, np.stack([sound, sound], axis=1), RATE, subtype="FLOAT")
        hits = ask(copy)
        own = next((hit for hit in hits if str(path) in (hit.uri, *hit.other_uris)), None)
        assert own is not None, path
        assert own.same_sound, path
        assert hits[0] == own, path
        check_marks(sound, hits)


@pytest.mark.parametrize("seconds", [0.1, 0.3])
def test_cuts_of_one_shots(
    shots: tuple[Lake, Path], ask: Callable[..., list[Hit]], tmp_path: Path, seconds: float
) -> None:
    for name in ("kick-4", "hat-4-0", "hat-5-1", "loop"):
        sound = read(shots[1] / f"{name}.wav")
        start = round(0.1234 * RATE)
        part = sound[start : start + round(seconds * RATE)]
        soundfile.write(tmp_path / "cut.wav", part, RATE, subtype="FLOAT")
        hits = ask(tmp_path / "cut.wav")
        own = next(hit for hit in hits if hit.uri.endswith(f"/{name}.wav"))
        assert own.same_sound, name
        assert own.start_s == pytest.approx(start / RATE, abs=0.05)
        check_marks(part, hits)


def test_the_same_loop_at_another_level(shots: tuple[Lake, Path], ask: Callable[..., list[Hit]]) -> None:
    first, second = ask(shots[1] / "loop.wav")[:2]
    assert (Path(first.uri).stem, Path(second.uri).stem) == ("loop", "loop-quiet")
    assert second.same_sound
    assert second.gain_db == pytest.approx(20 * np.log10(0.25), abs=0.5)


def test_the_same_kick_with_another_sample_start(shots: tuple[Lake, Path], ask: Callable[..., list[Hit]]) -> None:
    hits = ask(shots[1] / "kick-2.wav")
    late = next(hit for hit in hits if hit.uri.endswith("late-kick.wav"))
    assert late.same_sound
    assert late.start_s == pytest.approx(1200 / RATE, abs=0.05)
    back = next(hit for hit in ask(shots[1] / "late-kick.wav") if hit.uri.endswith("kick-2.wav"))
    assert (back.same_sound, back.start_s) == (True, 0.0)
    assert back.end_s == pytest.approx(0.3, abs=0.01)


def test_a_sound_between_silence(shots: tuple[Lake, Path], ask: Callable[..., list[Hit]], tmp_path: Path) -> None:
    soundfile.write(tmp_path / "bare.wav", kick(0.3, 90, 50), RATE, subtype="FLOAT")
    best = ask(tmp_path / "bare.wav")[0]
    assert (Path(best.uri).stem, best.same_sound) == ("between-silence", True)
    assert best.start_s == pytest.approx(1.0, abs=0.05)


def test_a_faint_end_is_no_sound_of_its_own(shots: tuple[Lake, Path], ask: Callable[..., list[Hit]]) -> None:
    """As clips end that were faded out and then coded: all ends are alike, and nobody hears them."""
    for number in (0, 1):
        hits = ask(shots[1] / f"faint-end-{number}.wav")
        assert [Path(hit.uri).stem for hit in hits if hit.same_sound] == [f"faint-end-{number}"]


@pytest.mark.parametrize(("suffix", "subtype"), [("mp3", "MPEG_LAYER_III"), ("ogg", "VORBIS")])
def test_a_lossy_copy(
    shots: tuple[Lake, Path], ask: Callable[..., list[Hit]], tmp_path: Path, suffix: str, subtype: str
) -> None:
    for name in ("kick-2", "kick-4", "hat-3-0", "loop"):
        copy = tmp_path / f"copy.{suffix}"
        sound = read(shots[1] / f"{name}.wav")
        soundfile.write(copy, sound, RATE, subtype=subtype, compression_level=0.0)
        hits = ask(copy)
        own = next((hit for hit in hits if str(shots[1] / f"{name}.wav") in (hit.uri, *hit.other_uris)), None)
        assert own is not None, name
        assert own.same_sound, name
        strangers = [hit.uri for hit in hits if hit.same_sound and "kick" in name and "hat" in hit.uri]
        assert not strangers


def test_a_file_with_two_names(shots: tuple[Lake, Path], ask: Callable[..., list[Hit]]) -> None:
    """One result, by the first name that passes the filter; the other name stands beside it."""
    path, copy = (str(shots[1] / name) for name in ("hat-3-0.wav", "copy.wav"))
    for where, names, label in ((None, (copy, path), "wolf"), ("label = 'dog'", (path, copy), "dog")):
        for by in ("recordings", "windows"):
            hits = ask(path, where=where, by=by, k=20)
            assert (hits[0].uri, hits[0].other_uris, hits[0].label) == (names[0], names[1:], label)
            assert len({(hit.recording_id, hit.window) for hit in hits}) == len(hits)
            assert len(hits) == (1 if where else 20)


def test_a_stretch_of_a_file_of_the_lake(shots: tuple[Lake, Path], ask: Callable[..., list[Hit]]) -> None:
    for span in ("0.02-0.07", "0.3-0.9", "0.5-"):
        best = ask(f"{shots[1] / 'loop.wav'}@{span}")[0]
        start, _, end = span.partition("-")
        assert (Path(best.uri).stem, best.same_sound) == ("loop", True)
        assert best.start_s == pytest.approx(float(start), abs=0.001)
        assert best.end_s == pytest.approx(float(end or 2.0), abs=0.001)


def test_without_the_file_nothing_short_is_marked(shots: tuple[Lake, Path], tmp_path: Path) -> None:
    """Half a second or more is known by its log-mel; for less the file is needed, and a note says so."""
    lake, audio = shots
    model = lookup.find_model(lake, None)
    searcher = Searcher(lake, model, table.need_table(lake, model.model_id))
    paths = [audio / f"{name}.wav" for name in ("hat-2-0", "hat-5-0")]
    found = []
    for path in paths:
        copy, aside = tmp_path / "copy.wav", path.with_suffix(".aside")
        soundfile.write(copy, np.stack([read(path)] * 2, axis=1), RATE, subtype="FLOAT")
        os.rename(path, aside)
        try:
            query = load_query(str(copy), model.spec)
            found.append(searcher.by_sound(query, k=3, where=None, by="recordings"))
        finally:
            os.rename(aside, path)
    assert [hits[0].uri for hits in found] == [str(path) for path in paths]
    assert [hits[0].same_sound for hits in found] == [False, True]
    assert any("hat-2-0.wav" in note for note in searcher.notes)


def test_two_whistles_are_two_sounds(shots: tuple[Lake, Path], tmp_path: Path) -> None:
    """By log-mel alone, since the files are not at hand: most bands are silent in both, and agree."""
    lake, audio = shots
    model = lookup.find_model(lake, None)
    searcher = Searcher(lake, model, table.need_table(lake, model.model_id))
    aside = audio.with_name("aside")
    query = load_query(str(shutil.copy(audio / "whistle-0.wav", tmp_path / "query.wav")), model.spec)
    os.rename(audio, aside)
    try:
        hits = searcher.by_sound(query, k=10, where=None, by="recordings")
    finally:
        os.rename(aside, audio)
    assert [Path(hit.uri).stem for hit in hits if hit.same_sound] == ["whistle-0"]


def test_a_file_that_the_system_cannot_read_is_not_told_as_gone(shots: tuple[Lake, Path], tmp_path: Path) -> None:
    lake, audio = shots
    model = lookup.find_model(lake, None)
    searcher = Searcher(lake, model, table.need_table(lake, model.model_id))
    path, copy = audio / "hat-2-0.wav", tmp_path / "copy.wav"
    soundfile.write(copy, np.stack([read(path)] * 2, axis=1), RATE, subtype="FLOAT")
    aside = path.rename(path.with_suffix(".aside"))
    # A link to itself: an error of the system's that says nothing of the file.
    path.symlink_to(path)
    try:
        hits = searcher.by_sound(load_query(str(copy), model.spec), k=3, where=None, by="recordings")
    finally:
        path.unlink()
        aside.rename(path)
    assert not hits[0].same_sound
    (note,) = (note for note in searcher.notes if "cannot be read now" in note)
    assert str(path) in note
    assert os.strerror(errno.ELOOP) in note
