"""The variational autoencoder: encoder, decoder and the terms of the ELBO, in backend-neutral Keras.

No layer draws random numbers: the caller gives the noise, so that replicas, steps and resumed runs are his to key.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops
from pydantic import BaseModel, ConfigDict, Field, model_validator

# Part of a model's identity: raised when the same settings come to train another network or another loss.
VERSION = 2
# exp(±10) bounds the posterior's variance; beyond that float32 sums of exp() lose the rest.
LOG_VARIANCE_LIMIT = 10.0
OBSERVATION_SCALE = 10.0
# A latent dimension counts as active above this mean KL, in nats (Burda et al. 2016 use a like threshold).
ACTIVE_KL = 0.01


class VaeConfig(BaseModel):
    """What a VAE is built from.

    Attributes
    ----------
    preset : {"default", "seed"}
        ``seed`` is the architecture of the article that this project comes from; ``default`` starts from the principal
        components of the data, and learns more a second.
    n_frames, n_mels : int
        Shape of a window; multiples of 8.
    latent_dim : int
        Numbers of an embedding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["default", "seed"] = "default"
    n_frames: int = Field(default=128, ge=8)
    n_mels: int = Field(default=128, ge=8)
    latent_dim: int = Field(default=64, ge=1, le=4096)

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.n_frames % 8 or self.n_mels % 8:
            raise ValueError(
                f"a window of {self.n_frames} x {self.n_mels} cannot be halved three times: use multiples of 8"
            )
        return self


@dataclass(frozen=True)
class Components:
    """Principal components of windows.

    Attributes
    ----------
    mean : ndarray of float32, shape (n_frames * n_mels,)
        Of normalised windows, frames first.
    directions : ndarray of float32, shape (n, n_frames * n_mels)
        Of length 1, the one of most variance first.
    variances : ndarray of float32, shape (n,)
    rest : float
        Mean variance, a number of a window, that no direction explains.
    """

    mean: npt.NDArray[np.float32]
    directions: npt.NDArray[np.float32]
    variances: npt.NDArray[np.float32]
    rest: float


class ElboTerms(NamedTuple):
    """Terms of the negative ELBO, one number an example, nats.

    Attributes
    ----------
    nll : tensor, shape (batch,)
        −log p(x|z), summed over frames and mel bands, its constant included.
    kl : tensor, shape (batch,)
        KL(q(z|x) ‖ N(0, I)).
    kl_per_dim : tensor, shape (batch, latent_dim)
    mse : tensor, shape (batch,)
        Mean square error of the reconstruction, no unit.
    """

    nll: Any
    kl: Any
    kl_per_dim: Any
    mse: Any


def gaussian_nll(x: Any, mean: Any, log_variance: Any) -> Any:
    """−log N(x; mean, exp(log_variance)), summed over all axes but the first, nats.

    ½ Σ [log 2π + log σ² + (x − μ)² / σ²]; Bishop, Pattern Recognition and Machine Learning, eq. 1.46.
    """
    terms = math.log(2 * math.pi) + log_variance + ops.square(x - mean) * ops.exp(-log_variance)
    return 0.5 * ops.sum(terms, axis=tuple(range(1, len(x.shape))))


def kl_to_standard_normal(mean: Any, log_variance: Any) -> Any:
    """KL(N(mean, exp(log_variance)) ‖ N(0, 1)) of each number, nats: ½ (σ² + μ² − 1 − log σ²).

    Kingma and Welling, Auto-Encoding Variational Bayes (2013), appendix B.
    """
    return 0.5 * (ops.exp(log_variance) + ops.square(mean) - 1.0 - log_variance)


class DepthToSpace(layers.Layer):
    """(batch, h, w, size²) → (batch, h·size, w·size, 1): each position's channels become a patch."""

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = size

    def call(self, x: Any) -> Any:
        _, h, w, _ = x.shape
        x = ops.reshape(x, (-1, h, w, self.size, self.size))
        x = ops.transpose(x, (0, 1, 3, 2, 4))
        return ops.reshape(x, (-1, h * self.size, w * self.size, 1))

    def get_config(self) -> dict[str, Any]:
        """The layer's settings, as Keras wants them."""
        return {**super().get_config(), "size": self.size}


def _encoder(config: VaeConfig) -> keras.Model:
    x = inputs = keras.Input((config.n_frames, config.n_mels), name="normalised")
    x = layers.Reshape((config.n_frames, config.n_mels, 1))(x)
    if config.preset == "seed":
        for filters in (32, 64, 128):
            x = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    else:
        # Patches first: the full-size feature maps of 3 x 3 convolutions are where the seed spends its time.
        x = layers.Conv2D(64, 4, strides=4, padding="same", activation="relu")(x)
        x = layers.Conv2D(128, 3, strides=2, padding="same", activation="relu")(x)
    x = layers.Flatten()(x)
    start = "glorot_uniform" if config.preset == "seed" else "zeros"
    mean = layers.Dense(config.latent_dim, kernel_initializer=start, name="mean")(x)
    log_variance = layers.Dense(config.latent_dim, kernel_initializer=start, name="log_variance")(x)
    if config.preset != "seed":
        linear = layers.Dense(config.latent_dim, trainable=False, name="components")
        mean = layers.Add()([mean, linear(layers.Flatten()(inputs))])
    return keras.Model(inputs, [mean, log_variance], name="encoder")


def _decoder(config: VaeConfig) -> keras.Model:
    h, w = config.n_frames // 8, config.n_mels // 8
    x = inputs = keras.Input((config.latent_dim,), name="latent")
    if config.preset == "seed":
        x = layers.Dense(h * w * 256)(x)
        x = layers.Reshape((h, w, 256))(x)
        for filters in (128, 64, 32):
            x = layers.Conv2DTranspose(filters, 3, strides=2, padding="same", activation="relu")(x)
        x = layers.Conv2D(1, 1)(x)
    else:
        x = layers.Dense(h * w * 64, activation="relu")(x)
        x = layers.Reshape((h, w, 64))(x)
        x = layers.Conv2D(64, 3, padding="same", activation="relu")(x)
        x = layers.Conv2D(64, 3, padding="same", kernel_initializer="zeros")(x)
        linear = layers.Dense(config.n_frames * config.n_mels, trainable=False, name="components")
        x = layers.Add()([layers.Flatten()(DepthToSpace(8)(x)), linear(inputs)])
    x = layers.Reshape((config.n_frames, config.n_mels))(x)
    return keras.Model(inputs, x, name="decoder")


class VAE(keras.Model):
    """Encoder, decoder and the observation's variance.

    Attributes
    ----------
    encoder : keras.Model
        (batch, n_frames, n_mels) normalised → mean and log-variance, each (batch, latent_dim).
    decoder : keras.Model
        (batch, latent_dim) → (batch, n_frames, n_mels) normalised.
    log_variance_scaled : Variable or None
        A tenth of the log-variance of the Gaussian p(x|z): one number, learned (σ-VAE: Rybkin et al. 2021). None for
        the seed: unit variance.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__(name="vae")
        self.config = config
        self.encoder, self.decoder = _encoder(config), _decoder(config)
        self.log_variance_scaled = None
        if config.preset != "seed":
            self.log_variance_scaled = self.add_weight(shape=(), initializer="zeros", name="log_variance_scaled")
        self.built = True

    def start_from(self, components: Components) -> None:
        """Make this probabilistic PCA, which is the best that a linear VAE can be; what is trained adds to it.

        Tipping and Bishop, Probabilistic Principal Component Analysis (1999): with directions w of variance λ and σ²
        left over, z = √(λ − σ²) / λ · wᵀ(x − μ), of posterior variance σ² / λ, and x = μ + √(λ − σ²) w z. That a linear
        VAE has no better optimum: Lucas et al., Don't Blame the ELBO! (2019).

        Raises
        ------
        ValueError
            If the preset is one without a linear part.
        """
        if self.log_variance_scaled is None:
            raise ValueError("the seed has no linear part to start from")
        rest, missing = components.rest, self.config.latent_dim - len(components.variances)
        explained = np.pad(components.variances, (0, missing))
        basis = np.pad(components.directions, ((0, missing), (0, 0)))
        # A direction of less variance than is left over tells nothing: its latent stays with the prior.
        signal = np.maximum(explained - rest, 0)
        into = basis.T * (np.sqrt(signal) / (signal + rest))
        self.encoder.get_layer("components").set_weights([into, -components.mean @ into])
        self.decoder.get_layer("components").set_weights([basis * np.sqrt(signal)[:, None], components.mean])
        kernel, _ = self.encoder.get_layer("log_variance").get_weights()
        self.encoder.get_layer("log_variance").set_weights([kernel, np.log(rest / (signal + rest))])
        self.log_variance_scaled.assign(math.log(rest) / OBSERVATION_SCALE)

    def observation_log_variance(self) -> Any:
        """Log-variance of p(x|z), a scalar."""
        if self.log_variance_scaled is None:
            return ops.zeros(())
        # Adam moves a weight by about the learning rate a step: unscaled it would take thousands of steps to arrive.
        return OBSERVATION_SCALE * self.log_variance_scaled

    def posterior(self, x: Any) -> tuple[Any, Any]:
        """Mean and log-variance of q(z|x), each (batch, latent_dim)."""
        mean, log_variance = self.encoder(x)
        return mean, ops.clip(log_variance, -LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)

    def elbo_terms(self, x: Any, noise: Any) -> ElboTerms:
        """Terms of the negative ELBO of a batch, by one sample of the posterior.

        Parameters
        ----------
        x : tensor, shape (batch, n_frames, n_mels)
            Normalised log-mel.
        noise : tensor, shape (batch, latent_dim)
            Standard normal; z = mean + noise · exp(½ log-variance).
        """
        mean, log_variance = self.posterior(x)
        reconstruction = self.decoder(mean + noise * ops.exp(0.5 * log_variance))
        kl = kl_to_standard_normal(mean, log_variance)
        mse = ops.mean(ops.square(x - reconstruction), axis=(1, 2))
        return ElboTerms(gaussian_nll(x, reconstruction, self.observation_log_variance()), ops.sum(kl, axis=1), kl, mse)

    def call(self, x: Any) -> Any:
        """Reconstruction from the posterior mean, (batch, n_frames, n_mels) normalised."""
        return self.decoder(self.posterior(x)[0])


def build(config: VaeConfig) -> VAE:
    """A VAE with fresh weights; Keras takes its seeds from Python's `random`."""
    return VAE(config)


def active_dimensions(kl_per_dim: Any, *, threshold: float = ACTIVE_KL) -> int:
    """Latent dimensions whose mean KL, nats, is above the threshold."""
    return sum(float(kl) > threshold for kl in kl_per_dim)
