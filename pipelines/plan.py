"""The plan: what is new, changed or known, and how the new is cut into segments and packed into bundles.

Pure functions. A plan depends on the set of new recordings alone: not on the order of a listing, on workers or time.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from model.features import FeatureSpec
from pipelines import ledger
from pipelines.audio import DECODER_VERSION, Probe
from pipelines.ledger import Row

# Windows of a segment, where a recording can be cut: a long one spreads over workers.
SEGMENT_WINDOWS = 512
# Windows of a bundle: 128 MB a shard at 128 x 128, and small enough that a killed run loses little.
MAX_BUNDLE_WINDOWS = 4096
MIN_BUNDLE_WINDOWS = 128
# Place and count of a segment that is a whole recording.
WHOLE = (0, -1)
# How full a bucket is on average; each is packed by itself, and a fuller one would often spill a small second bundle.
FILL = 0.75
# From so many buckets on, one holds several bundles' worth: among clips and podcasts alike a bundle's worth is mostly
# far from a bundle, and twice as many shards come of it. Fewer buckets than this would keep fewer workers busy.
PLENTY, BUCKET_BUNDLES = 1024, 8

# A rejection for one of these says something about the machine, not about the bytes: the next run tries again.
TRANSIENT = frozenset({"missing", "no-permission", "unreadable"})


@dataclass(frozen=True, order=True)
class Segment:
    """A stretch of whole windows of one recording.

    Attributes
    ----------
    recording_id : str
    first : int
        Its first window.
    count : int or None
        Windows; None for all to the end, whatever the header claims.
    windows : int
        Windows expected by the header's length: weight for packing only.
    """

    recording_id: str
    first: int
    count: int | None
    windows: int

    def key(self) -> tuple[str, int, int]:
        """What the name of a bundle is made of."""
        return self.recording_id, self.first, -1 if self.count is None else self.count


def is_known(size: int, mtime_ns: int, row: Row, *, retried: frozenset[str] = TRANSIENT, recheck: bool = False) -> bool:
    """Whether a ledger row still tells about a listed file: same size and time of change, and not to be tried again.

    A file that the system still says nothing about (a link to nothing) is known to be so. With `recheck`, a file that
    an older decoder rejected without knowing its content is not: `pipelines.recheck` has looked at all others.
    """
    if recheck and row["recording_id"] is None and ledger.is_older(row):
        return False
    same = row["size"] == size and row["mtime_ns"] == mtime_ns
    return same and (row["reason"] not in retried or (size < 0 and row["reason"] in TRANSIENT))


def claimed_windows(probe: Probe, size: int, spec: FeatureSpec) -> int:
    """Windows of a recording by its header; where that says nothing, by its size at 128 kbit/s. At least 1."""
    seconds = probe.claimed_frames / probe.sample_rate if probe.claimed_frames else size / 16_000
    return max(1, spec.n_windows(math.ceil(seconds * spec.sample_rate)))


def segments(recording_id: str, probe: Probe, size: int, spec: FeatureSpec) -> Iterator[Segment]:
    """Cut a recording into segments.

    Only what seeks to the exact sample is cut: to begin in the middle of anything else means to decode all before it.
    The last segment is open: it ends where the sound does.
    """
    windows = claimed_windows(probe, size, spec)
    # A header may claim years: what cannot be in so many bytes (8 bits a sample, 1:16 packed) is not believed.
    believable = windows <= claimed_windows_limit(probe, size, spec)
    if not probe.seekable or not probe.claimed_frames or not believable:
        yield Segment(recording_id, 0, None, windows if believable else 1)
        return
    for first in range(0, windows, SEGMENT_WINDOWS):
        last = first + SEGMENT_WINDOWS >= windows
        yield Segment(recording_id, first, None if last else SEGMENT_WINDOWS, min(SEGMENT_WINDOWS, windows - first))


def claimed_windows_limit(probe: Probe, size: int, spec: FeatureSpec) -> int:
    """Windows that `size` bytes could hold at 16 samples a byte and channel; FLAC of silence packs far more."""
    samples = 8192 * size if probe.container == "FLAC" else 16 * size
    return max(1, spec.n_windows(math.ceil(samples / probe.sample_rate * spec.sample_rate)))


def bundle_windows(total: int) -> int:
    """Windows a bundle may hold when `total` windows are new: about 32 bundles, within the limits."""
    return min(MAX_BUNDLE_WINDOWS, max(MIN_BUNDLE_WINDOWS, math.ceil(total / 32)))


def buckets(total: int) -> int:
    """Buckets that segments are spread over when `total` windows are new."""
    several = total / (bundle_windows(total) * FILL)
    return max(1, math.ceil(several if several < PLENTY else several / BUCKET_BUNDLES))


def bucket_of(segment: Segment, total: int) -> int:
    """The bucket of a segment when `total` windows are new: its digest's place among the buckets.

    Neighbouring segments of a long recording, a bundle's worth of them, stay together.
    """
    name = f"{segment.recording_id}:{segment.first // bundle_windows(total)}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") * buckets(total) >> 64


def pack(found: Iterable[Segment], total: int) -> Iterator[tuple[Segment, ...]]:
    """Pack the segments of a bucket into bundles, in order of recording and place.

    A segment longer than a bundle has one of its own.
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
    """The name of a bundle: digest of the spec, the decoders' version and its segments, never of when or where."""
    # Version 1 was not named: what it left unfinished has other names, and is not taken for what is read now.
    text = json.dumps([spec.spec_id, DECODER_VERSION, *(s.key() for s in packed)], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
