"""Find the place of the sound in a file's bytes, where decoders miss some of it.

Decoders read only the first of several streams that are chained in one file, and they stop at the size that a header
declares. They report neither. The functions here find the rest. They only read an open file, and decode nothing.
"""

import functools
import io
import itertools
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from soundlake.pipelines.audio.isolation import alive

# A genuine file chains at most this many streams, such as the recording of a radio station for a month.
MOST_LINKS = 10_000
# Number of bytes after the declared end of the sound from which a note is made. Fewer are padding or a tag.
WORTH_TELLING = 4096
# Declared sizes from here on mean that the writer did not know the size yet: programs then write all ones, or about the
# largest signed number.
OPEN_SIZE = 0x7FFF_F000
_READ_BYTES = 1 << 20
# Greatest length of an Ogg page.
_PAGE_BYTES = 65_536
_PAGE = re.compile(rb"OggS\0")
# The first bytes of files of some formats; each pattern is too long to occur by chance. FLAC: its mark and the header
# of STREAMINFO, which always has 34 bytes and may or may not be the last block of metadata. Matroska and WebM: an EBML
# header with one of these document types. FLV. TTA, with its number of channels and bits. ASF.
_BEGINNINGS = (
    re.compile(rb"fLaC[\0\x80]\0\0\x22"),
    re.compile(rb"\x1a\x45\xdf\xa3.{0,48}?\x42\x82.(?:webm|matroska)", re.DOTALL),
    re.compile(rb"FLV\x01[\x01\x04\x05]\0\0\0\x09\0\0\0\0"),
    re.compile(rb"TTA1[\x01-\x03]\0[\x01-\x10]\0[\x08\x10\x18\x20]\0"),
    re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c"),
)
# Greatest length of a match.
_PATTERN_BYTES = 64


class Part(io.RawIOBase):
    """Bytes [begin, end) of a file, as a separate file."""

    def __init__(self, file: BinaryIO, begin: int, end: int) -> None:
        self._file, self._begin, self._size, self._at = file, begin, end - begin, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        self._file.seek(self._begin + self._at)
        wanted = min(len(buffer), max(0, self._size - self._at))
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def id3_bytes(head: bytes) -> int:
    """Length of the ID3v2 tag that begins with these ten bytes, header included; 0 if they begin no tag."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + functools.reduce(lambda total, byte: total << 7 | byte & 0x7F, head[6:10], 0)


def closing_tags(file: BinaryIO, size: int) -> int:
    """Number of bytes of the tags at a file's end: ID3v1, and APEv2 before it."""
    file.seek(max(0, size - 160))
    tail = file.read(160)
    id3v1 = 128 if tail[-128:-125] == b"TAG" else 0
    footer = tail[len(tail) - id3v1 - 32 : len(tail) - id3v1]
    if footer[:8] != b"APETAGEX":
        return id3v1
    length, _, flags = struct.unpack("<III", footer[12:24])
    # The length includes the footer, but not a header.
    return id3v1 + int(length) + (32 if flags >> 31 else 0)


def tells_its_length(file: BinaryIO) -> bool:
    """Whether an MP3 declares its length in its first frame and ends there; files that were joined into one continue.

    The length is in a Xing header (Info, at a constant bit rate) or a VBRI header, read as in FFmpeg's mp3dec.c.
    """
    start, tag = 0, -1
    while tag:
        file.seek(start)
        # The largest frame of MPEG audio has 1,441 bytes.
        first = file.read(1441)
        start += (tag := id3_bytes(first))
    header = re.search(rb"(?:Xing|Info)...([\x03\x07\x0b\x0f])....(....)|VBRI.{6}(....)", first, re.DOTALL)
    if header is None:
        return False
    # The header gives the bytes of all frames, the first included; after them come tags, or nothing.
    file.seek(start + int.from_bytes(header[2] or header[3]))
    after = file.read(3)
    return after != b"ID3" and not (after[:1] == b"\xff" and after[1:2] >= b"\xe0")


def _places(file: BinaryIO, pattern: re.Pattern[bytes], begin: int, *, step: int = _READ_BYTES) -> Iterator[int]:
    """Yield the positions of a pattern in a file, from `begin` on. No `mmap`: decoders may not map large files."""
    while True:
        alive()
        file.seek(begin)
        data = file.read(step)
        # A match that begins in the last bytes may be incomplete, so it is left to the next read.
        complete = len(data) if len(data) < step else len(data) - _PATTERN_BYTES
        for match in pattern.finditer(data):
            if match.start() < complete:
                yield begin + match.start()
        if len(data) < step:
            return
        begin += complete


def _ogg_links(file: BinaryIO) -> Iterator[int]:
    """Yield the positions where a page begins a stream after pages of another (RFC 3533, sequential multiplexing)."""
    at, in_headers = 0, True
    for page in itertools.count():
        if page % 1024 == 0:
            alive()
        file.seek(at)
        head = file.read(27)
        if len(head) < 27:
            return
        if head[:5] != b"OggS\0":
            # Damage, or a tag between two files: search the next page, which is usually near.
            at = next(_places(file, _PAGE, at + 1, step=_PAGE_BYTES), -1)
            if at < 0:
                return
            continue
        begins = bool(head[5] & 2)
        if begins and not in_headers:
            yield at
        in_headers = begins
        at += 27 + head[26] + sum(file.read(head[26]))


def is_whole_ogg(file: BinaryIO) -> bool:
    """Whether a file consists of the pages of one Ogg stream, with none missing and nothing between them."""
    at, serial = 0, b""
    for number in itertools.count():
        file.seek(at)
        head = file.read(27)
        if not head:
            return number > 0
        serial = serial or head[14:18]
        if len(head) < 27 or head[:5] != b"OggS\0" or head[14:18] != serial:
            return False
        if int.from_bytes(head[18:22], "little") != number:
            return False
        at += 27 + head[26] + sum(file.read(head[26]))
    raise AssertionError("unreachable")


def _mp4_links(file: BinaryIO) -> Iterator[int]:
    """Yield the positions where another file begins after the boxes of an MP4 or QuickTime file."""
    at = 0
    while True:
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return
        if at and head[4:8] == b"ftyp":
            yield at
        size = int.from_bytes(head[:4])
        size = int.from_bytes(head[8:16]) if size == 1 else size
        # 0 means that the box reaches to the end of the file; other sizes below 8 are not valid.
        if size < 8:
            return
        at += size


def links(file: BinaryIO) -> tuple[int, ...]:
    """Positions in bytes where further streams or files begin, if several follow each other in one file.

    For Ogg, FLAC, Matroska, WebM, MP4, FLV, TTA and ASF. (FFmpeg reads joined raw streams, and joined MPEG transport
    and programme streams, as one.)

    Raises
    ------
    ValueError
        If there are more than `MOST_LINKS`.
    """
    file.seek(0)
    head = file.read(_PATTERN_BYTES)
    begin = id3_bytes(head[:10])
    if begin:
        file.seek(begin)
        head = file.read(_PATTERN_BYTES)
    positions: Iterator[int] = iter(())
    if head[:4] == b"OggS":
        positions = _ogg_links(file)
    elif head[4:8] == b"ftyp":
        positions = _mp4_links(file)
    else:
        beginning = next((pattern for pattern in _BEGINNINGS if pattern.match(head)), None)
        if beginning is not None:
            positions = _places(file, beginning, begin + 4)
    begins = []
    for position in positions:
        begins.append(position)
        if len(begins) > MOST_LINKS:
            raise ValueError(f"more than {MOST_LINKS} streams are chained in it")
    return tuple(begins)


def sound_end(file: BinaryIO, begin: int, end: int) -> int:
    """The end of an Ogg stream in bytes [begin, end) of a file, without an empty last page; `end` for other formats.

    Some writers close a stream with a page that contains one empty packet, and decoders treat that as damage.
    """
    file.seek(begin)
    if file.read(4) != b"OggS":
        return end
    start = max(begin, end - _PAGE_BYTES)
    file.seek(start)
    data = file.read(end - start)
    last = data.rfind(b"OggS\0")
    head = data[last : last + 27]
    if last <= 0 or len(head) < 27 or any(data[last + 27 : last + 27 + head[26]]):
        return end
    return start + last


class Data(NamedTuple):
    """The place of the samples in a file.

    Attributes
    ----------
    begin, length : int
        In bytes, within the file's actual size.
    note : str or None
        A key of `pipelines.audio.recording.NOTES`, if header and file differ.
    endian : str
        ``'LITTLE'`` or ``'BIG'``; relevant for samples of more than one byte.
    """

    begin: int
    length: int
    note: str | None = None
    endian: str = "LITTLE"


class _Layout(NamedTuple):
    """The chunk format of a family of containers."""

    size: struct.Struct
    name_bytes: int
    # Whether a chunk's size includes its own header.
    counts_header: bool
    align: int
    data: bytes
    # Number of bytes in the data chunk before the samples.
    before: int


_LAYOUTS = {
    "riff": _Layout(struct.Struct("<I"), 4, False, 2, b"data", 0),
    "rifx": _Layout(struct.Struct(">I"), 4, False, 2, b"data", 0),
    "aiff": _Layout(struct.Struct(">I"), 4, False, 2, b"SSND", 8),
    "caf": _Layout(struct.Struct(">q"), 4, False, 1, b"data", 4),
    "w64": _Layout(struct.Struct("<Q"), 16, True, 8, b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a", 0),
}
_TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICSBEGIN")


def _family(head: bytes) -> tuple[str, int] | None:
    """The name of a file's layout, by its first bytes, and the position of its first chunk."""
    if head[:4] in (b"RIFF", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return "riff", 12
    if head[:4] == b"RIFX" and head[8:12] == b"WAVE":
        return "rifx", 12
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff", 12
    if head[:4] == b"caff":
        return "caf", 8
    if head[:4] == b"riff" and head[24:28] == b"wave":
        return "w64", 40
    return None


def _chunks(file: BinaryIO, layout: _Layout, at: int, size: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, position and declared length of the content of each chunk from `at` on, until a name is no text."""
    head = layout.name_bytes + layout.size.size
    while at + head <= size:
        file.seek(at)
        name = file.read(layout.name_bytes)
        (length,) = layout.size.unpack(file.read(layout.size.size))
        if not name[:4].isascii() or not name[:4].decode().isprintable():
            return
        if layout.counts_header:
            length -= head
        yield name, at + head, length
        if length < 0:
            return
        at = -(-(at + head + length) // layout.align) * layout.align


def _unexplained(file: BinaryIO, layout: _Layout, at: int, size: int) -> int:
    """The position, from the end `at` of a data chunk on, of bytes that are neither chunk nor tag; `size` for none."""
    aligned = -(-at // layout.align) * layout.align
    place = max(_after_chunks(file, layout, place, size) for place in {at, aligned})
    if place == at:
        place = aligned
    file.seek(place)
    after = file.read(_READ_BYTES)
    if after.startswith(_TAGS):
        return size
    while after:
        alive()
        if after.strip(b"\0"):
            return place
        after = file.read(_READ_BYTES)
    return size


def _after_chunks(file: BinaryIO, layout: _Layout, place: int, size: int) -> int:
    """The end of the chunks that follow each other from `place` on, up to the first chunk of sound."""
    for name, begin, length in _chunks(file, layout, place, size):
        # A further chunk of sound, or the header of another file.
        if name == layout.data or name[:4] in (b"RIFF", b"RIFX", b"FORM", b"riff") or length < 0:
            break
        if begin + length > size + 1:
            break
        place = -(-(begin + length) // layout.align) * layout.align
    return place


def pcm_data(file: BinaryIO, size: int) -> Data | None:
    """The place of the samples in a WAV, RF64, W64, AIFF, AU or CAF file; None for other files or without a data chunk.

    A size of 32 bits is too small for data of 4 GiB and more, and some writers let it wrap to 0. A wrapped size is
    corrected where the correction explains the file to its last byte: nothing, a chunk or a tag follows the data.

    Parameters
    ----------
    file, size : BinaryIO, int
        The file, and its number of bytes.
    """
    file.seek(0)
    head = file.read(28)
    if head[:4] == b".snd" and len(head) >= 24:
        begin, length = struct.unpack(">II", head[4:12])
        available = size - begin
        note = "more-data" if length + WORTH_TELLING <= available else "cut-short" if length > available else None
        return Data(begin, min(length, available), None if length == 0xFFFF_FFFF else note, "BIG")
    match = _family(head)
    if match is None:
        return None
    family, first = match
    layout = _LAYOUTS[family]
    endian = "BIG" if layout.size.format.startswith(">") else "LITTLE"
    long_size = None
    for name, begin, length in _chunks(file, layout, first, size):  # noqa: B007
        if name == b"ds64":
            file.seek(begin + 8)
            long_size = int.from_bytes(file.read(8), "little")
        if name == layout.data:
            break
    else:
        return None
    begin, length = begin + layout.before, length - layout.before
    narrow = layout.size.size == 4
    if narrow and long_size is not None and length == 0xFFFF_FFFF:
        length, narrow = long_size, False
    available, end = size - begin, begin + length
    is_open = length <= 0 or (narrow and length >= OPEN_SIZE)
    if end > size or length <= 0:
        return Data(begin, available, None if is_open else "cut-short", endian)
    unexplained = _unexplained(file, layout, end, size)
    if size - unexplained < WORTH_TELLING:
        return Data(begin, length, None, endian)
    # AIFF-C declares its byte order elsewhere, so its size is not corrected.
    if narrow and unexplained - end < layout.align and head[8:12] != b"AIFC":
        wrapped = (available - length) >> 32 << 32
        if wrapped and size - _unexplained(file, layout, end + wrapped, size) < WORTH_TELLING:
            return Data(begin, length + wrapped, "size-wrapped", endian)
        if is_open:
            return Data(begin, available, "size-wrapped", endian)
    return Data(begin, length, "more-data", endian)
