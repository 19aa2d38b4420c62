"""A segment's windows: the same from any cut, the same as the features of the whole."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundlake.model.features.log_mel import PRESETS, log_mel, quantise, windows
from soundlake.pipelines.audio.reading import Rejected, probe
from soundlake.pipelines.audio.resampling import resampled
from soundlake.pipelines.extract.windows import CHUNK_FRAMES, SegmentWindows


def write(path: Path, seconds: float, rate: int, subtype: str = "PCM_16", form: str = "WAV") -> Path:
    rng = np.random.default_rng(round(seconds * 1000))
    sound = rng.standard_normal(round(seconds * rate)) * 0.1
    soundfile.write(path, sound.clip(-1, 1), rate, subtype=subtype, format=form)
    return path


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("seconds", "rate"), [(0.0004, 44_100), (1.5, 8_000), (47.3, 44_100)])
def test_windows_are_the_features_of_the_whole(tmp_path: Path, name: str, seconds: float, rate: int) -> None:
    spec = PRESETS[name]
    path = write(tmp_path / "a.wav", seconds, rate)
    found = probe(path)
    sound = np.concatenate(list(resampled(path, found, spec.sample_rate)))
    frames = log_mel(sound, spec)
    wanted = windows(frames, spec)
    cut = SegmentWindows(path, found, spec)
    got = list(cut)
    assert cut.samples == len(sound)
    assert [window for window, _, _ in got] == list(range(len(wanted)))
    for window, valid, values in got:
        assert valid == min(spec.window_frames, len(frames) - window * spec.window_step)
        np.testing.assert_array_equal(values[:valid], quantise(frames, spec)[window * spec.window_step :][:valid])
        assert not values[valid:].any()


@pytest.mark.parametrize("count", [1, 2, 7, 13])
@pytest.mark.parametrize(("form", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_24"), ("WAV", "FLOAT")])
def test_any_cut_gives_the_same_windows(tmp_path: Path, count: int, form: str, subtype: str) -> None:
    spec = PRESETS["general"]
    path = write(tmp_path / "a.snd", 41.7, 44_100, subtype, form)
    found = probe(path)
    assert found.seekable
    whole = list(SegmentWindows(path, found, spec))
    for first in range(0, len(whole), count):
        last = first + count >= len(whole)
        part = list(SegmentWindows(path, found, spec, first=first, count=None if last else count))
        assert [(w, v) for w, v, _ in part] == [(w, v) for w, v, _ in whole[first : first + count]]
        for (_, _, a), (_, _, b) in zip(part, whole[first : first + count], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["speech", "general"])
def test_a_sound_that_ends_about_where_a_chunk_does(tmp_path: Path, name: str) -> None:
    spec = PRESETS[name]
    half = spec.n_fft // 2
    full = (CHUNK_FRAMES - 1) * spec.hop_length + spec.n_fft - half
    path = tmp_path / "a.wav"
    for more in (-half, -half + 1, -1, 0, 1, spec.hop_length, half + 1):
        soundfile.write(path, np.random.default_rng(1).uniform(-0.5, 0.5, full + more), spec.sample_rate)
        frames = log_mel(np.concatenate(list(resampled(path, probe(path), spec.sample_rate))), spec)
        got = list(SegmentWindows(path, probe(path), spec))
        assert len(got) == spec.n_windows(full + more)
        window, valid, values = got[-1]
        np.testing.assert_array_equal(values[:valid], quantise(frames, spec)[window * spec.window_step :])


def test_a_segment_beyond_the_end_is_empty(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 3.0, 16_000)
    assert list(SegmentWindows(path, probe(path), PRESETS["general"], first=50)) == []


def test_too_loud_is_rejected(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).standard_normal(16_000) * 1e6, 16_000, subtype="FLOAT")
    with pytest.raises(Rejected) as caught:
        list(SegmentWindows(tmp_path / "a.wav", probe(tmp_path / "a.wav"), PRESETS["general"]))
    assert (caught.value.stage, caught.value.reason) == ("features", "too-loud")
