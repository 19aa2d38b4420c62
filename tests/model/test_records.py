"""Records and framing: byte for byte what TensorFlow writes, and damage never passes."""

import io
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundlake.model.features.records import DamagedShardError, Record, decode, encode, read_framed, write_framed


def record(window: int = 3, valid: int = 8, seed: int = 0) -> Record:
    values = np.random.default_rng(seed).integers(0, 65_536, (8, 4), dtype=np.uint16)
    return Record("ab" * 32, window, valid, values)


def framed(*parts: bytes) -> bytes:
    sink = io.BytesIO()
    for part in parts:
        write_framed(sink, part)
    return sink.getvalue()


@given(window=st.integers(0, 2**31 - 1), valid=st.integers(1, 8))
def test_round_trip(window: int, valid: int) -> None:
    one = record(window, valid)
    back = decode(encode(one), window_frames=8, n_mels=4)
    assert (back.recording_id, back.window, back.valid_frames) == (one.recording_id, window, valid)
    np.testing.assert_array_equal(back.values, one.values)


def test_bytes_are_tensorflows(tmp_path: Path) -> None:
    import tensorflow as tf

    one = record(window=300)
    feature = {
        "recording_id": tf.train.Feature(bytes_list=tf.train.BytesList(value=[one.recording_id.encode()])),
        "valid_frames": tf.train.Feature(int64_list=tf.train.Int64List(value=[8])),
        "values": tf.train.Feature(bytes_list=tf.train.BytesList(value=[one.values.tobytes()])),
        "window": tf.train.Feature(int64_list=tf.train.Int64List(value=[300])),
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    assert encode(one) == example.SerializeToString(deterministic=True)
    with tf.io.TFRecordWriter(str(tmp_path / "t")) as writer:
        writer.write(encode(one))
        writer.write(b"")
    assert (tmp_path / "t").read_bytes() == framed(encode(one), b"")


def test_framing_round_trip() -> None:
    parts = [b"", b"x", encode(record())]
    assert list(read_framed(io.BytesIO(framed(*parts)))) == parts


def test_every_flipped_byte_is_found() -> None:
    whole = framed(b"first", b"second record")
    for at in range(len(whole)):
        bad = bytearray(whole)
        bad[at] ^= 0x10
        with pytest.raises(DamagedShardError):
            list(read_framed(io.BytesIO(bytes(bad))))


def test_every_cut_is_found() -> None:
    whole = framed(b"first", b"second record")
    border = len(framed(b"first"))
    for length in range(1, len(whole)):
        if length != border:
            with pytest.raises(DamagedShardError):
                list(read_framed(io.BytesIO(whole[:length])))


def test_an_absurd_length_is_not_believed() -> None:
    with pytest.raises(DamagedShardError, match="length"):
        list(read_framed(io.BytesIO(struct.pack("<QI", 2**62, 0) + b"x" * 100)))


def test_a_length_that_somebody_made_fit_its_checksum_is_not_believed() -> None:
    """The checksum is TensorFlow's: a rotated CRC-32C and a constant. It keeps out damage, and no person."""
    length = struct.pack("<Q", 2**45)
    crc = google_crc32c.value(length)
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    with pytest.raises(DamagedShardError, match="more than any window has"):
        list(read_framed(io.BytesIO(length + struct.pack("<I", masked) + b"x" * 100)))


@pytest.mark.parametrize(("window", "valid"), [(-1, 8), (2**31, 8), (0, 0), (0, -3), (0, 9)])
def test_numbers_that_no_record_has(window: int, valid: int) -> None:
    with pytest.raises(DamagedShardError, match="valid frames"):
        decode(encode(record(window, valid)), window_frames=8, n_mels=4)


@pytest.mark.parametrize("data", [b"", b"\xff" * 40, encode(record())[:-1], encode(record())[5:]])
def test_what_is_no_record(data: bytes) -> None:
    with pytest.raises(DamagedShardError):
        decode(data, window_frames=8, n_mels=4)


def test_another_shape() -> None:
    with pytest.raises(DamagedShardError, match="16 x 4"):
        decode(encode(record()), window_frames=16, n_mels=4)
