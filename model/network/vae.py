"""The variational autoencoder: encoder, decoder and the terms of the ELBO, in backend-neutral Keras.

No layer draws random numbers: the caller passes the noise, and can key it by replica and step for resumed runs.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops
from pydantic import BaseModel, ConfigDict, Field, model_validator

from soundlake.model.network import texture
from soundlake.model.network.texture import mean_over_time

# Part of a model's identity. It is raised when the same settings lead to another network or loss, or when the order of
# layers changes, since checkpoints assign weights by that order.
VERSION = 9
# exp(±10) bounds the posterior's variance: with larger values float32 sums of exp() lose the other terms.
LOG_VARIANCE_LIMIT = 10.0
OBSERVATION_SCALE = 10.0
# Least variance of p(x|z), so that the likelihood cannot grow without bound.
LEAST_VARIANCE = 1e-6
# Size of the vectors that the contrastive term compares.
PROJECTED = 128


class VaeConfig(BaseModel):
    """Configuration of a VAE.

    Attributes
    ----------
    preset : {"default", "seed"}
        ``seed`` is the architecture of the article that this project is based on; ``default`` starts from the principal
        components of the data, and learns more per second.
    n_frames, n_mels : int
        Shape of a window; multiples of 8.
    latent_dim : int
        Size of the latent vector, from which a window is reconstructed.
    likeness_dim : int
        Size of the similarity vector, which describes how a window sounds; nothing is reconstructed from it. Only for
        ``default``; 0 for none.
    contrastive : bool
        Whether a part of the similarity vector is learned with the contrastive term, which uses that vector alone.
    precision : {"float32", "bfloat16"}
        Precision in which layers compute; weights, posterior and reconstruction are float32.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["default", "seed"] = "default"
    n_frames: int = Field(default=128, ge=8)
    n_mels: int = Field(default=128, ge=8)
    latent_dim: int = Field(default=64, ge=1, le=4096)
    likeness_dim: int = Field(default=0, ge=0, le=4096)
    contrastive: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.n_frames % 8 or self.n_mels % 8:
            raise ValueError(
                f"a window of {self.n_frames} x {self.n_mels} cannot be halved three times: use multiples of 8"
            )
        if self.preset == "seed" and (self.likeness_dim or self.contrastive):
            raise ValueError("likeness_dim and contrastive need the preset default: the preset seed has neither")
        if self.contrastive and not self.likeness_dim:
            raise ValueError("contrastive needs a likeness_dim above 0")
        return self


@dataclass(frozen=True)
class Components:
    """Principal components of windows.

    Attributes
    ----------
    mean : ndarray of float32, shape (n_frames * n_mels,)
        Mean of the normalised windows, frames first.
    directions : ndarray of float32, shape (n, n_frames * n_mels)
        Unit vectors, the direction with the largest variance first.
    variances : ndarray of float32, shape (n,)
    rest : float
        Mean variance per value of a window that no direction explains.
    likeness : (ndarray, ndarray) or None, float32, shapes (statistics, n) and (n,)
        Kernel and bias that map a window's `texture.statistics`, side by side, to n numbers.
    normalisation : (ndarray, ndarray) or None, float32, shapes (n_mels,)
        Standard deviation and mean of the bands, nats.
    """

    mean: npt.NDArray[np.float32]
    directions: npt.NDArray[np.float32]
    variances: npt.NDArray[np.float32]
    rest: float
    likeness: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None
    normalisation: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None = None


class Encoded(NamedTuple):
    """Output of the encoder, float32.

    Attributes
    ----------
    mean, log_variance : tensor, shape (batch, latent_dim)
        Mean and log-variance of the posterior q(z|x).
    likeness : tensor or None, shape (batch, likeness_dim)
    """

    mean: Any
    log_variance: Any
    likeness: Any

    @property
    def embedding(self) -> Any:
        """The vector for comparing windows: the similarity vector, or the posterior mean if there is none."""
        return self.mean if self.likeness is None else self.likeness


class ElboTerms(NamedTuple):
    """Terms of the negative ELBO, one number per example, nats.

    Attributes
    ----------
    nll : tensor, shape (batch,)
        −log p(x|z), summed over frames and mel bands, including the constant.
    kl : tensor, shape (batch,)
        KL(q(z|x) ‖ N(0, I)).
    kl_per_dim : tensor, shape (batch, latent_dim)
    mse : tensor, shape (batch,)
        Mean square error of the reconstruction, without unit.
    likeness : tensor or None, shape (batch, likeness_dim)
    """

    nll: Any
    kl: Any
    kl_per_dim: Any
    mse: Any
    likeness: Any


def gaussian_nll(x: Any, mean: Any, log_variance: Any) -> Any:
    """−log N(x; mean, exp(log_variance)), summed over all axes but the first, nats.

    ½ Σ [log 2π + log σ² + (x − μ)² / σ²]; Bishop, Pattern Recognition and Machine Learning, eq. 1.46.
    """
    terms = math.log(2 * math.pi) + log_variance + ops.square(x - mean) * ops.exp(-log_variance)
    return 0.5 * ops.sum(terms, axis=tuple(range(1, len(x.shape))))


def optimal_nll(mse: float, size: int) -> float:
    """Least −log N(x; mean, σ²) of `size` numbers, nats: σ² is then their mean square error.

    Rybkin et al., Simple and Effective VAE Training with Calibrated Decoders (2021), eq. 9.
    """
    return 0.5 * size * (math.log(2 * math.pi * max(mse, LEAST_VARIANCE)) + 1)


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
        """The layer's settings in the form that Keras needs."""
        return {**super().get_config(), "size": self.size}


class Denormalised(layers.Layer):
    """(batch, n_frames, n_mels) normalised → nats, with a fixed deviation and mean per band that are not learned."""

    def build(self, shape: Any) -> None:
        self.deviation = self.add_weight(shape=(shape[-1],), initializer="ones", name="deviation")
        self.mean = self.add_weight(shape=(shape[-1],), initializer="zeros", name="mean")

    def call(self, x: Any) -> Any:
        return x * self.deviation + self.mean


@contextmanager
def _computing_in(precision: str) -> Iterator[None]:
    """Make the layers created inside this block compute in a precision; Keras has only a global policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _conv(filters: int, size: int, strides: int = 1, **settings: Any) -> layers.Conv2D:
    return layers.Conv2D(filters, size, strides=strides, padding="same", **({"activation": "relu"} | settings))


def _float32(size: int, **settings: Any) -> layers.Dense:
    return layers.Dense(size, dtype="float32", **settings)


def _encoder(config: VaeConfig) -> keras.Model:
    x = inputs = keras.Input((config.n_frames, config.n_mels), name="normalised")
    x = layers.Reshape((config.n_frames, config.n_mels, 1))(x)
    if config.preset == "seed":
        for filters in (32, 64, 128):
            x = _conv(filters, 3, 2)(x)
        x = layers.Flatten()(x)
        outputs = [_float32(config.latent_dim, name=name)(x) for name in ("mean", "log_variance")]
        return keras.Model(inputs, outputs, name="encoder")
    # Patches first: the seed spends most of its time on the full-size feature maps of 3 x 3 convolutions.
    x = _conv(128, 3, 2)(_conv(64, 4, 4)(x))
    flat = layers.Flatten()(x)
    linear = _float32(config.latent_dim, trainable=False, name="components")(layers.Flatten(dtype="float32")(inputs))
    learned = _float32(config.latent_dim, kernel_initializer="zeros", name="learned")(flat)
    mean = layers.Add(dtype="float32")([linear, learned])
    log_variance = _float32(config.latent_dim, kernel_initializer="zeros", name="log_variance")(flat)
    likeness = [_likeness(inputs, x, config)] if config.likeness_dim else []
    return keras.Model(inputs, [mean, log_variance, *likeness], name="encoder")


def _likeness(inputs: Any, x: Any, config: VaeConfig) -> Any:
    """The similarity vector, (batch, likeness_dim).

    It is computed from statistics of the log-mel itself, which the network then need not learn. With a contrastive term
    a learned part is added: its input consists of that vector, and of mean and maximum over time of the convolutions'
    output, one number per filter and band.
    """
    nats = Denormalised(trainable=False, dtype="float32", name="nats")(inputs)
    stats = ops.concatenate(texture.statistics(inputs, nats), axis=-1)
    fixed = _float32(config.likeness_dim, trainable=False, name="likeness")(stats)
    if not config.contrastive:
        return fixed
    x = _conv(192, 3)(_conv(192, 3, 2)(x))
    x = layers.Flatten()(layers.Concatenate()([mean_over_time(x), ops.max(x, axis=1)]))
    x = layers.Dense(256, activation="relu")(layers.Concatenate()([x, fixed]))
    learned = _float32(config.likeness_dim, kernel_initializer="zeros", name="learned_likeness")(x)
    return layers.Add(dtype="float32")([fixed, learned])


def _decoder(config: VaeConfig) -> keras.Model:
    h, w = config.n_frames // 8, config.n_mels // 8
    x = inputs = keras.Input((config.latent_dim,), name="latent")
    if config.preset == "seed":
        x = layers.Dense(h * w * 256)(x)
        x = layers.Reshape((h, w, 256))(x)
        for filters in (128, 64, 32):
            x = layers.Conv2DTranspose(filters, 3, strides=2, padding="same", activation="relu")(x)
        x = layers.Conv2D(1, 1, dtype="float32")(x)
    else:
        x = layers.Dense(h * w * 64, activation="relu")(x)
        x = layers.Reshape((h, w, 64))(x)
        x = _conv(64, 3, activation=None, kernel_initializer="zeros", dtype="float32")(_conv(64, 3)(x))
        linear = _float32(config.n_frames * config.n_mels, trainable=False, name="components")
        x = layers.Flatten(dtype="float32")(DepthToSpace(8, dtype="float32")(x))
        x = layers.Add(dtype="float32")([x, linear(inputs)])
    x = layers.Reshape((config.n_frames, config.n_mels), dtype="float32")(x)
    return keras.Model(inputs, x, name="decoder")


class VAE(keras.Model):
    """Encoder, decoder and the observation's variance.

    Attributes
    ----------
    encoder : keras.Model
        (batch, n_frames, n_mels) normalised → mean and log-variance, each (batch, latent_dim), and likeness.
    decoder : keras.Model
        (batch, latent_dim) → (batch, n_frames, n_mels) normalised.
    projector : keras.Model or None
        (batch, likeness_dim) → (batch, PROJECTED), the vectors that the contrastive term compares; None without it.
    log_variance_scaled : Variable or None
        A tenth of the log-variance of the Gaussian p(x|z): one learned number (σ-VAE: Rybkin et al. 2021). None for the
        seed, which has unit variance.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__(name="vae")
        self.config = config
        self.projector: Any = None
        with _computing_in(config.precision):
            self.encoder, self.decoder = _encoder(config), _decoder(config)
        if config.contrastive:
            self.projector = keras.Sequential([layers.Dense(256, activation="relu"), layers.Dense(PROJECTED)])
            self.projector.build((None, config.likeness_dim))
        self.log_variance_scaled = None
        if config.preset != "seed":
            self.log_variance_scaled = self.add_weight(shape=(), initializer="zeros", name="log_variance_scaled")
        self.built = True

    def start_from(self, components: Components) -> None:
        """Initialise as probabilistic PCA, the optimum of a linear VAE; trained weights add to it.

        Tipping and Bishop, Probabilistic Principal Component Analysis (1999): with directions w of variance λ and
        residual variance σ², z = √(λ − σ²) / λ · wᵀ(x − μ) with posterior variance σ² / λ, and x = μ + √(λ − σ²) w z.
        Proof that a linear VAE has no better optimum: Lucas et al., Don't Blame the ELBO! (2019).

        Raises
        ------
        ValueError
            If the preset has no linear part.
        """
        if self.log_variance_scaled is None:
            raise ValueError("the seed has no linear part to start from")
        rest, count = components.rest, min(self.config.latent_dim, len(components.variances))
        explained = np.pad(components.variances[:count], (0, self.config.latent_dim - count))
        basis = np.pad(components.directions[:count], ((0, self.config.latent_dim - count), (0, 0)))
        # A direction with less variance than the residual carries no information: its latent keeps the prior.
        signal = np.maximum(explained - rest, 0)
        into = basis.T * (np.sqrt(signal) / (signal + rest))
        self.encoder.get_layer("components").set_weights([into, -components.mean @ into])
        if self.config.likeness_dim and components.likeness is not None:
            self.encoder.get_layer("likeness").set_weights(list(components.likeness))
            if components.normalisation is not None:
                self.encoder.get_layer("nats").set_weights(list(components.normalisation))
        self.decoder.get_layer("components").set_weights([basis * np.sqrt(signal)[:, None], components.mean])
        kernel, bias = self.encoder.get_layer("log_variance").get_weights()
        bias[:] = np.log(rest / (signal + rest))
        self.encoder.get_layer("log_variance").set_weights([kernel, bias])
        self.log_variance_scaled.assign(math.log(rest) / OBSERVATION_SCALE)

    def observation_log_variance(self) -> Any:
        """Log-variance of p(x|z), a scalar."""
        if self.log_variance_scaled is None:
            return ops.zeros(())
        # Adam moves a weight by about the learning rate per step. Without the scale, the log-variance would need
        # thousands of steps to reach its value.
        return OBSERVATION_SCALE * self.log_variance_scaled

    def calibrate(self, mse: float) -> None:
        """Set the variance of p(x|z) to `mse` if that variance is learned: see `optimal_nll`."""
        if self.log_variance_scaled is not None:
            self.log_variance_scaled.assign(math.log(max(mse, LEAST_VARIANCE)) / OBSERVATION_SCALE)

    def encoded(self, x: Any, *, nats: Any = None) -> Encoded:
        """Output of the encoder for normalised windows (batch, n_frames, n_mels).

        `nats` are the same windows before normalisation, if the caller has them; otherwise they are computed.
        """
        encoder, inputs = self.encoder, x
        if nats is not None and self.config.likeness_dim:
            encoder = keras.Model([encoder.input, encoder.get_layer("nats").output], encoder.outputs)
            inputs = [x, nats]
        mean, log_variance, *likeness = encoder(inputs)
        log_variance = ops.clip(log_variance, -LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        return Encoded(mean, log_variance, likeness[0] if likeness else None)

    def elbo_terms(self, x: Any, noise: Any, *, seen: Any = None) -> ElboTerms:
        """Terms of the negative ELBO of a batch, estimated with one sample of the posterior.

        Parameters
        ----------
        x : tensor, shape (batch, n_frames, n_mels)
            Normalised log-mel.
        noise : tensor, shape (batch, latent_dim)
            Standard normal; z = mean + noise · exp(½ log-variance).
        seen : tensor or None, shape (batch, n_frames, n_mels)
            Input of the encoder in place of `x`: the same windows with masks and noise, for a denoising VAE. Im et al.,
            Denoising Criterion for Variational Auto-Encoding Framework (2017).
        """
        mean, log_variance, likeness = self.encoded(x if seen is None else seen)
        reconstruction = self.decoder(mean + noise * ops.exp(0.5 * log_variance))
        kl = kl_to_standard_normal(mean, log_variance)
        mse = ops.mean(ops.square(x - reconstruction), axis=(1, 2))
        nll = gaussian_nll(x, reconstruction, self.observation_log_variance())
        return ElboTerms(nll, ops.sum(kl, axis=1), kl, mse, likeness)

    def call(self, x: Any) -> Any:
        """Reconstruction from the posterior mean, (batch, n_frames, n_mels) normalised."""
        return self.decoder(self.encoded(x).mean)


def build(config: VaeConfig) -> VAE:
    """A VAE with fresh weights; Keras draws its seeds from Python's `random`."""
    return VAE(config)
