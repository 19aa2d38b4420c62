"""Assignment of recordings to training, validation and test by a stable digest, so that no recording ever moves."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

SPLIT_RULE = "sha256-v1: test < 0.1 <= validation < 0.2 <= train"
TRAIN, VALIDATION, TEST = "train", "validation", "test"


def place(key: str) -> float:
    """Position of a group or recording in [0, 1): the first 8 bytes of a SHA-256, divided by 2^64."""
    return int.from_bytes(hashlib.sha256(f"{SPLIT_RULE}:{key}".encode()).digest()[:8], "big") / 2**64


def split_of(key: str) -> str:
    """The split of a group or recording."""
    position = place(key)
    return TEST if position < 0.1 else VALIDATION if position < 0.2 else TRAIN


def assign(groups: Mapping[str, str]) -> dict[str, str]:
    """The split of every recording; recordings of one group stay together.

    Parameters
    ----------
    groups : mapping of str to str
        recording_id → group; ``""`` where there is none: the recording is then a group of its own.

    Returns
    -------
    dict of str to str
        recording_id → ``"train"``, ``"validation"`` or ``"test"``. In very small corpora a split may be empty: the
        group nearest to the border then moves into an empty training split, and after that into an empty validation
        split. A single group goes to training, and there is no validation.
    """
    keys = {recording_id: group or recording_id for recording_id, group in groups.items()}
    split_by_key = {key: split_of(key) for key in set(keys.values())}
    for target in (TRAIN, VALIDATION):
        candidates = sorted((key for key in split_by_key if split_by_key[key] != target), key=place)
        if candidates and target not in split_by_key.values() and (target == TRAIN or len(split_by_key) > 1):
            key = candidates[-1] if target == TRAIN else _from_the_fuller(candidates, split_by_key)
            split_by_key[key] = target
    return {recording_id: split_by_key[key] for recording_id, key in keys.items()}


def _from_the_fuller(spare: list[str], chosen: Mapping[str, str]) -> str:
    """The group with the smallest digest that can leave training or test without emptying the training split."""
    training = [key for key in spare if chosen[key] == TRAIN]
    testing = [key for key in spare if chosen[key] == TEST]
    return training[0] if len(training) > 1 else testing[0]


def digests(recordings: Iterable[str]) -> npt.NDArray[np.uint64]:
    """8 bytes of each recording's SHA-256, in the same order: a model's record of what it was trained on."""
    parts = (hashlib.sha256(recording_id.encode()).digest()[:8] for recording_id in recordings)
    return np.frombuffer(b"".join(parts), ">u8").astype(np.uint64)


def held_out(groups: Mapping[str, str], *trained: npt.NDArray[np.uint64]) -> set[str]:
    """Recordings that models may be judged on.

    Parameters
    ----------
    groups : mapping of str to str
        recording_id → current group, as for `assign`.
    *trained : ndarray of uint64
        `digests` of the recordings that each model was trained on.

    Returns
    -------
    set of str
        The recordings that `assign` keeps out of training, except groups that contain a recording on which a model was
        trained: labels may have changed the groups since then, and a very small corpus moves a group when it grows.
    """
    held = [recording_id for recording_id, split in assign(groups).items() if split != TRAIN]
    keys = [groups[recording_id] or recording_id for recording_id in held]
    was_trained = np.isin(digests(held), np.concatenate([np.zeros(0, np.uint64), *trained]))
    leaked = {key for key, hit in zip(keys, was_trained, strict=True) if hit}
    return {recording_id for recording_id, key in zip(held, keys, strict=True) if key not in leaked}
