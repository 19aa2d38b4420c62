"""Which recordings train, which validate, which test: by a stable digest, so that none ever moves."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

SPLIT_RULE = "sha256-v1: test < 0.1 <= validation < 0.2 <= train"
TRAIN, VALIDATION, TEST = "train", "validation", "test"


def place(key: str) -> float:
    """Where a group or recording lies in [0, 1): the first 8 bytes of a SHA-256, over 2^64."""
    return int.from_bytes(hashlib.sha256(f"{SPLIT_RULE}:{key}".encode()).digest()[:8], "big") / 2**64


def split_of(key: str) -> str:
    """The split of a group or recording."""
    at = place(key)
    return TEST if at < 0.1 else VALIDATION if at < 0.2 else TRAIN


def assign(groups: Mapping[str, str]) -> dict[str, str]:
    """The split of every recording; recordings of one group stay together.

    Parameters
    ----------
    groups : mapping of str to str
        recording_id → group, ``""`` where there is none: then the recording is its own group.

    Returns
    -------
    dict of str to str
        recording_id → ``"train"``, ``"validation"`` or ``"test"``. Very small corpora may have none to spare: the group
        nearest to the border then moves into an empty training split, and after that into an empty validation split.
        One group alone is training, and there is no validation.
    """
    keys = {recording_id: group or recording_id for recording_id, group in groups.items()}
    chosen = {key: split_of(key) for key in set(keys.values())}
    for wanted in (TRAIN, VALIDATION):
        spare = sorted((key for key in chosen if chosen[key] != wanted), key=place)
        if spare and wanted not in chosen.values() and (wanted == TRAIN or len(chosen) > 1):
            key = spare[-1] if wanted == TRAIN else _from_the_fuller(spare, chosen)
            chosen[key] = wanted
    return {recording_id: chosen[key] for recording_id, key in keys.items()}


def _from_the_fuller(spare: list[str], chosen: Mapping[str, str]) -> str:
    """The group of least digest that training or testing can give away without being emptied of training."""
    training = [key for key in spare if chosen[key] == TRAIN]
    testing = [key for key in spare if chosen[key] == TEST]
    return training[0] if len(training) > 1 else testing[0]


def digests(recordings: Iterable[str]) -> npt.NDArray[np.uint64]:
    """8 bytes of each recording's SHA-256, in the same order: by these a model knows what it was trained on."""
    each = (hashlib.sha256(recording_id.encode()).digest()[:8] for recording_id in recordings)
    return np.frombuffer(b"".join(each), ">u8").astype(np.uint64)


def held_out(groups: Mapping[str, str], *trained: npt.NDArray[np.uint64]) -> set[str]:
    """Recordings that models may be judged on.

    Parameters
    ----------
    groups : mapping of str to str
        recording_id → group of today, as for `assign`.
    *trained : ndarray of uint64
        `digests` of what each model was trained on.

    Returns
    -------
    set of str
        What `assign` keeps out of training, without groups of which a model knows a recording: labels may name other
        groups since then, and a very small corpus moves one when it grows.
    """
    held = [recording_id for recording_id, split in assign(groups).items() if split != TRAIN]
    keys = [groups[recording_id] or recording_id for recording_id in held]
    known = np.isin(digests(held), np.concatenate([np.zeros(0, np.uint64), *trained]))
    lost = {key for key, is_known in zip(keys, known, strict=True) if is_known}
    return {recording_id for recording_id, key in zip(held, keys, strict=True) if key not in lost}
