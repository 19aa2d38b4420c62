"""Terms of the objective, by loops and by hand."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from soundlake.model.network.objective import free_bits, nt_xent, warm_up


def numpy(value: object) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)


def by_loops(pairs: np.ndarray, temperature: float) -> np.ndarray:
    """NT-Xent as its paper writes it, a pair at a time."""
    windows = [window / np.linalg.norm(window) for pair in pairs for window in pair]
    found = []
    for i in range(len(pairs)):
        both = []
        for a, b in ((2 * i, 2 * i + 1), (2 * i + 1, 2 * i)):
            others = sum(math.exp(windows[a] @ windows[k] / temperature) for k in range(len(windows)) if k != a)
            both.append(-math.log(math.exp(windows[a] @ windows[b] / temperature) / others))
        found.append(np.mean(both))
    return np.array(found)


def test_nt_xent_by_loops() -> None:
    pairs = np.random.default_rng(0).standard_normal((5, 2, 7)).astype(np.float32)
    found = numpy(nt_xent(pairs, pairs, offset=0, temperature=0.3))
    np.testing.assert_allclose(found, by_loops(pairs, 0.3), rtol=1e-4)


def test_nt_xent_of_parts_is_that_of_the_whole() -> None:
    pairs = np.random.default_rng(1).standard_normal((6, 2, 4)).astype(np.float32)
    parts = [nt_xent(pairs[i : i + 2], pairs, offset=i, temperature=0.1) for i in (0, 2, 4)]
    np.testing.assert_allclose(np.concatenate([numpy(p) for p in parts]), by_loops(pairs, 0.1), rtol=1e-4)


def test_nt_xent_at_its_ends() -> None:
    same = np.ones((4, 2, 3), np.float32)
    np.testing.assert_allclose(numpy(nt_xent(same, same, offset=0, temperature=0.1)), math.log(7), rtol=1e-5)
    apart = np.repeat(np.eye(4, dtype=np.float32)[:, None], 2, axis=1)
    assert numpy(nt_xent(apart, apart, offset=0, temperature=0.01)).max() < 1e-6


def test_free_bits() -> None:
    kl = tf.constant([[0.5, 0.1], [1.5, 0.2]])
    mean = tf.reduce_mean(kl, axis=0)
    with tf.GradientTape() as tape:
        tape.watch(kl)
        found = free_bits(kl, mean, 0.4)
    # The first dimension is above 0.4 in the mean, the second below: it costs 0.4 whatever it carries.
    np.testing.assert_allclose(found, [0.5 + 0.4, 1.5 + 0.4], rtol=1e-6)
    np.testing.assert_array_equal(tape.gradient(found, kl), [[1, 0], [1, 0]])
    np.testing.assert_allclose(np.mean(found), np.maximum(mean, 0.4).sum(), rtol=1e-6)


@pytest.mark.parametrize(("step", "wanted"), [(0, 0.1), (4, 0.5), (9, 1.0), (500, 1.0)])
def test_warm_up(step: int, wanted: float) -> None:
    assert float(numpy(warm_up(step, 10))) == pytest.approx(wanted)
