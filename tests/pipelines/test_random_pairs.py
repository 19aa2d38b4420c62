"""The scale of distances, against every pair written out."""

import hashlib
import itertools
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from soundlake.pipelines.query.random_pairs import LEAST_RUNS, SAMPLE, STEPS, distances, scale_of, scales, share_nearer


def rows(recordings: int, windows: int) -> list[dict[str, object]]:
    rng = np.random.default_rng(recordings)
    found = []
    for number in range(recordings):
        name = hashlib.sha256(str(number).encode()).hexdigest()
        for window in range(windows):
            vector = rng.standard_normal(4).astype(np.float32).tolist()
            found.append({"id": f"{name}:{window}", "recording_id": name, "window": window, "embedding": vector})
    return found


def dataset(path: Path, made: list[dict[str, object]]) -> lance.LanceDataset:
    schema = pa.schema({"id": pa.string(), "recording_id": pa.string(), "window": pa.int32()})
    schema = schema.append(pa.field("embedding", pa.list_(pa.float32(), 4)))
    return lance.write_dataset(pa.Table.from_pylist(made, schema=schema), str(path), mode="overwrite")


def test_every_pair_of_a_small_table(tmp_path: Path) -> None:
    made = rows(20, 3)
    scale = distances(dataset(tmp_path / "t.lance", made))
    pairs = [
        float(np.square(np.subtract(a["embedding"], b["embedding"])).sum())
        for a, b in itertools.combinations(made, 2)
        if a["recording_id"] != b["recording_id"]
    ]
    assert (len(scale), scale) == (STEPS + 1, sorted(scale))
    for distance in (0.0, 1.0, 4.0, 8.0, 20.0, 1e6):
        wanted = np.mean([pair < distance for pair in pairs])
        assert share_nearer(distance, scale) == pytest.approx(wanted, abs=0.003)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_pair_of_runs(tmp_path: Path, count: int) -> None:
    """Of each window the run that begins with it, or the last of the recording; all of one that is shorter."""
    made = rows(LEAST_RUNS // 4, 4)
    runs = []
    for number, row in enumerate(made):
        own = made[number // 4 * 4 : number // 4 * 4 + 4]
        first = min(number % 4, max(0, 4 - count))
        runs.append((row["recording_id"], np.mean([one["embedding"] for one in own[first : first + count]], axis=0)))
    pairs = [float(np.sum((a - b) ** 2)) for (x, a), (y, b) in itertools.combinations(runs, 2) if x != y]
    scale = distances(dataset(tmp_path / "t.lance", made), count)
    np.testing.assert_allclose(scale, np.quantile(pairs, np.linspace(0, 1, STEPS + 1)), rtol=1e-4)


def test_scales_between_two_lengths(tmp_path: Path) -> None:
    known = scales(dataset(tmp_path / "t.lance", rows(40, 6)))
    assert [scale_of(count, known) for count in (1, 4, 16)] == [known[count] for count in (1, 4, 16)]
    between = np.mean([known[1], known[4]], axis=0)
    np.testing.assert_allclose(scale_of(2, known), between)
    assert scale_of(1000, known) == known[16]
    assert scale_of(3, {1: [], 4: []}) == []


def test_neither_order_nor_names_change_it(tmp_path: Path) -> None:
    """Rows in another order, and a second name of each recording: the same sample of a table that is larger than it."""
    made = rows(SAMPLE, 2)
    first = distances(dataset(tmp_path / "a.lance", made))
    names = [row | {"id": f"{row['id']}:0123456789abcdef"} for row in made]
    assert distances(dataset(tmp_path / "b.lance", [*reversed(names), *reversed(made)])) == first


def test_one_recording_is_its_own_scale(tmp_path: Path) -> None:
    assert len(distances(dataset(tmp_path / "a.lance", rows(1, 5)))) == STEPS + 1
    assert distances(dataset(tmp_path / "b.lance", rows(1, 1))) == []
    assert share_nearer(1.0, []) is None
