"""Evaluate a model's embeddings and reconstructions on a sample of the lake, beside baselines that cost nothing.

The baselines are the usual alternatives: statistics of log-mel and of MFCCs, the mean spectrum of each window, and the
principal components of windows. Parts of the model itself are evaluated, too: its latent, and the same encoder with
random weights. The model and the baselines learn from the training split; reconstruction errors are measured on the
held-out recordings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from soundlake.model.errors import InputError
from soundlake.model.features import splits
from soundlake.model.features.log_mel import FeatureSpec, dequantise
from soundlake.model.judging import evaluate
from soundlake.model.saved.artifact import Model, Pooling, pooled
from soundlake.model.training.dataset import COMPONENT_WINDOWS
from soundlake.model.training.trainer import TrainSettings, fresh
from soundlake.pipelines.lake import ledger
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.stages import stage
from soundlake.pipelines.learning.sampling import (
    BATCH_WINDOWS,
    Clip,
    apart,
    batches,
    by_clip,
    held_out_of,
    near_copies,
    sample,
)

# At most this many recordings have a window disturbed and searched for.
DISTURBED = 500

Array = npt.NDArray[np.float32]
Embed = Callable[[Array], Array]


def _embedded(clips: Sequence[Clip], spec: FeatureSpec, embed: Embed, *, name: str) -> list[Array]:
    """Embeddings of all windows, recording by recording."""
    total, embeddings = sum(len(clip.values) for clip in clips), []
    with stage(name) as report:
        for number, batch in enumerate(batches(clips, spec)):
            done = number * BATCH_WINDOWS
            report(name, done, total, f"{done} of {total} windows")
            embeddings.append(embed(batch))
    return by_clip(clips, np.concatenate(embeddings))


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
    """The model's own architecture with random weights, to show what the architecture alone gives."""
    network = fresh(model.spec, TrainSettings(**model.settings | {"precision": "float32"}))
    if network.config.likeness_dim:
        # The weights of this layer are set, not learned: with the initial values its output would not be nats.
        network.encoder.get_layer("nats").set_weights([model.std, model.mean])
    return lambda windows: np.asarray(network.encoded(model.normalise(windows)).embedding, np.float32)


def _statistics(model: Model) -> Embed:
    """The statistics that the embedding is a map of, without the map; also for a model that has no such statistics."""
    from soundlake.model.network import texture

    return lambda windows: np.concatenate(texture.statistics_of(model.normalise(windows), windows), axis=1)


def _errors(clips: Sequence[Clip], model: Model, rebuilt: Embed, *, name: str) -> list[tuple[float, int]]:
    """For each recording, the summed mean square error of its sounding frames, at unit variance, and their number."""

    def error(windows: Array) -> Array:
        return np.asarray(np.square(rebuilt(windows) - model.normalise(windows)).mean(axis=2))

    sums = []
    for clip, errors in zip(clips, _embedded(clips, model.spec, error, name=name), strict=True):
        sound = np.arange(errors.shape[1]) < clip.valid[:, None]
        sums.append((float(errors[sound].sum(dtype=np.float64)), int(sound.sum())))
    return sums


def _behind(
    errors: Sequence[tuple[float, int]], others: Sequence[tuple[float, int]], groups: Sequence[str]
) -> evaluate.Score:
    """Mean difference per frame by which the first errors exceed the others, on the same recordings."""
    differences = np.array([a - b for (a, _), (b, _) in zip(errors, others, strict=True)])
    frames = np.array([count for _, count in errors], np.float64)
    return evaluate.interval(differences, groups, weights=frames)


def _mean_error(errors: Sequence[tuple[float, int]]) -> float:
    return sum(error for error, _ in errors) / sum(frames for _, frames in errors)


def _consistency(
    clips: list[Clip], spec: FeatureSpec, embedders: Mapping[str, Embed], embedded: Mapping[str, list[Array]]
) -> dict[str, dict[str, float]]:
    """Share of windows found again at another level, with noise, or a quarter window later; of clips by their last.

    Parameters
    ----------
    embedded : mapping of str to list of ndarray
        Embeddings of the clips' windows, by embedder.
    """
    clips = clips[:DISTURBED]
    first = dequantise(np.stack([clip.values[0] for clip in clips]), spec)
    disturbed = evaluate.disturbed(first, spec)
    shift = spec.window_step // 2
    neighbours = [i for i, clip in enumerate(clips) if len(clip.windows) > 1 and clip.windows[1] == clip.windows[0] + 1]
    shares: dict[str, dict[str, float]] = {}
    for name, embed in embedders.items():
        gallery = np.stack([vectors[0] for vectors in embedded[name][: len(clips)]])
        shares[name] = {kind: evaluate.found_again(embed(windows), gallery) for kind, windows in disturbed.items()}
        if len(neighbours) > 1:
            shifted = [clips[i].frames(spec)[shift : shift + spec.window_frames] for i in neighbours]
            later = np.full((len(shifted), spec.window_frames, spec.n_mels), spec.floor, np.float32)
            for row, frames in zip(later, shifted, strict=True):
                row[: len(frames)] = frames
            shares[name]["later"] = evaluate.found_again(embed(later), gallery[neighbours])
        several = [vectors for vectors in embedded[name][: len(clips)] if len(vectors) > 1]
        if len(several) > 1:
            rest = np.stack([vectors[:-1].mean(axis=0) for vectors in several])
            shares[name]["cut"] = evaluate.found_again(np.stack([vectors[-1] for vectors in several]), rest)
    return shares


@dataclass(frozen=True)
class Judged:
    """Results of `evaluation`, and the sample that they are based on.

    Attributes
    ----------
    found : dict
        Counts of the sample: ``recordings``, ``windows``, ``held_out_recordings``. ``mse``: errors of the model and of
        as many principal components, at unit variance, on held-out recordings; ``mse_behind``: by how much the first
        exceeds the second, with its interval. ``near_copies``: ``recordings`` with a near copy in the sample, and
        held-out recordings ``left_out`` because the model was trained on a near copy. Numbers of ``labelled``
        recordings, of ``labels``, and of labelled recordings that were ``trained_on``; ``probes`` by embedding and
        measure (None without labels); ``folds`` in words; points ``ahead`` of the best baseline; ``ahead_of``: the same
        clip by clip, with the baseline's name and the interval. ``consistency`` by embedding. ``latent``: ``fidelity``
        and ``kl_per_dim``.
    clips : list of Clip
        The sample.
    embeddings : ndarray of float32, shape (clips, size)
        Clip embeddings.
    held_out : list of int
        Indices of the clips that were not trained on.
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
    model : model.saved.artifact.Model
    folds : mapping of str to str or None
        uri → fold, for a data set with folds of its own; None to make folds that no group straddles.

    Raises
    ------
    InputError
        If the lake holds too little to judge by.
    """
    dataset = ledger.open_ledger(lake, model.spec.spec_id)
    if dataset is None:
        raise InputError(
            f"the lake {lake.root} has no features of spec {model.spec.spec_id}; run: {lake.command('extract AUDIO')}"
        )
    # Assign the splits of all recordings, as the training does: in a small corpus a recording may be moved to a split
    # that would be empty.
    _, groups = ledger.training_input(dataset)
    split = splits.assign(groups)
    with stage("reading the sample"):
        clips = sample(lake, model.spec, dataset, groups)
    places = [i for i, is_held in enumerate(held_out_of(clips, groups, model)) if is_held]
    near = near_copies(clips, model)
    clips, left_out = apart(clips, near, places)
    places = [i for i in places if i not in left_out]
    training = [clip for clip in clips if split[clip.recording_id] == splits.TRAIN]
    held_out = [clips[i] for i in places]
    if len(held_out) < 2:
        raise InputError(
            f"of the sample of {len(clips)} recordings {len(held_out)} were held out of training: too few to judge by"
        )
    if folds is not None:
        folds_of(clips, folds)  # reports unusable folds before the work, not after it
    encoder, decoder = model.encoder(threads=0), model.decoder(threads=0)
    with stage("principal components"):
        components = _Components(model, training, int(model.settings["latent_dim"]))
    embedders: dict[str, Embed] = {
        "embedding": lambda windows: encoder.encode(windows).embedding,
        "latent": lambda windows: encoder.encode(windows).mean,
        "log-mel": lambda windows: windows.mean(axis=1),
        "PCA": components.embed,
        "statistics": _statistics(model),
        "untrained": _untrained(model),
    }
    embedded = {
        name: _embedded(clips, model.spec, embed, name=f"encoding: {name}") for name, embed in embedders.items()
    }
    pooled_clips = {
        name: np.stack([pooled(vectors, _pooling(name, model)) for vectors in per_clip])
        for name, per_clip in embedded.items()
    }
    plain = {"log-mel, 3 statistics": evaluate.log_mel_statistics, "MFCC": evaluate.mfcc_statistics}
    for name, of_frames in plain.items():
        pooled_clips[name] = np.stack([of_frames(clip.frames(model.spec)) for clip in clips])
    means = np.concatenate([embedded["latent"][i] for i in places])
    rebuilt = {
        "model": lambda windows: decoder.decode(encoder.encode(windows).mean),
        "PCA": components.rebuilt,
    }
    errors = {name: _errors(held_out, model, rebuild, name=f"rebuilding: {name}") for name, rebuild in rebuilt.items()}
    with stage("disturbing windows"):
        held_out_vectors = {name: [per_clip[i] for i in places] for name, per_clip in embedded.items()}
        consistency = _consistency(held_out, model.spec, embedders, held_out_vectors)
    results: dict[str, Any] = {
        "recordings": len(clips),
        "windows": sum(len(clip.values) for clip in clips),
        "held_out_recordings": len(held_out),
        "near_copies": {"recordings": len({i for pair in near for i in pair}), "left_out": len(left_out)},
        "mse": {name: _mean_error(per_clip) for name, per_clip in errors.items()},
        "mse_behind": asdict(_behind(errors["model"], errors["PCA"], [clip.group for clip in held_out])),
        "consistency": consistency,
        "latent": {"fidelity": evaluate.fidelity(means).tolist(), "kl_per_dim": model.metrics["kl_per_dim"]},
    }
    trained = np.isin(splits.digests(clip.recording_id for clip in clips), model.trained())
    results |= _probes(clips, pooled_clips, embedded["embedding"], folds, trained)
    return Judged(results, clips, pooled_clips["embedding"], places)


def folds_of(
    clips: list[Clip], folds: Mapping[str, str] | None
) -> tuple[list[int], list[str], list[str], npt.NDArray[np.int64], str]:
    """The clips that a probe can use: their indices, labels, groups and folds, and the folds in words.

    Raises
    ------
    InputError
        If there are too few labels, groups or folds.
    """
    # If several files hold a recording, its fold is that of the first of them that the folds name.
    given_folds = [[folds[uri] for uri in (clip.uri, *clip.copies) if uri in folds] for clip in clips] if folds else []
    labelled = [i for i, clip in enumerate(clips) if clip.label is not None and (folds is None or given_folds[i])]
    labels, groups = [str(clips[i].label) for i in labelled], [clips[i].group for i in labelled]
    if folds is None:
        fold = evaluate.fold_of(labels, groups)
        return labelled, labels, groups, fold, f"{len(set(fold))} folds, no group in two of them"
    names, fold = np.unique([given_folds[i][0] for i in labelled], return_inverse=True)
    if len(names) < 2 or len(set(labels)) < 2:
        raise InputError(
            f"the file of folds names {len(labelled)} recordings of the sample, with {len(names)} folds and "
            f"{len(set(labels))} labels: a probe needs two of each"
        )
    ambiguous = sum(len(set(given_folds[i])) > 1 for i in labelled)
    note = f" (files of {ambiguous} recordings are in several: the first by name counts)" if ambiguous else ""
    return labelled, labels, groups, fold, f"the {len(names)} folds that the file gives{note}"


def _pooling(name: str, model: Model) -> Pooling:
    """The model's own pooling for its own embeddings; for the others the one that serves most of them."""
    return model.pooling if name in ("embedding", "statistics", "untrained") else "mean and deviation"


def _probes(
    clips: list[Clip],
    pooled_clips: Mapping[str, Array],
    windows: Sequence[Array],
    folds: Mapping[str, str] | None,
    trained: npt.NDArray[np.bool_],
) -> dict[str, Any]:
    """Probes of all embeddings; those of the model's embedding include a ranking by windows, as search does it."""
    known_labels = [clip.label for clip in clips if clip.label is not None]
    results: dict[str, Any] = {"labelled": len(known_labels), "labels": len(set(known_labels))}
    try:
        labelled, labels, groups, fold, results["folds"] = folds_of(clips, folds)
        results |= {"labelled": len(labelled), "labels": len(set(labels)), "trained_on": int(trained[labelled].sum())}
        hits = {}
        with stage("probes") as report:
            for number, (name, x) in enumerate(pooled_clips.items()):
                report("probes", number, len(pooled_clips), name)
                distances = evaluate.run_distances([windows[i] for i in labelled]) if name == "embedding" else None
                hits[name] = evaluate.hits(x[labelled], labels, fold=fold, distances=distances)
    except InputError as error:
        if folds is not None:
            raise
        return results | {"probes": None, "ahead": None, "no_probes": str(error)}
    probes = {
        name: {key: evaluate.interval(values, groups) for key, values in measures.items()}
        for name, measures in hits.items()
    }
    return results | {
        "probes": {name: {key: asdict(score) for key, score in measures.items()} for name, measures in probes.items()},
        "ahead": evaluate.beaten(probes),
        "ahead_of": _ahead_of(hits, probes, groups),
    }


def _ahead_of(
    hits: Mapping[str, Mapping[str, Any]], probes: Mapping[str, Mapping[str, evaluate.Score]], groups: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """By how much the embedding is ahead of the best baseline in each measure, compared clip by clip."""
    ahead = {}
    for measure in evaluate.MEASURES:
        best = max(evaluate.baselines(probes), key=lambda name: probes[name][measure].value)
        score = evaluate.interval(hits["embedding"][measure] - hits[best][measure], groups)
        ahead[measure] = {"baseline": best, **asdict(score)}
    return ahead
