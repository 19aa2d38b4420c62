"""Statistics of windows by NumPy's own moments and spectra."""

import numpy as np
import pytest

from soundlake.model.network.texture import (
    BANDS,
    MODULATION_FLOOR,
    ORDERS,
    RANGE_DB,
    RIDGE,
    VARIANCE_FLOOR,
    projection,
    statistics_of,
)


def texture(x: np.ndarray) -> list[np.ndarray]:
    """Of (3, 24, 32)."""
    change = np.abs(np.diff(x, axis=2, append=x[:, :, -1:])).mean(axis=1).reshape(3, 8, 4).mean(axis=2)
    envelopes = x.reshape(3, 24, 4, 8).mean(axis=3)
    centred = (envelopes - envelopes.mean(axis=1, keepdims=True)) * np.hanning(24)[None, :, None]
    power = np.square(np.abs(np.fft.rfft(centred, axis=1)))
    rates = [(1, 2), (2, 3), (3, 4), (4, 6), (6, 8), (8, 12)]
    in_time = np.stack([power[:, low:high].mean(axis=1) for low, high in rates], axis=2).reshape(3, -1)
    blocks = x.reshape(3, 24, 2, 16)
    blocks = (blocks - blocks.mean(axis=3, keepdims=True)) * np.hanning(16)
    along = np.square(np.abs(np.fft.rfft(blocks, axis=3)))[..., 1:].mean(axis=1).reshape(3, -1)
    spreads = [np.sqrt(one.var(axis=1) + VARIANCE_FLOOR) for one in (x, np.diff(x, axis=1))]
    moments = [x.mean(axis=1), *spreads, x.max(axis=1)]
    return [*moments, change, np.log(in_time + MODULATION_FLOOR), np.log(along + MODULATION_FLOOR)]


def in_order(relative: np.ndarray, power: np.ndarray) -> list[np.ndarray]:
    """Spectra on the clock of what has sounded, window by window."""
    found = np.zeros((ORDERS, len(power), power.shape[2]))
    for number, (spectra, window) in enumerate(zip(relative, power, strict=True)):
        amplitude = np.sqrt(window.sum(axis=1) / window.sum(axis=1).max())
        amplitude = np.maximum(amplitude - 10 ** (-RANGE_DB / 20), 0)
        share = amplitude / amplitude.sum()
        for order in range(ORDERS):
            clock = 0.0
            for here, spectrum in zip(share, spectra, strict=True):
                found[order, number] += here * np.cos(np.pi * order * (clock + here / 2)) * spectrum
                clock += here
    return list(found)


@pytest.mark.parametrize("together", [1, 4])
def test_statistics_are_numpys(together: int) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((3, 24, 32 * together)).astype(np.float32)
    nats = (rng.normal(-7, 3, x.shape)).astype(np.float32)
    grouped, power = (one.reshape(3, 24, 32, together).mean(axis=3) for one in (x, np.exp(nats.astype(np.float64))))
    power /= power.max(axis=(1, 2), keepdims=True)
    decibels = 10 * np.log10(power + 10 ** (-RANGE_DB / 10))
    relative = (decibels + RANGE_DB / 2) * np.log(10) / 10 / 1.5
    wanted = [*texture(grouped), *texture(relative), *in_order(relative, power)]
    for part, one in zip(statistics_of(x, nats), wanted, strict=True):
        np.testing.assert_allclose(part, one, rtol=1e-3, atol=1e-4)


def test_what_hardly_varies_keeps_its_deviation() -> None:
    """Far from zero, where float32 has few digits left for it."""
    x = np.random.default_rng(8).normal(5, 2e-3, (3, 128, 32)).astype(np.float32)
    exact = x.astype(np.float64)
    wanted = [np.sqrt(one.var(axis=1) + VARIANCE_FLOOR) for one in (exact, np.diff(exact, axis=1))]
    for found, one in zip(statistics_of(x, x)[1:3], wanted, strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-4)


def test_statistics_of_any_shape() -> None:
    zeros = np.zeros((1, 24, 32), np.float32)
    assert all(np.isfinite(part).all() for part in statistics_of(zeros, zeros - 11))
    few = np.zeros((2, 16, 24), np.float32)
    assert [part.shape[1] for part in statistics_of(few, few)] == 2 * ([24] * 4 + [6, 15, 12]) + ORDERS * [24]
    for bands in (8, 40, 64, 80, 96, 128):
        many = np.zeros((1, 16, bands), np.float32)
        left = statistics_of(many, many)[0].shape[1]
        assert bands % left == 0
        assert left >= min(bands, BANDS)


def test_where_in_a_window_a_sound_begins_does_not_count() -> None:
    """Of what follows what: silence has no place on the clock."""
    rng = np.random.default_rng(7)
    sound = rng.normal(-2, 1, (20, 32)).astype(np.float32)
    windows = np.full((2, 64, 32), -18, np.float32)
    windows[0, :20], windows[1, 31:51] = sound, sound
    for part in statistics_of(windows, windows)[-ORDERS:]:
        np.testing.assert_allclose(part[0], part[1], atol=1e-4)
    backwards = np.full((1, 64, 32), -18, np.float32)
    backwards[0, :20] = sound[::-1]
    same, turned = (statistics_of(one, one)[-ORDERS:] for one in (windows[:1], backwards))
    np.testing.assert_allclose(same[0], turned[0], atol=1e-4)
    np.testing.assert_allclose(same[1], -turned[1], atol=1e-4)


def test_projection_is_mahalanobis() -> None:
    """With as many numbers as statistics distances are those of the changes' covariance, inverted as it stands."""
    rng = np.random.default_rng(6)
    parts = [rng.normal(3, [1, 2, 4], (200, 3)).astype(np.float32), rng.normal(0, 5, (200, 6)).astype(np.float32)]
    # The first number is changed much, the rest hardly; a part of more numbers than the first counts for no more.
    changed = [part + rng.normal(0, 0.01, part.shape).astype(np.float32) for part in parts]
    changed[0][:, 0] += rng.normal(0, 1, 200).astype(np.float32)
    kernel, bias = projection(parts, changed, 9)
    found, after = (np.concatenate(one, axis=1).astype(np.float64) for one in (parts, changed))
    scale = np.array([1] * 3 + [0.5**0.5] * 6) / found.std(axis=0)
    moved = (after - found) * scale
    ridge = RIDGE * ((found * scale).var(axis=0).sum() / 9)
    inverse = np.linalg.inv(moved.T @ moved / 200 + ridge * np.eye(9))
    ours = found @ kernel + bias
    difference = (found[:, None] - found[None]) * scale
    wanted = np.einsum("abi,ij,abj->ab", difference, inverse, difference)
    seen = np.square(ours[:, None] - ours[None]).sum(axis=2)
    np.testing.assert_allclose(seen / seen.mean(), wanted / wanted.mean(), atol=1e-3)
    assert abs(ours.var(axis=0).sum() - 9) < 0.01
    assert np.abs(ours.mean(axis=0)).max() < 1e-4


def test_projection_of_few_statistics_and_of_what_never_varies() -> None:
    same = [np.full((5, 3), 2, np.float32)]
    kernel, bias = projection(same, [same[0] + np.float32(0.1)], 7)
    assert kernel.shape == (3, 7)
    # Whatever else comes, too: nothing is known of how far it is.
    np.testing.assert_array_equal(np.array([[5, -3, 0]], np.float32) @ kernel + bias, 0)
    few = [np.array([[0, 1, 2], [1, 1, 2], [2, 1, 2]], np.float32)]
    kernel, bias = projection(few, few, 7)
    found = few[0] @ kernel + bias
    assert np.isfinite(kernel).all()
    assert abs(found.var(axis=0).sum() - 7) < 0.01
