"""Model, optimizer and the compiled steps under a distribution strategy.

Noise is drawn for the whole global batch, keyed by the step, and each replica takes its part: one device and several
compute the same gradient, and a resumed run draws what it would have drawn.
"""

import random
from collections.abc import Iterator
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from pydantic import BaseModel, ConfigDict, Field

from model import dataset, vae
from model.errors import InputError
from model.features import FeatureSpec


class TrainSettings(BaseModel):
    """Resolved settings of a training; they are part of the model's identity.

    Attributes
    ----------
    preset, latent_dim
        As in `vae.VaeConfig`.
    batch_size : int
        Windows of a step, over all replicas.
    learning_rate : float
        Of Adam; for the default preset it warms up over 50 steps and falls along a cosine to a twentieth.
    max_steps, evaluate_every, patience : int
        Steps at most; steps between validations; validations without a better ELBO before the training stops early.
    seed : int
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    preset: Literal["default", "seed"] = "default"
    latent_dim: int = Field(default=64, ge=1, le=4096)
    batch_size: int = Field(default=64, ge=1, le=65_536)
    learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0)
    max_steps: int = Field(default=1500, ge=1)
    evaluate_every: int = Field(default=100, ge=1)
    patience: int = Field(default=5, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)


def strategy_for_devices() -> Any:
    """`MirroredStrategy` over every accelerator, or over the logical CPUs where there is none."""
    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def fresh(spec: FeatureSpec, settings: TrainSettings) -> vae.VAE:
    """The network with random weights, the same for the same seed."""
    # Keras takes the seeds of its initialisers from here. Its own `set_random_seed` would also set TensorFlow's global
    # seed, with which a dataset's shuffle no longer takes a tensor as its seed.
    random.seed(settings.seed)
    return vae.build(
        vae.VaeConfig(
            preset=settings.preset,
            n_frames=spec.window_frames,
            n_mels=spec.n_mels,
            latent_dim=settings.latent_dim,
        )
    )


class Trainer:
    """Model, optimizer and the compiled steps under a strategy.

    Parameters
    ----------
    spec : FeatureSpec
    settings : TrainSettings
    normalisation : dataset.Normalisation
    components : vae.Components or None
        What the network starts from, where it has a linear part.
    strategy : tf.distribute.Strategy or None
        `strategy_for_devices` by default.

    Raises
    ------
    InputError
        If the batch cannot be shared evenly among the replicas.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        settings: TrainSettings,
        normalisation: dataset.Normalisation,
        *,
        components: vae.Components | None = None,
        strategy: Any = None,
    ) -> None:
        self.spec, self.settings = spec, settings
        self.strategy = strategy or strategy_for_devices()
        replicas = self.strategy.num_replicas_in_sync
        if settings.batch_size % replicas:
            raise InputError(f"--batch-size {settings.batch_size} cannot be shared evenly among {replicas} devices")
        self._local = settings.batch_size // replicas
        self._mean, self._std = tf.constant(normalisation.mean), tf.constant(normalisation.std)
        with self.strategy.scope():
            self.model = fresh(spec, settings)
            if components is not None:
                self.model.start_from(components)
            self.optimizer = keras.optimizers.Adam(self._learning_rate(), global_clipnorm=None)
            self.optimizer.build(self.model.trainable_variables)
        self.train_step = tf.function(self._train_step)
        self.evaluate_step = tf.function(self._evaluate_step)

    def _learning_rate(self) -> Any:
        peak, steps = self.settings.learning_rate, self.settings.max_steps
        if self.settings.preset == "seed":
            return peak
        warm = min(50, max(1, steps // 10))
        return keras.optimizers.schedules.CosineDecay(
            peak / 10, decay_steps=max(1, steps - warm), alpha=0.5, warmup_target=peak, warmup_steps=warm
        )

    def distributed(self, batches: Any) -> Iterator[Any]:
        """Iterate over a dataset of global batches, each cut among the replicas."""
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        return iter(self.strategy.experimental_distribute_dataset(batches.with_options(options)))

    def _my_part(self, noise: Any) -> Any:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return noise[replica * self._local : (replica + 1) * self._local]

    def _train_step(self, batch: Any) -> Any:
        def step(x: Any) -> Any:
            key = tf.stack([tf.constant(self.settings.seed, tf.int64), tf.cast(self.optimizer.iterations, tf.int64)])
            noise = tf.random.stateless_normal((self.settings.batch_size, self.settings.latent_dim), key)
            variables = self.model.trainable_variables
            with tf.GradientTape() as tape:
                terms = self.model.elbo_terms((x - self._mean) / self._std, self._my_part(noise))
                # Over the global batch: `apply` adds the replicas' gradients up.
                loss = tf.reduce_sum(terms.nll + terms.kl) / self.settings.batch_size
            self.optimizer.apply(tape.gradient(loss, variables), variables)
            return tf.stack([tf.reduce_sum(t) / self.settings.batch_size for t in (terms.nll, terms.kl, terms.mse)])

        return self.strategy.reduce("SUM", self.strategy.run(step, args=(batch,)), axis=None)

    def _evaluate_step(self, batch: Any, weights: Any, number: Any) -> Any:
        def step(x: Any, weight: Any) -> Any:
            key = tf.stack([tf.constant(self.settings.seed, tf.int64), -1 - number])
            noise = tf.random.stateless_normal((self.settings.batch_size, self.settings.latent_dim), key)
            terms = self.model.elbo_terms((x - self._mean) / self._std, self._my_part(noise))
            sums = [tf.reduce_sum(term * weight) for term in (terms.nll, terms.kl, terms.mse)]
            per_dim = tf.reduce_sum(terms.kl_per_dim * weight[:, None], axis=0)
            return tf.concat([tf.stack([tf.reduce_sum(weight), *sums]), per_dim], axis=0)

        return self.strategy.reduce("SUM", self.strategy.run(step, args=(batch, weights)), axis=None)

    def evaluate(self, batches: Any) -> dict[str, Any]:
        """Means over a dataset of `dataset.evaluation_batches`: nll, kl, elbo (nats a window), mse, kl_per_dim."""
        total = np.zeros(4 + self.settings.latent_dim)
        for number, (batch, weights) in enumerate(self.distributed(batches)):
            total += self.evaluate_step(batch, weights, tf.constant(number, tf.int64)).numpy()
        mean = total[1:] / max(total[0], 1.0)
        found = {"windows": int(total[0]), "nll": mean[0], "kl": mean[1], "negative_elbo": mean[0] + mean[1]}
        return {k: float(v) for k, v in found.items()} | {"mse": float(mean[2]), "kl_per_dim": mean[3:].tolist()}


def window_seconds(spec: FeatureSpec) -> float:
    """Seconds of sound in a window."""
    return spec.window_frames * spec.hop_length / spec.sample_rate
