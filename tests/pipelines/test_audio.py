"""Decoding: every format, exact slices, resampling by chunks, and each hostile file ends as it should."""

import csv
import os
import pickle
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote_to_bytes

import av
import numpy as np
import pytest
import soundfile
import soxr

from soundlake.pipelines.audio.reading import REASONS, Probe, Rejected, mono_blocks, probe
from soundlake.pipelines.audio.resampling import resampled

NASTY = Path(__file__).resolve().parents[3] / "shared" / "nasty"


def synth(rate: int, seconds: float, channels: int = 1) -> np.ndarray:
    """A tone in noise, float64, ``(frames, channels)``, within ±0.7."""
    rng = np.random.default_rng(3)
    t = np.arange(round(rate * seconds)) / rate
    tone = 0.4 * np.sin(2 * np.pi * 330 * t)[:, None] * np.linspace(0.5, 1, channels)
    return (tone + 0.05 * rng.standard_normal((len(t), channels))).clip(-0.7, 0.7)


def whole(path: Path, found: Probe, **span: int | None) -> np.ndarray:
    parts = list(mono_blocks(path, found, **span))
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def whole_at(path: Path, found: Probe, rate: int, **span: int | None) -> np.ndarray:
    parts = list(resampled(path, found, rate, **span))
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def encode(path: Path, codec: str, rate: int, audio: np.ndarray, *, video: bool = False) -> None:
    """Write mono audio, ``(frames,)``, by PyAV, with a few pictures if asked."""
    with av.open(str(path), "w") as out:
        if video:
            picture = out.add_stream("mpeg4", rate=5)
            picture.width = picture.height = 32
            picture.pix_fmt = "yuv420p"
        stream = out.add_stream(codec, rate=rate, layout="mono")
        if video:
            for _ in range(5):
                out.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))))
            out.mux(picture.encode())
        frame = av.AudioFrame.from_ndarray(audio[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        size = stream.codec_context.frame_size or 1024
        resampler = av.AudioResampler(stream.codec_context.format, "mono", rate, frame_size=size)
        for item in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(item))
        out.mux(stream.encode())


FORMATS = [
    ("WAV", "PCM_U8", 1 / 100),
    ("WAV", "PCM_16", 1e-4),
    ("WAV", "PCM_24", 1e-6),
    ("WAV", "PCM_32", 1e-6),
    ("WAV", "FLOAT", 1e-6),
    ("WAV", "DOUBLE", 1e-6),
    ("WAV", "ULAW", 0.03),
    ("RF64", "PCM_16", 1e-4),
    ("W64", "PCM_16", 1e-4),
    ("FLAC", "PCM_16", 1e-4),
    ("FLAC", "PCM_24", 1e-6),
    ("AIFF", "PCM_16", 1e-4),
    ("AU", "PCM_16", 1e-4),
    ("CAF", "PCM_16", 1e-4),
    ("OGG", "VORBIS", None),
    ("OGG", "OPUS", None),
    ("MP3", "MPEG_LAYER_III", None),
]


@pytest.mark.parametrize(("container", "codec", "tolerance"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_formats_and_slices(tmp_path: Path, container: str, codec: str, tolerance: float | None, channels: int) -> None:
    rate = 48000 if codec == "OPUS" else 44100
    audio = synth(rate, 5, channels)
    path = tmp_path / "a.bin"
    soundfile.write(path, audio, rate, format=container, subtype=codec)
    found = probe(path)
    reader = "pyav" if codec == "OPUS" else "soundfile"
    assert (found.sample_rate, found.channels, found.reader) == (rate, channels, reader)
    assert found.seekable == (tolerance is not None)
    got = whole(path, found)
    assert got.dtype == np.float32
    if tolerance is None:
        # Reading in a loop must give what one read gives; of an Ogg this is another decoder.
        one = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(1)
        assert abs(len(got) - len(audio)) < 4000
        np.testing.assert_allclose(got, one[: len(got)], atol=1e-6)
    else:
        assert len(got) == len(audio) == found.claimed_frames
        np.testing.assert_allclose(got, audio.mean(1), atol=tolerance)
    for start, stop in [(0, 10), (1, 65537), (65536, 65540), (70001, 140003), (200000, None), (10**7, None), (5, 5)]:
        np.testing.assert_array_equal(whole(path, found, start=start, stop=stop), got[start:stop])


@pytest.mark.parametrize("rate", [16000, 22050, 44100])
def test_mp3_in_blocks_is_mp3_in_one_piece(tmp_path: Path, rate: int) -> None:
    """Where soundfile seeks after each read, libmpg123 gave other sound at some of the seams."""
    path = tmp_path / "a.mp3"
    soundfile.write(path, synth(rate, 20), rate)
    np.testing.assert_allclose(whole(path, probe(path)), soundfile.read(path, dtype="float32")[0], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "codec", "rate", "video"),
    [("a.m4a", "aac", 44100, False), ("a.webm", "libopus", 48000, False), ("a.mp4", "aac", 44100, True)],
)
def test_pyav_formats(tmp_path: Path, name: str, codec: str, rate: int, video: bool) -> None:
    path = tmp_path / name
    audio = synth(rate, 3)[:, 0]
    encode(path, codec, rate, audio, video=video)
    found = probe(path)
    assert (found.reader, found.seekable, found.sample_rate, found.channels) == ("pyav", False, rate, 1)
    got = whole(path, found)
    assert abs(len(got) - len(audio)) < 4096
    assert 0.1 < got.std() < 0.5
    for start, stop in [(0, 10), (70001, 90003), (100000, None)]:
        np.testing.assert_array_equal(whole(path, found, start=start, stop=stop), got[start:stop])
    at_16k = whole_at(path, found, 16000)
    np.testing.assert_array_equal(whole_at(path, found, 16000, start=777, stop=30001), at_16k[777:30001])


# At 1000 Hz a decoded block is longer than a chunk.
@pytest.mark.parametrize("rate", [1000, 4000, 8000, 22051, 44100, 48000, 192000])
@pytest.mark.parametrize("container", ["WAV", "FLAC"])
def test_resampled_by_chunks(tmp_path: Path, rate: int, container: str) -> None:
    path = tmp_path / "a"
    audio = synth(rate, 47.123)
    soundfile.write(path, audio, rate, format=container, subtype="PCM_24")
    found = probe(path)
    got = whole_at(path, found, 16000)
    assert len(got) == -(-len(audio) * 16000 // rate)
    reference = soxr.resample(whole(path, found), rate, 16000, quality="HQ")
    n = min(len(got), len(reference))
    assert abs(len(got) - len(reference)) <= 1
    assert np.abs(got[:n] - reference[:n]).max() < 1e-5
    edge = 20 * 16000
    spans = [(0, 1), (edge - 3, edge + 3), (edge, 2 * edge), (5000, None), (len(got) - 1, None), (10**8, None)]
    for start, stop in spans:
        np.testing.assert_array_equal(whole_at(path, found, 16000, start=start, stop=stop), got[start:stop])


def test_resampled_slices_without_seeking(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    soundfile.write(path, synth(44100, 45), 44100)
    found = probe(path)
    assert not found.seekable
    got = whole_at(path, found, 16000)
    for start, stop in [(0, 400), (319990, 320010), (640000, 650000), (700000, None)]:
        np.testing.assert_array_equal(whole_at(path, found, 16000, start=start, stop=stop), got[start:stop])


@pytest.mark.parametrize("seconds", [20, 40])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_resampled_length_at_chunk_edges(tmp_path: Path, seconds: int, extra: int) -> None:
    path = tmp_path / "a.wav"
    frames = 44100 * seconds + extra
    soundfile.write(path, synth(44100, seconds + 1)[:frames], 44100)
    assert len(whole_at(path, probe(path), 16000)) == -(-frames * 16000 // 44100)


def test_same_rate_passes_through(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, synth(16000, 5), 16000)
    found = probe(path)
    np.testing.assert_array_equal(whole_at(path, found, 16000, start=9, stop=70000), whole(path, found)[9:70000])


@pytest.mark.parametrize("channels", [2, 5, 64])
def test_down_mix_is_the_plain_mean(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "a.wav"
    audio = synth(8000, 9, channels)
    soundfile.write(path, audio, 8000, subtype="FLOAT")
    found = probe(path)
    got = whole(path, found)
    np.testing.assert_allclose(got, audio.mean(1), atol=1e-6)
    np.testing.assert_array_equal(whole(path, found, start=123, stop=66001), got[123:66001])


def test_sixteen_bit_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    values = np.arange(-32768, 32768, dtype=np.int16)
    soundfile.write(path, values, 16000)
    np.testing.assert_array_equal(whole(path, probe(path)) * 32768, values)


def test_silence_and_one_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(44100), 44100)
    assert not whole_at(path, probe(path), 16000).any()
    soundfile.write(path, np.array([0.5]), 44100)
    found = probe(path)
    np.testing.assert_array_equal(whole(path, found), [0.5])
    assert whole_at(path, found, 16000).shape == (1,)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "a.wav"
    audio = synth(16000, 10)[:, 0]
    audio[112000] = bad
    soundfile.write(path, audio, 16000, subtype="FLOAT")
    found = probe(path)
    with pytest.raises(Rejected, match=r"7\.000 s") as caught:
        whole(path, found)
    assert (caught.value.stage, caught.value.reason) == ("decode", "not-finite")
    assert len(whole(path, found, stop=112000)) == 112000


def test_truncated_flac(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, synth(16000, 20), 16000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(Rejected) as caught:
        whole(path, probe(path))
    assert caught.value.reason == "damaged"
    assert " s: " in caught.value.detail


def test_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "device").symlink_to(os.devnull)
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("not audio at all\n" * 99)
    reasons = {"fifo": "named-pipe", "dangling": "missing", "loop": "link-loop", "device": "device", ".": "directory"}
    for name, reason in (reasons | {"empty": "empty", "text": "not-audio", "a\0b": "unreadable"}).items():
        with pytest.raises(Rejected) as caught:
            probe(os.path.join(tmp_path, name))
        assert (caught.value.stage, caught.value.reason) == ("probe", reason), name
        assert reason in REASONS


def test_rejected_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(Rejected("decode", "damaged", detail="x")))
    assert (again.stage, again.reason, again.detail) == ("decode", "damaged", "x")


def test_nasty_files(tmp_path: Path) -> None:
    if not (NASTY / "make_nasty.py").exists():
        pytest.skip("needs ../shared/nasty, which a clone alone lacks")
    subprocess.run([sys.executable, NASTY / "make_nasty.py", tmp_path / "n", "--special"], check=True)
    wrong = []
    with open(NASTY / "expect.csv", encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    assert len(rows) > 100
    for row in rows:
        path = os.path.join(tmp_path / "n", os.fsdecode(unquote_to_bytes(row["file"])))
        try:
            found = probe(path)
            frames = sum(len(block) for block in mono_blocks(path, found))
            assert frames > 0
            outcome = "done"
        except Rejected as error:
            str(error).encode()
            outcome = f"rejected, {error}"
        except Exception as error:
            outcome = f"crashed, {error!r}"
        print(row["file"], row["expect"], outcome)
        crashed = outcome.startswith("crashed")
        if crashed or (row["expect"] != "either" and not outcome.startswith(row["expect"])):
            wrong.append((row["file"], row["expect"], outcome))
    assert not wrong


def test_an_mp3_without_a_word_on_its_length_is_read_to_its_end(tmp_path: Path) -> None:
    """libsndfile guesses a length from the first frame and stops there; stream dumps and joined files go on."""
    rate = 16_000
    rng = np.random.default_rng(3)
    loud = rng.standard_normal(20 * rate) * 0.2
    # Silence after a loud start, at a variable bit rate: the guess from the first frame is far too short or too long.
    sound = np.concatenate([loud, np.zeros(40 * rate), loud]).clip(-1, 1)
    soundfile.write(tmp_path / "a.mp3", sound, rate, format="MP3", bitrate_mode="VARIABLE", compression_level=0.5)
    data = (tmp_path / "a.mp3").read_bytes()
    at = max(data.find(b"Xing"), data.find(b"Info"))
    assert at > 0
    # The frame after the one that tells the length.
    second = data.index(data[:2], at)
    (tmp_path / "bare.mp3").write_bytes(data[second:])
    (tmp_path / "joined.mp3").write_bytes(data[second:] * 3)
    # Each part tells its own length; the middle one begins with a tag, a picture of 8 kB in it.
    tag = b"ID3\x04\x00\x00\x00\x00\x40\x00" + rng.bytes(8192)
    (tmp_path / "whole-and-joined.mp3").write_bytes(data + tag + data + data)
    whole = sum(map(len, mono_blocks(tmp_path / "a.mp3", probe(tmp_path / "a.mp3"))))
    # As it is, and between the tags that people put there.
    (tmp_path / "tagged.mp3").write_bytes(tag + data + b"TAG" + bytes(125))
    assert probe(tmp_path / "a.mp3").reader == probe(tmp_path / "tagged.mp3").reader == "soundfile"
    for name, times in (("bare", 1), ("joined", 3), ("whole-and-joined", 3), ("tagged", 1)):
        found = probe(tmp_path / f"{name}.mp3")
        got = sum(map(len, mono_blocks(tmp_path / f"{name}.mp3", found)))
        assert got == pytest.approx(times * whole, abs=times * 4 * 1152), name
