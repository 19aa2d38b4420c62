"""The VAE: the seed's shapes and numbers by hand, the terms of the ELBO by independent routes."""

import dataclasses
import math

import keras
import numpy as np
import pytest
from pydantic import ValidationError
from scipy import stats

from soundlake.model.network.texture import statistics_of
from soundlake.model.network.vae import (
    Components,
    DepthToSpace,
    VaeConfig,
    build,
    gaussian_nll,
    kl_to_standard_normal,
    optimal_nll,
)

WRONG = [{"n_mels": 100}, {"n_frames": 4}, {"latent_dim": 0}, {"preset": "opera"}, {"x": 1}]
WRONG += [{"preset": "seed", "likeness_dim": 2}, {"contrastive": True}]


def numpy(value: object) -> np.ndarray:
    return keras.ops.convert_to_numpy(value)


def test_seed_is_the_articles() -> None:
    vae = build(VaeConfig(preset="seed", latent_dim=64))

    def conv(size: int, before: int, after: int) -> int:
        return size * size * before * after + after

    flat = 16 * 16 * 128
    encoder = conv(3, 1, 32) + conv(3, 32, 64) + conv(3, 64, 128) + 2 * (flat * 64 + 64)
    decoder = (
        64 * 16 * 16 * 256 + 16 * 16 * 256 + conv(3, 256, 128) + conv(3, 128, 64) + conv(3, 64, 32) + conv(1, 32, 1)
    )
    assert vae.encoder.count_params() == encoder
    assert vae.decoder.count_params() == decoder
    assert vae.log_variance_scaled is None
    strided = [layer for layer in vae.encoder.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [(layer.filters, layer.kernel_size, layer.strides) for layer in strided] == [
        (filters, (3, 3), (2, 2)) for filters in (32, 64, 128)
    ]
    raised = [layer for layer in vae.decoder.layers if isinstance(layer, keras.layers.Conv2DTranspose)]
    assert [(layer.filters, layer.kernel_size, layer.strides) for layer in raised] == [
        (filters, (3, 3), (2, 2)) for filters in (128, 64, 32)
    ]
    assert all(layer.activation is keras.activations.relu for layer in strided + raised)


@pytest.mark.parametrize("preset", ["seed", "default"])
@pytest.mark.parametrize("shape", [(128, 128), (32, 48)])
def test_shapes(preset: str, shape: tuple[int, int]) -> None:
    vae = build(VaeConfig(preset=preset, n_frames=shape[0], n_mels=shape[1], latent_dim=5))
    x = np.zeros((3, *shape), np.float32)
    mean, log_variance, likeness = vae.encoded(x)
    assert mean.shape == log_variance.shape == (3, 5)
    assert likeness is None
    assert vae(x).shape == (3, *shape)


@pytest.mark.parametrize(
    "bad", [{"n_mels": 100}, {"n_frames": 4}, {"latent_dim": 0}, {"preset": "opera"}, {"x": 1}, *WRONG]
)
def test_config_refuses(bad: dict) -> None:
    with pytest.raises(ValidationError):
        VaeConfig(**bad)


def test_nll_is_scipys() -> None:
    rng = np.random.default_rng(0)
    x, mean = rng.standard_normal((2, 4, 6, 5)).astype(np.float32)
    wanted = -stats.norm.logpdf(x, mean, math.exp(0.5 * -1.3)).sum(axis=(1, 2))
    np.testing.assert_allclose(numpy(gaussian_nll(x, mean, np.float32(-1.3))), wanted, rtol=1e-5)


def test_the_optimal_variance_is_the_least_of_all_nlls() -> None:
    rng = np.random.default_rng(3)
    x, mean = rng.standard_normal((2, 1, 6, 5)).astype(np.float32)
    mse = float(np.square(x - mean).mean())
    variances = np.geomspace(mse / 4, mse * 4, 201)
    found = [float(numpy(gaussian_nll(x, mean, np.float32(math.log(one))))[0]) for one in variances]
    assert variances[int(np.argmin(found))] == pytest.approx(mse, rel=0.01)
    assert optimal_nll(mse, 30) == pytest.approx(min(found), rel=1e-5)
    vae = build(VaeConfig(n_frames=16, n_mels=16, latent_dim=3))
    vae.calibrate(mse)
    assert float(numpy(vae.observation_log_variance())) == pytest.approx(math.log(mse), rel=1e-5)
    assert np.isfinite(optimal_nll(0.0, 30))


def test_kl_is_monte_carlos() -> None:
    rng = np.random.default_rng(1)
    mean, log_variance = 0.7, -0.9
    z = rng.normal(mean, math.exp(log_variance / 2), 400_000)
    sampled = stats.norm.logpdf(z, mean, math.exp(log_variance / 2)) - stats.norm.logpdf(z)
    closed = float(numpy(kl_to_standard_normal(np.float32(mean), np.float32(log_variance))))
    assert closed == pytest.approx(sampled.mean(), abs=5 * sampled.std() / math.sqrt(len(z)))
    assert float(numpy(kl_to_standard_normal(np.float32(0), np.float32(0)))) == 0.0


def test_elbo_terms() -> None:
    """From encoder and decoder called by hand."""
    vae = build(VaeConfig(n_frames=16, n_mels=16, latent_dim=3))
    vae.log_variance_scaled.assign(-0.08)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((4, 16, 16)).astype(np.float32)
    noise = rng.standard_normal((4, 3)).astype(np.float32)
    terms = vae.elbo_terms(x, noise)
    mean, log_variance = (numpy(value) for value in vae.encoder(x))
    rebuilt = numpy(vae.decoder(mean + noise * np.exp(log_variance / 2)))
    nll = -stats.norm.logpdf(x, rebuilt, math.exp(-0.4)).sum(axis=(1, 2))
    kl = 0.5 * (np.exp(log_variance) + mean**2 - 1 - log_variance)
    np.testing.assert_allclose(numpy(terms.nll), nll, rtol=1e-4)
    np.testing.assert_allclose(numpy(terms.kl_per_dim), kl, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(numpy(terms.kl), kl.sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(numpy(terms.mse), ((x - rebuilt) ** 2).mean(axis=(1, 2)), rtol=1e-4)


def test_no_noise_of_its_own() -> None:
    vae = build(VaeConfig(n_frames=16, n_mels=16, latent_dim=3))
    x, noise = np.ones((2, 16, 16), np.float32), np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(numpy(vae.elbo_terms(x, noise).nll), numpy(vae.elbo_terms(x, noise).nll))


def test_depth_to_space_is_a_loop() -> None:
    x = np.random.default_rng(3).standard_normal((2, 3, 4, 4)).astype(np.float32)
    wanted = np.zeros((2, 6, 8, 1), np.float32)
    for i in range(3):
        for j in range(4):
            for c in range(4):
                wanted[:, 2 * i + c // 2, 2 * j + c % 2, 0] = x[:, i, j, c]
    np.testing.assert_array_equal(numpy(DepthToSpace(2)(x)), wanted)


def test_extreme_log_variances_stay_finite() -> None:
    vae = build(VaeConfig(n_frames=16, n_mels=16, latent_dim=3))
    x = np.full((1, 16, 16), 1e6, np.float32)
    log_variance = numpy(vae.encoded(x).log_variance)
    assert np.isfinite(log_variance).all()
    assert np.abs(log_variance).max() <= 10


def windows_of_low_rank(count: int = 60) -> np.ndarray:
    """Windows that four numbers and a little noise make."""
    rng = np.random.default_rng(4)
    strong = rng.standard_normal((count, 4)) * [2, 1.5, 1, 0.5]
    return (strong @ rng.standard_normal((4, 256)) + 0.3 * rng.standard_normal((count, 256)) + 2).astype(np.float32)


def principal_components(rows: np.ndarray, count: int) -> Components:
    centre = rows.mean(axis=0)
    _, sizes, directions = np.linalg.svd(rows - centre, full_matrices=False)
    directions = directions[:count]
    rest = np.square((rows - centre) - (rows - centre) @ directions.T @ directions).mean()
    return Components(centre, directions, (sizes**2 / (len(rows) - 1))[:count], float(rest))


def test_it_starts_as_probabilistic_pca() -> None:
    """Posterior and rebuilt mean by Bayes' rule for a Gaussian, with whole matrices."""
    rows = windows_of_low_rank()
    found = principal_components(rows, 4)
    vae = build(VaeConfig(n_frames=16, n_mels=16, latent_dim=4))
    vae.start_from(found)
    mean, log_variance = (numpy(value) for value in vae.encoded(rows.reshape(-1, 16, 16))[:2])
    loading = found.directions.T * np.sqrt(found.variances - found.rest)
    precision = np.eye(4) + loading.T @ loading / found.rest
    posterior = np.linalg.solve(precision, loading.T @ (rows - found.mean).T / found.rest).T
    np.testing.assert_allclose(mean, posterior, atol=1e-3)
    np.testing.assert_allclose(np.exp(log_variance), np.tile(np.diag(np.linalg.inv(precision)), (60, 1)), rtol=1e-3)
    rebuilt = numpy(vae(rows.reshape(-1, 16, 16))).reshape(60, 256)
    np.testing.assert_allclose(rebuilt, posterior @ loading.T + found.mean, atol=1e-3)
    assert float(numpy(vae.observation_log_variance())) == pytest.approx(math.log(found.rest), rel=1e-5)


@pytest.mark.parametrize("contrastive", [False, True])
def test_likeness_starts_as_it_is_given(contrastive: bool) -> None:
    rows = windows_of_low_rank()
    rng = np.random.default_rng(5)
    windows = rows.reshape(-1, 16, 16)
    deviation, mean = rng.uniform(0.5, 2, 16).astype(np.float32), rng.normal(-5, 1, 16).astype(np.float32)
    found = np.concatenate(statistics_of(windows, windows * deviation + mean), axis=1)
    kernel, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((found.shape[1], 3), (3,)))
    given = dataclasses.replace(principal_components(rows, 4), likeness=(kernel, bias))
    given = dataclasses.replace(given, normalisation=(deviation, mean))
    vae = build(VaeConfig(n_frames=16, n_mels=16, latent_dim=4, likeness_dim=3, contrastive=contrastive))
    vae.start_from(given)
    encoded = vae.encoded(windows)
    np.testing.assert_allclose(numpy(encoded.likeness), found @ kernel + bias, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(numpy(encoded.embedding), numpy(encoded.likeness))
    learned = {variable.path for variable in vae.trainable_variables if "likeness" in variable.path}
    assert bool(learned) == contrastive
    assert (vae.projector is not None) == contrastive


def test_no_small_step_from_there_lowers_the_loss() -> None:
    """Of the linear part: probabilistic PCA is where its ELBO is highest."""
    rows = windows_of_low_rank()
    x = rows.reshape(-1, 16, 16)
    vae = build(VaeConfig(n_frames=16, n_mels=16, latent_dim=4))
    vae.start_from(principal_components(rows, 4))

    def loss() -> float:
        # Averaged over noise that comes with its opposite: what is linear in it cancels.
        noises = np.random.default_rng(0).standard_normal((40, 60, 4)).astype(np.float32)
        terms = [vae.elbo_terms(x, sign * noise) for noise in noises for sign in (1, -1)]
        return float(np.mean([numpy(one.nll + one.kl).mean() for one in terms]))

    best = loss()
    for layer in (vae.encoder.get_layer("components"), vae.decoder.get_layer("components")):
        kernel, bias = layer.get_weights()
        for factor in (0.9, 1.1):
            layer.set_weights([kernel * factor, bias])
            assert loss() > best + 0.1
        layer.set_weights([kernel, bias])


def test_fewer_components_than_dimensions_leave_the_rest_to_the_prior() -> None:
    rows = windows_of_low_rank(3)
    vae = build(VaeConfig(n_frames=16, n_mels=16, latent_dim=6))
    vae.start_from(principal_components(rows, 2))
    mean, log_variance = (numpy(value) for value in vae.encoded(rows.reshape(-1, 16, 16))[:2])
    assert np.isfinite(mean).all()
    np.testing.assert_allclose(mean[:, 2:], 0)
    np.testing.assert_allclose(log_variance[:, 2:], 0)


def test_what_it_starts_from_is_not_trained() -> None:
    vae = build(VaeConfig(n_frames=16, n_mels=16, latent_dim=3))
    assert [variable.path.split("/")[0] for variable in vae.non_trainable_variables] == ["components"] * 4
    assert len(vae.weights) == len(vae.trainable_variables) + 4
    with pytest.raises(ValueError, match="seed"):
        build(VaeConfig(preset="seed")).start_from(principal_components(windows_of_low_rank(), 4))
