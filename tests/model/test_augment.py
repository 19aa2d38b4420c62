"""How windows are changed: masks made by tensorflow_io, levels as the sound would have them, pitch by a loop."""

import numpy as np
import tensorflow as tf

from soundlake.model.features.log_mel import FeatureSpec, log_mel
from soundlake.model.network import augment
from tests.model.conftest import SPEC


def widths(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each mask: frames and bands that are hidden whole."""
    return (~masks.any(axis=2)).sum(axis=1), (~masks.any(axis=1)).sum(axis=1)


def test_masks_are_a_stretch_of_time_and_one_of_bands() -> None:
    masks = augment.mask_bank(SPEC, widest=0.25, seed=3, count=300)
    assert masks.shape == (300, 16, 16)
    frames, bands = widths(masks)
    # From none to a quarter of 16, each width as often as another.
    assert set(frames) == set(bands) == {0, 1, 2, 3, 4}
    assert np.bincount(frames).min() > 30
    for mask in masks:
        time, band = ~mask.any(axis=1), ~mask.any(axis=0)
        np.testing.assert_array_equal(~mask, time[:, None] | band[None])
        for hidden in (time, band):
            assert np.abs(np.diff(np.pad(hidden.astype(int), 1))).sum() in (0, 2)
    # Everything is hidden at times, but for the last frame and band: tensorflow_io draws where to begin short of them.
    assert (~masks).any(axis=0)[:-1, :-1].all()


def test_masks_are_the_seeds_whatever_was_drawn_before() -> None:
    first = augment.mask_bank(SPEC, widest=0.2, seed=1, count=20)
    tf.random.uniform((3,))
    np.testing.assert_array_equal(first, augment.mask_bank(SPEC, widest=0.2, seed=1, count=20))
    assert not np.array_equal(first, augment.mask_bank(SPEC, widest=0.2, seed=2, count=20))


def test_a_level_is_what_the_louder_sound_gives() -> None:
    spec = FeatureSpec(**SPEC.model_dump())
    sound = (0.1 * np.random.default_rng(0).standard_normal(16_000)).astype(np.float32)
    quiet, loud = log_mel(sound, spec), log_mel(sound * 10 ** (6 / 20), spec)
    found = augment.at_level(tf.constant(quiet[None]), tf.constant([6.0]), log_offset=spec.log_offset)[0]
    np.testing.assert_allclose(found, loud, atol=2e-3)
    silent = tf.fill((1, 4, 16), float(np.log(spec.log_offset)))
    np.testing.assert_allclose(
        augment.at_level(silent, tf.constant([40.0]), log_offset=spec.log_offset), silent, atol=5e-3
    )


def test_transposed_by_a_loop() -> None:
    x = np.random.default_rng(1).standard_normal((3, 2, 5)).astype(np.float32)
    moved = augment.transposed(tf.constant(x), tf.constant([2, 0, -1])).numpy()
    for window, shift, found in zip(x, (2, 0, -1), moved, strict=True):
        for band in range(5):
            np.testing.assert_array_equal(found[:, band], window[:, min(max(band - shift, 0), 4)])


def test_mixed_is_the_power_of_both() -> None:
    """Two windows of powers 1 and 4, a quarter of the second at the first one's level."""
    offset = 1e-5
    x, other = (tf.fill((1, 2, 3), float(np.log(power + offset))) for power in (1.0, 4.0))
    found = augment.mixed(x, other, tf.constant([0.25]), log_offset=offset)
    np.testing.assert_allclose(found, np.log(0.75 * 1 + 0.25 * 4 / 4 + offset), rtol=1e-5, atol=1e-5)
    pattern = tf.constant(np.log(np.array([[[1.0, 0.0], [0.0, 3.0]]]) + offset), tf.float32)
    found = augment.mixed(pattern, pattern[:, ::-1], tf.constant([0.5]), log_offset=offset)
    np.testing.assert_allclose(np.exp(found) - offset, [[[0.5, 1.5], [0.5, 1.5]]], rtol=1e-4)
    silent = tf.fill((1, 2, 3), float(np.log(offset)))
    assert np.isfinite(augment.mixed(x, silent, tf.constant([0.5]), log_offset=offset)).all()
