"""Batches: the right windows, each once an epoch, in an order that can be taken up again."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from soundlake.model.errors import InputError
from soundlake.model.features import splits
from soundlake.model.features.log_mel import dequantise
from soundlake.model.features.records import Record, encode, write_framed
from soundlake.model.network import texture
from soundlake.model.training import dataset
from soundlake.model.training.places import Places, find
from tests.model.conftest import SPEC, Tiny, make


def training(tiny: Tiny, **changes: object) -> list[np.ndarray]:
    count = changes.pop("count", 12)
    places = find(tiny.shards, SPEC, changes.pop("split_of", splits.assign(tiny.groups)))
    wanted = {"batch_size": 8, "seed": 0} | changes
    return [batch["features"].numpy() for batch in islice(dataset.training_batches(places, **wanted), count)]


def of_split(tiny: Tiny, split: str) -> np.ndarray:
    return tiny.features({r for r, s in splits.assign(tiny.groups).items() if s == split})


def as_set(windows: np.ndarray) -> list[bytes]:
    return sorted(np.round(windows, 3).astype(np.float32).tobytes() for windows in windows)


def test_an_epoch_holds_each_training_window_once(tiny: Tiny) -> None:
    wanted = of_split(tiny, splits.TRAIN)
    windows = np.concatenate(training(tiny, count=2 * len(wanted) // 8 + 1))
    assert windows.shape[1:] == (16, 16)
    for epoch in (windows[: len(wanted)], windows[len(wanted) : 2 * len(wanted)]):
        np.testing.assert_allclose(np.sort(epoch.ravel()), np.sort(wanted.ravel()), atol=1e-4)
    # Another order in the second epoch.
    assert not np.array_equal(windows[: len(wanted)], windows[len(wanted) : 2 * len(wanted)])


def test_the_order_is_the_seeds(tiny: Tiny) -> None:
    for a, b in zip(training(tiny), training(tiny), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(training(tiny)[0], training(tiny, seed=1)[0])


@pytest.mark.parametrize("skip", [1, 5, 9])
def test_taken_up_at_the_very_batch(tiny: Tiny, skip: int) -> None:
    for a, b in zip(training(tiny)[skip:], training(tiny, skip_batches=skip, count=12 - skip), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("changes", [{}, {"shifted": True}, {"shifted": True, "paired": True, "mixing": 0.5}], ids=str)
def test_parts_of_a_batch_are_the_batch(tiny: Tiny, changes: dict) -> None:
    masks = np.random.default_rng(2).random((9, 16, 16)) < 0.5
    places = find(tiny.shards, SPEC, splits.assign(tiny.groups))

    def some(**part: object) -> list[dict]:
        call = {"batch_size": 24, "seed": 3, "masks": masks, "skip_batches": 1}
        return list(islice(dataset.training_batches(places, **call, **changes, **part), 6))

    for whole, *parts in zip(some(), *(some(part=(number, 3)) for number in range(3)), strict=True):
        for name, wanted in whole.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), wanted)


def test_a_part_reads_nothing_else(tiny: Tiny) -> None:
    read: list[int] = []

    class Watched(Places):
        def read(self, numbers: np.ndarray, frames: np.ndarray | None = None) -> np.ndarray:
            read.append(len(numbers))
            return super().read(numbers, frames)

    places = Watched(**vars(find(tiny.shards, SPEC, splits.assign(tiny.groups))))
    list(islice(dataset.training_batches(places, batch_size=24, seed=3, part=(1, 3)), 5))
    list(dataset.evaluation_batches(places, split=splits.TRAIN, batch_size=24, part=(1, 3)))
    assert len(read) > 5
    assert set(read) == {8}


@pytest.mark.parametrize("parts", [1, 2])
def test_evaluation_in_parts(tiny: Tiny, parts: int) -> None:
    places = find(tiny.shards, SPEC, splits.assign(tiny.groups))
    whole = dataset.evaluation_batches(places, split=splits.TRAIN, batch_size=14)
    each = [
        dataset.evaluation_batches(places, split=splits.TRAIN, batch_size=14, part=(number, parts))
        for number in range(parts)
    ]
    for (windows, weights), *found in zip(whole, *each, strict=True):
        np.testing.assert_array_equal(np.concatenate([part[0] for part in found]), windows)
        np.testing.assert_array_equal(np.concatenate([part[1] for part in found]), weights)


def test_never_ragged_even_when_the_corpus_is_smaller_than_a_batch(tmp_path: Path) -> None:
    small = make(tmp_path, recordings=1)
    batches = training(small, batch_size=50, count=3)
    assert [len(batch) for batch in batches] == [50, 50, 50]


def test_recordings_without_a_split_are_dropped(tiny: Tiny) -> None:
    some = dict(list(splits.assign(tiny.groups).items())[:3])
    some = dict.fromkeys(some, splits.TRAIN)
    windows = np.concatenate(training(tiny, split_of=some, batch_size=9, count=1))
    np.testing.assert_allclose(np.sort(windows.ravel()), np.sort(tiny.features(set(some)).ravel()), atol=1e-4)


def test_evaluation_sees_every_window_once_in_order(tiny: Tiny) -> None:
    wanted = of_split(tiny, splits.TRAIN)
    found = list(
        dataset.evaluation_batches(
            find(tiny.shards, SPEC, splits.assign(tiny.groups)), split=splits.TRAIN, batch_size=7
        )
    )
    weights = np.concatenate([w.numpy() for _, w in found])
    windows = np.concatenate([x.numpy() for x, _ in found])
    assert {len(x) for x, _ in found} == {7}
    assert weights.sum() == len(wanted)
    np.testing.assert_allclose(windows[weights == 1], wanted, atol=1e-4)
    assert (windows[weights == 0] == np.float32(SPEC.floor)).all()


def test_statistics_are_numpys_on_the_training_split(tiny: Tiny) -> None:
    split_of = splits.assign(tiny.groups)
    found = dataset.statistics(find(tiny.shards, SPEC, split_of))
    step = SPEC.value_span / 65_535
    frames = np.concatenate(
        [
            r.values[: r.valid_frames].astype(np.float64) * step + SPEC.floor
            for r in tiny.records
            if split_of[r.recording_id] == splits.TRAIN
        ]
    )
    np.testing.assert_allclose(found.normalisation.mean, frames.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.normalisation.std, frames.std(axis=0), rtol=1e-4)
    for split, count in found.windows.items():
        assert count == sum(split_of[r.recording_id] == split for r in tiny.records)


def test_a_band_where_hardly_anything_sounds_does_not_count_for_more_than_others(tmp_path: Path) -> None:
    """A tone moved into it would be hundreds of its deviations away."""
    rng = np.random.default_rng(2)
    values = rng.integers(20_000, 60_000, (16, 16), dtype=np.uint16)
    values[:, 12:] = rng.integers(1_000, 1_002, (16, 4))
    with open(tmp_path / "a.tfrecord", "wb") as file:
        write_framed(file, encode(Record("a" * 64, 0, 16, values)))
    shards = {str(tmp_path / "a.tfrecord"): ["a" * 64]}
    found = dataset.statistics(find(shards, SPEC, {"a" * 64: splits.TRAIN})).normalisation.std
    wanted = values.astype(np.float64).std(axis=0) * SPEC.value_span / 65_535
    np.testing.assert_allclose(found[:12], wanted[:12], rtol=1e-4)
    np.testing.assert_allclose(found[12:], 0.2 * np.median(wanted), rtol=1e-4)


def test_a_recording_is_read_from_its_own_shards_only(tiny: Tiny) -> None:
    """A shard may hold windows of a recording that has come back in another one: they do not count twice."""
    split_of = splits.assign(tiny.groups)
    name = next(i for i in sorted(split_of) if split_of[i] == splits.TRAIN)
    shards = {path: [i for i in recordings if i != name] for path, recordings in tiny.shards.items()}
    wanted = sum(split_of[r.recording_id] == splits.TRAIN and r.recording_id != name for r in tiny.records)
    assert dataset.statistics(find(shards, SPEC, split_of)).windows[splits.TRAIN] == wanted
    batches = dataset.evaluation_batches(find(shards, SPEC, split_of), split=splits.TRAIN, batch_size=7)
    assert sum(int(weights.numpy().sum()) for _, weights in batches) == wanted
    epoch = islice(dataset.training_batches(find(shards, SPEC, split_of), batch_size=wanted, seed=3), 1)
    others = tiny.features({i for i in split_of if split_of[i] == splits.TRAIN and i != name})
    np.testing.assert_allclose(np.sort(next(epoch)["features"].numpy().ravel()), np.sort(others.ravel()), atol=1e-4)


def test_a_flipped_byte_is_named(tmp_path: Path) -> None:
    damaged = make(tmp_path)
    path = Path(sorted(damaged.shards)[2])
    data = bytearray(path.read_bytes())
    data[700] ^= 4
    path.write_bytes(data)
    with pytest.raises(InputError, match=path.name):
        dataset.statistics(find(damaged.shards, SPEC, splits.assign(damaged.groups)))


def test_nothing_to_train_on(tiny: Tiny) -> None:
    with pytest.raises(InputError, match="nothing to train on"):
        dataset.statistics(find(tiny.shards, SPEC, {}))


def test_components_are_those_of_an_svd(tiny: Tiny) -> None:
    split_of = splits.assign(tiny.groups)
    statistics = dataset.statistics(find(tiny.shards, SPEC, split_of))
    found = dataset.components(find(tiny.shards, SPEC, split_of), statistics, count=4)
    mean, std = statistics.normalisation.mean, statistics.normalisation.std
    rows = (tiny.features({name for name, split in split_of.items() if split == splits.TRAIN}) - mean) / std
    rows = rows.reshape(len(rows), -1).astype(np.float64)
    assert len(rows) == statistics.windows[splits.TRAIN]
    _, sizes, directions = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(found.mean, rows.mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(found.variances, (sizes**2 / (len(rows) - 1))[:4], rtol=1e-2)
    np.testing.assert_allclose(np.abs(np.sum(found.directions[:2] * directions[:2], axis=1)), 1, atol=1e-2)
    assert found.rest == pytest.approx(np.square(sizes[4:]).sum() / rows.size, rel=1e-2)


def test_components_of_a_few_windows(tiny: Tiny) -> None:
    one = {name: splits.TRAIN if name == f"{0:064x}" else splits.TEST for name in tiny.groups}
    statistics = dataset.statistics(find(tiny.shards, SPEC, one))
    found = dataset.components(find(tiny.shards, SPEC, one), statistics, count=64)
    assert found.directions.shape == (2, SPEC.window_frames * SPEC.n_mels)
    assert found.rest > 0


def test_likeness_makes_the_same_sound_at_another_level_nearer(tiny: Tiny) -> None:
    """Than it is by principal components of the same statistics: in shares of the mean distance between windows."""
    split_of = splits.assign(tiny.groups)
    figures = dataset.statistics(find(tiny.shards, SPEC, split_of))
    mean, std = figures.normalisation.mean, figures.normalisation.std
    windows = tiny.features({name for name, split in split_of.items() if split == splits.TRAIN})
    louder = np.log(np.exp(windows) * 2 + SPEC.log_offset)
    first, second = (
        dataset.components(find(tiny.shards, SPEC, split_of), figures, count=2, likeness=8) for _ in range(2)
    )
    np.testing.assert_array_equal(first.likeness[0], second.likeness[0])
    numbers, moved = (
        np.concatenate(texture.statistics_of((one - mean) / std, one), axis=1, dtype=np.float64)
        for one in (windows, louder)
    )
    kernel, bias = first.likeness
    ours, ours_moved = numbers @ kernel + bias, moved @ kernel + bias
    assert ours.var(axis=0).sum() == pytest.approx(8, rel=0.02)
    center, deviation = numbers.mean(axis=0), np.maximum(numbers.std(axis=0), 1e-3)
    _, _, directions = np.linalg.svd((numbers - center) / deviation, full_matrices=False)
    plain, plain_moved = ((one - center) / deviation @ directions[:8].T for one in (numbers, moved))

    def share(before: np.ndarray, after: np.ndarray) -> float:
        between = np.linalg.norm(before[:, None] - before[None], axis=2)
        return float(np.linalg.norm(after - before, axis=1).mean() / between.mean())

    assert share(ours, ours_moved) < 0.8 * share(plain, plain_moved)


def test_components_of_other_pitches(tiny: Tiny) -> None:
    """Each window, and it moved by bands: more rows, and the same each time."""
    split_of = splits.assign(tiny.groups)
    figures = dataset.statistics(find(tiny.shards, SPEC, split_of))
    plain = dataset.components(find(tiny.shards, SPEC, split_of), figures, count=64)
    first, second = (
        dataset.components(find(tiny.shards, SPEC, split_of), figures, count=64, pitch=2) for _ in range(2)
    )
    np.testing.assert_array_equal(first.directions, second.directions)
    count = figures.windows[splits.TRAIN]
    assert len(plain.directions) == min(64, count - 1)
    # What was moved is not among what the windows as they are span.
    assert len(first.directions) == 64 or len(first.directions) > len(plain.directions)
    assert first.rest != plain.rest


def test_shifted_windows_lie_in_their_recordings(tmp_path: Path) -> None:
    """Every one is a stretch of some recording's frames, laid together here by hand; and they begin anywhere."""
    rng = np.random.default_rng(8)
    frames = {f"{i:064x}": rng.integers(1, 65_536, (16 + 8 * 5, 16), dtype=np.uint16) for i in range(6)}
    with open(tmp_path / "a.tfrecord", "wb") as file:
        for name, all_of_it in frames.items():
            # The third window is left out, as a silent one is: the second has none that follows.
            for window in (0, 1, 3, 4, 5):
                record = Record(name, window, 16, all_of_it[8 * window : 8 * window + 16])
                write_framed(file, encode(record))
    shards = {str(tmp_path / "a.tfrecord"): list(frames)}
    split_of = dict.fromkeys(frames, splits.TRAIN)
    begins: dict[int, set[int]] = {window: set() for window in (0, 1, 3, 4, 5)}
    places = {
        dequantise(all_of_it[at : at + 16], SPEC).tobytes(): at
        for all_of_it in frames.values()
        for at in range(len(all_of_it) - 15)
    }
    batches = dataset.training_batches(find(shards, SPEC, split_of), batch_size=30, seed=1, shifted=True)
    for epoch in islice(batches, 40):
        found = sorted(places[window.tobytes()] for window in epoch["features"].numpy())
        for window, part in zip(begins, np.array_split(found, 5), strict=True):
            begins[window] |= {int(at) - 8 * window for at in part}
    assert begins[1] == begins[5] == {0}
    for window in (0, 3, 4):
        assert begins[window] == set(range(8))


@pytest.mark.parametrize("skip", [1, 7])
def test_shifted_windows_taken_up(tiny: Tiny, skip: int) -> None:
    once, again = training(tiny, shifted=True), training(tiny, shifted=True, skip_batches=skip, count=12 - skip)
    for a, b in zip(once[skip:], again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(once[0], training(tiny)[0])


def test_pairs_are_of_one_recording(tmp_path: Path) -> None:
    """Each window of an epoch once as the first of a pair; the second any stretch of the same recording."""
    rng = np.random.default_rng(9)
    counts = {f"{i:064x}": count for i, count in enumerate([1, 2, 4, 1, 3])}
    frames = {name: rng.integers(1, 65_536, (8 + 8 * n, 16), dtype=np.uint16) for name, n in counts.items()}
    with open(tmp_path / "a.tfrecord", "wb") as file:
        for name, all_of_it in frames.items():
            for window in range(counts[name]):
                write_framed(file, encode(Record(name, window, 16, all_of_it[8 * window : 8 * window + 16])))
    shards = {str(tmp_path / "a.tfrecord"): list(frames)}
    whose = {
        dequantise(all_of_it[at : at + 16], SPEC).tobytes(): (name, at)
        for name, all_of_it in frames.items()
        for at in range(len(all_of_it) - 15)
    }
    split_of = dict.fromkeys(frames, splits.TRAIN)
    batches = dataset.training_batches(find(shards, SPEC, split_of), batch_size=22, seed=1, shifted=True, paired=True)
    met: dict[str, set[tuple[int, int]]] = {name: set() for name in frames}
    for epoch in islice(batches, 300):
        pairs = [[whose[window.tobytes()] for window in pair] for pair in epoch["features"].numpy()]
        firsts = [first for (first, _), _ in pairs]
        assert {name: firsts.count(name) for name in frames} == counts
        for (a, at_a), (b, at_b) in pairs:
            assert a == b
            met[a].add((at_a, at_b))
    for name, count in counts.items():
        # Anywhere with anywhere: the last window of a recording begins where it begins.
        assert {b for _, b in met[name]} == {a for a, _ in met[name]} == set(range(8 * (count - 1) + 1))


@pytest.mark.parametrize("paired", [False, True])
def test_masks_come_with_batches_and_are_taken_up(tiny: Tiny, paired: bool) -> None:
    masks = np.random.default_rng(2).random((9, 16, 16)) < 0.5
    places = find(tiny.shards, SPEC, splits.assign(tiny.groups))
    call = {"batch_size": 8, "seed": 4, "shifted": True, "paired": paired}
    once = list(islice(dataset.training_batches(places, masks=masks, **call), 9))
    again = islice(dataset.training_batches(places, masks=masks, skip_batches=5, **call), 4)
    shape = (4, 2, 16, 16) if paired else (8, 16, 16)
    known = {mask.tobytes() for mask in masks}
    used = set()
    for batch in once:
        assert batch["features"].shape == batch["keep"].shape == shape
        used |= {mask.tobytes() for mask in batch["keep"].numpy().reshape(8, 16, 16)}
    assert used == known
    for a, b in zip(once[5:], again, strict=True):
        np.testing.assert_array_equal(a["features"], b["features"])
        np.testing.assert_array_equal(a["keep"], b["keep"])


def test_mixed_in_are_other_pairs_and_only_into_the_second(tiny: Tiny) -> None:
    places = find(tiny.shards, SPEC, splits.assign(tiny.groups))
    call = {"batch_size": 8, "seed": 4, "shifted": True, "paired": True}
    plain = islice(dataset.training_batches(places, **call), 4)
    mixed = islice(dataset.training_batches(places, mixing=0.5, **call), 4)
    for a, b in zip(plain, mixed, strict=True):
        a, b = a["features"].numpy(), b["features"].numpy()
        np.testing.assert_array_equal(a[:, 0], b[:, 0])
        for i in range(4):
            own, other = (np.exp(one.astype(np.float64)) - SPEC.log_offset for one in (a[i, 1], a[i - 1, 0]))
            other *= own.mean() / max(other.mean(), SPEC.log_offset)
            got = np.exp(b[i, 1].astype(np.float64)) - SPEC.log_offset
            # One share for the whole window, of at most half.
            share = np.sum((got - own) * (other - own)) / np.sum((other - own) ** 2)
            assert 0 <= share <= 0.5
            np.testing.assert_allclose(got, (1 - share) * own + share * other, rtol=1e-2, atol=1e-3 * own.max())
