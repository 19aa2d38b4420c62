"""Shards → tf.data batches of raw log-mel, by split; and the training split's statistics."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import ops

from soundlake.model.errors import InputError
from soundlake.model.features import splits
from soundlake.model.features.log_mel import dequantise
from soundlake.model.network import augment, changes, texture, vae
from soundlake.model.reports import Report, unheard
from soundlake.model.training.places import Places

# Size of the shuffle buffer in windows: 128 MB at 128 x 128.
SHUFFLE_WINDOWS = 4096
# Keys of a training batch.
FEATURES, KEEP = "features", "keep"
# Windows of a shard per random draw, and per batch of statistics.
DRAWN_WINDOWS = 64
# Largest number of windows that the statistics are computed from.
STATISTICS_WINDOWS = 20_000
# Least deviation of a mel band: in nats, and as a share of the median band's deviation. In a band that is almost always
# silent, such as one above the range of a telephone, faint sound would otherwise amount to hundreds of deviations.
MIN_STD, MIN_STD_SHARE = 1e-3, 0.2
# Largest number of windows for principal components: 268 MB at 128 x 128; and the least residual variance.
COMPONENT_WINDOWS, MIN_REST = 4096, 1e-6
# Largest number of copies of a window, at different pitches, for the components if there are few windows.
MOST_COPIES = 6


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of each mel band over the training split.

    Attributes
    ----------
    mean, std : ndarray of float32, shape (n_mels,)
        Nats. A band that hardly varies gets the least deviation, from `MIN_STD` and `MIN_STD_SHARE`.
    """

    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Statistics:
    """Results of one pass over the shards.

    Attributes
    ----------
    normalisation : Normalisation
        From the training split only.
    windows : dict of str to int
        Number of windows in each split.
    """

    normalisation: Normalisation
    windows: dict[str, int]


def statistics(places: Places, *, report: Report = unheard) -> Statistics:
    """Count the windows of each split, and compute mean and deviation of the training split's frames.

    Padding is left out. If there are more than `STATISTICS_WINDOWS` training windows, only every n-th one is read.

    Parameters
    ----------
    places : Places
    report : Report
        Receives how many windows are done.

    Raises
    ------
    InputError
        If no window belongs to the training split.
    """
    spec = places.spec
    counts = {split: len(places.of_split(split)) for split in (splits.TRAIN, splits.VALIDATION, splits.TEST)}
    # The estimate also counts silent windows and those of other recordings: a rough number is enough.
    total_bytes = sum(os.stat(shard).st_size for shard in places.shards)
    every = max(1, total_bytes // (spec.window_frames * spec.n_mels * 2) // STATISTICS_WINDOWS)
    frames = 0
    total = np.zeros(spec.n_mels)
    squares = np.zeros(spec.n_mels)
    chosen = places.of_split(splits.TRAIN)[every - 1 :: every]
    for done, number in enumerate(chosen):
        report("mean and deviation of the mel bands", done, len(chosen), f"{done} of {len(chosen)} windows")
        (quantised,) = places.read(number[None])
        values = dequantise(quantised[: places.windows["valid"][number]], spec).astype(np.float64)
        frames += len(values)
        total += values.sum(axis=0)
        squares += np.square(values).sum(axis=0)
    if frames == 0:
        raise InputError("nothing to train on: no recording in the ledger is done and not silent")
    mean = total / frames
    std = np.sqrt(np.maximum(squares / frames - mean**2, 0))
    std = np.maximum(std, max(MIN_STD, MIN_STD_SHARE * float(np.median(std))))
    return Statistics(Normalisation(mean.astype(np.float32), std.astype(np.float32)), counts)


def components(
    places: Places,
    statistics: Statistics,
    *,
    count: int,
    likeness: int = 0,
    pitch: int = 0,
    seed: int = 0,
    report: Report = unheard,
) -> vae.Components:
    """Principal components of the training split's normalised windows, by randomised SVD (Halko et al. 2011).

    Parameters
    ----------
    places : Places
    statistics : Statistics
        Statistics of the same places.
    count : int
        Number of directions; the result has fewer if there are too few windows.
    likeness : int
        Size of the similarity vector that `vae.Components.likeness` maps to; 0 for none.
    pitch : int
        If there are few windows, copies of each are added, moved by up to this many mel bands. Otherwise the components
        of a few hundred recordings would fit only these recordings.
    seed : int
        Seed of the pitch changes, and of the changes for `texture.projection`.
    report : Report
        Receives the progress.
    """
    from sklearn.decomposition import PCA

    spec, normalisation = places.spec, statistics.normalisation
    training = places.of_split(splits.TRAIN)
    chosen = training[:: -(-len(training) // COMPONENT_WINDOWS)]
    copies = min(MOST_COPIES, COMPONENT_WINDOWS // len(chosen)) if pitch else 1
    rows = np.empty((len(chosen) * copies, spec.window_frames * spec.n_mels), np.float32)
    drawn = np.random.default_rng(seed)
    for number, window in enumerate(chosen):
        report("windows for the principal components", number, len(chosen), f"{number} of {len(chosen)} windows")
        values = np.repeat(dequantise(places.read(window[None]), spec), copies, axis=0)
        if copies > 1:
            bands = drawn.integers(-pitch, pitch + 1, copies, dtype=np.int32)
            bands[0] = 0
            values = ops.convert_to_numpy(augment.transposed(values, bands))
        values = (values - normalisation.mean) / normalisation.std
        rows[number * copies : (number + 1) * copies] = values.reshape(copies, -1)
    report("principal components")
    pca = PCA(min(count, max(1, len(rows) - 1)), svd_solver="randomized", random_state=0).fit(rows)
    # The residual is computed here, since scikit-learn averages it over the directions that it did not compute.
    residual = 0.0
    found_statistics, changed_statistics = [], []
    for first in range(0, len(rows), DRAWN_WINDOWS):
        report("statistics for the similarity map", first, len(rows), f"{first} of {len(rows)} windows")
        part = rows[first : first + DRAWN_WINDOWS]
        residual += float(np.square(part - pca.inverse_transform(pca.transform(part))).sum(dtype=np.float64))
        if likeness:
            windows = part.reshape(-1, spec.window_frames, spec.n_mels)
            nats = windows * normalisation.std + normalisation.mean
            found_statistics.append(texture.statistics_of(windows, nats))
            altered = changes.changed(nats, spec, drawn)
            windows = changes.speckled((altered - normalisation.mean) / normalisation.std, drawn)
            changed_statistics.append(texture.statistics_of(windows, windows * normalisation.std + normalisation.mean))
    residual /= rows.size
    report("similarity map")
    return vae.Components(
        pca.mean_.astype(np.float32),
        pca.components_.astype(np.float32),
        pca.explained_variance_.astype(np.float32),
        max(residual, MIN_REST),
        texture.projection(_joined(found_statistics), _joined(changed_statistics), likeness) if likeness else None,
        (normalisation.std, normalisation.mean),
    )


def _joined(batches: Sequence[Sequence[npt.NDArray[np.float32]]]) -> list[npt.NDArray[np.float32]]:
    return [np.concatenate(part) for part in zip(*batches, strict=True)]


def _drawn(tables: dict[str, Any], step: int, shard: Any, *, key: Any = None, paired: bool = False) -> Any:
    """Numbers of a shard's training windows, int64, and by how many frames the start of each is delayed, int32.

    With a `key`, each window begins at a random frame between its own first frame and that of the next window, if that
    window follows in the shard. If `paired`, each window comes with a random window of the same recording from the same
    chunk, with a start of its own: both results then have shape (2,). A recording with a single window is paired with
    itself.
    """
    starts = tables["starts"]

    def drawn(chunk: Any) -> Any:
        begin = starts[shard] + chunk * DRAWN_WINDOWS
        numbers = tf.range(begin, tf.minimum(begin + DRAWN_WINDOWS, starts[shard + 1]))
        chosen, frames = numbers, tf.zeros_like(numbers, tf.int32)
        if key is not None:
            local_key = tf.random.experimental.stateless_fold_in(key, chunk)
            size = tf.shape(numbers)
            recording, place = tf.gather(tables["recording"], numbers), tf.gather(tables["window"], numbers)
            follows = (recording[1:] == recording[:-1]) & (place[1:] == place[:-1] + 1)
            follows = tf.cast(tf.concat([follows, [False]], axis=0), tf.int32)

            def begun(which: Any, purpose: int) -> Any:
                drawn = tf.random.experimental.stateless_fold_in(local_key, purpose)
                later = tf.random.stateless_uniform(size, drawn, 0, step, tf.int32)
                return tf.gather(follows, which) * later

            frames = begun(tf.range(size[0]), 0)
            if paired:
                partners = _partners(recording, local_key)
                chosen = tf.stack([numbers, tf.gather(numbers, partners)], axis=1)
                frames = tf.stack([frames, begun(partners, 1)], axis=1)
        kept = tf.gather(tables["member"], numbers)
        return tf.boolean_mask(chosen, kept), tf.boolean_mask(frames, kept)

    chunks = -(-(starts[shard + 1] - starts[shard]) // DRAWN_WINDOWS)
    return tf.data.Dataset.range(chunks).map(drawn).unbatch()


def _partners(recording: Any, key: Any) -> Any:
    """For each record, a uniformly drawn index from the run of consecutive records of the same recording."""
    begins = tf.concat([[True], recording[1:] != recording[:-1]], axis=0)
    run = tf.cumsum(tf.cast(begins, tf.int32)) - 1
    first, count = tf.gather(tf.where(begins)[:, 0], run), tf.gather(tf.math.bincount(run), run)
    share = tf.random.stateless_uniform(tf.shape(recording), tf.random.experimental.stateless_fold_in(key, 2))
    return tf.cast(first, tf.int32) + tf.cast(share * tf.cast(count, tf.float32), tf.int32)


def _read(places: Places, numbers: Any, frames: Any) -> Any:
    """Windows by their numbers, as log-mel in nats, float32, as in `dequantise`: (…, window_frames, n_mels)."""
    spec = places.spec
    flat = [tf.reshape(numbers, (-1,)), tf.reshape(frames, (-1,))]
    values = tf.numpy_function(places.read, flat, tf.uint16, stateful=False)
    values = tf.reshape(values, (*numbers.shape, spec.window_frames, spec.n_mels))
    return tf.cast(values, tf.float32) * (spec.value_span / 65535) + spec.floor


def training_batches(
    places: Places,
    *,
    batch_size: int,
    seed: int,
    skip_batches: int = 0,
    shifted: bool = False,
    paired: bool = False,
    masks: npt.NDArray[np.bool_] | None = None,
    mixing: float = 0.0,
    part: tuple[int, int] = (0, 1),
) -> Any:
    """Endless full batches of the training split; a batch may contain windows of two epochs.

    The order depends only on seed, epoch and shards. So a resumed run skips to exactly the batch at which it stopped,
    and the parts of several hosts together are exactly the batch of a single host.

    Parameters
    ----------
    places : Places
    batch_size, seed, skip_batches : int
    shifted : bool
        Whether windows begin at any frame of a recording, different in each epoch, and not only every ``window_step``.
    paired : bool
        Whether each window comes with another one of its recording: half of the batch's windows are those of the epoch.
        Needs `shifted`.
    masks : ndarray of bool or None, shape (n, window_frames, n_mels)
        A bank of masks to pick from: `augment.mask_bank`.
    mixing : float
        The second window of each pair is mixed with a window of another pair, with a share from 0 to this:
        `augment.mixed`. Needs `paired`.
    part : tuple of int
        Index of the part of each batch, and the number of parts: only this part is read.

    Returns
    -------
    tf.data.Dataset
        For the part: dict of ``features``, float32, (size, window_frames, n_mels), or (size / 2, 2, window_frames,
        n_mels) in pairs, nats; with a bank of masks also ``keep``, bool, of the same shape.
    """
    if (paired and not shifted) or (mixing and not paired):
        raise ValueError("pairs are of windows that begin anywhere, and mixing is for pairs")
    # Created here, the tables are shared by the functions below; created there, each function would hold a copy.
    tables = {name: tf.constant(places.windows[name]) for name in ("recording", "window")}
    member = np.isin(np.arange(len(places.windows)), places.of_split(splits.TRAIN))
    tables |= {"starts": tf.constant(places.starts), "member": tf.constant(member)}
    spec = places.spec
    entry_windows = 2 if paired else 1
    size = batch_size // entry_windows
    first, end = (size * edge // part[1] for edge in (part[0], part[0] + 1))

    def epoch(number: Any) -> Any:
        key = tf.stack([tf.cast(seed, tf.int64), number])
        order = tf.random.experimental.stateless_shuffle(tf.range(len(places.shards)), seed=key)

        def windows(shard: Any) -> Any:
            shard_key = tf.random.experimental.stateless_fold_in(key, shard) if shifted else None
            return _drawn(tables, spec.window_step, shard, key=shard_key, paired=paired)

        windows_of_epoch = tf.data.Dataset.from_tensor_slices(order).interleave(
            windows, cycle_length=8, block_length=16
        )
        # Each epoch has its own seed.
        return windows_of_epoch.shuffle(
            SHUFFLE_WINDOWS // entry_windows, seed=number + seed * 1_000_003, reshuffle_each_iteration=False
        )

    batches = tf.data.Dataset.range(2**40).flat_map(epoch).batch(size, drop_remainder=True)

    def ready(number: Any, places_of_batch: tuple[Any, Any]) -> dict[str, Any]:
        numbers, frames = places_of_batch
        # Mixing uses the previous pair; for the first pair this is the last one.
        taken = tf.range(first - 1, end) % size if mixing else tf.range(first, end)
        windows = _read(places, tf.gather(numbers, taken), tf.gather(frames, taken))
        key = tf.stack([tf.cast(seed, tf.int64), number])
        if mixing:
            firsts, seconds = tf.unstack(windows, axis=1)
            drawn = tf.random.experimental.stateless_fold_in(key, 1)
            share = tf.random.stateless_uniform((size,), drawn, 0.0, mixing)[first:end]
            seconds = augment.mixed(seconds[1:], firsts[:-1], share, log_offset=spec.log_offset)
            windows = tf.stack([firsts[1:], seconds], axis=1)
        batch = {FEATURES: windows}
        if masks is not None:
            shape = (size, entry_windows) if paired else (size,)
            which = tf.random.stateless_uniform(shape, key, 0, len(masks), tf.int32)[first:end]
            batch[KEEP] = tf.gather(tf.constant(masks), which)
        return batch

    return batches.enumerate().skip(skip_batches).map(ready, num_parallel_calls=2).prefetch(4)


def evaluation_batches(places: Places, *, split: str, batch_size: int, part: tuple[int, int] = (0, 1)) -> Any:
    """Batches of every window of a split once, in order; the last batch is padded with windows of weight 0.

    Returns
    -------
    tf.data.Dataset
        For a `part` of each batch, as in `training_batches`: float32 (size, window_frames, n_mels) in nats, and float32
        (size,) weights of 1 or 0.
    """
    first, end = (batch_size * edge // part[1] for edge in (part[0], part[0] + 1))
    numbers = places.of_split(split)
    padded = np.pad(numbers, (0, -len(numbers) % batch_size), constant_values=-1)

    def fill(numbers: Any) -> tuple[Any, Any]:
        present = numbers[first:end] >= 0
        features = _read(places, tf.maximum(numbers[first:end], 0), tf.zeros(end - first, tf.int32))
        features = tf.where(present[:, None, None], features, places.spec.floor)
        return features, tf.cast(present, tf.float32)

    return tf.data.Dataset.from_tensor_slices(padded).batch(batch_size, drop_remainder=True).map(fill).prefetch(2)
