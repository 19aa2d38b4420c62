"""One window as a tf.train.Example in a TFRecord file, both ways, without TensorFlow.

Workers that write shards and workers that encode windows never import TensorFlow. The output is byte for byte that of
``tf.train.Example`` (keys sorted) and ``tf.io.TFRecordWriter``; tests check this.
"""

import functools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, BinaryIO

import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

# Largest size of a record. The largest window that a spec allows has 16 MiB. A length has a checksum, but a forged one
# can still be wrong.
MOST_BYTES = 32 << 20

# Feature names.
RECORDING_ID, VALID_FRAMES, VALUES, WINDOW = "recording_id", "valid_frames", "values", "window"


class DamagedShardError(ValueError):
    """A shard is damaged: a length or a checksum is wrong, or a record is cut short."""


@dataclass(frozen=True)
class Record:
    """One window.

    Attributes
    ----------
    recording_id : str
        SHA-256 of the recording's bytes, 64 hexadecimal digits.
    window : int
        Number of the window in the recording: it starts at frame ``window * spec.window_step``.
    valid_frames : int
        Frames with sound of the recording; the remaining frames, at the end, are padding.
    values : ndarray of uint16, shape (window_frames, n_mels)
        Quantised log-mel (`model.features.log_mel.quantise`).
    """

    recording_id: str
    window: int
    valid_frames: int
    values: npt.NDArray[np.uint16]


@functools.cache
def _example() -> Any:
    """``tf.train.Example`` as a protobuf message class, from TensorFlow's example.proto and feature.proto."""
    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")

    def message(of: Any, name: str, *fields: tuple[str, int, int, str], repeated: bool = False, **where: Any) -> Any:
        descriptor = of.add(name=name)
        for field, number, type_, type_name in fields:
            label = kind.LABEL_REPEATED if repeated else kind.LABEL_OPTIONAL
            descriptor.field.add(
                name=field, number=number, type=type_, type_name=type_name or None, label=label, **where
            )
        return descriptor

    messages = file.message_type
    message(messages, "BytesList", ("value", 1, kind.TYPE_BYTES, ""), repeated=True)
    message(messages, "Int64List", ("value", 1, kind.TYPE_INT64, ""), repeated=True)
    lists = ("bytes_list", 1, kind.TYPE_MESSAGE, "BytesList"), ("int64_list", 3, kind.TYPE_MESSAGE, "Int64List")
    message(messages, "Feature", *lists, oneof_index=0).oneof_decl.add(name="kind")
    features = message(messages, "Features", ("feature", 1, kind.TYPE_MESSAGE, "Features.FeatureEntry"), repeated=True)
    pair = ("key", 1, kind.TYPE_STRING, ""), ("value", 2, kind.TYPE_MESSAGE, "Feature")
    message(features.nested_type, "FeatureEntry", *pair).options.map_entry = True
    message(messages, "Example", ("features", 1, kind.TYPE_MESSAGE, "Features"))
    # A separate pool: TensorFlow, if it is imported, registers the same names in the default pool.
    return message_factory.GetMessages([file], descriptor_pool.DescriptorPool())["tensorflow.Example"]


def encode(record: Record) -> bytes:
    """A window as a serialised ``tf.train.Example``; `values` as little-endian bytes, frames first."""
    example = _example()()
    feature = example.features.feature
    feature[RECORDING_ID].bytes_list.value.append(record.recording_id.encode())
    feature[VALID_FRAMES].int64_list.value.append(record.valid_frames)
    feature[VALUES].bytes_list.value.append(record.values.astype("<u2", copy=False).tobytes())
    feature[WINDOW].int64_list.value.append(record.window)
    return bytes(example.SerializeToString(deterministic=True))


def decode(data: bytes, *, window_frames: int, n_mels: int) -> Record:
    """The inverse of `encode`.

    Raises
    ------
    DamagedShardError
        If `data` is not a record of this shape.
    """
    try:
        feature = _example().FromString(data).features.feature
        record = Record(
            recording_id=feature[RECORDING_ID].bytes_list.value[0].decode(),
            window=feature[WINDOW].int64_list.value[0],
            valid_frames=feature[VALID_FRAMES].int64_list.value[0],
            values=np.frombuffer(feature[VALUES].bytes_list.value[0], "<u2").reshape(window_frames, n_mels),
        )
        if not (0 <= record.window < 2**31 and 1 <= record.valid_frames <= window_frames):
            raise ValueError(f"window {record.window}, {record.valid_frames} valid frames")
        return record
    except (DecodeError, IndexError, ValueError) as error:
        raise DamagedShardError(f"not a record of {window_frames} x {n_mels} values: {error!r}") from error


def recording_of(data: bytes) -> str:
    """The recording_id of a serialised window of any shape.

    Raises
    ------
    DamagedShardError
        If `data` is not a window.
    """
    try:
        return str(_example().FromString(data).features.feature[RECORDING_ID].bytes_list.value[0].decode())
    except (DecodeError, IndexError, ValueError) as error:
        raise DamagedShardError(f"not a window: {error!r}") from error


def _masked_crc(data: bytes) -> int:
    import google_crc32c

    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def write_framed(file: IO[bytes], data: bytes) -> None:
    """Append one record to a TFRecord file: length, checksum of the length, data, checksum of the data."""
    length = struct.pack("<Q", len(data))
    file.write(length + struct.pack("<I", _masked_crc(length)) + data + struct.pack("<I", _masked_crc(data)))


def read_framed(file: BinaryIO) -> Iterator[bytes]:
    """Yield the records of a TFRecord file, with checksums verified.

    Raises
    ------
    DamagedShardError
        At the first record whose length or checksum is wrong; the message contains its number.
    """
    number = 0
    while header := file.read(12):
        if len(header) < 12 or struct.unpack("<I", header[8:])[0] != _masked_crc(header[:8]):
            raise DamagedShardError(f"record {number}: its length is damaged")
        size = struct.unpack("<Q", header[:8])[0]
        if size > MOST_BYTES:
            raise DamagedShardError(f"record {number}: it claims {size} bytes, more than any window has")
        data, footer = file.read(size), file.read(4)
        if len(data) < size or len(footer) < 4 or struct.unpack("<I", footer)[0] != _masked_crc(data):
            raise DamagedShardError(f"record {number}: its checksum is wrong or it is cut short")
        yield data
        number += 1
