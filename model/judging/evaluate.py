"""Evaluation of embeddings: probes with labels in folds that never split a group, and tests that need no labels.

All functions work on arrays, so that an embedding and its baselines are evaluated by the same code.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import FeatureSpec

# Settings of the probes: regularisation of the linear probe, neighbours of the k-NN probe, folds.
LINEAR_C, NEIGHBOURS, FOLDS = 0.1, 5, 5
# Gradient below which the linear probe stops: a tenth of it takes five times as long for the same accuracy.
LINEAR_TOLERANCE = 1e-3
# Mel-frequency cepstral coefficients of `mfcc_statistics`.
MFCCS = 20
# Resamplings for an interval.
RESAMPLES = 1000
# A latent dimension counts as active above this mean KL, in nats (Burda et al. 2016 use a similar threshold).
ACTIVE_KL = 0.01
# Names of the measures for readers.
MEASURES = {"linear": "linear probe", "knn": "5 nearest", "map": "retrieval mAP", "search": "first hit of search"}
# Names of the figures that the promotion gate compares.
GATE_WORDS = {"error": "mean square error", "negative_elbo": "negative ELBO, nats a window", **MEASURES}
# Largest number of windows in a run that search compares with a query.
MOST_RUN = 32
# Embeddings that are reported beside the model's own. They are parts of the model, not baselines that anyone would use
# instead.
PARTS = ("latent", "statistics", "untrained")
DISTURBANCES = {"level": "at −6 dB", "noise": "noise at 20 dB", "later": "a quarter later", "cut": "a clip by its last"}
# The method that maps recordings onto a plane, and the least number of recordings for it.
PLANE_METHOD, PLANE_CLIPS = "t-SNE", 8

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """A mean over clips, and the ends of its 95 % interval from the bootstrap over groups.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. Groups are resampled, not clips, since
    the clips of one group are similar.
    """

    value: float
    low: float
    high: float


def fold_of(labels: Sequence[str], groups: Sequence[str]) -> npt.NDArray[np.int64]:
    """A fold for each clip: labels are spread evenly over the folds, and no group is in two folds.

    Parameters
    ----------
    labels, groups : sequence of str
        Label and group of each clip.

    Returns
    -------
    ndarray of int64, shape (clips,)

    Raises
    ------
    InputError
        If there are fewer than two labels or groups, or no label has two clips.
    """
    import warnings

    from sklearn.model_selection import StratifiedGroupKFold

    # With more folds than clips of the most frequent label, every fold would lack some label.
    count = min(FOLDS, len(set(groups)), max(Counter(labels).values(), default=0))
    if count < 2 or len(set(labels)) < 2:
        raise InputError("a probe needs at least two labels, two clips with the same label, and two groups")
    folds = np.zeros(len(labels), np.int64)
    with warnings.catch_warnings():
        # The warnings concern labels with fewer clips than folds, which is accepted here.
        warnings.simplefilter("ignore", UserWarning)
        for number, (_, test) in enumerate(StratifiedGroupKFold(count).split(np.zeros(len(labels)), labels, groups)):
            folds[test] = number
    return folds


def hits(
    clips: npt.NDArray[np.floating],
    labels: Sequence[str],
    *,
    fold: npt.NDArray[np.int64],
    distances: npt.NDArray[np.floating] | None = None,
) -> dict[str, npt.NDArray[np.float64]]:
    """How well labels can be predicted from clip embeddings, clip by clip.

    Parameters
    ----------
    clips : ndarray, shape (clips, size)
    labels : sequence of str
        Label of each clip.
    fold : ndarray of int64, shape (clips,)
        Each fold is tested with models that were fitted on the other folds.
    distances : ndarray or None, shape (clips, clips)
        Distances by which a search ranks; None for the squared L2 distance of the unchanged clip embeddings.

    Returns
    -------
    dict of str to ndarray of float64, shape (clips,)
        ``linear``: 1 where a logistic regression is right. ``knn``: 1 where the most frequent label among the nearest
        clips by cosine is right. ``map``: average precision of retrieving clips of the same label from the other folds,
        with this clip as the query; NaN where the other folds lack its label. These three use features standardised
        over the other folds: otherwise a few loud bands would decide which log-mel statistics are near. ``search``: 1
        where the nearest clip of the other folds by `distances` has the same label.

    Raises
    ------
    InputError
        If no clip has another of its label in another fold.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler, normalize

    names, codes = np.unique(np.asarray(labels), return_inverse=True)
    measured = {name: np.full(len(codes), np.nan) for name in MEASURES}

    def tried(number: int) -> None:
        test, train = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        scaler = StandardScaler().fit(np.asarray(clips[train], np.float64))
        fitted, queries = (scaler.transform(clips[part]).astype(np.float32) for part in (train, test))
        if len(set(codes[train])) > 1:
            model = LogisticRegression(C=LINEAR_C, tol=LINEAR_TOLERANCE, max_iter=2000).fit(fitted, codes[train])
            measured["linear"][test] = model.predict(queries) == codes[test]
        order = np.argsort(-(normalize(queries) @ normalize(fitted).T), axis=1, kind="stable")
        for query, row in zip(test, codes[train][order], strict=True):
            nearest_codes = row[:NEIGHBOURS]
            votes = np.bincount(nearest_codes, minlength=len(names))
            # If labels have equally many votes, the label of the nearest clip wins.
            measured["knn"][query] = nearest_codes[np.argmax(votes[nearest_codes] == votes.max())] == codes[query]
            same = np.flatnonzero(row == codes[query])
            if len(same):
                measured["map"][query] = np.mean(np.arange(1, len(same) + 1) / (same + 1))

    if distances is None:
        rows = np.asarray(clips, np.float64)
        squares = np.square(rows).sum(axis=1)
        distances = squares[:, None] + squares - 2 * rows @ rows.T
    nearest = np.where(fold[:, None] == fold, np.inf, distances).argmin(axis=1)
    measured["search"] = (codes[nearest] == codes).astype(np.float64)

    # Most of the time goes into matrix products, which release the GIL, so threads run in parallel.
    with ThreadPoolExecutor() as pool:
        list(pool.map(tried, np.unique(fold)))
    if np.isnan(measured["map"]).all():
        raise InputError("no probe: every label occurs in one group only, so it cannot be both learned and tested")
    return measured


def probe(
    clips: npt.NDArray[np.floating], labels: Sequence[str], *, groups: Sequence[str], fold: npt.NDArray[np.int64]
) -> dict[str, Score]:
    """Means of `hits` over clips, with their intervals: accuracies, and mean average precision for ``map``.

    Parameters
    ----------
    clips, labels, fold
        As for `hits`.
    groups : sequence of str
        Group of each clip.

    Raises
    ------
    InputError
        As in `hits`.
    """
    return {name: interval(values, groups) for name, values in hits(clips, labels, fold=fold).items()}


def interval(
    values: npt.NDArray[np.float64], groups: Sequence[str], *, weights: npt.NDArray[np.float64] | None = None
) -> Score:
    """Mean over clips and its 95 % interval from the bootstrap over groups; NaN values are ignored.

    Parameters
    ----------
    values : ndarray of float64, shape (clips,)
    groups : sequence of str
    weights : ndarray of float64, shape (clips,) or None
        Weight of each clip if `values` are sums; 1 by default.
    """
    counted = ~np.isnan(values)
    _, group = np.unique(np.asarray(groups)[counted], return_inverse=True)
    sums = np.bincount(group, values[counted])
    sizes = np.bincount(group, None if weights is None else weights[counted])
    drawn = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), (0.025, 0.975))
    return Score(float(sums.sum() / sizes.sum()), float(low), float(high))


def log_mel_statistics(frames: Array) -> Array:
    """The simplest clip embedding: mean, deviation, and deviation of the change between frames, of each mel band.

    Parameters
    ----------
    frames : ndarray of float32, shape (frames, n_mels)
        All frames of a recording, nats.

    Returns
    -------
    ndarray of float32, shape (3 * n_mels,)
    """
    change = np.diff(frames, axis=0) if len(frames) > 1 else np.zeros_like(frames)
    return np.concatenate([frames.mean(axis=0), frames.std(axis=0), change.std(axis=0)])


def mfcc_statistics(frames: Array) -> Array:
    """A common first choice: mean, deviation, and deviation of the change between frames, of 20 MFCCs.

    Davis and Mermelstein, Comparison of Parametric Representations for Monosyllabic Word Recognition (1980). Here
    MFCCs are the first coefficients of the orthonormal cosine transform (DCT-II) of log-mel.

    Parameters
    ----------
    frames : ndarray of float32, shape (frames, n_mels)
        All frames of a recording, nats.

    Returns
    -------
    ndarray of float32, shape (60,), or fewer numbers if there are fewer than 20 bands
    """
    from scipy.fft import dct

    return log_mel_statistics(np.asarray(dct(frames, norm="ortho")[:, :MFCCS], np.float32))


def run_means(windows: npt.NDArray[np.floating], count: int) -> Array:
    """Means of every `count` consecutive windows of a recording, or of all of them if there are fewer.

    Parameters
    ----------
    windows : ndarray, shape (windows, size)
        Embeddings, in order.
    count : int

    Returns
    -------
    ndarray of float32, shape (max(1, windows - count + 1), size)
    """
    count = min(count, len(windows))
    sums = np.concatenate([np.zeros((1, windows.shape[1])), np.cumsum(windows, axis=0, dtype=np.float64)])
    return np.asarray((sums[count:] - sums[:-count]) / count, np.float32)


def run_distances(clips: Sequence[Array]) -> Array:
    """Distances by which search ranks recordings, shape (clips, clips), one row per query.

    The squared L2 distance from the mean of a query's windows to the nearest mean of as many consecutive windows
    (`MOST_RUN` at most) of the other clip.

    Parameters
    ----------
    clips : sequence of ndarray of float32, shapes (windows, size)
    """
    counts = np.array([min(len(clip), MOST_RUN) for clip in clips])
    queries = np.stack([clip.mean(axis=0, dtype=np.float64) for clip in clips]).astype(np.float32)
    distances = np.empty((len(clips), len(clips)), np.float32)
    for count in np.unique(counts):
        runs = [run_means(clip, int(count)) for clip in clips]
        means, starts = np.concatenate(runs), np.cumsum([0, *map(len, runs[:-1])])
        group = queries[counts == count]
        squares = np.square(group).sum(axis=1)[:, None] + np.square(means).sum(axis=1) - 2 * group @ means.T
        distances[counts == count] = np.minimum.reduceat(squares, starts, axis=1)
    return distances


def fidelity(means: Array) -> Array:
    """Share of the variance of posterior means in the first 1, 2, … principal directions, shape (latent_dim,).

    Caillon and Esling, RAVE (2021), section 3.2.

    Parameters
    ----------
    means : ndarray of float32, shape (windows, latent_dim)
    """
    variances = np.linalg.eigvalsh(np.atleast_2d(np.cov(means, rowvar=False)))[::-1].clip(0)
    return (np.cumsum(variances) / max(float(variances.sum()), 1e-12)).astype(np.float32)


def active_dimensions(kl_per_dim: Sequence[float]) -> int:
    """Number of latent dimensions whose mean KL, nats, is above `ACTIVE_KL`."""
    return sum(float(kl) > ACTIVE_KL for kl in kl_per_dim)


def disturbed(windows: Array, spec: FeatureSpec) -> dict[str, Array]:
    """The same windows at another level, and with noise, as if the sound itself had been changed.

    A change of level scales the mel power. White noise adds its own power to every band: on average 20 dB below the
    mean power of the window, distributed like the mean of two squared Gaussians.

    Parameters
    ----------
    windows : ndarray of float32, shape (n, window_frames, n_mels)
        Nats.
    """
    power = np.maximum(np.exp(windows) - np.float32(spec.log_offset), 0)
    noise = np.random.default_rng(0).chisquare(2, windows.shape).astype(np.float32) / 2
    noise *= power.mean(axis=(1, 2), keepdims=True) / 100
    offset = np.float32(spec.log_offset)
    return {"level": np.log(power / 4 + offset), "noise": np.log(power + noise + offset)}


def found_again(queries: Array, gallery: Array) -> float:
    """Share of queries whose nearest gallery vector by cosine is the one in the same row.

    Parameters
    ----------
    queries, gallery : ndarray of float32, shape (n, size)
    """
    from sklearn.preprocessing import normalize

    nearest = np.argmax(normalize(queries) @ normalize(gallery).T, axis=1)
    return float(np.mean(nearest == np.arange(len(queries))))


def nearest(clips: npt.NDArray[np.floating], query: int, *, count: int) -> npt.NDArray[np.int64]:
    """The clips nearest to a query clip by the cosine of standardised embeddings, without the query, nearest first.

    Parameters
    ----------
    clips : ndarray, shape (clips, size)
    query, count : int
    """
    from sklearn.preprocessing import StandardScaler, normalize

    unit = normalize(StandardScaler().fit_transform(np.asarray(clips, np.float64)))
    cosines = unit @ unit[query]
    cosines[query] = -np.inf
    return np.argsort(-cosines, kind="stable")[: min(count, len(clips) - 1)]


def on_a_plane(clips: npt.NDArray[np.floating]) -> npt.NDArray[np.floating] | None:
    """Clips on a plane by similarity of standardised embeddings, shape (clips, 2); None for fewer than `PLANE_CLIPS`.

    t-SNE, initialised with the first two principal directions: van der Maaten and Hinton, Visualizing Data using t-SNE
    (2008).
    """
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    if len(clips) < PLANE_CLIPS:
        return None
    perplexity = min(30.0, (len(clips) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=0)
    return np.asarray(tsne.fit_transform(StandardScaler().fit_transform(np.asarray(clips, np.float64))))


def baselines(names: Iterable[str]) -> list[str]:
    """The names of embeddings that someone would use instead of the model's."""
    return [name for name in names if name not in ("embedding", *PARTS)]


def beaten(probes: Mapping[str, Mapping[str, Score]]) -> dict[str, float]:
    """For each measure, the difference between the embedding and the best baseline."""
    return {
        measure: score.value - max(probes[name][measure].value for name in baselines(probes))
        for measure, score in probes["embedding"].items()
    }
