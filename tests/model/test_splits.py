"""Splits: stable, by group, never empty where it can be helped."""

from collections import Counter

import pytest

from soundlake.model.features.splits import TEST, TRAIN, VALIDATION, assign, digests, held_out, split_of


def test_shares() -> None:
    counts = Counter(split_of(f"recording-{i}") for i in range(10_000))
    # Three standard deviations of a binomial are 90.
    assert abs(counts[TEST] - 1000) < 90
    assert abs(counts[VALIDATION] - 1000) < 90


def test_pinned() -> None:
    """Values computed once by sha256sum: a change of the rule would move people's recordings."""
    import hashlib

    key = "sha256-v1: test < 0.1 <= validation < 0.2 <= train:cello-045"
    share = int(hashlib.sha256(key.encode()).hexdigest()[:16], 16) / 2**64
    assert split_of("cello-045") == (TEST if share < 0.1 else VALIDATION if share < 0.2 else TRAIN)


def test_no_recording_moves_when_others_come() -> None:
    few = {f"r{i}": f"g{i % 60}" for i in range(100)}
    many = few | {f"s{i}": f"h{i}" for i in range(500)}
    before, after = assign(few), assign(many)
    assert all(after[r] == before[r] for r in few)


def test_groups_stay_together_whatever_the_order() -> None:
    groups = {f"r{i}": f"g{i % 9}" for i in range(90)}
    found = assign(groups)
    for g in set(groups.values()):
        assert len({found[r] for r in groups if groups[r] == g}) == 1
    assert assign(dict(reversed(groups.items()))) == found


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_small_corpora(count: int) -> None:
    for corpus in range(200):
        found = Counter(assign({f"{corpus}:{i}": "" for i in range(count)}).values())
        assert found[TRAIN] >= 1
        assert found[VALIDATION] >= (count > 1)


def test_what_a_model_was_trained_on_is_not_held_out() -> None:
    """Nor is what shares a group with it, when groups have changed since."""
    before = {f"r{i}": f"g{i % 60}" for i in range(600)}
    trained = digests(r for r, split in assign(before).items() if split == TRAIN)
    assert held_out(before, trained) == {r for r, split in assign(before).items() if split != TRAIN}
    after = {f"r{i}": f"h{i % 250}" for i in range(600)}
    rule, found = assign(after), held_out(after, trained)
    known = {r for r, split in assign(before).items() if split == TRAIN}
    assert found
    for recording_id, group in after.items():
        mates = {r for r in after if after[r] == group}
        assert (recording_id in found) == (rule[recording_id] != TRAIN and not mates & known)


def test_digests() -> None:
    """By the shell: printf r1 | sha256sum | cut -c-16."""
    assert [f"{one:016x}" for one in digests(["r1", ""])] == ["82f3e9c695dc6b8d", "e3b0c44298fc1c14"]
    assert digests([]).shape == (0,)
