"""What embeddings are worth: probes with labels, by folds that no group straddles; consistency and health without.

All of it works on arrays and on embedders, so that an embedding and its baselines are judged by the very same code.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import FeatureSpec

# Of the probes: regularisation of the linear one, neighbours of the other, folds.
LINEAR_C, NEIGHBOURS, FOLDS = 0.1, 5, 5
# Largest gradient at which the linear probe is done: at a tenth of it takes five times as long, and hits as often.
LINEAR_TOLERANCE = 1e-3
# Mel-frequency cepstral coefficients of `mfcc_statistics`.
MFCCS = 20
# Resamplings for an interval.
RESAMPLES = 1000
# A latent dimension counts as active above this mean KL, in nats (Burda et al. 2016 use a like threshold).
ACTIVE_KL = 0.01
# What is measured, in words.
MEASURES = {"linear": "linear probe", "knn": "5 nearest", "map": "retrieval mAP", "search": "first hit of search"}
# What the promotion gate compares, in words.
GATE_WORDS = {"error": "mean square error", "negative_elbo": "negative ELBO, nats a window", **MEASURES}
# Windows, at most, of a run that search compares with a query.
MOST_RUN = 32
# Embeddings that are shown beside the model's, and are parts of it: no baseline that somebody would use instead.
PARTS = ("latent", "statistics", "untrained")
DISTURBANCES = {"level": "at −6 dB", "noise": "noise at 20 dB", "later": "a quarter later", "cut": "a clip by its last"}
# How recordings are laid out on a plane, and how many of them at least.
PLANE_METHOD, PLANE_CLIPS = "t-SNE", 8

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Score:
    """A mean over clips, and the ends of its 95 % interval by the bootstrap over groups.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; groups and not clips, since clips of one
    group are alike.
    """

    value: float
    low: float
    high: float


def fold_of(labels: Sequence[str], groups: Sequence[str]) -> npt.NDArray[np.int64]:
    """A fold for each clip: labels spread evenly, no group in two of them.

    Parameters
    ----------
    labels, groups : sequence of str
        Of each clip.

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

    # More folds than any label has clips would leave all of them without some label.
    count = min(FOLDS, len(set(groups)), max(Counter(labels).values(), default=0))
    if count < 2 or len(set(labels)) < 2:
        raise InputError("a probe needs at least two labels, two clips with the same label, and two groups")
    found = np.zeros(len(labels), np.int64)
    with warnings.catch_warnings():
        # Of labels with fewer clips than there are folds: they are in those that they are in.
        warnings.simplefilter("ignore", UserWarning)
        for number, (_, test) in enumerate(StratifiedGroupKFold(count).split(np.zeros(len(labels)), labels, groups)):
            found[test] = number
    return found


def hits(
    clips: npt.NDArray[np.floating],
    labels: Sequence[str],
    *,
    fold: npt.NDArray[np.int64],
    distances: npt.NDArray[np.floating] | None = None,
) -> dict[str, npt.NDArray[np.float64]]:
    """How well labels can be read off clip embeddings, clip by clip.

    Parameters
    ----------
    clips : ndarray, shape (clips, size)
    labels : sequence of str
        Of each clip.
    fold : ndarray of int64, shape (clips,)
        Each fold is judged by what was learned from the others.
    distances : ndarray or None, shape (clips, clips)
        By which a search ranks; None for squared L2 of the clip embeddings as they are.

    Returns
    -------
    dict of str to ndarray of float64, shape (clips,)
        ``linear``: 1 where a logistic regression is right. ``knn``: 1 where the most frequent label among the nearest
        clips by cosine is. ``map``: average precision of retrieving clips of the same label from the other folds, with
        this one as the query; NaN where they lack its label. These on features standardised over the other folds:
        without, a few loud bands decide which log-mel statistics are near. ``search``: 1 where the nearest clip of the
        other folds by `distances` has the same label.

    Raises
    ------
    InputError
        If no clip has another of its label in another fold.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler, normalize

    names, codes = np.unique(np.asarray(labels), return_inverse=True)
    found = {name: np.full(len(codes), np.nan) for name in MEASURES}

    def tried(number: int) -> None:
        test, train = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
        scaler = StandardScaler().fit(np.asarray(clips[train], np.float64))
        learned, asked = (scaler.transform(clips[part]).astype(np.float32) for part in (train, test))
        if len(set(codes[train])) > 1:
            model = LogisticRegression(C=LINEAR_C, tol=LINEAR_TOLERANCE, max_iter=2000).fit(learned, codes[train])
            found["linear"][test] = model.predict(asked) == codes[test]
        order = np.argsort(-(normalize(asked) @ normalize(learned).T), axis=1, kind="stable")
        for query, row in zip(test, codes[train][order], strict=True):
            near = row[:NEIGHBOURS]
            votes = np.bincount(near, minlength=len(names))
            # Of labels with as many votes the one of the nearest clip.
            found["knn"][query] = near[np.argmax(votes[near] == votes.max())] == codes[query]
            same = np.flatnonzero(row == codes[query])
            if len(same):
                found["map"][query] = np.mean(np.arange(1, len(same) + 1) / (same + 1))

    if distances is None:
        rows = np.asarray(clips, np.float64)
        squares = np.square(rows).sum(axis=1)
        distances = squares[:, None] + squares - 2 * rows @ rows.T
    nearest = np.where(fold[:, None] == fold, np.inf, distances).argmin(axis=1)
    found["search"] = (codes[nearest] == codes).astype(np.float64)

    # Most of the time goes into products of matrices, which leave the other threads alone.
    with ThreadPoolExecutor() as pool:
        list(pool.map(tried, np.unique(fold)))
    if np.isnan(found["map"]).all():
        raise InputError("no probe: every label occurs in one group only, so it cannot be both learned and tested")
    return found


def probe(
    clips: npt.NDArray[np.floating], labels: Sequence[str], *, groups: Sequence[str], fold: npt.NDArray[np.int64]
) -> dict[str, Score]:
    """Means of `hits` over clips, with their intervals: accuracy, accuracy, mean average precision.

    Parameters
    ----------
    clips, labels, fold
        As for `hits`.
    groups : sequence of str
        Of each clip.

    Raises
    ------
    InputError
        As `hits` does.
    """
    return {name: interval(values, groups) for name, values in hits(clips, labels, fold=fold).items()}


def interval(
    values: npt.NDArray[np.float64], groups: Sequence[str], *, weights: npt.NDArray[np.float64] | None = None
) -> Score:
    """Mean over clips and its 95 % interval by the bootstrap over groups; NaN does not count.

    Parameters
    ----------
    values : ndarray of float64, shape (clips,)
    groups : sequence of str
    weights : ndarray of float64, shape (clips,) or None
        What each clip counts for, where `values` are sums; by default each counts for one.
    """
    counted = ~np.isnan(values)
    _, group = np.unique(np.asarray(groups)[counted], return_inverse=True)
    sums = np.bincount(group, values[counted])
    sizes = np.bincount(group, None if weights is None else weights[counted])
    drawn = np.random.default_rng(0).integers(0, len(sums), (RESAMPLES, len(sums)))
    low, high = np.quantile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), (0.025, 0.975))
    return Score(float(sums.sum() / sizes.sum()), float(low), float(high))


def log_mel_statistics(frames: Array) -> Array:
    """The plainest clip embedding: mean, deviation, and deviation of the change from frame to frame, of each mel band.

    Parameters
    ----------
    frames : ndarray of float32, shape (frames, n_mels)
        All of a recording, nats.

    Returns
    -------
    ndarray of float32, shape (3 * n_mels,)
    """
    change = np.diff(frames, axis=0) if len(frames) > 1 else np.zeros_like(frames)
    return np.concatenate([frames.mean(axis=0), frames.std(axis=0), change.std(axis=0)])


def mfcc_statistics(frames: Array) -> Array:
    """What many begin with: mean, deviation, and deviation of the change from frame to frame, of 20 MFCCs.

    Davis and Mermelstein, Comparison of Parametric Representations for Monosyllabic Word Recognition (1980); here the
    first coefficients of the orthonormal cosine transform (DCT-II) of log-mel.

    Parameters
    ----------
    frames : ndarray of float32, shape (frames, n_mels)
        All of a recording, nats.

    Returns
    -------
    ndarray of float32, shape (60,), or fewer of fewer than 20 bands
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
    """Distances by which search ranks recordings, shape (clips, clips), a row a query.

    Squared L2 from the mean of a query's windows to the nearest mean of as many consecutive windows (`MOST_RUN` at
    most) of the other clip.

    Parameters
    ----------
    clips : sequence of ndarray of float32, shapes (windows, size)
    """
    counts = np.array([min(len(clip), MOST_RUN) for clip in clips])
    queries = np.stack([clip.mean(axis=0, dtype=np.float64) for clip in clips]).astype(np.float32)
    found = np.empty((len(clips), len(clips)), np.float32)
    for count in np.unique(counts):
        runs = [run_means(clip, int(count)) for clip in clips]
        means, starts = np.concatenate(runs), np.cumsum([0, *map(len, runs[:-1])])
        asked = queries[counts == count]
        apart = np.square(asked).sum(axis=1)[:, None] + np.square(means).sum(axis=1) - 2 * asked @ means.T
        found[counts == count] = np.minimum.reduceat(apart, starts, axis=1)
    return found


def fidelity(means: Array) -> Array:
    """Share of the variance of posterior means that the first 1, 2, … principal directions hold, shape (latent_dim,).

    Caillon and Esling, RAVE (2021), section 3.2.

    Parameters
    ----------
    means : ndarray of float32, shape (windows, latent_dim)
    """
    variances = np.linalg.eigvalsh(np.atleast_2d(np.cov(means, rowvar=False)))[::-1].clip(0)
    return (np.cumsum(variances) / max(float(variances.sum()), 1e-12)).astype(np.float32)


def active_dimensions(kl_per_dim: Sequence[float]) -> int:
    """Latent dimensions whose mean KL, nats, is above `ACTIVE_KL`."""
    return sum(float(kl) > ACTIVE_KL for kl in kl_per_dim)


def disturbed(windows: Array, spec: FeatureSpec) -> dict[str, Array]:
    """The same windows at another level, and with noise, as the sound would have given them.

    A level scales the mel power. White noise adds to it, on average, its own: of the mean power of the window, in every
    band, spread as the mean of two squared Gaussians is.

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
    """Share of queries whose nearest in the gallery, by cosine, is the one at the same place.

    Parameters
    ----------
    queries, gallery : ndarray of float32, shape (n, size)
    """
    from sklearn.preprocessing import normalize

    nearest = np.argmax(normalize(queries) @ normalize(gallery).T, axis=1)
    return float(np.mean(nearest == np.arange(len(queries))))


def nearest(clips: npt.NDArray[np.floating], query: int, *, count: int) -> npt.NDArray[np.int64]:
    """The clips nearest to one of them by the cosine of standardised embeddings, itself left out, nearest first.

    Parameters
    ----------
    clips : ndarray, shape (clips, size)
    query, count : int
    """
    from sklearn.preprocessing import StandardScaler, normalize

    unit = normalize(StandardScaler().fit_transform(np.asarray(clips, np.float64)))
    near = unit @ unit[query]
    near[query] = -np.inf
    return np.argsort(-near, kind="stable")[: min(count, len(clips) - 1)]


def on_a_plane(clips: npt.NDArray[np.floating]) -> npt.NDArray[np.floating] | None:
    """Clips on a plane, near where their standardised embeddings are: shape (clips, 2); None of fewer than a few.

    t-SNE from the first two principal directions: van der Maaten and Hinton, Visualizing Data using t-SNE (2008).
    """
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import StandardScaler

    if len(clips) < PLANE_CLIPS:
        return None
    perplexity = min(30.0, (len(clips) - 1) / 3)
    laid = TSNE(2, perplexity=perplexity, init="pca", random_state=0)
    return np.asarray(laid.fit_transform(StandardScaler().fit_transform(np.asarray(clips, np.float64))))


def baselines(names: Iterable[str]) -> list[str]:
    """Those that somebody would use instead of the model's embedding."""
    return [name for name in names if name not in ("embedding", *PARTS)]


def beaten(probes: Mapping[str, Mapping[str, Score]]) -> dict[str, float]:
    """Points by which the embedding is above the best of the baselines, a measure each."""
    return {
        measure: score.value - max(probes[name][measure].value for name in baselines(probes))
        for measure, score in probes["embedding"].items()
    }
