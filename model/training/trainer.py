"""Model, optimizer and the compiled steps under a distribution strategy.

Noise is drawn for the whole global batch, keyed by the step, and each replica takes its part. So one device and several
compute the same gradient, and a resumed run draws the same numbers as an uninterrupted one.
"""

import random
from collections.abc import Iterator
from typing import Any, Literal, Self

import keras
import numpy as np
import tensorflow as tf
from pydantic import BaseModel, ConfigDict, Field, model_validator

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import FeatureSpec
from soundlake.model.network import augment, objective, vae
from soundlake.model.training import dataset
from soundlake.model.training.places import Places

# Differences between the presets besides the network: the seed is trained as in the article, with the ELBO alone.
_OF_PRESET: dict[str, dict[str, Any]] = {
    "default": {
        "latent_dim": 64,
        "likeness_dim": 128,
        "max_steps": 4000,
        "patience": 10,
        "level": 1.0,
        "pitch": 8,
        "kl_warm_up": 300,
        "clip_norm": 1e4,
    },
    "seed": {
        "latent_dim": 64,
        "likeness_dim": 0,
        "max_steps": 1500,
        "patience": 5,
        "level": 0.0,
        "pitch": 0,
        "kl_warm_up": 0,
        "clip_norm": 0.0,
    },
}


class TrainSettings(BaseModel):
    """Resolved settings of a training; they are part of the model's identity.

    Settings that depend on the preset: ``default`` has the values from docs/experiments.md; in ``seed``, 0 switches a
    feature off.

    Attributes
    ----------
    preset, latent_dim, likeness_dim, precision
        As in `vae.VaeConfig`.
    batch_size : int
        Windows per step, over all replicas.
    learning_rate : float
        Learning rate of Adam; in the default preset it warms up over 50 steps and falls along a cosine to a twentieth.
    max_steps, evaluate_every, patience : int
        Largest number of steps; steps between validations; validations without a better ELBO before an early stop.
    seed : int
    contrastive : float
        Weight of the contrastive term, nats per window: `objective.nt_xent` between two windows of a recording.
    temperature : float
        Temperature of the contrastive term.
    masking : float
        Largest width, as a share of a window, of the masks over time and over mel bands: `augment.mask_bank`.
    denoising : float
        Largest noise in the encoder's input, in standard deviations of the data: uniform from 0 to this per window.
    level : float
        Standard deviation of random changes of level, decibels.
    mixing : float
        Largest share of another recording in the second window of a pair: `augment.mixed`.
    pitch : int
        Largest random shift of a window in mel bands, up or down.
    free_bits : float
        Nats per latent dimension that cost nothing more: `objective.free_bits`.
    kl_warm_up : int
        Steps over which the weight of the KL rises to 1: `objective.warm_up`.
    clip_norm : float
        Largest norm of all gradients together; larger ones are scaled down (Pascanu et al. 2013). 0 for no limit.
    xla : bool
        Whether to compile steps with XLA, for a GPU. On a CPU it is slower.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    preset: Literal["default", "seed"] = "default"
    latent_dim: int = Field(ge=1, le=4096)
    batch_size: int = Field(default=64, ge=1, le=65_536)
    learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0)
    max_steps: int = Field(ge=1)
    evaluate_every: int = Field(default=100, ge=1)
    patience: int = Field(ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)
    likeness_dim: int = Field(ge=0, le=4096)
    contrastive: float = Field(default=0.0, ge=0.0)
    temperature: float = Field(default=0.1, gt=0.0)
    masking: float = Field(default=0.0, ge=0.0, lt=1.0)
    denoising: float = Field(default=0.0, ge=0.0)
    level: float = Field(ge=0.0)
    mixing: float = Field(default=0.0, ge=0.0, le=1.0)
    pitch: int = Field(ge=0)
    free_bits: float = Field(default=0.0, ge=0.0)
    kl_warm_up: int = Field(ge=0)
    clip_norm: float = Field(ge=0.0)
    precision: Literal["float32", "bfloat16"] = "float32"
    xla: bool = False

    @model_validator(mode="before")
    @classmethod
    def _of_preset(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {**_OF_PRESET.get(given.get("preset", "default"), {}), **given}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.preset == "seed" and (self.likeness_dim or self.contrastive):
            raise ValueError("likeness_dim and contrastive need the preset default: the preset seed has neither")
        if self.contrastive and not self.likeness_dim:
            raise ValueError("contrastive needs a likeness_dim above 0")
        if self.mixing and not self.contrastive:
            raise ValueError("mixing needs contrastive")
        if self.contrastive and (self.batch_size % 2 or self.batch_size < 4):
            raise ValueError(f"batch_size {self.batch_size}: contrastive needs an even batch_size of at least 4")
        return self

    def check(self, spec: FeatureSpec) -> None:
        """Raise `InputError` if these settings do not fit windows of this spec."""
        if self.pitch >= spec.n_mels:
            raise InputError(f"--pitch {self.pitch} is too large: windows have only {spec.n_mels} mel bands")

    @property
    def network(self) -> dict[str, Any]:
        """The settings that `vae.VaeConfig` takes."""
        fields = self.model_dump(include={"preset", "latent_dim", "likeness_dim", "precision"})
        return fields | {"contrastive": self.contrastive > 0}


def strategy_for_devices() -> Any:
    """`MirroredStrategy` over all GPUs, or over the logical CPUs if there is no GPU."""
    gpus = tf.config.list_logical_devices("GPU")
    devices = gpus or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def fresh(spec: FeatureSpec, settings: TrainSettings) -> vae.VAE:
    """The network with random weights, the same for the same seed."""
    # Keras draws the seeds of its initialisers from Python's global generator, whose state is restored for the caller.
    # Keras's own `set_random_seed` would also set TensorFlow's global seed, and then a dataset's shuffle no longer
    # accepts a tensor as its seed.
    before = random.getstate()
    random.seed(settings.seed)
    try:
        return vae.build(vae.VaeConfig(n_frames=spec.window_frames, n_mels=spec.n_mels, **settings.network))
    finally:
        random.setstate(before)


def training_input(
    places: Places, settings: TrainSettings, *, skip_batches: int = 0, part: tuple[int, int] = (0, 1)
) -> Any:
    """The batches that these settings train on; see `dataset.training_batches`."""
    return dataset.training_batches(
        places,
        batch_size=settings.batch_size,
        seed=settings.seed,
        skip_batches=skip_batches,
        part=part,
        shifted=settings.preset != "seed",
        paired=settings.contrastive > 0,
        masks=augment.mask_bank(places.spec, widest=settings.masking, seed=settings.seed) if settings.masking else None,
        mixing=settings.mixing,
    )


class Trainer:
    """Model, optimizer and the compiled steps under a strategy.

    Parameters
    ----------
    spec : FeatureSpec
    settings : TrainSettings
    normalisation : dataset.Normalisation
    components : vae.Components or None
        Initial values of the network's linear part, if it has one.
    strategy : tf.distribute.Strategy or None
        `strategy_for_devices` by default.

    Raises
    ------
    InputError
        If the batch cannot be shared evenly among the replicas, or `pitch` is as large as the number of mel bands.
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
        settings.check(spec)
        self.spec, self.settings = spec, settings
        self.strategy = strategy or strategy_for_devices()
        replicas = self.strategy.num_replicas_in_sync
        unit = 2 if settings.contrastive else 1
        if settings.batch_size % (unit * replicas):
            pairs = " in pairs" if unit == 2 else ""
            raise InputError(
                f"--batch-size {settings.batch_size} cannot be shared evenly{pairs} among {replicas} devices"
            )
        if settings.xla and replicas > 1:
            raise InputError(f"--xla works on one device only, and there are {replicas}: leave it out")
        self._local = settings.batch_size // replicas
        self._mean, self._std = tf.constant(normalisation.mean), tf.constant(normalisation.std)
        with self.strategy.scope():
            self.model = fresh(spec, settings)
            if components is not None:
                self.model.start_from(components)
            self.optimizer = keras.optimizers.Adam(self._learning_rate())
            self.optimizer.build(self.model.trainable_variables)
        self._gradients = tf.function(self._losses, jit_compile=True) if settings.xla else self._losses
        self.train_step = tf.function(self._train_step)
        self.evaluate_step = tf.function(self._evaluate_step)

    def _learning_rate(self) -> Any:
        peak, steps = self.settings.learning_rate, self.settings.max_steps
        if self.settings.preset == "seed":
            return peak
        warm = min(50, max(1, steps // 10))
        return keras.optimizers.schedules.CosineDecay(
            peak / 10, decay_steps=max(1, steps - warm), alpha=0.05, warmup_target=peak, warmup_steps=warm
        )

    def distributed(self, batches: Any) -> Iterator[Any]:
        """Iterate over batches split among the replicas of this host; with several hosts, `batches` is its own part."""
        if isinstance(self.strategy, tf.distribute.MultiWorkerMirroredStrategy):
            here = len(self.strategy.extended.worker_devices)

            def cut(*batch: Any) -> Any:
                return tf.nest.map_structure(lambda x: tf.reshape(x, (here, x.shape[0] // here, *x.shape[1:])), batch)

            own_batches = batches.map(lambda *batch: cut(*batch)[0] if len(batch) == 1 else cut(*batch)).unbatch()
            return iter(self.strategy.distribute_datasets_from_function(lambda _: own_batches))
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        return iter(self.strategy.experimental_distribute_dataset(batches.with_options(options)))

    def _my_part(self, drawn: Any) -> Any:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return drawn[replica * self._local : (replica + 1) * self._local]

    def _key(self, purpose: int) -> Any:
        """Key of this step's random numbers for one purpose."""
        step = tf.cast(self.optimizer.iterations, tf.int64)
        key = tf.stack([tf.constant(self.settings.seed, tf.int64), step])
        return tf.random.experimental.stateless_fold_in(key, purpose) if purpose else key

    def _changed(self, x: Any, keep: Any) -> tuple[Any, Any]:
        """Normalised windows to reconstruct, and the encoder's input, both after random changes."""
        settings, size = self.settings, (self.settings.batch_size,)
        if settings.pitch:
            bands = tf.random.stateless_uniform(size, self._key(1), -settings.pitch, settings.pitch + 1, tf.int32)
            x = augment.transposed(x, self._my_part(bands))
        if settings.level:
            decibels = settings.level * tf.random.stateless_normal(size, self._key(2))
            x = augment.at_level(x, self._my_part(decibels), log_offset=self.spec.log_offset)
        x = seen = (x - self._mean) / self._std
        if keep is not None:
            # Masked values become the mean spectrum, which is 0 after normalisation.
            seen = seen * tf.cast(keep, tf.float32)
        if settings.denoising:
            how_much = settings.denoising * tf.random.stateless_uniform((*size, 1, 1), self._key(3))
            noise = tf.random.stateless_normal((*size, *x.shape[1:]), self._key(4))
            seen += self._my_part(how_much * noise)
        if settings.contrastive:
            # The first window of each pair gets no masks and no noise, like the windows that are encoded later. The
            # second is trained to resemble it.
            seen = tf.where(tf.range(self._local)[:, None, None] % 2 == 1, seen, x)
        return x, seen

    def _contrast(self, likeness: Any) -> Any:
        """The contrastive term of each pair of this replica, computed over the pairs of all replicas."""
        projected = tf.reshape(self.model.projector(likeness), (-1, 2, vae.PROJECTED))
        everyone, offset = projected, 0
        if self.strategy.num_replicas_in_sync > 1:
            context = tf.distribute.get_replica_context()
            everyone = context.all_gather(projected, axis=0)
            offset = context.replica_id_in_sync_group * (self._local // 2)
        return objective.nt_xent(projected, everyone, offset=offset, temperature=self.settings.temperature)

    def _kl(self, kl_per_dim: Any) -> Any:
        """KL of each window in the objective, with free bits and warm-up."""
        settings = self.settings
        if settings.free_bits:
            mean = tf.stop_gradient(tf.reduce_sum(kl_per_dim, axis=0) / settings.batch_size)
            if self.strategy.num_replicas_in_sync > 1:
                mean = tf.distribute.get_replica_context().all_reduce("SUM", mean)
            kl = objective.free_bits(kl_per_dim, mean, settings.free_bits)
        else:
            kl = tf.reduce_sum(kl_per_dim, axis=1)
        return objective.warm_up(self.optimizer.iterations, settings.kl_warm_up) * kl if settings.kl_warm_up else kl

    def _train_step(self, batch: dict[str, Any], asked: Any = None) -> Any:
        """Figures of a step, summed over all replicas: `loop.TERMS`, and last `asked`, if it is given."""
        settings = self.settings

        def step(batch: dict[str, Any], asked: Any) -> Any:
            # Pairs are adjacent: windows 2 i and 2 i + 1 belong to the same recording.
            batch = {name: tf.reshape(x, (self._local, *x.shape[-2:])) for name, x in batch.items()}
            x, seen = self._changed(batch[dataset.FEATURES], batch.get(dataset.KEEP))
            noise = tf.random.stateless_normal((settings.batch_size, settings.latent_dim), self._key(0))
            gradients, terms = self._gradients(x, seen, self._my_part(noise))
            self.optimizer.apply(self._clipped(gradients), self.model.trainable_variables)
            return terms if asked is None else tf.concat([terms, [asked]], axis=0)

        return self.strategy.reduce("SUM", self.strategy.run(step, args=(batch, asked)), axis=None)

    def _losses(self, x: Any, seen: Any, noise: Any) -> tuple[list[Any], Any]:
        """Gradients of this replica's part of the loss, and its part of each term.

        It draws no random numbers, since XLA would draw different ones.
        """
        settings, size = self.settings, self.settings.batch_size
        contrast = tf.zeros(())
        with tf.GradientTape() as tape:
            terms = self.model.elbo_terms(x, noise, seen=seen)
            # Divided by the size of the global batch, since `apply` sums the gradients of the replicas.
            loss = tf.reduce_sum(terms.nll + self._kl(terms.kl_per_dim)) / size
            if settings.contrastive:
                contrast = tf.reduce_sum(self._contrast(terms.likeness)) / (size // 2)
                loss += settings.contrastive * contrast
        parts = [tf.reduce_sum(term) / size for term in (terms.nll, terms.kl, terms.mse)]
        return tape.gradient(loss, self.model.trainable_variables), tf.stack([*parts, contrast])

    def _clipped(self, gradients: list[Any]) -> list[Any]:
        """Gradients of this replica, scaled so that the norm of the sum over all replicas is at most `clip_norm`."""
        if not self.settings.clip_norm:
            return gradients
        summed = gradients
        if self.strategy.num_replicas_in_sync > 1:
            summed = tf.distribute.get_replica_context().all_reduce("SUM", gradients)
        norm = tf.linalg.global_norm(summed)
        scale = tf.minimum(1.0, self.settings.clip_norm / tf.maximum(norm, 1e-12))
        return [gradient * scale for gradient in gradients]

    def _evaluate_step(self, batch: Any, weights: Any, number: Any) -> Any:
        def step(x: Any, weight: Any) -> Any:
            key = tf.stack([tf.constant(self.settings.seed, tf.int64), -1 - number])
            noise = tf.random.stateless_normal((self.settings.batch_size, self.settings.latent_dim), key)
            terms = self.model.elbo_terms((x - self._mean) / self._std, self._my_part(noise))
            sums = [tf.reduce_sum(term * weight) for term in (terms.nll, terms.kl, terms.mse)]
            per_dim = tf.reduce_sum(terms.kl_per_dim * weight[:, None], axis=0)
            return tf.concat([tf.stack([tf.reduce_sum(weight), *sums]), per_dim], axis=0)

        return self.strategy.reduce("SUM", self.strategy.run(step, args=(batch, weights)), axis=None)

    def evaluate(self, batches: Any, *, calibrated: bool = False) -> dict[str, Any]:
        """Means over `dataset.evaluation_batches`: nll, kl, negative_elbo (nats per window), mse, kl_per_dim.

        Parameters
        ----------
        batches : tf.data.Dataset
        calibrated : bool
            Whether to use the observation variance that fits these windows best, as `calibrate` would set it.
        """
        total = np.zeros(4 + self.settings.latent_dim)
        for number, (batch, weights) in enumerate(self.distributed(batches)):
            total += self.evaluate_step(batch, weights, tf.constant(number, tf.int64)).numpy()
        mean = total[1:] / max(total[0], 1.0)
        if calibrated and self.model.log_variance_scaled is not None:
            mean[0] = vae.optimal_nll(mean[2], self.spec.window_frames * self.spec.n_mels)
        figures = {"windows": int(total[0]), "nll": mean[0], "kl": mean[1], "negative_elbo": mean[0] + mean[1]}
        return {name: float(value) for name, value in figures.items()} | {
            "mse": float(mean[2]),
            "kl_per_dim": mean[3:].tolist(),
        }
