"""Training of a model: one loop under a distribution strategy, for one device, several devices, and several hosts.

The result depends only on shards, settings and seed: a run that is killed and started again ends with the same weights.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from soundlake.model.errors import InputError, TryLaterError
from soundlake.model.features import splits
from soundlake.model.features.log_mel import FeatureSpec
from soundlake.model.judging import evaluate
from soundlake.model.judging import report as page
from soundlake.model.network import vae
from soundlake.model.reports import Report, unheard
from soundlake.model.saved import artifact
from soundlake.model.training import dataset, hosts, places
from soundlake.model.training.loop import Loop
from soundlake.model.training.trainer import Trainer, TrainSettings, fresh, training_input

log = logging.getLogger(__name__)

# Below this share of active dimensions the posterior has collapsed: the decoder has learned to ignore the latent.
COLLAPSED_SHARE = 0.1
PAIRS = 6


@dataclass(frozen=True)
class TrainResult:
    """The result of a training: the model's id and directory, its metrics, and whether it was trained by this call.

    On a host that is not the chief there are no metrics, since the chief is still writing the model.
    """

    model_id: str
    directory: Path
    metrics: dict[str, Any]
    trained: bool


def identity(
    shards: places.Shards, spec: FeatureSpec, groups: Mapping[str, str], settings: TrainSettings
) -> dict[str, Any]:
    """The inputs of a model, whose digest is its id.

    Parameters
    ----------
    shards : mapping
        Keys are paths, whose base names are digests of their content.
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


# A disk with less free space counts as full.
_FULL_BYTES = 1 << 20


@contextmanager
def _storage_errors(directory: Path) -> Iterator[None]:
    """`artifact.storage_errors`, and TensorFlow's errors that have no system number, such as a full GPU."""
    try:
        with artifact.storage_errors(directory):
            yield
    except tf.errors.ResourceExhaustedError as error:
        if shutil.disk_usage(directory).free < _FULL_BYTES:
            raise TryLaterError(f"no space left for {directory}: free some and run the same command again") from error
        raise InputError(f"not enough memory to train in {directory}: use a smaller --batch-size") from error
    except tf.errors.DataLossError as error:
        # Shards have been read and checked before, so the damaged file is a checkpoint.
        raise InputError(
            f"a checkpoint in {directory / 'checkpoints'} is damaged: move that folder away, and the training starts "
            "again"
        ) from error


def train(
    shards: places.Shards,
    spec: FeatureSpec,
    *,
    groups: Mapping[str, str],
    models_dir: Path,
    settings: TrainSettings,
    origin: Mapping[str, Any],
    report: Report = unheard,
    saved: Callable[[Path], None] = lambda directory: None,
) -> TrainResult:
    """Train a VAE on a lake's windows, or return the model if exactly this model already exists.

    If TF_CONFIG names several hosts (`model.training.hosts`), each host makes this call, and they train one model
    together.

    Parameters
    ----------
    shards : mapping of str to collection of str
        `model.training.places.Shards`.
    spec : FeatureSpec
    groups : mapping of str to str
        recording_id → group, for the recordings to use.
    models_dir : Path
        The model goes into a subfolder; an unfinished model there is resumed.
    settings : TrainSettings
    origin : mapping
        Origin of the data, such as the ledger's version; recorded unchanged.
    report : Report
        Receives the progress.
    saved : callable
        Called with the model's folder after each new checkpoint.

    Raises
    ------
    InputError
        If there is nothing to train on, a shard is damaged, or the model's folder cannot be written.
    TryLaterError
        If another process is training the same model, the disk is full, or another host is lost.
    KeyboardInterrupt
        After SIGINT or SIGTERM; a checkpoint is saved, and the same call resumes from it.
    """
    # With TF32 a GPU would keep only ten bits of the mantissa in products: too few for statistics near silence, and for
    # the ONNX copies to agree. The setting `precision` selects faster arithmetic instead.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    made_from = identity(shards, spec, groups, settings)
    model_id = artifact.model_id(made_from)
    directory = models_dir / model_id
    if not artifact.is_finished(directory):
        if not shards or not groups:
            raise InputError("nothing to train on: no recording in the ledger is done and not silent")
        here = hosts.from_environment()
        lock = artifact.being_made(directory) if here.is_chief else nullcontext()
        with here.none_lost(), _storage_errors(directory), lock:
            if not artifact.is_finished(directory):
                here.join()
                here.agree(made_from)
                metrics = _made(
                    shards, spec, groups, directory, settings, made_from, origin, here, report=report, saved=saved
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
    report: Report,
    saved: Callable[[Path], None],
) -> dict[str, Any]:
    """Train, write the model directory, and return the metrics; hosts other than the chief only train."""
    split_of = splits.assign(groups)
    windows = places.find(shards, spec, split_of, here=here, report=report)
    statistics = _statistics(windows, here, report)
    components = None
    if settings.preset != "seed" and here.is_chief:
        components = dataset.components(
            windows,
            statistics,
            count=settings.latent_dim,
            likeness=settings.likeness_dim,
            pitch=settings.pitch,
            seed=settings.seed,
            report=report,
        )
    report("building the network")
    trainer = Trainer(spec, settings, statistics.normalisation, components=components, strategy=here.strategy)
    held_out = splits.VALIDATION if statistics.windows[splits.VALIDATION] else splits.TRAIN
    if held_out == splits.TRAIN:
        log.warning("too few recordings to hold any out: the validation figures are measured on the training data")

    part = here.index, here.count

    def batches(split: str, part: tuple[int, int] = part) -> Any:
        return dataset.evaluation_batches(windows, split=split, batch_size=settings.batch_size, part=part)

    loop = Loop(trainer, directory, here, report=report, saved=saved)
    started = time.monotonic()
    training = training_input(windows, settings, skip_batches=loop.step, part=part)
    loop.run(training, batches(held_out))
    seconds = time.monotonic() - started
    report("validating the best weights")
    validation = trainer.evaluate(batches(held_out), calibrated=True)
    trainer.model.calibrate(validation["mse"])
    metrics = _metrics(loop, validation, statistics, held_out) | {"seconds": round(loop.seconds_before + seconds, 1)}
    if statistics.windows[splits.TEST]:
        report("testing the best weights")
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
    trained = splits.digests(recording_id for recording_id, split in split_of.items() if split == splits.TRAIN)
    _write_model(directory, manifest, loop, statistics.normalisation, examples, trained, report)
    return metrics


def _statistics(windows: places.Places, here: hosts.Hosts, report: Report) -> dataset.Statistics:
    """`dataset.statistics` as computed by the chief: another host's processor may round differently."""
    data = b""
    if here.is_chief:
        statistics = dataset.statistics(windows, report=report)
        normal = statistics.normalisation
        data = json.dumps([normal.mean.tolist(), normal.std.tolist(), statistics.windows]).encode()
    mean, std, counts = json.loads(here.from_chief(data))
    return dataset.Statistics(dataset.Normalisation(np.asarray(mean, np.float32), np.asarray(std, np.float32)), counts)


def _plain(trainer: Trainer) -> vae.VAE:
    """The trained network in float32, so that the export also runs on machines without bfloat16."""
    settings = trainer.settings
    if settings.precision == "float32":
        return trainer.model
    twin = fresh(trainer.spec, settings.model_copy(update={"precision": "float32"}))
    twin.set_weights(trainer.model.get_weights())
    return twin


def _write_model(
    directory: Path,
    manifest: dict[str, Any],
    loop: Loop,
    normalisation: dataset.Normalisation,
    examples: np.ndarray,
    trained: np.ndarray,
    report: Report,
) -> None:
    """Write weights, ONNX copies, report and, last, the manifest."""
    # Examples are spread over the split, so that the report shows several recordings.
    examples = examples[np.unique(np.linspace(0, len(examples) - 1, PAIRS).round().astype(int))]
    mean, std = normalisation.mean, normalisation.std
    network = _plain(loop.trainer)
    manifest["metrics"]["onnx_difference"] = artifact.export(
        network, directory, mean=mean, std=std, examples=examples, report=report
    )
    manifest["normalisation"] = {"mean": mean.tolist(), "std": std.tolist()}
    manifest["versions"] = {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__}
    rebuilt = keras.ops.convert_to_numpy(network((examples - mean) / std)) * std + mean
    manifest["history"] = loop.history
    report("writing the report")
    pairs = [page.Pair(f"window {i}", *both) for i, both in enumerate(zip(examples, rebuilt, strict=True), 1)]
    page.write(directory / artifact.REPORT, manifest, history=loop.history, pairs=pairs)
    artifact.finish(directory, manifest, trained=trained)


def _metrics(
    loop: Loop, validation: Mapping[str, Any], statistics: dataset.Statistics, held_out: str
) -> dict[str, Any]:
    """Figures of a finished training; logs a warning if the posterior has collapsed."""
    settings, spec = loop.trainer.settings, loop.trainer.spec
    active = evaluate.active_dimensions(validation["kl_per_dim"])
    collapsed = active < COLLAPSED_SHARE * settings.latent_dim
    if collapsed:
        kls = " ".join(f"{kl:.3f}" for kl in sorted(validation["kl_per_dim"], reverse=True))
        log.warning(
            "POSTERIOR COLLAPSE: %d of %d latent dimensions carry anything; what it rebuilds is of little use. "
            "Train longer (--steps), or on more varied sound. KL of each, nats: %s",
            active,
            settings.latent_dim,
            kls,
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
        "audio_hours_seen": loop.history[-1]["step"] * settings.batch_size * spec.window_seconds / 3600,
        "observation_variance": float(np.exp(loop.trainer.model.observation_log_variance())),
        "replicas": loop.trainer.strategy.num_replicas_in_sync,
    }
