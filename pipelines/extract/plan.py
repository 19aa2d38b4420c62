"""The plan: which files are new, changed or known, and how new recordings become segments and bundles.

Pure functions. A plan depends only on the set of new recordings: not on the order of a listing, on workers or time.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from soundlake.model.features.log_mel import PRESETS, FeatureSpec
from soundlake.pipelines.audio.reading import DECODER_VERSION, FLAC_FRAMES_PER_BYTE, SEEKABLE_CODECS, Probe
from soundlake.pipelines.audio.recording import TRANSIENT
from soundlake.pipelines.lake import ledger
from soundlake.pipelines.lake.ledger import Row

# A recording shorter than this fills less than a quarter of a window of `general`. If more than this share of the
# recordings is so short, shorter windows are suggested.
SHORT_S, SHORT_SHARE = 0.5, 0.5
# Codecs that compress silence as FLAC does. No other codec has a lower bit rate than the lowest of Speex.
LOSSLESS = frozenset({"flac", "alac", "ape", "mlp", "shorten", "tak", "truehd", "tta", "wavpack"})
LEAST_BIT_RATE = 2_000
# Windows of a segment, where a recording can be cut: several workers then share a long one.
SEGMENT_WINDOWS = 512
# Windows of a bundle: 128 MB a shard at 128 x 128, and small enough that a killed run loses little.
MAX_BUNDLE_WINDOWS = 4096
MIN_BUNDLE_WINDOWS = 128
# First window and count of a segment that is a whole recording.
WHOLE = (0, -1)
# How full a bucket is on average. Each bucket is packed by itself, and a fuller one would often overflow into a small
# second bundle.
FILL = 0.75
# From this many buckets on, a bucket holds the windows of several bundles. In a mix of clips and podcasts, a bucket
# planned for one bundle is mostly far from the size of a bundle, and twice as many shards result. Fewer buckets than
# this would keep fewer workers busy.
PLENTY, BUCKET_BUNDLES = 1024, 8


@dataclass(frozen=True, order=True)
class Segment:
    """A stretch of whole windows of one recording.

    Attributes
    ----------
    recording_id : str
    first : int
        Its first window.
    count : int or None
        Number of windows; None for all to the end, whatever the header claims.
    windows : int
        Windows expected by the header's length; a weight for packing only.
    """

    recording_id: str
    first: int
    count: int | None
    windows: int

    def key(self) -> tuple[str, int, int]:
        """The values of the segment that go into the name of a bundle."""
        return self.recording_id, self.first, -1 if self.count is None else self.count


def is_known(size: int, mtime_ns: int, row: Row, *, retried: frozenset[str] = TRANSIENT, recheck: bool = False) -> bool:
    """Whether a ledger row still describes a listed file: same size and time of change, and not to be tried again.

    A file without a size, then and now (a dangling link), counts as known. With `recheck`, a file that an older decoder
    rejected without knowing its content does not: `pipelines.upkeep.recheck` has looked at all others.
    """
    if recheck and row["recording_id"] is None and ledger.is_older(row):
        return False
    same = row["size"] == size and row["mtime_ns"] == mtime_ns
    return same and (row["reason"] not in retried or (size < 0 and row["reason"] in TRANSIENT))


def most_frames(probe: Probe, size: int) -> int:
    """The number of frames that a file of `size` bytes holds at most."""
    width = SEEKABLE_CODECS.get(probe.codec, 0) if probe.container != "FLAC" else 0
    if width:
        return size // (width * probe.channels)
    if probe.codec in LOSSLESS or probe.container == "FLAC":
        return FLAC_FRAMES_PER_BYTE * size
    return math.ceil(size * 8 / LEAST_BIT_RATE * probe.sample_rate)


def believed_seconds(probe: Probe, size: int) -> float:
    """Seconds of sound by the header; if it claims none, or more than fits the file, by the size at 128 kbit/s."""
    if probe.claimed_frames and probe.claimed_frames <= most_frames(probe, size):
        return probe.claimed_frames / probe.sample_rate
    return size / 16_000


def believed_windows(probe: Probe, size: int, spec: FeatureSpec) -> int:
    """Number of windows in `believed_seconds`, at least 1."""
    return max(1, spec.n_windows(math.ceil(believed_seconds(probe, size) * spec.sample_rate)))


def is_short(probe: Probe, size: int) -> bool:
    """Whether a recording lasts less than `SHORT_S`, by `believed_seconds`."""
    return believed_seconds(probe, size) < SHORT_S


def suggested_spec(short: int, recordings: int, spec: FeatureSpec) -> str | None:
    """The preset that fits a corpus better than `spec` does; None if no such preset is known.

    Parameters
    ----------
    short, recordings : int
        Number of recordings that are `is_short`, and of all recordings.
    spec : FeatureSpec
        The spec that was asked for.
    """
    mostly_short = short > SHORT_SHARE * recordings
    return "oneshots" if mostly_short and spec.window_seconds > PRESETS["oneshots"].window_seconds else None


def segments(recording_id: str, probe: Probe, size: int, spec: FeatureSpec) -> Iterator[Segment]:
    """Cut a recording into segments.

    Only recordings with exact seeking are cut: in any other, all sound before the segment would have to be decoded. The
    last segment is open: it ends where the sound does.
    """
    windows = believed_windows(probe, size, spec)
    if not probe.seekable or not probe.claimed_frames or probe.claimed_frames > most_frames(probe, size):
        yield Segment(recording_id, 0, None, windows)
        return
    for first in range(0, windows, SEGMENT_WINDOWS):
        is_last = first + SEGMENT_WINDOWS >= windows
        yield Segment(recording_id, first, None if is_last else SEGMENT_WINDOWS, min(SEGMENT_WINDOWS, windows - first))


def bundle_windows(total: int) -> int:
    """Number of windows that a bundle may hold when `total` windows are new: about 32 bundles, within the limits."""
    return min(MAX_BUNDLE_WINDOWS, max(MIN_BUNDLE_WINDOWS, math.ceil(total / 32)))


def buckets(total: int) -> int:
    """Number of buckets that segments are spread over when `total` windows are new."""
    count = total / (bundle_windows(total) * FILL)
    return max(1, math.ceil(count if count < PLENTY else count / BUCKET_BUNDLES))


def bucket_of(segment: Segment, total: int) -> int:
    """The bucket of a segment, chosen by its digest, when `total` windows are new.

    Neighbouring segments of a long recording stay together, as many as fit a bundle.
    """
    name = f"{segment.recording_id}:{segment.first // bundle_windows(total)}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") * buckets(total) >> 64


def pack(found: Iterable[Segment], total: int) -> Iterator[tuple[Segment, ...]]:
    """Pack the segments of a bucket into bundles, in order of recording and first window.

    A segment longer than a bundle gets a bundle of its own.
    """
    limit = bundle_windows(total)
    held: list[Segment] = []
    filled = 0
    for segment in sorted(found, key=Segment.key):
        if held and filled + segment.windows > limit:
            yield tuple(held)
            held, filled = [], 0
        held.append(segment)
        filled += segment.windows
    if held:
        yield tuple(held)


def bundle_id(spec: FeatureSpec, packed: Iterable[Segment]) -> str:
    """The name of a bundle: a digest of spec, decoders' version and segments, independent of time and place."""
    # Names of version 1 had no decoder version: bundles that it left unfinished are not mistaken for those of today.
    text = json.dumps([spec.spec_id, DECODER_VERSION, *(s.key() for s in packed)], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
