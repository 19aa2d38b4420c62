"""Planning is one function of the set of files, however they are dealt out to workers, and in any order."""

import hashlib
import json
import random
from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from soundlake.model.features.log_mel import PRESETS
from soundlake.pipelines.audio.reading import Probe
from soundlake.pipelines.engine import joins
from soundlake.pipelines.extract import account, plan, survey
from soundlake.pipelines.extract.account import Candidate, Work

SPEC = PRESETS["general"]
Files = list[tuple[float, bool]]
files = st.lists(st.tuples(st.floats(0.1, 40_000), st.booleans()), min_size=1, max_size=40)


def works(found: Files) -> list[bytes]:
    """Packed works of files of so many seconds, cut or not."""
    made = []
    for number, (seconds, seekable) in enumerate(found):
        name = hashlib.sha256(str(number).encode()).hexdigest()
        probe = Probe("WAV", "PCM_16", 16_000, 1, max(1, round(seconds * 16_000)), seekable, "soundfile")
        file = Candidate(f"/corpus/{number}.wav", 10**12, 1, probe=probe)
        made += [work.packed() for work in account.cut(name, [file], [], SPEC)]
    return made


def dealt(elements: list[bytes], workers: int, shuffler: random.Random) -> list[list[bytes]]:
    """The same elements on some workers, by chance."""
    hands: list[list[bytes]] = [[] for _ in range(workers)]
    for element in shuffler.sample(elements, len(elements)):
        shuffler.choice(hands).append(element)
    return hands


def planned(hands: list[list[bytes]]) -> dict[str, tuple[Work, ...]]:
    """Bundles by name, as a runner comes to them: workers weigh and place, then each bucket is packed by itself."""
    total = sum(sum(map(survey.weight, hand)) for hand in hands)
    buckets: dict[int, list[bytes]] = {}
    for hand in hands:
        for element in hand:
            buckets.setdefault(plan.bucket_of(Work.segment_of(element), total), []).append(element)
    bundles = [bundle for bucket in buckets.items() for bundle in survey._pack(bucket, total)]
    named = {plan.bundle_id(SPEC, [work.segment for work in bundle]): bundle for bundle in bundles}
    assert len(named) == len(bundles)
    return named


@settings(deadline=None)
@given(files, st.integers(1, 7), st.randoms(use_true_random=False))
def test_the_plan_is_the_same_on_any_workers(found: Files, workers: int, shuffler: random.Random) -> None:
    elements = works(found)
    alone = planned([elements])
    assert planned(dealt(elements, workers, shuffler)) == alone
    assert Counter(work.packed() for bundle in alone.values() for work in bundle) == Counter(elements)


def test_a_hundred_thousand_files_on_one_worker_and_on_fifty() -> None:
    """Clips, tracks and podcasts: the same bundles, each within the limit, and most of them full."""
    drawn = np.random.default_rng(5)
    seconds = np.exp(drawn.normal(np.log([6, 220, 3000]), [0.8, 0.35, 0.5], (100_000, 3)))
    kind = drawn.choice(3, 100_000, p=[0.85, 0.13, 0.02])
    # Parts of a second that a float holds exactly: a header's length then rounds to no window more.
    found = [(max(1, round(seconds[i, kind[i]] * 64)) / 64, i % 5 == 0) for i in range(100_000)]
    elements = works(found)
    alone, shared = planned([elements]), planned(dealt(elements, 50, random.Random(1)))
    assert alone.keys() == shared.keys()
    weights = [[work.segment.windows for work in bundle] for bundle in alone.values()]
    total = sum(map(sum, weights))
    assert total == sum(SPEC.n_windows(max(1, round(seconds * 16_000))) for seconds, _ in found)
    limit = plan.bundle_windows(total)
    assert limit == plan.MAX_BUNDLE_WINDOWS
    assert all(sum(weight) <= limit or len(weight) == 1 for weight in weights)
    # A bucket a bundle, as it once was, made twice as many of them.
    assert total / limit / len(weights) > 0.65


def test_there_are_always_buckets_for_many_workers() -> None:
    """More windows never mean fewer than a hundred buckets again, and a bucket is never more than a few bundles."""
    for exponent in np.arange(5.5, 12, 0.01):
        total = int(10**exponent)
        buckets = plan.buckets(total)
        assert buckets >= min(128, total // plan.bundle_windows(total))
        assert total / buckets <= plan.BUCKET_BUNDLES * plan.bundle_windows(total)


keyed = st.lists(st.tuples(st.text(max_size=6), st.integers(0, 2), st.binary(max_size=9)), max_size=60)


@given(keyed, st.randoms(use_true_random=False))
def test_a_join_loses_nothing_in_any_order(values: list[tuple[str, int, bytes]], shuffler: random.Random) -> None:
    wanted: dict[str, dict[str, Counter[bytes]]] = {}
    for key, source, value in values:
        wanted.setdefault(key, {name: Counter() for name in "abc"})["abc"[source]][value] += 1
    buckets: dict[int, list[bytes]] = {}
    for key, source, value in shuffler.sample(values, len(values)):
        bucket, data = joins._bucketed((key, value), source)
        buckets.setdefault(bucket, []).append(data)
    found = [element for bucket in buckets.items() for element in joins._Regroup("abc").process(bucket)]
    assert len(found) == len(wanted)
    assert {key: {name: Counter(parts[name]) for name in "abc"} for key, parts in found} == wanted


@given(st.text(max_size=9), st.one_of(st.none(), st.text(max_size=5)), st.booleans())
def test_what_is_packed_is_what_comes_out(uri: str, label: str | None, probed: bool) -> None:
    """A candidate and a work, whatever is in their names; and a work's segment without the rest."""
    probe = Probe("WAV", "PCM_16", 16_000, 1, None, True, "soundfile") if probed else None
    file = Candidate(uri, 7, -1, label, None, "damaged", 3, probe)
    assert Candidate.of(json.loads(account.packed(file.values()))) == file
    work = Work(plan.Segment("a" * 64, 512, None, 4), (file,), {"detail": uri})
    assert Work.unpacked(work.packed()) == work
    assert Work.segment_of(work.packed()) == work.segment
