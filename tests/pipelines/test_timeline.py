"""Places of sound in every container, against where it was put: clicks at known seconds, lost packets, joined files."""

import json
import os
import re
import struct
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from soundlake.pipelines.audio.blocks import BLOCK_FRAMES
from soundlake.pipelines.audio.reading import NOTES, Probe, Rejected, mono_blocks, probe
from soundlake.pipelines.audio.resampling import resampled
from tests.pipelines.hostile import call
from tests.pipelines.sounds import (
    CLICKS,
    SECONDS,
    SPEEX,
    clicks,
    closed_by_an_empty_packet,
    encode,
    granule,
    onsets,
    pages,
    remuxed,
    runs_of_zeros,
    sealed,
    vorbis,
    wav,
    with_serial,
)

# Of a place that search marks with "=".
WITHIN_S = 0.05


def read(path: Path) -> tuple[np.ndarray, Probe, set[str]]:
    found = probe(path)
    notes = set(found.notes)
    sound = np.concatenate(list(mono_blocks(path, found, note=notes.add)))
    assert notes <= NOTES.keys()
    return sound, found, notes


def same_slices(path: Path, found: Probe, sound: np.ndarray) -> None:
    """A span read alone is, bit for bit, what the whole has there; at another rate, too."""
    n = len(sound)
    for start, stop in [(0, 100), (n // 3, n // 3 + 5000), (n // 2, n // 2 + 70001), (n - 777, None), (n, None)]:
        got = list(mono_blocks(path, found, start=start, stop=stop))
        np.testing.assert_array_equal(np.concatenate([*got, np.zeros(0, np.float32)]), sound[start:stop])
    whole = np.concatenate(list(resampled(path, found, 16000)))
    got = np.concatenate(list(resampled(path, found, 16000, start=20000, stop=50001)))
    np.testing.assert_array_equal(got, whole[20000:50001])


# Name, codec of PyAV, rate, container of PyAV, options.
CODED = [
    ("a.m4a", "aac", 44100, None),
    ("a.mp4", "aac", 48000, None),
    ("alac.m4a", "alac", 44100, None),
    ("opus.mp4", "libopus", 48000, None),
    ("pcm.mov", "pcm_s16be", 44100, None),
    ("a.mov", "aac", 44100, None),
    ("a.3gp", "aac", 16000, None),
    ("a.mkv", "aac", 44100, None),
    ("vorbis.mka", "vorbis", 44100, "matroska"),
    ("flac.mka", "flac", 44100, "matroska"),
    ("pcm.mka", "pcm_s16le", 44100, "matroska"),
    ("mp3.mka", "libmp3lame", 44100, "matroska"),
    ("ac3.mka", "ac3", 48000, "matroska"),
    ("opus.webm", "libopus", 48000, None),
    ("vorbis.webm", "vorbis", 44100, None),
    ("aac.ts", "aac", 44100, None),
    ("mp2.ts", "mp2", 44100, None),
    ("opus.ts", "libopus", 48000, None),
    ("mp2.mpg", "mp2", 44100, None),
    ("a.aac", "aac", 44100, "adts"),
    ("xing.mp3", "libmp3lame", 44100, None),
    ("a.mp2", "mp2", 44100, None),
    ("a.ac3", "ac3", 48000, None),
    ("a.wma", "wmav2", 44100, "asf"),
    ("pcm.avi", "pcm_s16le", 44100, None),
    ("mp3.avi", "libmp3lame", 44100, None),
    ("a.flv", "aac", 44100, None),
    ("a.nut", "aac", 44100, None),
    ("vorbis.ogg", "vorbis", 44100, None),
    ("opus.opus", "libopus", 48000, "ogg"),
    ("flac.oga", "flac", 44100, "ogg"),
    ("alac.caf", "alac", 44100, None),
    ("a.wv", "wavpack", 44100, None),
    ("a.tta", "tta", 44100, None),
    ("a.flac", "flac", 44100, None),
    ("adpcm.wav", "adpcm_ima_wav", 44100, None),
]


@pytest.mark.parametrize(("name", "codec", "rate", "container"), CODED, ids=[row[0] for row in CODED])
def test_clicks_are_where_they_were_put(
    tmp_path: Path, name: str, codec: str, rate: int, container: str | None
) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {codec}")
    path = encode(tmp_path / name, codec, rate, clicks(rate), container=container)
    sound, found, notes = read(path)
    assert onsets(sound, found.sample_rate) == pytest.approx(CLICKS, abs=WITHIN_S)
    assert len(sound) / found.sample_rate == pytest.approx(SECONDS, abs=0.15)
    # Recorded by stamps that are rounded: nothing is put in, nothing left out.
    assert not notes & {"gaps", "overlaps", "chained", "more-data", "cut-short"}
    assert not runs_of_zeros(sound[found.sample_rate // 4 : -found.sample_rate // 4])


@pytest.mark.parametrize("options", [{"write_xing": "1"}, {"write_xing": "0"}])
def test_an_mp3_with_and_without_its_header(tmp_path: Path, options: dict[str, str]) -> None:
    sound, found, _ = read(encode(tmp_path / "a.mp3", "libmp3lame", 44100, clicks(44100), options=options))
    assert onsets(sound, found.sample_rate) == pytest.approx(CLICKS, abs=WITHIN_S)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        *((name, "PCM_16") for name in ("WAV", "RF64", "W64", "AIFF", "AU", "CAF", "FLAC")),
        *(("WAV", "PCM_24"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")),
    ],
)
def test_clicks_in_what_libsndfile_writes(tmp_path: Path, name: str, codec: str) -> None:
    path = tmp_path / "a.bin"
    if name == "OGG":
        vorbis(path, 48000, clicks(48000), codec)
    else:
        soundfile.write(path, clicks(48000), 48000, format=name, subtype=codec)
    sound, found, notes = read(path)
    assert found.sample_rate == 48000
    assert onsets(sound, 48000) == pytest.approx(CLICKS, abs=WITHIN_S)
    assert not notes


GAPS = [("a.webm", "libopus", 48000), ("a.mka", "libmp3lame", 44100), ("a.mka", "vorbis", 44100)]
GAPS += [("a.mka", "flac", 44100), ("a.m4a", "aac", 44100), ("a.ts", "aac", 44100), ("a.flv", "aac", 44100)]
GAPS += [
    ("a.opus", "libopus", 48000),
    ("a.ogg", "vorbis", 44100),
    ("a.nut", "aac", 44100),
    ("a.wma", "wmav2", 44100),
]


@pytest.mark.parametrize(("name", "codec", "rate"), GAPS, ids=[f"{row[1]} in {row[0][2:]}" for row in GAPS])
def test_packets_that_are_lost_leave_silence_of_their_length(tmp_path: Path, name: str, codec: str, rate: int) -> None:
    whole = encode(tmp_path / f"whole-{name}", codec, rate, clicks(rate))
    # A stamp of a transport stream begins at 1.4 s.
    first = read_start(whole)
    gappy = remuxed(whole, tmp_path / name, lambda second: None if 1.0 <= second - first < 2.5 else second)
    sound, found, notes = read(gappy)
    assert "gaps" in notes
    # The click at 1.9 s went with its packets; those before and after are where they were.
    assert onsets(sound, rate) == pytest.approx([CLICKS[0], CLICKS[2]], abs=WITHIN_S)
    assert max(runs_of_zeros(sound)) / rate == pytest.approx(1.5, abs=0.25)
    same_slices(gappy, found, sound)


def read_start(path: Path) -> float:
    with av.open(str(path)) as container:
        return (container.start_time or 0) / av.time_base


LATE = [
    ("a.mkv", "aac", "mpeg4"),
    ("a.mp4", "aac", "mpeg4"),
    ("a.webm", "libopus", "libvpx"),
    ("a.mov", "aac", "mpeg4"),
]
LATE += [
    ("a.ts", "aac", "mpeg2video"),
    ("a.mpg", "mp2", "mpeg2video"),
    ("a.flv", "aac", "flv"),
    ("a.nut", "aac", "mpeg4"),
]
LATE += [("a.asf", "wmav2", "mpeg4")]


@pytest.mark.parametrize(("name", "codec", "video"), LATE, ids=[row[0][2:] for row in LATE])
def test_sound_that_starts_late(tmp_path: Path, name: str, codec: str, video: str) -> None:
    if video not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {video}")
    path = encode(tmp_path / name, codec, 48000, clicks(48000), late=2.0, video=video)
    sound, found, notes = read(path)
    assert onsets(sound, 48000) == pytest.approx([2.0 + click for click in CLICKS], abs=WITHIN_S)
    assert notes == {"starts-late"}
    same_slices(path, found, sound)


def test_a_file_cut_out_of_a_longer_one_starts_at_zero(tmp_path: Path) -> None:
    """As players show it: what is earliest in the file is its start, whatever the stamp."""
    whole = encode(tmp_path / "whole.webm", "libopus", 48000, clicks(48000))
    later = remuxed(whole, tmp_path / "later.webm", lambda second: second + 5000)
    sound, _, notes = read(later)
    np.testing.assert_array_equal(sound, read(whole)[0])
    assert not notes


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_the_default_track_is_the_one_that_plays(tmp_path: Path, name: str) -> None:
    silent = np.zeros(round(44100 * SECONDS))
    sound, _, notes = read(encode(tmp_path / name, "aac", 44100, silent, tracks=(clicks(44100),)))
    assert onsets(sound, 44100) == pytest.approx(CLICKS, abs=WITHIN_S)
    assert notes == {"several-tracks"}


def test_jitter_of_stamps_moves_no_sample(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mka", "libopus", 48000, clicks(48000), container="matroska")
    rng = np.random.default_rng(0)
    uneven = remuxed(whole, tmp_path / "uneven.mka", lambda second: max(0, second + rng.uniform(-0.009, 0.009)))
    sound, _, notes = read(uneven)
    np.testing.assert_array_equal(sound, read(whole)[0])
    assert not notes


def test_a_clock_that_drifts_is_followed(tmp_path: Path) -> None:
    """Stamps of a clock that is 2 % slow or fast: places stay with them, to the tolerance."""
    whole = encode(tmp_path / "whole.mka", "libopus", 48000, clicks(48000), container="matroska")
    for factor, note in ((1.02, "gaps"), (0.98, "overlaps")):
        sound, _, notes = read(remuxed(whole, tmp_path / f"{factor}.mka", lambda second, f=factor: second * f))
        assert notes == {note}
        assert onsets(sound, 48000) == pytest.approx([factor * click for click in CLICKS], abs=WITHIN_S)


def rejection(path: Path) -> Rejected:
    with pytest.raises(Rejected) as caught:
        read(path)
    return caught.value


def with_a_cluster_back(path: Path, milliseconds: int) -> Path:
    """A Matroska whose third cluster has a stamp from before: no library writes such a thing."""
    options = {"cluster_time_limit": "1000"}
    data = encode(path, "libopus", 48000, clicks(48000), container="matroska", options=options).read_bytes()
    third = [found.start() for found in re.finditer(rb"\x1f\x43\xb6\x75", data)][2]
    # The element of the time, of two bytes.
    at = data.index(b"\xe7\x82", third) + 2
    (time,) = struct.unpack(">H", data[at : at + 2])
    path.write_bytes(data[:at] + struct.pack(">H", time - milliseconds) + data[at + 2 :])
    return path


def test_hostile_stamps(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mka", "libopus", 48000, clicks(48000), container="matroska")
    far = rejection(remuxed(whole, tmp_path / "far.mka", lambda second: second + 3700 * (second > 2)))
    back = rejection(with_a_cluster_back(tmp_path / "back.mka", 1500))
    # Each shorter than an hour, and in all more than the sound bears.
    many = rejection(remuxed(whole, tmp_path / "many.mka", lambda second: second + 1500 * int(second)))
    assert {one.reason for one in (far, back, many)} == {"time-stamps"}
    assert "3700 s" in far.detail
    assert "back by 1.5" in back.detail


def test_a_gap_takes_no_memory(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.mka", "libopus", 48000, clicks(48000), container="matroska")
    path = remuxed(whole, tmp_path / "gap.mka", lambda second: second + 3000 * (second > 2))
    found = probe(path)
    tracemalloc.start()
    total, longest = 0, 0
    for block in mono_blocks(path, found):
        total, longest = total + len(block), max(longest, len(block))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total / 48000 == pytest.approx(3000 + SECONDS, abs=0.1)
    assert longest < 2 * BLOCK_FRAMES
    assert peak < 8 * 4 * BLOCK_FRAMES


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS", "FLAC"])
@pytest.mark.parametrize("rates", [(48000, 48000, 48000), (48000, 24000, 48000)])
def test_chained_ogg_is_one_recording(tmp_path: Path, codec: str, rates: tuple[int, ...]) -> None:
    data = b""
    for link, rate in enumerate(rates):
        path, sound = tmp_path / f"{link}.ogg", clicks(rate, seed=link)
        if codec == "FLAC":
            encode(path, "flac", rate, sound)
        else:
            vorbis(path, rate, sound, codec)
        data += with_serial(path.read_bytes(), 100 + link)
    (tmp_path / "chain.ogg").write_bytes(data)
    sound, found, notes = read(tmp_path / "chain.ogg")
    wanted = [link * SECONDS + click for link in range(3) for click in CLICKS]
    assert onsets(sound, 48000) == pytest.approx(wanted, abs=WITHIN_S)
    assert len(sound) / 48000 == pytest.approx(3 * SECONDS, abs=0.05)
    assert (found.sample_rate, notes) == (48000, {"chained"})
    same_slices(tmp_path / "chain.ogg", found, sound)
    if codec == "VORBIS":
        # The first link is what another decoder makes of it.
        first = soundfile.read(tmp_path / "0.ogg", dtype="float32")[0]
        np.testing.assert_allclose(sound[: len(first)], first, atol=1e-6)


def test_chains_of_other_kinds(tmp_path: Path) -> None:
    flac, webm = tmp_path / "a.flac", encode(tmp_path / "a.webm", "libopus", 48000, clicks(48000))
    soundfile.write(flac, clicks(48000), 48000)
    stream = encode(tmp_path / "a.ts", "aac", 48000, clicks(48000))
    others = {
        codec: encode(tmp_path / f"a.{container}", codec, 48000, clicks(48000)).read_bytes()
        for container, codec in (("m4a", "alac"), ("flv", "aac"), ("tta", "tta"), ("wma", "wmav2"))
    }
    tag = b"ID3\x04\0\0\0\0\x10\0" + bytes(2048)
    for name, data in {
        **{codec: data * 2 for codec, data in others.items()},
        "flac": flac.read_bytes() * 2,
        "tagged": flac.read_bytes() + tag + flac.read_bytes(),
        "webm": webm.read_bytes() * 2,
        "ts": stream.read_bytes() * 2,
        "mixed": vorbis(tmp_path / "v", 48000, clicks(48000)).read_bytes()
        + with_serial(vorbis(tmp_path / "o", 48000, clicks(48000), "OPUS").read_bytes(), 7),
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        sound, found, notes = read(path)
        wanted = [*CLICKS, *(SECONDS + click for click in CLICKS)]
        assert onsets(sound, found.sample_rate) == pytest.approx(wanted, abs=2 * WITHIN_S), name
        assert notes == {"chained"}, name


def test_pages_that_are_lost(tmp_path: Path) -> None:
    """libsndfile closed the gap of Vorbis, and repeated sound in Opus."""
    for codec in ("VORBIS", "OPUS"):
        data = vorbis(tmp_path / "whole", 48000, clicks(48000), codec).read_bytes()
        kept = [page for page in pages(data) if not 1.0 < granule(page) / 48000 < 2.6]
        assert len(kept) < len(pages(data))
        (tmp_path / codec).write_bytes(b"".join(kept))
        sound, _, notes = read(tmp_path / codec)
        assert onsets(sound, 48000)[-1] == pytest.approx(CLICKS[2], abs=WITHIN_S)
        assert len(sound) / 48000 == pytest.approx(SECONDS, abs=0.05)
        assert notes == {"gaps"}


@pytest.mark.parametrize("codec", ["VORBIS", "OPUS", "FLAC"])
def test_an_ogg_cut_out_of_a_stream_starts_at_zero(tmp_path: Path, codec: str) -> None:
    """A dump of a radio station: headers, and pages that begin a quarter of an hour into the stream."""
    path = tmp_path / "a.ogg"
    if codec == "FLAC":
        encode(path, "flac", 48000, clicks(48000))
    else:
        vorbis(path, 48000, clicks(48000), codec)
    later = [
        sealed(page[:6] + struct.pack("<q", granule(page) + 900 * 48000) + page[14:]) if granule(page) > 0 else page
        for page in pages(path.read_bytes())
    ]
    (tmp_path / "later.ogg").write_bytes(b"".join(later))
    sound, _, notes = read(tmp_path / "later.ogg")
    assert onsets(sound, 48000) == pytest.approx(CLICKS, abs=WITHIN_S)
    assert not notes


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_the_input_rate_of_opus_only_informs(tmp_path: Path, rate: int) -> None:
    head, *rest = pages(vorbis(tmp_path / "a.opus", 48000, clicks(48000), "OPUS").read_bytes())
    at = head.index(b"OpusHead") + 12
    path = tmp_path / "other.opus"
    path.write_bytes(sealed(head[:at] + struct.pack("<I", rate) + head[at + 4 :]) + b"".join(rest))
    sound, found, _ = read(path)
    assert found.sample_rate == 48000
    np.testing.assert_array_equal(sound, read(tmp_path / "a.opus")[0])


@pytest.mark.parametrize("codec", ["speex", "VORBIS", "OPUS"])
@pytest.mark.parametrize("segments", [b"", b"\0"])
def test_an_empty_last_packet_is_no_damage(tmp_path: Path, codec: str, segments: bytes) -> None:
    path = tmp_path / "a.ogg"
    if codec == "speex":
        path.write_bytes(SPEEX)
    else:
        vorbis(path, 48000, clicks(48000), codec)
    (tmp_path / "closed").write_bytes(closed_by_an_empty_packet(path.read_bytes(), segments))
    sound, found, notes = read(tmp_path / "closed")
    seconds = 0.3 if codec == "speex" else SECONDS
    assert len(sound) / found.sample_rate == pytest.approx(seconds, abs=0.05)
    # What the page stands behind is all there; codecs are exact to their padding.
    whole = read(path)[0]
    shorter = min(len(sound), len(whole))
    np.testing.assert_array_equal(sound[:shorter], whole[:shorter])
    assert not notes


def test_a_wav_beyond_four_gigabytes_is_read_whole(tmp_path: Path) -> None:
    """Its size field begins again at 0. Sparse: only what is written takes space."""
    rate, declared = 48000, 96000
    path = tmp_path / "a.wav"
    head = wav(clicks(rate, seconds=1.0), rate, declared=declared)
    size = len(head) + 2**32
    end = wav(clicks(rate, seconds=1.0, at=(0.5,)), rate)[44:]
    with open(path, "wb") as file:
        file.write(head + end)
        file.seek(size - len(end))
        file.write(end)
        assert file.tell() == size
    found = probe(path)
    frames = (declared + 2**32) // 2
    assert (found.claimed_frames, found.seekable, found.notes) == (frames, True, ("size-wrapped",))
    last = np.concatenate(list(mono_blocks(path, found, start=frames - rate)))
    np.testing.assert_array_equal(last * 32768, np.frombuffer(end, "<i2"))
    piece = np.concatenate(list(mono_blocks(path, found, start=frames - rate + 5, stop=frames - 7)))
    np.testing.assert_array_equal(piece, last[5:-7])
    # With a chunk behind it, which is no sound.
    with open(path, "ab") as file:
        file.write(b"LIST" + struct.pack("<I", 9000) + b"INFO" + bytes(8996))
    assert probe(path) == found


def test_data_beyond_what_the_header_declares_is_noted(tmp_path: Path) -> None:
    sound = clicks(44100)
    data = wav(sound, 44100)
    short = wav(sound, 44100, declared=44100)
    info = b"LIST" + struct.pack("<I", 9004) + b"INFO" + bytes(range(256)) * 35 + bytes(40)
    for name, held, wanted in (
        ("small", short, {"more-data"}),
        ("joined", data + data, {"more-data"}),
        ("twice", wav(sound[:44100], 44100, after=data[36:]), {"more-data"}),
        ("cut", wav(sound, 44100, declared=4 * len(data)), {"cut-short"}),
        ("open", wav(sound, 44100, declared=0xFFFFFFFF), set()),
        ("piped", wav(sound, 44100, declared=0x7FFFF024), set()),
        ("list", data + info, set()),
        ("tag", data + b"TAG" + bytes(125), set()),
        ("padded", data + bytes(60000), set()),
        ("unpadded", wav(sound[:999], 44100, declared=1997)[:-1] + info, set()),
    ):
        (tmp_path / name).write_bytes(held)
        found = probe(tmp_path / name)
        assert set(found.notes) == wanted, name
    # What a player plays of it; the rest is told.
    assert len(read(tmp_path / "small")[0]) == 22050


@pytest.mark.parametrize("name", ["AIFF", "AU", "CAF", "W64", "RF64"])
def test_other_headers_that_declare_too_little(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a"
    soundfile.write(path, clicks(44100), 44100, format=name, subtype="PCM_16")
    data, n = path.read_bytes(), round(2 * 44100 * SECONDS)
    fields = {"AIFF": ">I", "AU": ">I", "CAF": ">q", "W64": "<Q", "RF64": "<Q"}
    for size in (n, n + 4, n + 8, n + 24):
        old = struct.pack(fields[name], size)
        if old in data[:4096]:
            at = data.index(old)
            break
    small = data[:at] + struct.pack(fields[name], size - n + n // 4) + data[at + len(old) :]
    path.write_bytes(small)
    sound, _, notes = read(path)
    # Either all of it was read, by another field of the header, or it is told that it was not.
    assert (len(sound) == n // 2) != (notes == {"more-data"})


def test_a_length_in_the_header_that_is_too_small(tmp_path: Path) -> None:
    """FLAC and MP3: libsndfile stops there."""
    flac, mp3 = tmp_path / "a.flac", tmp_path / "a.mp3"
    soundfile.write(flac, clicks(44100), 44100)
    data = flac.read_bytes()
    total = int.from_bytes(data[18:26]) >> 36 << 36 | 44100
    flac.write_bytes(data[:18] + total.to_bytes(8) + data[26:])
    encode(mp3, "libmp3lame", 44100, clicks(44100))
    data = mp3.read_bytes()
    at = max(data.find(b"Xing"), data.find(b"Info")) + 8
    (frames,) = struct.unpack(">I", data[at : at + 4])
    mp3.write_bytes(data[:at] + struct.pack(">I", frames // 4) + data[at + 4 :])
    for path in (flac, mp3):
        sound, found, notes = read(path)
        assert len(sound) < 2 * 44100
        assert found.reader == "soundfile"
        assert notes == {"more-data"}


def test_a_flac_with_tags_around_it(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, clicks(44100), 44100)
    whole, data = read(path)[0], path.read_bytes()
    ape = b"APETAGEX" + struct.pack("<IIII", 2000, 9000 + 32, 1, 0) + bytes(8)
    for tagged in (b"ID3\x04\0\0\0\0\x10\0" + bytes(2048) + data, data + b"TAG" + bytes(125), data + bytes(9000) + ape):
        path.write_bytes(tagged)
        sound, _, notes = read(path)
        np.testing.assert_array_equal(sound, whole)
        assert not notes


def test_notes_in_ledger_and_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, lake = tmp_path / "corpus", str(tmp_path / "lake")
    corpus.mkdir()
    first = vorbis(tmp_path / "1.ogg", 44100, clicks(44100)).read_bytes()
    second = with_serial(vorbis(tmp_path / "2.ogg", 44100, clicks(44100, seed=2)).read_bytes(), 9)
    (corpus / "chain.ogg").write_bytes(first + second)
    (corpus / "copy.ogg").write_bytes(first + second)
    (corpus / "small.wav").write_bytes(wav(clicks(44100), 44100, declared=44100))
    (corpus / "good.wav").write_bytes(wav(clicks(44100), 44100))
    whole = encode(tmp_path / "whole.webm", "libopus", 48000, clicks(48000))
    remuxed(whole, corpus / "gap.webm", lambda second: None if 1.0 <= second < 2.5 else second)
    remuxed(whole, corpus / "hostile.webm", lambda second: second + 4000 * (second > 2))
    half = encode(tmp_path / "whole.mp3", "libmp3lame", 44100, clicks(44100))
    (corpus / "half.mp3").write_bytes(half.read_bytes()[: half.stat().st_size * 2 // 3])
    assert call(capsys, "extract", str(corpus), "--lake", lake)[0] == 0
    # Known by its content: nothing is decoded, and the notes are told of this name, too.
    os.link(corpus / "chain.ogg", corpus / "link.ogg")
    assert call(capsys, "extract", str(corpus), "--lake", lake)[0] == 0
    (said,) = json.loads(call(capsys, "status", "--lake", lake, "--json")[1])["specs"].values()
    assert {kind: one["count"] for kind, one in said["notes"].items()} == {
        "chained": 3,
        "gaps": 1,
        "more-data": 1,
        "other-length": 1,
    }
    assert said["notes"]["chained"]["example"]["uri"].endswith("/chain.ogg")
    assert said["notes"]["chained"]["example"]["duration_s"] == pytest.approx(2 * SECONDS, abs=0.05)
    assert {reason: one["count"] for reason, one in said["rejects"].items()} == {"time-stamps": 1}
    assert (said["listed"], said["done"], said["recordings"]) == (8, 7, 5)
    code, out, _ = call(capsys, "status", "--lake", lake)
    lines = [line for line in out.splitlines() if " done, " in line]
    assert (code, len(lines)) == (0, 4)
    assert "3  done, chained: " + NOTES["chained"] in lines[0]


@pytest.mark.parametrize("rate", [8000, 44_100])
def test_a_whole_vorbis_stream_has_the_samples_that_were_put_in(tmp_path: Path, rate: int) -> None:
    """FFmpeg lets some begin a few hundred samples late, and end as much later than their last page says."""
    sound = clicks(rate, seconds=3.9, at=(0.5, 1.9, 3.1))
    path = vorbis(tmp_path / "a.ogg", rate, sound)
    decoded = np.concatenate(list(mono_blocks(path, probe(path))))
    assert len(decoded) == len(sound)
    assert onsets(decoded, rate) == pytest.approx(onsets(sound, rate), abs=0.01)
