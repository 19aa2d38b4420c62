"""One window as a tf.train.Example in a TFRecord file, both ways, without TensorFlow.

Workers that write shards and workers that encode them never import TensorFlow. What is written here is byte for byte
what ``tf.train.Example`` (keys sorted) and ``tf.io.TFRecordWriter`` write; the tests hold it to that.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

# Feature names, in the order in which a map with sorted keys is written.
RECORDING_ID, VALID_FRAMES, VALUES, WINDOW = "recording_id", "valid_frames", "values", "window"


class DamagedShardError(ValueError):
    """A shard's bytes are not what was written: a length or a checksum is wrong, or a record is cut."""


@dataclass(frozen=True)
class Record:
    """One window.

    Attributes
    ----------
    recording_id : str
        SHA-256 of the recording's bytes, 64 hexadecimal digits.
    window : int
        Place in the recording: the window starts at frame ``window * spec.window_step``.
    valid_frames : int
        Frames that hold sound of the recording; the rest, at the end, is padding.
    values : ndarray of uint16, shape (window_frames, n_mels)
        Quantised log-mel (`model.features.quantise`).
    """

    recording_id: str
    window: int
    valid_frames: int
    values: npt.NDArray[np.uint16]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _bytes_feature(name: str, value: bytes) -> bytes:
    return _field(1, _field(1, name.encode()) + _field(2, _field(1, _field(1, value))))


def _int_feature(name: str, value: int) -> bytes:
    return _field(1, _field(1, name.encode()) + _field(2, _field(3, _field(1, _varint(value)))))


def encode(record: Record) -> bytes:
    """A window as a serialised ``tf.train.Example``; `values` as little-endian bytes, frames first."""
    return _field(
        1,
        _bytes_feature(RECORDING_ID, record.recording_id.encode())
        + _int_feature(VALID_FRAMES, record.valid_frames)
        + _bytes_feature(VALUES, record.values.astype("<u2", copy=False).tobytes())
        + _int_feature(WINDOW, record.window),
    )


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Fields of a protobuf message that holds varints and length-delimited fields only."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        value, at = _read_varint(data, at)
        if tag & 7 == 2:
            if at + value > len(data):
                raise DamagedShardError("a field runs past the end of its record")
            yield tag >> 3, data[at : at + value]
            at += value
        elif tag & 7 == 0:
            yield tag >> 3, value
        else:
            raise DamagedShardError(f"a field of wire type {tag & 7}")


def _only(data: memoryview) -> memoryview:
    value = next(_fields(data))[1]
    assert isinstance(value, memoryview)
    return value


def decode(data: bytes, *, window_frames: int, n_mels: int) -> Record:
    """The inverse of `encode`.

    Raises
    ------
    DamagedShardError
        If `data` is not a record of this shape.
    """
    found: dict[str, memoryview] = {}
    try:
        for _, entry in _fields(_only(memoryview(data))):
            assert isinstance(entry, memoryview)
            pair = dict(_fields(entry))
            name, feature = pair[1], pair[2]
            assert isinstance(name, memoryview)
            assert isinstance(feature, memoryview)
            found[bytes(name).decode()] = _only(_only(feature))
        return Record(
            recording_id=bytes(found[RECORDING_ID]).decode(),
            window=_read_varint(found[WINDOW], 0)[0],
            valid_frames=_read_varint(found[VALID_FRAMES], 0)[0],
            values=np.frombuffer(found[VALUES], "<u2").reshape(window_frames, n_mels),
        )
    except (AssertionError, IndexError, KeyError, StopIteration, UnicodeDecodeError, ValueError) as error:
        raise DamagedShardError(f"not a record of {window_frames} x {n_mels} values: {error!r}") from error


def _masked_crc(data: bytes) -> int:
    import google_crc32c

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write_framed(file: BinaryIO, data: bytes) -> None:
    """Append one record to a TFRecord file: length, checksum of the length, data, checksum of the data."""
    length = struct.pack("<Q", len(data))
    file.write(length + struct.pack("<I", _masked_crc(length)) + data + struct.pack("<I", _masked_crc(data)))


def read_framed(file: BinaryIO) -> Iterator[bytes]:
    """Records of a TFRecord file, checksums verified.

    Raises
    ------
    DamagedShardError
        At the first record whose length or checksum is wrong, with its number.
    """
    number = 0
    while header := file.read(12):
        if len(header) < 12 or struct.unpack("<I", header[8:])[0] != _masked_crc(header[:8]):
            raise DamagedShardError(f"record {number}: its length is damaged")
        size = struct.unpack("<Q", header[:8])[0]
        data, footer = file.read(size), file.read(4)
        if len(data) < size or len(footer) < 4 or struct.unpack("<I", footer)[0] != _masked_crc(data):
            raise DamagedShardError(f"record {number}: its checksum is wrong or it is cut short")
        yield data
        number += 1
