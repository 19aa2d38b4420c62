"""Shards → tf.data batches of raw log-mel, by split; and the training split's statistics."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import ops

from model import augment, splits, texture, vae
from model.errors import InputError
from model.features import FeatureSpec, dequantise
from model.paths import regular
from model.records import RECORDING_ID, VALUES, WINDOW, DamagedShardError, Record, decode, read_framed

# Windows that a shuffle holds: 128 MB at 128 x 128.
SHUFFLE_WINDOWS = 4096
# Names of what a training batch holds.
FEATURES, KEEP = "features", "keep"
# Windows that are parsed together.
PARSED_WINDOWS = 64
# Windows that the statistics are taken from, at most.
STATISTICS_WINDOWS = 20_000
# Least deviation of a mel band: in nats, and as a share of the median band's. Where hardly anything ever sounds, above
# the band of a telephone, say, the least sound from a band below would count for hundreds of deviations.
MIN_STD, MIN_STD_SHARE = 1e-3, 0.2
# Windows that principal components are learned from: 268 MB at 128 x 128; and the least that they may leave over.
COMPONENT_WINDOWS, MIN_REST = 4096, 1e-6
# Times that a window is taken into the components, at other pitches, where there are few.
MOST_COPIES = 6
# What the same sound may be changed by and still be like itself: mel bands up or down, decibels (a standard deviation),
# noise (at most, in standard deviations of the data).
SAME_PITCH, SAME_LEVEL, SAME_NOISE = 4, 3.0, 0.1


# Local paths of shards, and the recording_ids that are to be read from each: a shard may hold more.
Shards = Mapping[str, Collection[str]]


@dataclass(frozen=True)
class Normalisation:
    """Mean and standard deviation of the training split, a mel band each.

    Attributes
    ----------
    mean, std : ndarray of float32, shape (n_mels,)
        Nats. A band that hardly varies has the deviation that `MIN_STD_SHARE` says.
    """

    mean: npt.NDArray[np.float32]
    std: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Statistics:
    """What one pass over the shards tells.

    Attributes
    ----------
    normalisation : Normalisation
        From the training split only.
    windows : dict of str to int
        Windows of each split.
    """

    normalisation: Normalisation
    windows: dict[str, int]


def statistics(shards: Shards, spec: FeatureSpec, split_of: Mapping[str, str]) -> Statistics:
    """Count the windows of each split, and take mean and deviation of the training split's frames.

    Padding is left out. Beyond `STATISTICS_WINDOWS` training windows, every n-th is read, by its place.

    Parameters
    ----------
    shards : mapping of str to collection of str
        `Shards`.
    spec : FeatureSpec
    split_of : mapping of str to str
        recording_id → split; windows of other recordings do not count.

    Raises
    ------
    InputError
        If a shard is damaged, or no window belongs to the training split.
    """
    # The ledger knows the number of windows only a recording at a time; a first cheap guess is the shards' size.
    total_bytes = sum(tf.io.gfile.stat(shard).length for shard in shards)
    every = max(1, total_bytes // (spec.window_frames * spec.n_mels * 2) // STATISTICS_WINDOWS)
    counts = {split: 0 for split in (splits.TRAIN, splits.VALIDATION, splits.TEST)}
    frames = 0
    total = np.zeros(spec.n_mels)
    squares = np.zeros(spec.n_mels)
    for shard, recordings in sorted(shards.items()):
        wanted = set(recordings)
        try:
            with open(regular(shard), "rb") as file:
                for data in read_framed(file):
                    record = decode(data, window_frames=spec.window_frames, n_mels=spec.n_mels)
                    split = split_of.get(record.recording_id)
                    if split is None or record.recording_id not in wanted:
                        continue
                    counts[split] += 1
                    if split == splits.TRAIN and counts[split] % every == 0:
                        values = dequantise(record.values[: record.valid_frames], spec).astype(np.float64)
                        frames += len(values)
                        total += values.sum(axis=0)
                        squares += np.square(values).sum(axis=0)
        except (DamagedShardError, OSError) as error:
            raise InputError(
                f"the shard {shard} cannot be read: {error}; `soundlake extract AUDIO --repair` makes it again"
            ) from error
    if frames == 0:
        raise InputError("no window to train on: the ledger names no recording that is done and not silent")
    mean = total / frames
    std = np.sqrt(np.maximum(squares / frames - mean**2, 0))
    std = np.maximum(std, max(MIN_STD, MIN_STD_SHARE * float(np.median(std))))
    return Statistics(Normalisation(mean.astype(np.float32), std.astype(np.float32)), counts)


def components(
    shards: Shards,
    spec: FeatureSpec,
    split_of: Mapping[str, str],
    statistics: Statistics,
    *,
    count: int,
    likeness: int = 0,
    pitch: int = 0,
    seed: int = 0,
) -> vae.Components:
    """Principal components of the training split's normalised windows, by randomised SVD (Halko et al. 2011).

    Parameters
    ----------
    shards, spec, split_of
        As for `statistics`.
    statistics : Statistics
        Of the same shards.
    count : int
        Directions wanted; there are fewer if there are no more windows.
    likeness : int
        Numbers that `vae.Components.likeness` is to give; 0 for none.
    pitch : int
        Where windows are few, each is also taken moved by up to so many mel bands: of a few hundred recordings the
        components would know these alone.
    seed : int
        Of how far they are moved, and of what changes are tried for `texture.projection`.
    """
    from sklearn.decomposition import PCA

    total, normalisation = statistics.windows[splits.TRAIN], statistics.normalisation
    every = -(-total // COMPONENT_WINDOWS)
    chosen = -(-total // every)
    copies = min(MOST_COPIES, COMPONENT_WINDOWS // chosen) if pitch else 1
    rows = np.empty((chosen * copies, spec.window_frames * spec.n_mels), np.float32)
    drawn = np.random.default_rng(seed)
    for number, record in enumerate(_training_records(shards, spec, split_of)):
        if number % every == 0:
            values = np.repeat(dequantise(record.values, spec)[None], copies, axis=0)
            if copies > 1:
                bands = drawn.integers(-pitch, pitch + 1, copies, dtype=np.int32)
                bands[0] = 0
                values = ops.convert_to_numpy(augment.transposed(values, bands))
            values = (values - normalisation.mean) / normalisation.std
            rows[number // every * copies : (number // every + 1) * copies] = values.reshape(copies, -1)
    found = PCA(min(count, max(1, len(rows) - 1)), svd_solver="randomized", random_state=0).fit(rows)
    # scikit-learn spreads what is left over the directions that it did not look for.
    left = 0.0
    found_statistics, changed_statistics = [], []
    for first in range(0, len(rows), PARSED_WINDOWS):
        part = rows[first : first + PARSED_WINDOWS]
        left += float(np.square(part - found.inverse_transform(found.transform(part))).sum(dtype=np.float64))
        if likeness:
            windows = part.reshape(-1, spec.window_frames, spec.n_mels)
            found_statistics.append(texture.statistics_of(windows))
            changed_statistics.append(texture.statistics_of(_changed(windows, spec, normalisation, drawn)))
    left /= rows.size
    return vae.Components(
        found.mean_.astype(np.float32),
        found.components_.astype(np.float32),
        found.explained_variance_.astype(np.float32),
        max(left, MIN_REST),
        texture.projection(_joined(found_statistics), _joined(changed_statistics), likeness) if likeness else None,
    )


def _joined(batches: Sequence[Sequence[npt.NDArray[np.float32]]]) -> list[npt.NDArray[np.float32]]:
    return [np.concatenate(part) for part in zip(*batches, strict=True)]


def _changed(
    windows: npt.NDArray[np.float32], spec: FeatureSpec, normalisation: Normalisation, drawn: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Normalised windows (n, window_frames, n_mels) at another pitch and level, a little noisier: the same sounds."""
    size = len(windows)
    bands = drawn.integers(-SAME_PITCH, SAME_PITCH + 1, size, dtype=np.int32)
    decibels = (SAME_LEVEL * drawn.standard_normal(size)).astype(np.float32)
    moved = augment.transposed(windows * normalisation.std + normalisation.mean, bands)
    moved = ops.convert_to_numpy(augment.at_level(moved, decibels, log_offset=spec.log_offset))
    noise = drawn.standard_normal(windows.shape, np.float32) * drawn.uniform(0, SAME_NOISE, (size, 1, 1))
    return np.asarray((moved - normalisation.mean) / normalisation.std + noise, np.float32)


def _training_records(shards: Shards, spec: FeatureSpec, split_of: Mapping[str, str]) -> Iterator[Record]:
    """Records of the training split, shard by shard in the order of their names."""
    for shard, recordings in sorted(shards.items()):
        wanted = {name for name in recordings if split_of.get(name) == splits.TRAIN}
        with open(regular(shard), "rb") as file:
            for data in read_framed(file):
                record = decode(data, window_frames=spec.window_frames, n_mels=spec.n_mels)
                if record.recording_id in wanted:
                    yield record


def _membership(shards: Shards, split_of: Mapping[str, str], wanted: Sequence[str]) -> Any:
    """A table: shard and recording_id → whether the recording is to be read from it and is of a wanted split."""
    keys = [
        shard + recording_id
        for shard in sorted(shards)
        for recording_id in sorted(shards[shard])
        if split_of.get(recording_id) in wanted
    ]
    values = tf.ones(len(keys), tf.bool)
    initial = tf.lookup.KeyValueTensorInitializer(tf.constant(keys, tf.string), values)
    return tf.lookup.StaticHashTable(initial, default_value=False)


def _windows(shard: Any, members: Any, spec: FeatureSpec, *, key: Any = None, paired: bool = False) -> Any:
    """Quantised windows of a shard whose recordings are members, (window_frames, n_mels), uint16.

    With a `key` each begins at a random frame between its own first one and that of the window after it, where that
    follows in the shard. Paired, each comes with another of its recording, chosen in the same way among those that lie
    next to it: (2, window_frames, n_mels). A recording with one window gives that one twice.
    """
    feature = {name: tf.io.FixedLenFeature((), tf.string) for name in (RECORDING_ID, VALUES)}
    feature[WINDOW] = tf.io.FixedLenFeature((), tf.int64)

    def parsed(number: Any, data: Any) -> Any:
        found = tf.io.parse_example(data, feature)
        recording, place = found[RECORDING_ID], found[WINDOW]
        values = tf.reshape(tf.io.decode_raw(found[VALUES], tf.uint16), (-1, spec.window_frames, spec.n_mels))
        if key is not None:
            mine = tf.random.experimental.stateless_fold_in(key, number)
            size = tf.shape(recording)
            follows = (recording[1:] == recording[:-1]) & (place[1:] == place[:-1] + 1)
            follows = tf.cast(tf.concat([follows, [False]], axis=0), tf.int32)
            after = tf.roll(values, -1, axis=0)[:, spec.window_frames - spec.window_step :]
            whole = tf.concat([values, after], axis=1)

            def begun(which: Any, purpose: int) -> Any:
                drawn = tf.random.experimental.stateless_fold_in(mine, purpose)
                later = tf.random.stateless_uniform(size, drawn, 0, spec.window_step, tf.int32)
                frames = (tf.gather(follows, which) * later)[:, None] + tf.range(spec.window_frames)
                return tf.gather(tf.gather(whole, which), frames, batch_dims=1)

            values = begun(tf.range(size[0]), 0)
            if paired:
                values = tf.stack([values, begun(_partners(recording, mine), 1)], axis=1)
        return tf.boolean_mask(values, members.lookup(shard + recording))

    # Parsed many at a time, which takes a third of the time.
    return tf.data.TFRecordDataset(shard).batch(PARSED_WINDOWS).enumerate().map(parsed).unbatch()


def _partners(recording: Any, key: Any) -> Any:
    """For each record the place of one of its own recording, among those in a row with it; any as likely as another."""
    begins = tf.concat([[True], recording[1:] != recording[:-1]], axis=0)
    run = tf.cumsum(tf.cast(begins, tf.int32)) - 1
    first, count = tf.gather(tf.where(begins)[:, 0], run), tf.gather(tf.math.bincount(run), run)
    share = tf.random.stateless_uniform(tf.shape(recording), tf.random.experimental.stateless_fold_in(key, 2))
    return tf.cast(first, tf.int32) + tf.cast(share * tf.cast(count, tf.float32), tf.int32)


def _decoded(values: Any, spec: FeatureSpec) -> Any:
    """Quantised windows → log-mel in nats, float32, as `dequantise` gives it."""
    return tf.cast(values, tf.float32) * (spec.value_span / 65535) + spec.floor


def training_batches(
    shards: Shards,
    spec: FeatureSpec,
    *,
    split_of: Mapping[str, str],
    batch_size: int,
    seed: int,
    skip_batches: int = 0,
    shifted: bool = False,
    paired: bool = False,
    masks: npt.NDArray[np.bool_] | None = None,
    mixing: float = 0.0,
) -> Any:
    """Batches of the training split, without end and never ragged: a batch may run across the border of two epochs.

    The order follows from seed, epoch and shards alone, so a resumed run skips to the very batch it was at.

    Parameters
    ----------
    shards : mapping of str to collection of str
        `Shards`.
    spec : FeatureSpec
    split_of : mapping of str to str
        recording_id → split; windows of other recordings are dropped.
    batch_size, seed, skip_batches : int
    shifted : bool
        Windows begin at any frame of a recording, another one each epoch, and not only every ``window_step``.
    paired : bool
        Each window comes with another of its recording: half of the batch's windows are those of the epoch. Needs
        `shifted`.
    masks : ndarray of bool or None, shape (n, window_frames, n_mels)
        A bank to pick from, `augment.mask_bank`.
    mixing : float
        The second of each pair is mixed with one of another pair, in a share from 0 to this: `augment.mixed`. Needs
        `paired`.

    Returns
    -------
    tf.data.Dataset
        dict of ``features``, float32, (batch_size, window_frames, n_mels), or (batch_size / 2, 2, window_frames,
        n_mels) in pairs, nats; with a bank also ``keep``, bool, of the same shape.
    """
    if (paired and not shifted) or (mixing and not paired):
        raise ValueError("pairs are of windows that begin anywhere, and mixing is for pairs")
    members = _membership(shards, split_of, [splits.TRAIN])
    names = tf.constant(sorted(shards))
    each = 2 if paired else 1

    def epoch(number: Any) -> Any:
        key = tf.stack([tf.cast(seed, tf.int64), number])
        order = tf.random.experimental.stateless_shuffle(tf.range(len(shards)), seed=key)

        def windows(shard: Any) -> Any:
            own = tf.random.experimental.stateless_fold_in(key, shard) if shifted else None
            return _windows(names[shard], members, spec, key=own, paired=paired)

        found = tf.data.Dataset.from_tensor_slices(order).interleave(windows, cycle_length=8, block_length=16)
        # A seed of its own for each epoch.
        return found.shuffle(SHUFFLE_WINDOWS // each, seed=number + seed * 1_000_003, reshuffle_each_iteration=False)

    batches = tf.data.Dataset.range(2**40).flat_map(epoch).batch(batch_size // each, drop_remainder=True)

    def ready(number: Any, batch: Any) -> dict[str, Any]:
        found = {FEATURES: _decoded(batch, spec)}
        key = tf.stack([tf.cast(seed, tf.int64), number])
        if mixing:
            first, second = tf.unstack(found[FEATURES], axis=1)
            drawn = tf.random.experimental.stateless_fold_in(key, 1)
            share = tf.random.stateless_uniform((batch_size // each,), drawn, 0.0, mixing)
            second = augment.mixed(second, tf.roll(first, 1, axis=0), share, log_offset=spec.log_offset)
            found[FEATURES] = tf.stack([first, second], axis=1)
        if masks is not None:
            shape = (batch_size // each, each) if paired else (batch_size,)
            found[KEEP] = tf.gather(
                tf.constant(masks), tf.random.stateless_uniform(shape, key, 0, len(masks), tf.int32)
            )
        return found

    return batches.enumerate().skip(skip_batches).map(ready, num_parallel_calls=2).prefetch(4)


def evaluation_batches(
    shards: Shards, spec: FeatureSpec, *, split_of: Mapping[str, str], split: str, batch_size: int
) -> Any:
    """Every window of a split once, in order; the last batch is filled up with windows of weight 0.

    Returns
    -------
    tf.data.Dataset
        (float32 (batch_size, window_frames, n_mels) in nats, float32 (batch_size,) weights of 1 or 0).
    """
    members = _membership(shards, split_of, [split])
    records = tf.data.Dataset.from_tensor_slices(sorted(shards)).flat_map(lambda shard: _windows(shard, members, spec))

    def fill(batch: Any) -> tuple[Any, Any]:
        features = _decoded(batch, spec)
        count = tf.shape(features)[0]
        weights = tf.cast(tf.range(batch_size) < count, tf.float32)
        features = tf.pad(features, [[0, batch_size - count], [0, 0], [0, 0]], constant_values=spec.floor)
        return tf.ensure_shape(features, (batch_size, spec.window_frames, spec.n_mels)), weights

    return records.batch(batch_size).map(fill).prefetch(2)
