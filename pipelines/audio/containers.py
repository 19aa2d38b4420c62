"""What the bytes of a file say about where its sound lies, beyond what a decoder tells.

Decoders take the first stream of several that are chained in one file, and stop at the size that a header declares,
both without a word. What is here finds the rest. Pure functions of an open file; nothing is decoded.
"""

import functools
import io
import itertools
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from soundlake.pipelines.audio.isolation import alive

# No honest file chains more streams: a radio station recorded for a month.
MOST_LINKS = 10_000
# Bytes behind the declared end of the sound that are worth a word. Fewer are padding or a tag.
WORTH_TELLING = 4096
# What a program writes as the size of data that it cannot tell yet: all ones, or about the largest signed number.
OPEN_SIZE = 0x7FFF_F000
_READ_BYTES = 1 << 20
# No page of Ogg is longer.
_PAGE_BYTES = 65_536
_PAGE = re.compile(rb"OggS\0")
# How files of some formats begin, each long enough not to come up by chance. FLAC: its mark and STREAMINFO, always of
# 34 bytes, the last block of metadata or not. Matroska and WebM: an EBML header with one of these types of document.
# FLV. TTA, with its number of channels and bits. ASF.
_BEGINNINGS = (
    re.compile(rb"fLaC[\0\x80]\0\0\x22"),
    re.compile(rb"\x1a\x45\xdf\xa3.{0,48}?\x42\x82.(?:webm|matroska)", re.DOTALL),
    re.compile(rb"FLV\x01[\x01\x04\x05]\0\0\0\x09\0\0\0\0"),
    re.compile(rb"TTA1[\x01-\x03]\0[\x01-\x10]\0[\x08\x10\x18\x20]\0"),
    re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9\x00\xaa\x00\x62\xce\x6c"),
)
# No match is longer.
_PATTERN_BYTES = 64


class Part(io.RawIOBase):
    """Bytes [begin, end) of a file, as a file of their own."""

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
    """Length of the ID3v2 tag that begins with these ten bytes, from the tag's own header; 0 if none does."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + functools.reduce(lambda total, byte: total << 7 | byte & 0x7F, head[6:10], 0)


def closing_tags(file: BinaryIO, size: int) -> int:
    """Bytes of the tags at a file's end: ID3v1, and APEv2 before it."""
    file.seek(max(0, size - 160))
    tail = file.read(160)
    id3v1 = 128 if tail[-128:-125] == b"TAG" else 0
    footer = tail[len(tail) - id3v1 - 32 : len(tail) - id3v1]
    if footer[:8] != b"APETAGEX":
        return id3v1
    length, _, flags = struct.unpack("<III", footer[12:24])
    # The length counts the footer, and not a header.
    return id3v1 + int(length) + (32 if flags >> 31 else 0)


def tells_its_length(file: BinaryIO) -> bool:
    """Whether an MP3 says in its first frame how long it is, and ends there: files joined into one go on.

    The headers Xing (Info, at a constant bit rate) and VBRI, as FFmpeg's mp3dec.c reads them.
    """
    start, tag = 0, -1
    while tag:
        file.seek(start)
        # The largest frame of MPEG audio has 1,441 bytes.
        first = file.read(1441)
        start += (tag := id3_bytes(first))
    found = re.search(rb"(?:Xing|Info)...([\x03\x07\x0b\x0f])....(....)|VBRI.{6}(....)", first, re.DOTALL)
    if found is None:
        return False
    # Bytes of the frames, this one included; behind them come tags, or nothing.
    file.seek(start + int.from_bytes(found[2] or found[3]))
    after = file.read(3)
    return after != b"ID3" and not (after[:1] == b"\xff" and after[1:2] >= b"\xe0")


def _places(file: BinaryIO, pattern: re.Pattern[bytes], begin: int, *, step: int = _READ_BYTES) -> Iterator[int]:
    """Where a pattern stands in a file, from `begin` on. Not by `mmap`: a decoder's process may not map large files."""
    while True:
        alive()
        file.seek(begin)
        data = file.read(step)
        # What may go on beyond these bytes is left to the next.
        whole = len(data) if len(data) < step else len(data) - _PATTERN_BYTES
        for found in pattern.finditer(data):
            if found.start() < whole:
                yield begin + found.start()
        if len(data) < step:
            return
        begin += whole


def _ogg_links(file: BinaryIO) -> Iterator[int]:
    """Where a page begins a stream after pages of another: RFC 3533's sequential multiplexing."""
    at, in_headers = 0, True
    for page in itertools.count():
        if page % 1024 == 0:
            alive()
        file.seek(at)
        head = file.read(27)
        if len(head) < 27:
            return
        if head[:5] != b"OggS\0":
            # Damage, or a tag between two files: on to the next page, which is mostly near.
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
    """Whether a file is one Ogg stream from its first page to its last: none is missing, and nothing is beside them."""
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
    """Where the boxes of another file begin behind those of an MP4 or QuickTime file."""
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
        # To the end of the file, or no box.
        if size < 8:
            return
        at += size


def links(file: BinaryIO) -> tuple[int, ...]:
    """Where the streams or files after the first begin, if several follow each other in one file.

    In Ogg, FLAC, Matroska, WebM, MP4, FLV, TTA and ASF. (What is joined of raw streams, and of MPEG's transport and
    programme streams, FFmpeg reads as one.)

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
    found: Iterator[int] = iter(())
    if head[:4] == b"OggS":
        found = _ogg_links(file)
    elif head[4:8] == b"ftyp":
        found = _mp4_links(file)
    else:
        beginning = next((pattern for pattern in _BEGINNINGS if pattern.match(head)), None)
        if beginning is not None:
            found = _places(file, beginning, begin + 4)
    begins = []
    for at in found:
        begins.append(at)
        if len(begins) > MOST_LINKS:
            raise ValueError(f"more than {MOST_LINKS} streams are chained in it")
    return tuple(begins)


def sound_end(file: BinaryIO, begin: int, end: int) -> int:
    """Where the last page with anything in it ends, of an Ogg stream in bytes [begin, end) of a file; else `end`.

    Some writers close a stream with a page that holds one empty packet, and decoders take that for damage.
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
    """Where samples lie in a file.

    Attributes
    ----------
    begin, length : int
        In bytes, as far as the file goes.
    note : str or None
        A key of `pipelines.audio.recording.NOTES`, if header and file differ.
    endian : str
        ``'LITTLE'`` or ``'BIG'``, where samples have more than a byte.
    """

    begin: int
    length: int
    note: str | None = None
    endian: str = "LITTLE"


class _Layout(NamedTuple):
    """How a family of containers writes its chunks."""

    size: struct.Struct
    name_bytes: int
    # Whether a chunk's size counts its own header.
    counts_header: bool
    align: int
    data: bytes
    # Bytes of the data chunk before the samples.
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
    """The layout of a file by its first bytes, and where its first chunk is."""
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
    """Name, place of the content and its declared length of each chunk that has a sensible name, from `at` on."""
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
    """Where data begins, from the end of a data chunk on, that is neither a chunk nor a tag; `size` if none does."""
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
    """Where the chunks that follow each other from a place on end; the first one of sound is none of them."""
    for name, begin, length in _chunks(file, layout, place, size):
        # Another one of sound, or the header of another file.
        if name == layout.data or name[:4] in (b"RIFF", b"RIFX", b"FORM", b"riff") or length < 0:
            break
        if begin + length > size + 1:
            break
        place = -(-(begin + length) // layout.align) * layout.align
    return place


def pcm_data(file: BinaryIO, size: int) -> Data | None:
    """Where the samples lie in a WAV, RF64, W64, AIFF, AU or CAF file; None in anything else, or if none are named.

    A size of 32 bits is too small for data of 4 GiB and more, and some writers let it begin again at 0. It is read as
    if it had not where that explains the file to its last byte: what follows the data is nothing, a chunk or a tag.

    Parameters
    ----------
    file, size : BinaryIO, int
        The file, and how many bytes it has.
    """
    file.seek(0)
    head = file.read(28)
    if head[:4] == b".snd" and len(head) >= 24:
        begin, length = struct.unpack(">II", head[4:12])
        there = size - begin
        note = "more-data" if length + WORTH_TELLING <= there else "cut-short" if length > there else None
        return Data(begin, min(length, there), None if length == 0xFFFF_FFFF else note, "BIG")
    found = _family(head)
    if found is None:
        return None
    family, first = found
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
    there, end = size - begin, begin + length
    is_open = length <= 0 or (narrow and length >= OPEN_SIZE)
    if end > size or length <= 0:
        return Data(begin, there, None if is_open else "cut-short", endian)
    unexplained = _unexplained(file, layout, end, size)
    if size - unexplained < WORTH_TELLING:
        return Data(begin, length, None, endian)
    # AIFF-C names the order of its bytes elsewhere.
    if narrow and unexplained - end < layout.align and head[8:12] != b"AIFC":
        wrapped = (there - length) >> 32 << 32
        if wrapped and size - _unexplained(file, layout, end + wrapped, size) < WORTH_TELLING:
            return Data(begin, length + wrapped, "size-wrapped", endian)
        if is_open:
            return Data(begin, there, "size-wrapped", endian)
    return Data(begin, length, "more-data", endian)
