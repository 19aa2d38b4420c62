"""Train: one loop under a distribution strategy, for one device, several, and several hosts.

What the loop computes follows from shards, settings and seed; a run that was killed and started again ends with the
same weights.
"""

import hashlib
import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from model import artifact, dataset, evaluate, hosts, places, report, splits, vae
from model.errors import InputError, TryLaterError
from model.features import FeatureSpec
from model.trainer import Trainer, TrainSettings, fresh, training_input, window_seconds

log = logging.getLogger(__name__)

# Below this share of active dimensions the posterior has collapsed: the decoder has learned to do without the latent.
COLLAPSED_SHARE = 0.1
# Times the least validation error so far: beyond it a training has diverged, and will not come back by itself.
DIVERGED = 4.0
# What a training step tells: −log p(x|z), KL, mean square error, contrastive term.
TERMS = ("nll", "kl", "mse", "contrastive")
PAIRS = 6


@dataclass(frozen=True)
class TrainResult:
    """What a training gave: the model's id and directory, its metrics, and whether anything had to be done.

    On a host that is not the chief there are no metrics: the chief is still writing the model down.
    """

    model_id: str
    directory: Path
    metrics: dict[str, Any]
    trained: bool


def identity(
    shards: places.Shards, spec: FeatureSpec, groups: Mapping[str, str], settings: TrainSettings
) -> dict[str, Any]:
    """What a model is made from: its id is the digest of this.

    Parameters
    ----------
    shards : mapping
        Paths; their base names are digests of what is in them.
    spec, groups, settings
        As for `train`.
    """
    data = json.dumps([sorted(os.path.basename(shard) for shard in shards), sorted(groups.items())])
    return {
        "vae_version": vae.VERSION,
        "spec_id": spec.spec_id,
        "settings": settings.model_dump(),
        "data_digest": hashlib.sha256(data.encode()).hexdigest(),
        "split_rule": splits.SPLIT_RULE,
    }


# Below this a disk counts as full.
_FULL_BYTES = 1 << 20


@contextmanager
def _storage_errors(directory: Path) -> Iterator[None]:
    """`artifact.storage_errors`, for TensorFlow's own errors, too: of a full disk, not of a full GPU."""
    try:
        with artifact.storage_errors(directory):
            yield
    except tf.errors.ResourceExhaustedError as error:
        if "No space left" in str(error) or shutil.disk_usage(directory).free < _FULL_BYTES:
            raise TryLaterError(f"no space left for {directory}: free some and run the same command again") from error
        raise


class _Stop:
    """Remembers that someone asked to stop (Ctrl-C, or a scheduler's SIGTERM)."""

    asked = False

    def ask(self, *_: Any) -> None:
        self.asked = True


@contextmanager
def _stopping() -> Iterator[_Stop]:
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(
    shards: places.Shards,
    spec: FeatureSpec,
    *,
    groups: Mapping[str, str],
    models_dir: Path,
    settings: TrainSettings,
    origin: Mapping[str, Any],
    progress: bool = False,
    saved: Callable[[Path], None] = lambda directory: None,
) -> TrainResult:
    """Train a VAE on a lake's windows, or find that this very model is there already.

    Where TF_CONFIG names several hosts (`model.hosts`), each makes this call, and they train one model together.

    Parameters
    ----------
    shards : mapping of str to collection of str
        `model.places.Shards`.
    spec : FeatureSpec
    groups : mapping of str to str
        recording_id → group, of the recordings to use.
    models_dir : Path
        The model goes into a folder of it; an unfinished one there is taken up again.
    settings : TrainSettings
    origin : mapping
        Where the data came from, such as the ledger's version; recorded as it is.
    progress : bool
        Show a bar on stderr.
    saved : callable
        Told the model's folder whenever a checkpoint has come into it.

    Raises
    ------
    InputError
        If there is nothing to train on, a shard is damaged, or the model's place cannot be written.
    TryLaterError
        If another process is training the same model, the disk is full, or another host is lost.
    KeyboardInterrupt
        After SIGINT or SIGTERM; the last checkpoint is saved, and the same call goes on from it.
    """
    # Of float32 a GPU would keep ten bits in products: too few for statistics near silence, and for the ONNX copies to
    # agree. What is to be fast is asked for, by `precision`.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    made_from = identity(shards, spec, groups, settings)
    model_id = artifact.model_id(made_from)
    directory = models_dir / model_id
    if not artifact.is_finished(directory):
        if not shards or not groups:
            raise InputError("no window to train on: the ledger names no recording that is done and not silent")
        here = hosts.from_environment()
        alone = artifact.being_made(directory) if here.is_chief else nullcontext()
        with here.none_lost(), _storage_errors(directory), alone:
            if not artifact.is_finished(directory):
                here.join()
                here.agree(made_from)
                metrics = _made(
                    shards, spec, groups, directory, settings, made_from, origin, here, progress=progress, saved=saved
                )
                return TrainResult(model_id, directory, metrics, True)
    return TrainResult(model_id, directory, artifact.load(directory).metrics, False)


def _made(
    shards: places.Shards,
    spec: FeatureSpec,
    groups: Mapping[str, str],
    directory: Path,
    settings: TrainSettings,
    made_from: Mapping[str, Any],
    origin: Mapping[str, Any],
    here: hosts.Hosts,
    *,
    progress: bool,
    saved: Callable[[Path], None],
) -> dict[str, Any]:
    """Train, write the model directory, and return the metrics; hosts that are not the chief only train."""
    split_of = splits.assign(groups)
    windows = places.find(shards, spec, split_of, here=here)
    statistics = _statistics(windows, here)
    components = None
    if settings.preset != "seed" and here.is_chief:
        components = dataset.components(
            windows,
            statistics,
            count=settings.latent_dim,
            likeness=settings.likeness_dim,
            pitch=settings.pitch,
            seed=settings.seed,
        )
    trainer = Trainer(spec, settings, statistics.normalisation, components=components, strategy=here.strategy)
    held_out = splits.VALIDATION if statistics.windows[splits.VALIDATION] else splits.TRAIN
    if held_out == splits.TRAIN:
        log.warning("too few recordings to hold any out: the validation figures are those of the training data")

    part = here.index, here.count

    def batches(split: str, part: tuple[int, int] = part) -> Any:
        return dataset.evaluation_batches(windows, split=split, batch_size=settings.batch_size, part=part)

    loop = _Loop(trainer, directory, here, progress=progress, saved=saved)
    started = time.monotonic()
    training = training_input(windows, settings, skip_batches=loop.step, part=part)
    loop.run(training, batches(held_out))
    seconds = time.monotonic() - started
    validation = trainer.evaluate(batches(held_out), calibrated=True)
    trainer.model.calibrate(validation["mse"])
    metrics = _metrics(loop, validation, statistics, held_out) | {"seconds": round(loop.seconds_before + seconds, 1)}
    if statistics.windows[splits.TEST]:
        metrics["test"] = {k: v for k, v in trainer.evaluate(batches(splits.TEST)).items() if k != "kl_per_dim"}
    if not here.is_chief:
        return {}
    examples = np.concatenate([x.numpy()[w.numpy() > 0] for x, w in batches(held_out, (0, 1)).take(2)])
    manifest: dict[str, Any] = {
        "model_id": directory.name,
        "spec": spec.model_dump(),
        **made_from,
        "origin": dict(origin),
        "metrics": metrics,
    }
    _write_model(directory, manifest, loop, statistics.normalisation, examples)
    return metrics


def _statistics(windows: places.Places, here: hosts.Hosts) -> dataset.Statistics:
    """`dataset.statistics` as the chief finds them: another processor may round differently."""
    found = b""
    if here.is_chief:
        statistics = dataset.statistics(windows)
        normal = statistics.normalisation
        found = json.dumps([normal.mean.tolist(), normal.std.tolist(), statistics.windows]).encode()
    mean, std, counts = json.loads(here.from_chief(found))
    return dataset.Statistics(dataset.Normalisation(np.asarray(mean, np.float32), np.asarray(std, np.float32)), counts)


def _plain(trainer: Trainer) -> vae.VAE:
    """The trained network in float32: what is exported runs where there is no bfloat16."""
    settings = trainer.settings
    if settings.precision == "float32":
        return trainer.model
    twin = fresh(trainer.spec, settings.model_copy(update={"precision": "float32"}))
    twin.set_weights(trainer.model.get_weights())
    return twin


def _write_model(
    directory: Path,
    manifest: dict[str, Any],
    loop: "_Loop",
    normalisation: dataset.Normalisation,
    examples: np.ndarray,
) -> None:
    """Weights, ONNX copies, report and, last, the manifest."""
    # Spread over the split, so that the report shows several recordings.
    examples = examples[np.unique(np.linspace(0, len(examples) - 1, PAIRS).round().astype(int))]
    mean, std = normalisation.mean, normalisation.std
    network = _plain(loop.trainer)
    manifest["metrics"]["onnx_difference"] = artifact.export(network, directory, mean=mean, std=std, examples=examples)
    manifest["normalisation"] = {"mean": mean.tolist(), "std": std.tolist()}
    manifest["versions"] = {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__}
    rebuilt = keras.ops.convert_to_numpy(network((examples - mean) / std)) * std + mean
    manifest["history"] = loop.history
    pairs = [report.Pair(f"window {i}", *both) for i, both in enumerate(zip(examples, rebuilt, strict=True), 1)]
    report.write(directory / artifact.REPORT, manifest, history=loop.history, pairs=pairs)
    artifact.finish(directory, manifest)


def _metrics(
    loop: "_Loop", validation: Mapping[str, Any], statistics: dataset.Statistics, held_out: str
) -> dict[str, Any]:
    """Figures of a finished training; says loudly if the posterior has collapsed."""
    settings, spec = loop.trainer.settings, loop.trainer.spec
    active = evaluate.active_dimensions(validation["kl_per_dim"])
    collapsed = active < COLLAPSED_SHARE * settings.latent_dim
    if collapsed:
        each = " ".join(f"{kl:.3f}" for kl in sorted(validation["kl_per_dim"], reverse=True))
        log.warning(
            "POSTERIOR COLLAPSE: %d of %d latent dimensions carry anything; what it rebuilds is of little use. "
            "Train longer (--steps), or on more varied sound. KL of each, nats: %s",
            active,
            settings.latent_dim,
            each,
        )
    return {
        "validation": {k: v for k, v in validation.items() if k != "kl_per_dim"},
        "validation_is_training": held_out == splits.TRAIN,
        "kl_per_dim": validation["kl_per_dim"],
        "active_dimensions": active,
        "collapsed": collapsed,
        "steps": loop.history[-1]["step"],
        "best_step": loop.best_step,
        "stopped": loop.reason,
        "windows": dict(statistics.windows),
        "audio_hours_seen": loop.history[-1]["step"] * settings.batch_size * window_seconds(spec) / 3600,
        "observation_variance": float(np.exp(loop.trainer.model.observation_log_variance())),
        "replicas": loop.trainer.strategy.num_replicas_in_sync,
    }


def _own_checkpoints(folder: Path) -> str:
    """The folder, for TensorFlow, which reads checkpoints, and deletes the oldest, wherever a text file in it says.

    Raises
    ------
    InputError
        If that names one outside.
    """
    found = tf.train.get_checkpoint_state(str(folder))
    for path in [] if found is None else [found.model_checkpoint_path, *found.all_model_checkpoint_paths]:
        if os.path.dirname(os.path.abspath(path)) != os.path.abspath(folder):
            raise InputError(f"{folder / 'checkpoint'} names a checkpoint elsewhere ({path[:200]}): delete the folder")
    return str(folder)


class _Loop:
    """Steps, validations, checkpoints and the state that a resumed run needs of them."""

    def __init__(
        self,
        trainer: Trainer,
        directory: Path,
        here: hosts.Hosts,
        *,
        progress: bool,
        saved: Callable[[Path], None],
    ) -> None:
        self.trainer, self.directory, self.here, self.progress, self.saved = trainer, directory, here, progress, saved
        self.history: list[dict[str, float]] = []
        self.best, self.best_step, self.waited, self.reason = float("inf"), 0, 0, ""
        self.seconds_before, self.sums = 0.0, np.zeros(len(TERMS))
        self._state = tf.Variable("", dtype=tf.string)
        with trainer.strategy.scope():
            kept = tf.train.Checkpoint(model=trainer.model, optimizer=trainer.optimizer, state=self._state)
        newest, best = (_own_checkpoints(directory / name) for name in ("checkpoints", "checkpoints/best"))
        self._newest = tf.train.CheckpointManager(kept, newest, max_to_keep=2, checkpoint_name="step")
        # Model and optimizer both: weights alone would leave a resumed run with a restore that warns.
        self._best = tf.train.CheckpointManager(kept, best, max_to_keep=1, checkpoint_name="best")
        there = self._newest.latest_checkpoint if here.is_chief else None
        if there:
            kept.restore(there).assert_existing_objects_matched()
        # What the chief starts from all start from, be it a checkpoint or not.
        self._share()
        if state := json.loads(here.from_chief(self._state.numpy()) or "{}"):
            self.history, self.best, self.best_step = state["history"], state["best"], state["best_step"]
            self.waited, self.reason, self.seconds_before = state["waited"], state["reason"], state["seconds"]
            self.sums = np.asarray(state["sums"])
            here.kept_step = self.step
            log.info("taken up at step %d", self.step)
        self._kept = kept
        self._started = time.monotonic()

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.trainer.optimizer.iterations.numpy())

    def _share(self) -> None:
        self.here.share([*self.trainer.model.variables, *self.trainer.optimizer.variables])

    def _save(self, manager: Any) -> None:
        state = {"history": self.history, "best": self.best, "best_step": self.best_step, "waited": self.waited}
        state |= {"sums": self.sums.tolist(), "reason": self.reason}
        state["seconds"] = self.seconds_before + time.monotonic() - self._started
        self._state.assign(json.dumps(state))
        if self.here.is_chief:
            manager.save(checkpoint_number=self.step)
        self.here.kept_step = self.step

    def run(self, training: Any, validation: Any) -> None:
        """Train until the budget is spent or nothing improves, then go back to the best weights."""
        settings = self.trainer.settings
        with _stopping() as stop, self._bar() as advance:
            writer = tf.summary.create_noop_writer()
            if self.here.is_chief:
                writer = tf.summary.create_file_writer(str(self.directory / "logs"))
            batches = self.trainer.distributed(training)
            while not self.reason and self.step < settings.max_steps:
                # All hosts stop at the same step: each learns whether any was asked to.
                asked = tf.constant(float(stop.asked))
                *told, asked = self.trainer.train_step(next(batches), asked).numpy()
                step = self.step
                if not np.isfinite(told).all():
                    terms = ", ".join(f"{name} {value:.4g}" for name, value in zip(TERMS, told, strict=True))
                    raise self._diverged(f"step {step} gave {terms}")
                self.sums += told
                since = (step - 1) % settings.evaluate_every + 1
                advance(self.sums / since)
                if step % settings.evaluate_every == 0 or step == settings.max_steps:
                    self._validate(self.sums / since, validation, writer)
                    self.sums = np.zeros(len(TERMS))
                    self._save(self._newest)
                    self.saved(self.directory)
                if asked:
                    self._save(self._newest)
                    self.saved(self.directory)
                    raise KeyboardInterrupt
        writer.close()
        if self.here.is_chief:
            self._kept.restore(self._best.latest_checkpoint).assert_existing_objects_matched()
        self._share()  # `step` now tells which step the weights are of

    def _validate(self, training: Any, validation: Any, writer: Any) -> None:
        """Measure, keep the weights if they are the best, decide whether to stop."""
        step, settings = self.step, self.trainer.settings
        # The variance learned is that of the training's errors, and falls with them: on recordings not heard it would
        # soon count small errors for large, and training would seem to be over.
        found = self.trainer.evaluate(validation, calibrated=True)
        row = dict(zip(TERMS, map(float, training), strict=True)) | {"step": step}
        row |= {f"validation_{name}": found[name] for name in ("nll", "kl", "mse", "negative_elbo")}
        row["active_dimensions"] = evaluate.active_dimensions(found["kl_per_dim"])
        self.history.append(row)
        with writer.as_default(step=step):
            for name, value in row.items():
                tf.summary.scalar(name, value)
            for number, kl in enumerate(found["kl_per_dim"]):
                tf.summary.scalar(f"kl_per_dim/{number:03d}", kl)
        least = min(earlier["validation_mse"] for earlier in self.history)
        if not np.isfinite(found["negative_elbo"]) or found["mse"] > DIVERGED * least:
            raise self._diverged(
                f"after step {step} the validation error is {found['mse']:.3g}, once it was {least:.3g}"
            )
        if found["negative_elbo"] < self.best:
            self.best, self.best_step, self.waited = found["negative_elbo"], step, 0
            self._save(self._best)
        else:
            self.waited += 1
        if self.waited >= settings.patience:
            self.reason = "no better validation ELBO"
        elif step >= settings.max_steps:
            self.reason = "step budget"

    def _diverged(self, what: str) -> InputError:
        folder = self.directory / "checkpoints" / "best"
        kept = (
            f"the last good weights, of step {self.best_step}, are in {folder}" if self.best_step else "none was good"
        )
        return InputError(f"the training diverged: {what}; {kept}; train with a lower --learning-rate")

    @contextmanager
    def _bar(self) -> Iterator[Any]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps, loss {task.fields[loss]:.0f} nats, {task.fields[rate]:.2f} audio-hours/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (self.progress and self.here.is_chief),
        )
        settings, first = self.trainer.settings, self.step
        hours = settings.batch_size * window_seconds(self.trainer.spec) / 3600
        started = time.monotonic()
        with bar:
            task = bar.add_task("", total=settings.max_steps, completed=first, loss=float("nan"), rate=0.0)

            def advance(terms: Any) -> None:
                step = self.step
                rate = (step - first) * hours / (time.monotonic() - started)
                bar.update(task, completed=step, loss=terms[0] + terms[1], rate=rate)

            yield advance
