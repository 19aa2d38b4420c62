"""Evaluate: a model's embeddings and reconstructions on a sample of the lake, beside baselines that cost nothing.

The baselines see the same windows and are pooled the same way: the mean spectrum of each window, the principal
components of windows, and the same encoder with random weights. What is learned, by the model and by them, is learned
from the training split; errors of reconstruction are those of the recordings held out.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from model import evaluate, splits
from model.artifact import Model, pooled
from model.dataset import COMPONENT_WINDOWS
from model.errors import InputError
from model.features import FeatureSpec, dequantise
from model.trainer import TrainSettings, fresh
from pipelines import ledger, table
from pipelines.encoder import read_shard
from pipelines.lake import Lake

# Windows that are looked at, in whole recordings; of a recording, evenly spread.
WINDOWS, WINDOWS_EACH = 8192, 64
BATCH_WINDOWS = 64
# Recordings whose windows are disturbed, and are to be found again.
DISTURBED = 500

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]
Embed = Callable[[Array], Array]


@dataclass(frozen=True)
class Clip:
    """A recording of the sample.

    Attributes
    ----------
    recording_id, uri, group : str
    label : str or None
    windows : ndarray of int64, shape (n,)
        Places in the recording.
    values : ndarray of uint16, shape (n, window_frames, n_mels)
    valid : ndarray of int64, shape (n,)
        Frames of each window that hold sound.
    """

    recording_id: str
    uri: str
    group: str
    label: str | None
    windows: npt.NDArray[np.int64]
    values: npt.NDArray[np.uint16]
    valid: npt.NDArray[np.int64]

    def frames(self, spec: FeatureSpec) -> Array:
        """Frames of all windows, those that two windows share once, (frames, n_mels), nats."""
        parts = []
        for i, window in enumerate(self.windows):
            follows = i > 0 and self.windows[i - 1] == window - 1
            parts.append(self.values[i, spec.window_frames - spec.window_step if follows else 0 : self.valid[i]])
        return dequantise(np.concatenate(parts), spec)


def sample(lake: Lake, spec: FeatureSpec, known: Any, groups: Mapping[str, str]) -> list[Clip]:
    """Recordings in the order of their digests, which is as good as at random, until there are enough windows.

    Parameters
    ----------
    lake, spec : Lake, FeatureSpec
    known : lance.LanceDataset
        The ledger.
    groups : mapping of str to str
        From `pipelines.ledger.training_input`.

    Raises
    ------
    InputError
        If a shard is missing or damaged.
    """
    counts = known.to_table(columns=["recording_id", "windows"], filter=f"status = '{ledger.DONE}' AND windows > 0")
    counts = counts.group_by("recording_id").aggregate([("windows", "max")]).sort_by("recording_id")
    total = np.cumsum(np.minimum(counts["windows_max"].to_numpy(), WINDOWS_EACH))
    names = counts["recording_id"].slice(0, int(np.searchsorted(total, WINDOWS)) + 1).to_pylist()
    chosen: dict[str, dict[str, Any]] = {}
    columns = ["recording_id", "status", "uri", "label", "windows", "bundles"]
    for batch in table.rows_of(known, "recording_id", names, columns):
        for row in batch.to_pylist():
            before = chosen.get(row["recording_id"])
            # Copies: the first name speaks for all.
            if row["status"] == ledger.DONE and (before is None or row["uri"] < before["uri"]):
                chosen[row["recording_id"]] = row
    found: dict[str, dict[int, tuple[npt.NDArray[np.uint16], int]]] = {name: {} for name in names}
    for bundle in sorted({bundle for row in chosen.values() for bundle in row["bundles"]}):
        for record, _ in read_shard(lake, spec, bundle):
            row = chosen.get(record.recording_id)
            if row is not None and bundle in row["bundles"]:
                every = -(-row["windows"] // WINDOWS_EACH)
                if record.window % every == 0:
                    found[record.recording_id][record.window] = record.values.copy(), record.valid_frames
    clips = []
    for recording_id, windows in found.items():
        if windows:
            numbers = sorted(windows)
            row = chosen[recording_id]
            values = np.stack([windows[n][0] for n in numbers])
            valid = np.array([windows[n][1] for n in numbers])
            group = groups[recording_id] or recording_id
            clips.append(Clip(recording_id, row["uri"], group, row["label"], np.array(numbers), values, valid))
    return clips


def held_out_of(clips: Sequence[Clip], groups: Mapping[str, str], *models: Model) -> npt.NDArray[np.bool_]:
    """Which clips are held out of training, and are new to some models; says so if these know what should be."""
    held = splits.held_out(groups, *(model.trained() for model in models))
    split = splits.assign(groups)
    known = sum(split[clip.recording_id] != splits.TRAIN and clip.recording_id not in held for clip in clips)
    if known:
        log.warning(
            "groups have changed since the training: of the recordings held out now, %d were trained on, or share a "
            "group with one that was, and are left out",
            known,
        )
    return np.array([clip.recording_id in held for clip in clips])


def _batches(clips: list[Clip], spec: FeatureSpec) -> Iterator[Array]:
    """Log-mel of all windows, batch by batch."""
    for clip in clips:
        for first in range(0, len(clip.values), BATCH_WINDOWS):
            yield dequantise(clip.values[first : first + BATCH_WINDOWS], spec)


class _Components:
    """Principal components of normalised windows, fitted on the training split."""

    def __init__(self, model: Model, clips: list[Clip], count: int) -> None:
        from sklearn.decomposition import PCA

        self.model = model
        every = -(-sum(len(clip.values) for clip in clips) // COMPONENT_WINDOWS)
        windows = np.concatenate([clip.values for clip in clips])[::every]
        rows = self._rows(dequantise(windows, model.spec))
        self.pca = PCA(min(count, *rows.shape), svd_solver="randomized", random_state=0).fit(rows)

    def _rows(self, windows: Array) -> Array:
        return self.model.normalise(windows).reshape(len(windows), -1)

    def embed(self, windows: Array) -> Array:
        return np.asarray(self.pca.transform(self._rows(windows)), np.float32)

    def rebuilt(self, windows: Array) -> Array:
        return np.asarray(self.pca.inverse_transform(self.embed(windows)), np.float32).reshape(windows.shape)


def _untrained(model: Model) -> Embed:
    """The model's own architecture with random weights: what it gives by its form alone."""
    network = fresh(model.spec, TrainSettings(**model.settings | {"precision": "float32"}))
    return lambda windows: np.asarray(network.encoded(model.normalise(windows)).embedding, np.float32)


def _error(clips: list[Clip], model: Model, rebuilt: Embed) -> float:
    """Mean square error of the frames of sound, of unit variance."""
    total = frames = 0.0
    for clip in clips:
        windows = dequantise(clip.values, model.spec)
        error = np.square(rebuilt(windows) - model.normalise(windows)).mean(axis=2)
        sound = np.arange(error.shape[1]) < clip.valid[:, None]
        total, frames = total + float(error[sound].sum()), frames + float(sound.sum())
    return total / frames


def _consistency(clips: list[Clip], spec: FeatureSpec, embedders: Mapping[str, Embed]) -> dict[str, dict[str, float]]:
    """How often a window is found again: at another level, with noise, a quarter window later; a clip by its last."""
    clips = clips[:DISTURBED]
    first = dequantise(np.stack([clip.values[0] for clip in clips]), spec)
    asked = evaluate.disturbed(first, spec)
    shift = spec.window_step // 2
    neighbours = [i for i, clip in enumerate(clips) if len(clip.windows) > 1 and clip.windows[1] == clip.windows[0] + 1]
    many = [clip for clip in clips if len(clip.windows) > 1]
    found: dict[str, dict[str, float]] = {}
    for name, embed in embedders.items():
        gallery = embed(first)
        found[name] = {what: evaluate.found_again(embed(windows), gallery) for what, windows in asked.items()}
        if len(neighbours) > 1:
            long = [clips[i].frames(spec)[shift : shift + spec.window_frames] for i in neighbours]
            later = np.full((len(long), spec.window_frames, spec.n_mels), spec.floor, np.float32)
            for row, frames in zip(later, long, strict=True):
                row[: len(frames)] = frames
            found[name]["later"] = evaluate.found_again(embed(later), gallery[neighbours])
        if len(many) > 1:
            each = [embed(dequantise(clip.values, spec)) for clip in many]
            rest = np.stack([one[:-1].mean(axis=0) for one in each])
            found[name]["cut"] = evaluate.found_again(np.stack([one[-1] for one in each]), rest)
    return found


@dataclass(frozen=True)
class Judged:
    """What `evaluation` found, and what it looked at.

    Attributes
    ----------
    found : dict
        ``recordings``, ``windows``, ``held_out_recordings`` of the sample; ``mse``: of the model and of as many
        principal components, of unit variance, on recordings held out; ``labelled`` recordings, ``labels``, ``probes``
        by embedding and measure (None without labels), ``folds`` in words, ``ahead`` of the best baseline;
        ``consistency`` by embedding; ``latent``: ``fidelity`` and ``kl_per_dim``.
    clips : list of Clip
        The sample.
    embeddings : ndarray of float32, shape (clips, size)
        Clip embeddings.
    held_out : list of int
        Places of clips that were not trained on.
    """

    found: dict[str, Any]
    clips: list[Clip]
    embeddings: Array
    held_out: list[int]


def evaluation(lake: Lake, model: Model, *, folds: Mapping[str, str] | None = None) -> Judged:
    """Judge a model on a sample of its lake.

    Parameters
    ----------
    lake : Lake
    model : model.artifact.Model
    folds : mapping of str to str or None
        uri → fold, of a data set that has its own; None for folds that no group straddles.

    Raises
    ------
    InputError
        If the lake holds too little to judge by.
    """
    known = ledger.open_ledger(lake, model.spec.spec_id)
    if known is None:
        raise InputError(
            f"the lake {lake.root} has no features of spec {model.spec.spec_id}; run: {lake.command('extract AUDIO')}"
        )
    # Of all recordings, as training has it: in a small corpus one may stand in for a split that is empty.
    _, groups = ledger.training_input(known)
    split = splits.assign(groups)
    clips = sample(lake, model.spec, known, groups)
    places = [i for i, is_held in enumerate(held_out_of(clips, groups, model)) if is_held]
    training = [clip for clip in clips if split[clip.recording_id] == splits.TRAIN]
    held_out = [clips[i] for i in places]
    if len(held_out) < 2:
        raise InputError(f"the sample of {len(clips)} recordings leaves {len(held_out)} held out: too few to judge by")
    if folds is not None:
        folds_of(clips, folds)  # folds that are no use are told before the work, not after it
    encoder, decoder = model.encoder(threads=0), model.decoder(threads=0)
    components = _Components(model, training, int(model.settings["latent_dim"]))
    embedders: dict[str, Embed] = {
        "embedding": lambda windows: encoder.encode(windows).embedding,
        "log-mel": lambda windows: windows.mean(axis=1),
        "PCA": components.embed,
        "untrained": _untrained(model),
    }
    pooled_clips = {
        name: np.stack([pooled(embed(dequantise(clip.values, model.spec))) for clip in clips])
        for name, embed in embedders.items()
    }
    pooled_clips["log-mel, 3 statistics"] = np.stack(
        [evaluate.log_mel_statistics(clip.frames(model.spec)) for clip in clips]
    )
    means = np.concatenate([encoder.encode(batch).mean for batch in _batches(held_out, model.spec)])
    found: dict[str, Any] = {
        "recordings": len(clips),
        "windows": sum(len(clip.values) for clip in clips),
        "held_out_recordings": len(held_out),
        "mse": {
            "model": _error(held_out, model, lambda windows: decoder.decode(encoder.encode(windows).mean)),
            "PCA": _error(held_out, model, components.rebuilt),
        },
        "consistency": _consistency(held_out, model.spec, embedders),
        "latent": {"fidelity": evaluate.fidelity(means).tolist(), "kl_per_dim": model.metrics["kl_per_dim"]},
    }
    found |= _probes(clips, pooled_clips, folds)
    return Judged(found, clips, pooled_clips["embedding"], places)


def folds_of(
    clips: list[Clip], folds: Mapping[str, str] | None
) -> tuple[list[int], list[str], list[str], npt.NDArray[np.int64], str]:
    """Which clips a probe can use: their places, labels, groups and folds, and the folds in words.

    Raises
    ------
    InputError
        If there are too few labels, groups or folds.
    """
    labelled = [i for i, clip in enumerate(clips) if clip.label is not None and (folds is None or clip.uri in folds)]
    labels, groups = [str(clips[i].label) for i in labelled], [clips[i].group for i in labelled]
    if folds is None:
        fold = evaluate.fold_of(labels, groups)
        return labelled, labels, groups, fold, f"{len(set(fold))} folds, no group in two of them"
    names, fold = np.unique([folds[clips[i].uri] for i in labelled], return_inverse=True)
    if len(names) < 2 or len(set(labels)) < 2:
        raise InputError(
            f"the file of folds names {len(labelled)} recordings of the sample, with {len(names)} folds and "
            f"{len(set(labels))} labels: a probe needs two of each"
        )
    return labelled, labels, groups, fold, f"the {len(names)} folds that the file gives"


def _probes(clips: list[Clip], pooled_clips: Mapping[str, Array], folds: Mapping[str, str] | None) -> dict[str, Any]:
    known = [clip.label for clip in clips if clip.label is not None]
    told: dict[str, Any] = {"labelled": len(known), "labels": len(set(known))}
    try:
        labelled, labels, groups, fold, told["folds"] = folds_of(clips, folds)
        told |= {"labelled": len(labelled), "labels": len(set(labels))}
        probes = {
            name: evaluate.probe(x[labelled], labels, groups=groups, fold=fold) for name, x in pooled_clips.items()
        }
    except InputError as error:
        if folds is not None:
            raise
        return told | {"probes": None, "ahead": None, "no_probes": str(error)}
    return told | {
        "probes": {name: {key: asdict(score) for key, score in one.items()} for name, one in probes.items()},
        "ahead": evaluate.beaten(probes, "embedding"),
    }
