"""The plan: every window once, whatever the order, in bundles that are named by what they hold."""

import hashlib
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundlake.model.features.log_mel import PRESETS
from soundlake.pipelines.audio.reading import Probe
from soundlake.pipelines.extract import plan
from soundlake.pipelines.extract.plan import Segment
from soundlake.pipelines.lake.ledger import row

SPEC = PRESETS["general"]


def digest(i: int) -> str:
    return hashlib.sha256(str(i).encode()).hexdigest()


def wav(seconds: float | None, *, seekable: bool = True, container: str = "WAV") -> Probe:
    frames = None if seconds is None else round(seconds * 16_000)
    return Probe(container, "PCM_16", 16_000, 1, frames, seekable, "soundfile")


sizes = st.lists(st.integers(1, 6000), min_size=1, max_size=60)


@given(sizes, st.randoms(use_true_random=False))
def test_packing_is_a_function_of_the_set(weights: list[int], shuffler: random.Random) -> None:
    found = [Segment(digest(i), 0, None, weight) for i, weight in enumerate(weights)]
    packed = list(plan.pack(found, sum(weights)))
    again = list(found)
    shuffler.shuffle(again)
    assert list(plan.pack(again, sum(weights))) == packed
    assert sorted(s for bundle in packed for s in bundle) == sorted(found)
    limit = plan.bundle_windows(sum(weights))
    assert all(sum(s.windows for s in bundle) <= limit or len(bundle) == 1 for bundle in packed)


@given(st.integers(1, 10**9))
def test_bundles_stay_within_the_limits(total: int) -> None:
    assert plan.MIN_BUNDLE_WINDOWS <= plan.bundle_windows(total) <= plan.MAX_BUNDLE_WINDOWS


@pytest.mark.parametrize("total", [1, 10_000, 10**7, 10**9])
def test_buckets_are_filled_evenly(total: int) -> None:
    """No bucket gets more than its share by five standard deviations of chance."""
    found = [Segment(digest(i), 0, None, 1) for i in range(4000)]
    counts = Counter(plan.bucket_of(segment, total) for segment in found)
    buckets = plan.buckets(total)
    assert 0 <= min(counts) <= max(counts) < buckets
    share = len(found) / buckets
    assert max(counts.values()) <= share + 5 * math.sqrt(share) + 5


def test_neighbours_of_a_long_recording_stay_together() -> None:
    total = 10**6
    limit = plan.bundle_windows(total)
    segments = [Segment(digest(1), first, 512, 512) for first in range(0, 10 * limit, 512)]
    for first in range(0, len(segments), limit // 512):
        assert len({plan.bucket_of(s, total) for s in segments[first : first + limit // 512]}) == 1


@given(st.floats(0.001, 200_000))
def test_segments_tile_the_recording(seconds: float) -> None:
    found = list(plan.segments(digest(0), wav(seconds), 10**12, SPEC))
    windows = SPEC.n_windows(max(1, round(seconds * 16_000)))
    at = 0
    for segment in found[:-1]:
        assert (segment.first, segment.count, segment.windows) == (at, 512, 512)
        at += 512
    assert (found[-1].first, found[-1].count) == (at, None)
    assert at + found[-1].windows == pytest.approx(windows, abs=1)


@pytest.mark.parametrize(
    "probe", [wav(36_000, seekable=False), wav(None), wav(36_000, seekable=False, container="MP3")]
)
def test_what_cannot_be_sought_is_one_open_segment(probe: Probe) -> None:
    assert [(s.first, s.count) for s in plan.segments(digest(0), probe, 10**9, SPEC)] == [(0, None)]


def test_a_claim_beyond_the_bytes_is_not_believed() -> None:
    """2^31 frames in 32 kB: one open segment of little weight, not 65,000 of them."""
    liar = Probe("WAV", "PCM_U8", 16_000, 1, 2**31, True, "soundfile")
    # 8 bits a sample: 2 s, which are 2 windows.
    assert list(plan.segments(digest(0), liar, 32_000, SPEC)) == [Segment(digest(0), 0, None, SPEC.n_windows(32_000))]


@pytest.mark.parametrize(
    ("probe", "size", "seconds"),
    [
        # Two channels of 24 bits: 6 bytes a frame.
        (Probe("WAV", "PCM_24", 10_000, 2, 20_000, True, "soundfile"), 120_044, 2.0),
        (Probe("WAV", "PCM_24", 10_000, 2, 30_000, True, "soundfile"), 120_044, 120_044 / 16_000),
        # Six hours of silence in 235 kB, as libFLAC packs it, and a header that claims 2^36 frames.
        (Probe("FLAC", "PCM_16", 48_000, 1, 6 * 3600 * 48_000, True, "soundfile"), 235_166, 21_600.0),
        (Probe("flac", "flac", 16_000, 1, 2**36 - 1, False, "pyav"), 23_944, 23_944 / 16_000),
        # Opus at 6 kbit/s for an hour, and no codec at less than 2.
        (Probe("ogg", "opus", 48_000, 1, 3600 * 48_000, False, "pyav"), 2_700_000, 3600.0),
        (Probe("ogg", "opus", 48_000, 1, 36_000 * 48_000, False, "pyav"), 2_700_000, 2_700_000 / 16_000),
        (Probe("aac", "aac", 48_000, 1, None, False, "pyav"), 160_000, 10.0),
    ],
)
def test_seconds_that_a_file_can_hold(probe: Probe, size: int, seconds: float) -> None:
    assert plan.believed_seconds(probe, size) == pytest.approx(seconds)


def test_a_bundles_name() -> None:
    segments = [Segment(digest(i), 0, None, 3) for i in range(3)]
    name = plan.bundle_id(SPEC, segments)
    assert len(name) == 32
    # The expected weight is a guess of the header's: it is not part of the name.
    assert plan.bundle_id(SPEC, [Segment(digest(i), 0, None, 4) for i in range(3)]) == name
    others = [
        plan.bundle_id(PRESETS["speech"], segments),
        plan.bundle_id(SPEC, segments[:2]),
        plan.bundle_id(SPEC, [*segments[:2], Segment(digest(2), 0, 5, 3)]),
        plan.bundle_id(SPEC, [*segments[:2], Segment(digest(2), 512, None, 3)]),
    ]
    assert len({name, *others}) == 5


def test_a_link_to_nothing_is_known_to_be_one() -> None:
    before = row(uri="/a", size=-1, mtime_ns=-1, status="rejected", reason="missing")
    assert plan.is_known(-1, -1, before)
    assert not plan.is_known(10, 20, before)


@pytest.mark.parametrize(
    ("file", "reason", "known"),
    [
        ((10, 20), None, True),
        ((11, 20), None, False),
        ((10, 21), None, False),
        ((10, 20), "damaged", True),
        ((10, 20), "no-permission", False),
        ((-1, -1), "missing", False),
    ],
)
def test_what_is_known(file: tuple[int, int], reason: str | None, known: bool) -> None:
    before = row(uri="/a", size=10, mtime_ns=20, status="done", reason=reason)
    assert plan.is_known(*file, before) is known


def test_a_reject_is_known_until_its_reason_is_tried_again() -> None:
    before = row(uri="/a", size=10, mtime_ns=20, status="rejected", reason="damaged")
    assert plan.is_known(10, 20, before, retried=frozenset({"silent"}))
    assert not plan.is_known(10, 20, before, retried=frozenset({"damaged"}))
