"""The model directory: written once, verified by digests when read, with ONNX copies that do not need TensorFlow.

MODEL_ID/ contains weights.weights.h5, encoder.onnx (log-mel in nats → posterior mean, log-variance and embedding),
decoder.onnx (latent → normalised log-mel), trained.npy (digests of the recordings that it was trained on), logs/ and
checkpoints/. model.json is written last and contains the digests of the files.
report.html and metrics.json contain the model's evaluation, and may be rewritten.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from soundlake.model import durable
from soundlake.model.errors import NO_LOCKS, InputError, TryLaterError, number_of, storage_errors
from soundlake.model.features.log_mel import FeatureSpec
from soundlake.model.paths import checked_id, inside, is_id, no_links, regular
from soundlake.model.reports import Report, unheard

FORMAT_VERSION = 5
MANIFEST, WEIGHTS, ENCODER, DECODER, TRAINED, REPORT = (
    "model.json",
    "weights.weights.h5",
    "encoder.onnx",
    "decoder.onnx",
    "trained.npy",
    "report.html",
)
# The files of each format whose digests model.json contains: no other file is ever loaded. A model of format 3 has no
# record of what it was trained on.
VERIFIED = {WEIGHTS, ENCODER, DECODER, TRAINED}
_FILES = {3: VERIFIED - {TRAINED}, 4: VERIFIED, FORMAT_VERSION: VERIFIED}
# The last format whose embedding is the posterior mean and the similarity vector side by side, pooled as mean and
# standard deviation.
ONE_COLUMN = 4
# Results of `soundlake evaluate`.
METRICS = "metrics.json"
# Keys of model.json. The first is the digest of the old list of recordings, kept while a list without forgotten
# recordings is being written. The second is the number of recordings that were removed from the list in this way.
FORMER, STRUCK = "trained_before", "trained_forgotten"
# Largest allowed difference of the ONNX copies from the Keras model, relative to the largest value.
PARITY = 1e-4

Array = npt.NDArray[np.float32]


class FormatError(InputError):
    """This version of soundlake cannot read the format of a model.

    Parameters
    ----------
    message : str
    newer : bool
        Whether a later version of soundlake wrote it.
    """

    def __init__(self, message: str, *, newer: bool) -> None:
        super().__init__(message)
        self.newer = newer


def write_json(path: Path, value: Any) -> None:
    """Write JSON completely or not at all; see `write_text`."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text completely or not at all.

    Raises
    ------
    InputError, TryLaterError
        As in `model.errors.storage_errors`.
    """
    with storage_errors(path):
        # A new file, so that no link is followed, with the permissions of the user's umask.
        part = path.parent / f".part-{secrets.token_hex(8)}"
        try:
            with open(part, "x", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            durable.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def model_id(identity: Mapping[str, Any]) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a model's inputs (data, settings, versions) as canonical JSON."""
    text = json.dumps({"format_version": FORMAT_VERSION, **identity}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    with open(regular(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(path: str | Path) -> str:
    return Path(regular(path)).read_text(encoding="utf-8")


@dataclass(frozen=True)
class _Session:
    """An ONNX Runtime session with one input. Sessions cannot be pickled, so each process opens its own.

    Attributes
    ----------
    path : Path
    threads : int
    digest : str or None
        SHA-256 that the file must have; None for a file that was written just now.
    gpu : bool
        Whether to run on a GPU; without a GPU it then raises an error.
    """

    path: Path
    threads: int
    digest: str | None = None
    gpu: bool = False

    @cached_property
    def _session(self) -> Any:
        # Otherwise it stores an id of this machine in the user's home, and sends data to its maker.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = self.threads
        # Log only fatal errors: other errors are raised as exceptions.
        options.log_severity_level = 4
        # Load the verified bytes, not the file. So ONNX Runtime cannot load other files that the model may name.
        data = self.path.read_bytes()
        if self.digest not in (None, hashlib.sha256(data).hexdigest()):
            raise _other_file(self.path)
        provider = "CUDAExecutionProvider" if self.gpu else "CPUExecutionProvider"
        providers = [provider] if provider in onnxruntime.get_available_providers() else None
        try:
            session = onnxruntime.InferenceSession(data, options, providers=providers)
        except Exception as error:
            if number_of(error) is not None or isinstance(error, MemoryError):
                raise
            message = str(error).split("\n")[0][:200]
            raise InputError(f"ONNX Runtime cannot use {self.path}: {message}; train again, or restore it") from error
        # ONNX Runtime falls back to the CPU silently, while the unused GPU costs money.
        if provider not in session.get_providers():
            raise InputError(
                "a GPU was asked for, and ONNX Runtime finds none here: it takes the package onnxruntime-gpu, CUDA and "
                "a driver"
            )
        return session

    def run(self, values: Array) -> list[Array]:
        name = self._session.get_inputs()[0].name
        return list(self._session.run(None, {name: np.ascontiguousarray(values, np.float32)}))


# How the embeddings of a recording's windows are pooled: their mean, or mean and standard deviation side by side.
Pooling = Literal["mean", "mean and deviation"]
POOLING: Pooling = "mean"


def pooled(embeddings: Array, pooling: Pooling = "mean") -> Array:
    """The clip embedding of a recording, from the embeddings of its windows.

    Parameters
    ----------
    embeddings : ndarray of float32, shape (n, size)
    pooling : {"mean", "mean and deviation"}
        The pooling of the model.

    Returns
    -------
    ndarray of float32, shape (size,), or (2 * size,) with the deviation
    """
    mean = embeddings.mean(axis=0)
    return mean if pooling == "mean" else np.concatenate([mean, embeddings.std(axis=0)])


def pooled_width(size: int, pooling: Pooling = "mean") -> int:
    """Size of a clip embedding that is pooled from window embeddings of `size` numbers."""
    return size if pooling == "mean" else 2 * size


class Encoded(NamedTuple):
    """Output of the encoder, float32.

    Attributes
    ----------
    mean, log_variance : ndarray, shape (n, latent_dim)
        Mean and log-variance of the posterior.
    embedding : ndarray, shape (n, embedding_dim)
        The similarity vector, which describes how the windows sound. If the model has none, the mean; in models up to
        format 4, the mean and the similarity vector side by side.
    """

    mean: Array
    log_variance: Array
    embedding: Array


class Encoder(_Session):
    """The encoder of a model in ONNX Runtime."""

    def encode(self, windows: Array) -> Encoded:
        """Posterior and embeddings of windows; the result for a window does not depend on the rest of the batch.

        Parameters
        ----------
        windows : ndarray of float32, shape (n, window_frames, n_mels)
            Log-mel, nats.
        """
        return Encoded(*self.run(windows))


class Decoder(_Session):
    """The decoder of a model in ONNX Runtime."""

    def decode(self, latent: Array) -> Array:
        """Latent (n, latent_dim) → normalised log-mel (n, window_frames, n_mels), float32."""
        return self.run(latent)[0]


@dataclass(frozen=True)
class Model:
    """A model directory, verified.

    Attributes
    ----------
    directory : Path
    model_id : str
    spec : FeatureSpec
    settings, metrics, manifest : dict
        Resolved settings of the training, its measurements, and the whole of model.json.
    mean, std : ndarray of float32, shape (n_mels,)
        Mean and standard deviation over the training split, nats.
    """

    directory: Path
    model_id: str
    spec: FeatureSpec
    settings: dict[str, Any]
    metrics: dict[str, Any]
    manifest: dict[str, Any]
    mean: Array
    std: Array

    def encoder(self, *, threads: int = 1, gpu: bool = False) -> Encoder:
        """The encoder; one thread by default, since many workers share a machine.

        With `gpu`, the first use raises `InputError` if there is no GPU.
        """
        return Encoder(self.directory / ENCODER, threads, self.manifest["files"][ENCODER], gpu)

    def decoder(self, *, threads: int = 1, gpu: bool = False) -> Decoder:
        """The decoder."""
        return Decoder(self.directory / DECODER, threads, self.manifest["files"][DECODER], gpu)

    def trained(self) -> npt.NDArray[np.uint64]:
        """`splits.digests` of the recordings that the model was trained on, sorted.

        Raises
        ------
        InputError
            If the model has no record of them, or the record is damaged.
        """
        if TRAINED not in self.manifest["files"]:
            raise InputError(
                f"model {self.model_id} has format {self.manifest['format_version']}, which does not tell what a model "
                "was trained on"
            )
        try:
            with storage_errors(self.directory / TRAINED):
                trained = np.load(self.directory / TRAINED, allow_pickle=False)
        except InputError:
            raise
        except (ValueError, EOFError) as error:
            raise InputError(f"{self.directory / TRAINED} is damaged: {error}") from error
        return np.asarray(trained, np.uint64)

    @property
    def latent_dim(self) -> int:
        """Size of a posterior mean."""
        return int(self.settings["latent_dim"])

    @property
    def keeps_latent(self) -> bool:
        """Whether the model's table has a separate column for the posterior mean."""
        return int(self.manifest["format_version"]) > ONE_COLUMN

    @property
    def embedding_dim(self) -> int:
        """Size of an embedding."""
        similarity = int(self.settings["likeness_dim"])
        return (similarity or self.latent_dim) if self.keeps_latent else self.latent_dim + similarity

    @property
    def pooling(self) -> Pooling:
        """How the embeddings of a recording's windows are pooled."""
        return self.manifest["pooling"] if self.keeps_latent else "mean and deviation"

    def pooled(self, embeddings: Array) -> Array:
        """The clip embedding of a recording, from the embeddings (n, embedding_dim) of its windows."""
        return pooled(embeddings, self.pooling)

    def normalise(self, features: Array) -> Array:
        """Log-mel in nats, (…, n_mels) → zero mean and unit variance per band over the training split."""
        return (features - self.mean) / self.std

    def denormalise(self, features: Array) -> Array:
        """The inverse of `normalise`."""
        return features * self.std + self.mean


def is_file(path: Path, digest: str) -> bool:
    """Whether a file exists and has this SHA-256 (hexadecimal digits)."""
    return path.is_file() and _digest(path) == digest


def load(directory: str | Path, *, files: bool = True) -> Model:
    """Read a model directory; imports no TensorFlow.

    Parameters
    ----------
    directory : str or Path
    files : bool
        Whether to check that the model's files exist and have the right digests.

    Raises
    ------
    FormatError
        If this version of soundlake cannot read the model's format.
    InputError
        If there is no finished model, a file does not match model.json, or the folder contains a link.
    """
    directory = Path(directory)
    no_links(directory)
    try:
        manifest = json.loads(_text(directory / MANIFEST))
        version = manifest["format_version"]
        if version not in list(_FILES):
            *others, newest = map(str, _FILES)
            reads = f"{', '.join(others)} and {newest}"
            raise FormatError(
                f"{directory} has model format {str(version)[:80]}, and this soundlake reads {reads}",
                newer=isinstance(version, int) and version > FORMAT_VERSION,
            )
        if manifest["model_id"] != directory.name:
            raise InputError(
                f"{directory / MANIFEST} belongs to another model, {str(manifest['model_id'])[:80]!r}: "
                "restore it from a backup"
            )
        digests = manifest["files"]
        if digests.keys() != _FILES[version]:
            other = sorted(digests.keys() ^ _FILES[version])[0]
            raise InputError(f"{directory / MANIFEST} names other files than a model has, or not all: {other[:80]!r}")
        if version > ONE_COLUMN and manifest["pooling"] not in get_args(Pooling):
            raise ValueError(f"pooling is none of {', '.join(get_args(Pooling))}")
        for name, digest in digests.items() if files else ():
            others = [manifest.get(FORMER)] if name == TRAINED else []
            if _digest(directory / name) not in (digest, *others):
                raise _other_file(directory / name)
        spec = FeatureSpec.model_validate(manifest["spec"])
        mean, std = (np.asarray(manifest["normalisation"][name], np.float32) for name in ("mean", "std"))
        if not (mean.shape == std.shape == (spec.n_mels,) and np.isfinite(mean).all() and (std > 0).all()):
            raise ValueError(f"normalisation is not of {spec.n_mels} mel bands")
        return Model(
            directory=directory,
            model_id=manifest["model_id"],
            spec=spec,
            settings=manifest["settings"],
            metrics=manifest["metrics"],
            manifest=manifest,
            mean=mean,
            std=std,
        )
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"no finished model in {directory}: {Path(error.filename or '').name} is missing") from error
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{directory / MANIFEST} is damaged: {error}") from error


def find(models_dir: str | Path, model_id: str, *, files: bool = True) -> Model:
    """`load` a model by its id, which may come from an untrusted file of the lake.

    Raises
    ------
    InputError
        As in `load`, and if `model_id` is not an id.
    """
    return load(inside(str(models_dir), checked_id(model_id, "model")), files=files)


def _other_file(path: Path) -> InputError:
    return InputError(f"{path} has changed since the training: restore it from a backup, or train again")


def export(vae: Any, directory: Path, *, mean: Array, std: Array, examples: Array, report: Report = unheard) -> float:
    """Write weights and ONNX copies of a trained VAE, and check that the copies agree with it.

    Parameters
    ----------
    vae : model.network.vae.VAE
    directory : Path
    mean, std : ndarray of float32, shape (n_mels,)
    examples : ndarray of float32, shape (n, window_frames, n_mels)
        Log-mel for the comparison, nats.
    report : Report
        Receives the name of each copy that is being made.

    Returns
    -------
    float
        The largest relative difference.

    Raises
    ------
    RuntimeError
        If the difference is above `PARITY`.
    """
    import keras
    from keras import ops

    # HDF5 crashes the process if the disk becomes full in the middle of a file, so the free space is checked first.
    if shutil.disk_usage(directory).free < 2 * sum(weight.nbytes for weight in vae.get_weights()) + (1 << 20):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(directory))
    vae.save_weights(directory / WEIGHTS)
    raw = keras.Input((vae.config.n_frames, vae.config.n_mels), name="log_mel")
    encoded = vae.encoded((raw - mean) / std, nats=raw)
    # The embedding gets its own layer: it may be the mean, and one output cannot have two names.
    outputs = [encoded.mean, encoded.log_variance, keras.layers.Identity()(encoded.embedding)]
    encoder = keras.Model(raw, outputs, name="encode")
    latent = keras.Input((vae.config.latent_dim,), name="latent")
    decoder = keras.Model(latent, vae.decoder(latent), name="decode")
    # Call the models before the export: Keras refuses to export a model that was never called.
    expected = [ops.convert_to_numpy(value) for value in encoder(examples)]
    expected.append(ops.convert_to_numpy(decoder(expected[0])))
    for name, part in ((ENCODER, encoder), (DECODER, decoder)):
        report(f"writing the ONNX copy {name}")
        part.export(directory / f"part-{name}", format="onnx", verbose=False)
        os.replace(directory / f"part-{name}", directory / name)
    report("comparing the ONNX copies with the model")
    actual = list(Encoder(directory / ENCODER, 1).encode(examples))
    actual.append(Decoder(directory / DECODER, 1).decode(expected[0]))
    worst = max(
        float(np.abs(copy - original).max() / (np.abs(original).max() + 1e-12))
        for copy, original in zip(actual, expected, strict=True)
    )
    if worst > PARITY:
        raise RuntimeError(f"the ONNX copies differ from the model by {worst:.1e}, more than {PARITY:.0e}")
    return worst


def finish(directory: Path, manifest: Mapping[str, Any], *, trained: npt.NDArray[np.uint64]) -> None:
    """Write the list of training recordings, then model.json with the files' digests, which completes the model."""
    part = directory / f"part-{TRAINED}"
    np.save(part, np.sort(trained))
    os.replace(part, directory / TRAINED)
    # model.json names these files, so none of them may be lost in a power cut that model.json survives.
    for name in sorted(VERIFIED):
        durable.sync(directory / name)
    durable.sync(directory)
    files = {name: _digest(directory / name) for name in sorted(VERIFIED)}
    contract = {"format_version": FORMAT_VERSION, "pooling": POOLING}
    write_json(directory / MANIFEST, {**contract, **manifest, "files": files})


@contextlib.contextmanager
def being_made(directory: Path) -> Iterator[None]:
    """Lock a model against a second process that trains it; the kernel releases the lock of a killed process.

    Raises
    ------
    TryLaterError
        If another process is training this model.
    """
    directory.mkdir(parents=True, exist_ok=True)
    # Files written from here on would follow a link out of the folder.
    no_links(directory)
    with open(directory / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TryLaterError(
                f"another process is already training this model in {directory}: run the same command when it is done"
            ) from error
        except OSError as error:
            # Training goes on without a lock: two trainings would write the same files with the same content.
            if error.errno not in NO_LOCKS:
                raise
        yield


def is_finished(directory: Path) -> bool:
    """Whether a model directory is complete."""
    return (directory / MANIFEST).exists()


def models(models_dir: str | Path) -> list[str]:
    """Ids of the finished models, sorted."""
    return sorted(path.parent.name for path in Path(models_dir).glob(f"*/{MANIFEST}") if is_id(path.parent.name))
