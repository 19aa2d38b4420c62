"""The demo corpus: the same from the same seed, labelled, and never over someone else's files."""

import csv
import hashlib
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundlake.model.errors import InputError, TryLaterError
from soundlake.pipelines.cli import synth
from soundlake.pipelines.cli.synth import KINDS, synthesise
from tests.pipelines import limits


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.suffix in (".wav", ".flac")
    }


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "labels.csv") as file:
        return list(csv.DictReader(file))


def sounds(folder: Path, kind: str | None = None) -> list[tuple[np.ndarray, int]]:
    """Samples and rate of each recording, or of those of a kind, in the order of the label file."""
    return [soundfile.read(folder / row["uri"]) for row in rows(folder) if kind in (None, row["label"])]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "a"
    synthesise(str(folder), recordings=48)
    return folder


def test_the_same_seed_the_same_corpus(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert synthesise(str(tmp_path / name), recordings=16, seed=seed) == 18
    one, same, other = (digests(tmp_path / name) for name in "abc")
    assert one == same
    assert {name for name in one if one[name] == other[name]} == {"recorder-off.wav", "not-a-sound.wav"}


def test_what_is_in_it(corpus: Path) -> None:
    labels = rows(corpus)
    assert {row["label"] for row in labels} == set(KINDS)
    files = {path.relative_to(corpus).as_posix() for path in corpus.rglob("*.*")}
    assert files == {row["uri"] for row in labels} | {"labels.csv", "recorder-off.wav", "not-a-sound.wav"}
    for row in labels:
        assert Path(row["uri"]).parent.name == row["label"] == row["group"].split("-")[0]
        sound, rate = soundfile.read(corpus / row["uri"])
        assert 4 <= len(sound) / rate <= 9.2
        assert sound.ndim == 1
    assert len({Path(row["uri"]).suffix for row in labels}) == 4
    # Two recordings have one source.
    assert set(Counter(row["group"] for row in labels).values()) == {2}


def test_levels_vary(corpus: Path) -> None:
    """About evenly from -27 to -3 dB, lossy codecs aside; nothing is clipped, nothing lost in a format's steps."""
    peaks = [20 * np.log10(np.abs(sound).max()) for sound, _ in sounds(corpus)]
    assert -28 < min(peaks) < -24
    assert -6 < max(peaks) < -1
    assert 5 < np.std(peaks) < 9


def test_where_the_sound_lies_and_what_is_behind_it_vary(corpus: Path) -> None:
    """By tenths of a second: the loud ones tell where the sound is, the softest how loud the noise is."""
    before, after, apart = [], [], []
    for sound, rate in sounds(corpus):
        parts = sound[: len(sound) // (rate // 10) * (rate // 10)].reshape(-1, rate // 10)
        decibels = 10 * np.log10(np.square(parts).mean(axis=1) + 1e-12)
        loud = np.flatnonzero(decibels > decibels.max() - 15)
        before.append(loud[0] / 10)
        after.append((len(decibels) - 1 - loud[-1]) / 10)
        apart.append(decibels.max() - decibels.min())
    for seconds in (before, after):
        assert min(seconds) < 0.3
        assert max(seconds) > 1.5
    # Noise of 10 dB to none, beside the loudest tenth of a second.
    assert min(apart) < 20
    assert max(apart) > 60


@pytest.mark.parametrize("kind", ["bell", "beeper", "bird", "engine", "rain"])
def test_pitch_varies_within_a_kind_by_more_than_an_octave(kind: str) -> None:
    """The strongest frequency, over several sources."""
    found = []
    for seed in range(16):
        spectrum = np.abs(np.fft.rfft(KINDS[kind](np.random.default_rng(seed), 3.0, 16_000)))
        found.append(spectrum.argmax() / 3)
    assert min(found) < max(found) / 2


def test_pace_varies_within_a_kind() -> None:
    """Hits of a drum in 8 s, counted where the energy of hundredths of a second rises."""
    found = []
    for seed in range(16):
        sound = KINDS["drum"](np.random.default_rng(seed), 8.0, 16_000)
        energy = np.square(sound).reshape(-1, 160).sum(axis=1)
        loud = energy > 0.3 * energy.max()
        found.append(np.count_nonzero(loud[1:] & ~loud[:-1]))
    assert min(found) < 15
    assert 25 < max(found) < 40


def test_two_recordings_of_a_source_have_its_pitch_and_nothing_else_in_common(corpus: Path) -> None:
    by_source: dict[str, list[tuple[float, float, int]]] = {}
    for row, (sound, rate) in zip(rows(corpus), sounds(corpus), strict=True):
        if row["label"] == "beeper":
            pitch = np.abs(np.fft.rfft(sound))[round(150 * len(sound) / rate) :].argmax() * rate / len(sound) + 150
            by_source.setdefault(row["group"], []).append((pitch, float(np.abs(sound).max()), len(sound)))
    for (one, level, length), (other, other_level, other_length) in by_source.values():
        assert one == pytest.approx(other, rel=0.01)
        assert level != pytest.approx(other_level, rel=0.01)
        assert length != other_length
    assert len({round(pairs[0][0]) for pairs in by_source.values()}) == len(by_source) > 1


def test_a_room_rings_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a click in a room that is left: its echoes, which fall by 60 dB in the time drawn."""
    rate, seconds = 16_000, 0.5
    monkeypatch.setattr(synth, "REVERBERATION", (seconds, seconds))
    monkeypatch.setattr(synth, "ECHOES", (0.5, 0.5))
    click = np.zeros(rate)
    click[1000] = 1
    rung = synth._in_a_room(np.random.default_rng(0), click, rate)
    assert np.abs(rung[:1000]).max() < 1e-9
    tail = np.square(rung[1001 : 1000 + round(seconds * rate)])
    assert tail.sum() == pytest.approx(0.25, rel=0.02)
    # Schroeder's backward integral, between -5 and -25 dB.
    decay = 10 * np.log10(tail[::-1].cumsum()[::-1] / tail.sum())
    first, last = (int(np.argmax(decay < level)) for level in (-5, -25))
    assert (last - first) / rate * 3 == pytest.approx(seconds, rel=0.1)


@pytest.mark.parametrize("slope", [0.0, 0.5, 1.0])
def test_noise_has_its_colour(slope: float) -> None:
    from scipy.signal import welch

    noise = synth._noise(np.random.default_rng(0), 320_011, 16_000, slope)
    assert len(noise) == 320_011
    assert np.sqrt(np.mean(noise**2)) == pytest.approx(1)
    frequency, power = welch(noise, 16_000, nperseg=2048)
    some = (frequency > 100) & (frequency < 7000)
    fitted = np.polyfit(np.log2(frequency[some]), 0.5 * np.log2(power[some]), 1)[0]
    assert fitted == pytest.approx(-slope, abs=0.05)


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    synthesise(str(folder), recordings=8)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    synthesise(str(folder), recordings=8)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    for call, said in (
        ({"recordings": 16}, "of 8 recordings, not 16"),
        ({"recordings": 4}, "of 8 recordings, not 4"),
        ({"recordings": 8, "seed": 1}, "another seed"),
    ):
        with pytest.raises(InputError, match=said):
            synthesise(str(folder), **call)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    with pytest.raises(InputError, match="is not empty"):
        synthesise(str(tmp_path), recordings=8)


def test_what_is_missing_is_made_and_the_rest_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    synthesise(str(folder), recordings=16)
    whole = digests(folder)
    shutil.rmtree(folder / "bird")
    for name in ("recorder-off.wav", "labels.csv", "not-a-sound.wav"):
        (folder / name).unlink()
    (folder / "bell" / "bell-000.flac").write_bytes(b"mine")
    (folder / "mine.txt").write_text("mine")
    assert synthesise(str(folder), recordings=16) == 18
    assert digests(folder) == whole | {"bell/bell-000.flac": hashlib.sha256(b"mine").hexdigest()}
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 16 + 4


def test_a_stopped_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it had made by then is whole."""
    synthesise(str(tmp_path / "a"), recordings=8)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(KINDS, "engine", stop)
    with pytest.raises(KeyboardInterrupt):
        synthesise(str(tmp_path / "b"), recordings=8)
    assert 0 < len(digests(tmp_path / "b")) < len(digests(tmp_path / "a"))
    monkeypatch.undo()
    synthesise(str(tmp_path / "b"), recordings=8)
    assert digests(tmp_path / "b") == digests(tmp_path / "a")
    assert not list((tmp_path / "b").rglob(".*"))


@pytest.mark.parametrize("labels", [None, b"", b"uri,label,group\n", b"\xff"])
def test_foreign_folders_are_not_touched(tmp_path: Path, labels: bytes | None) -> None:
    """Also not those with names that are in a demo corpus, too."""
    (tmp_path / "bell").mkdir()
    soundfile.write(tmp_path / "bell" / "bell-000.flac", np.zeros(48_000), 48_000)
    if labels is not None:
        (tmp_path / "labels.csv").write_bytes(labels)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"is not empty|holds something else"):
        synthesise(str(tmp_path), recordings=8)
    assert sorted(tmp_path.rglob("*")) == before


def test_no_room(tmp_path: Path) -> None:
    with pytest.raises(TryLaterError, match="run the same command again"), limits.file_size(8192):
        synthesise(str(tmp_path / "a"), recordings=8)
    assert digests(tmp_path / "a") == {}


@pytest.mark.parametrize("count", [0, -1, 100_001])
def test_counts_out_of_range(tmp_path: Path, count: int) -> None:
    with pytest.raises(InputError, match="--recordings"):
        synthesise(str(tmp_path / "a"), recordings=count)
