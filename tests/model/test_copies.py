"""Near copies: the same sound trimmed, encoded again, a little softer; and other sounds, which are none."""

import io

import numpy as np
import pytest
import soundfile

from soundlake.model.features import copies
from soundlake.model.features.log_mel import FeatureSpec, log_mel
from soundlake.pipelines.cli.synth import KINDS
from soundlake.pipelines.lake.lookup import parse_spec

SPEC: FeatureSpec = parse_spec("general")
RATE = SPEC.sample_rate
FLOOR = np.full(SPEC.n_mels, (SPEC.floor + 1) / 2, np.float32)


def sound(kind: str, seed: int, seconds: float = 3.0) -> np.ndarray:
    made = KINDS[kind](np.random.default_rng(seed), seconds, RATE)
    return np.asarray(0.5 * made / np.abs(made).max(), np.float32)


def features(sound: np.ndarray) -> np.ndarray:
    return np.asarray(log_mel(sound, SPEC) / 2, np.float32)


def encoded(sound: np.ndarray, container: str, subtype: str) -> np.ndarray:
    sink = io.BytesIO()
    soundfile.write(sink, sound, RATE, format=container, subtype=subtype)
    sink.seek(0)
    return np.asarray(soundfile.read(sink, dtype="float32")[0])


def test_the_same_is_the_same() -> None:
    a = features(sound("bird", 0))
    assert copies.difference(a, a, floor=FLOOR) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["bird", "engine", "rain", "voice", "wind"])
def test_copies_are_near(kind: str) -> None:
    """What is trimmed or softer is always near; what a codec changed is so in three of four cases (see NEAR)."""
    near = []
    for seed in range(12):
        original = sound(kind, seed)
        a = features(original)
        for how, other in {"trimmed": original[4321:], "3 dB softer": 0.7 * original}.items():
            assert copies.difference(a, features(other), floor=FLOOR) < copies.NEAR, (how, seed)
        for other in (
            encoded(original, "MP3", "MPEG_LAYER_III"),
            encoded(original[512 : 2 * RATE], "OGG", "VORBIS"),
        ):
            near.append(copies.difference(a, features(other), floor=FLOOR) < copies.NEAR)
    assert np.mean(near) >= 0.75


def test_other_sounds_are_not() -> None:
    kinds = [sound(kind, seed) for kind in KINDS for seed in (1, 2)]
    found = [
        copies.difference(features(a), features(b), floor=FLOOR) for i, a in enumerate(kinds) for b in kinds[i + 1 :]
    ]
    assert min(found) > copies.NEAR


def test_silence_is_no_copy_of_silence() -> None:
    silent = np.full((128, SPEC.n_mels), SPEC.floor / 2, np.float32)
    assert copies.difference(silent, silent, floor=FLOOR) == np.inf


def test_the_difference_by_plain_loops() -> None:
    """The best of all shifts, each computed as the definition says."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, 8)).astype(np.float32) for n in (20, 30))
    b[5:25] = a + 0.3 * rng.standard_normal((20, 8))
    floor = np.full(8, -1.0, np.float32)
    worth = []
    for shift in range(-5, 16):
        places = [i for i in range(20) if 0 <= i + shift < 30]
        if len(places) >= 15:
            x, y = (np.maximum(part, -1.0) + 1.0 for part in (a[places], b[[i + shift for i in places]]))
            worth.append(np.sum((x - y) ** 2) / ((np.sum(x**2) + np.sum(y**2)) / 2))
    assert copies.difference(a, b, floor=floor) == pytest.approx(min(worth), rel=1e-4)


def test_pairs_are_of_different_groups() -> None:
    sounds = [sound("bird", 1), sound("bell", 1), sound("bird", 1)[4321:], sound("voice", 3), 0.7 * sound("bell", 1)]
    sounds += [sound(kind, 9) for kind in KINDS]
    windows = [features(one)[:128] for one in sounds]
    known = copies.statistics(np.stack(windows), np.full(len(sounds), 128))
    found = copies.pairs(
        windows.__getitem__,
        known,
        clip=np.arange(len(sounds)),
        group=np.array([0, 1, 2, 3, 1, *range(4, 12)]),
        floor=FLOOR,
    )
    # The soft bell is of the group of the loud one.
    assert found == [(0, 2)]


def test_links_join() -> None:
    found = copies.joined(6, [(0, 3), (3, 5), (1, 2)])
    assert [found.tolist().index(number) for number in found] == [0, 1, 1, 0, 4, 0]
    assert len(set(copies.joined(3, []))) == 3
