"""Texture statistics by NumPy's own moments and spectra."""

import numpy as np

from model.texture import MODULATION_FLOOR, statistics_of


def test_statistics_are_numpys() -> None:
    x = np.random.default_rng(5).standard_normal((3, 24, 32)).astype(np.float32)
    change = np.abs(np.diff(x, axis=2, append=x[:, :, -1:])).mean(axis=1).reshape(3, 8, 4).mean(axis=2)
    envelopes = x.reshape(3, 24, 4, 8).mean(axis=3)
    centred = (envelopes - envelopes.mean(axis=1, keepdims=True)) * np.hanning(24)[None, :, None]
    power = np.square(np.abs(np.fft.rfft(centred, axis=1)))
    rates = [(1, 2), (2, 3), (3, 4), (4, 6), (6, 8), (8, 12)]
    in_time = np.stack([power[:, low:high].mean(axis=1) for low, high in rates], axis=2).reshape(3, -1)
    blocks = x.reshape(3, 24, 2, 16)
    blocks = (blocks - blocks.mean(axis=3, keepdims=True)) * np.hanning(16)
    along = np.square(np.abs(np.fft.rfft(blocks, axis=3)))[..., 1:].mean(axis=1).reshape(3, -1)
    moments = [x.mean(axis=1), x.std(axis=1), np.diff(x, axis=1).std(axis=1), x.max(axis=1)]
    wanted = [*moments, change, np.log(in_time + MODULATION_FLOOR), np.log(along + MODULATION_FLOOR)]
    for part, one in zip(statistics_of(x), wanted, strict=True):
        np.testing.assert_allclose(part, one, rtol=1e-3, atol=2e-5)
    assert all(np.isfinite(part).all() for part in statistics_of(np.zeros((1, 24, 32), np.float32)))
    assert [part.shape[1] for part in statistics_of(np.zeros((2, 16, 24), np.float32))] == [24] * 4 + [6, 15, 12]
