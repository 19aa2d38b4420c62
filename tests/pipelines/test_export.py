"""The view of recordings: clip embeddings as the model pools them, wherever a recording's windows lie."""

from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from model.artifact import pooled
from pipelines import export, lookup, table
from pipelines.program import main
from tests.conftest import Made


def row(recording: str, window: int, vector: list[float], label: str | None = "bird") -> dict[str, Any]:
    return {
        "id": f"{recording}:{window}",
        "recording_id": recording,
        "window": window,
        "uri": f"/{recording}.wav",
        "label": label,
        "group": None,
        "start_s": window * 1.0,
        "end_s": window + 2.0,
        "embedding": vector,
        "posterior_std": 0.1,
        "reconstruction_error": float(window),
        "bundle": "b",
        "record_offset": 0,
    }


@pytest.fixture
def scattered(tmp_path: Path) -> Any:
    """Three recordings in three fragments; one of them in all."""
    parts = [
        [row("a", 0, [1, 2]), row("b", 0, [5, 5])],
        [row("a", 2, [3, 2])],
        [row("a", 1, [2, 8]), row("c", 0, [0, 1], None), row("c", 1, [0, 3], None)],
    ]
    for rows in parts:
        lance.write_dataset(pa.Table.from_pylist(rows, schema=table.schema(2)), tmp_path / "t.lance", mode="append")
    return lance.dataset(tmp_path / "t.lance")


def test_a_recording_in_several_fragments_is_one_row(scattered: Any) -> None:
    rows = [row for batch in export.recordings(scattered) for row in batch.to_pylist()]
    assert [(r["recording_id"], r["windows"], r["start_s"], r["end_s"]) for r in rows] == [
        ("b", 1, 0.0, 2.0),
        ("a", 3, 0.0, 4.0),
        ("c", 2, 0.0, 3.0),
    ]
    assert [r["reconstruction_error"] for r in rows] == [0.0, 1.0, 0.5]
    wanted = {"a": [[1, 2], [3, 2], [2, 8]], "b": [[5, 5]], "c": [[0, 1], [0, 3]]}
    for r in rows:
        vectors = np.array(wanted[r["recording_id"]], np.float32)
        np.testing.assert_allclose(r["embedding"], pooled(vectors), atol=1e-6)
    assert [r["label"] for r in rows] == ["bird", "bird", None]


def test_a_filter_is_one_on_windows(scattered: Any) -> None:
    rows = [row for batch in export.recordings(scattered, where="window < 2") for row in batch.to_pylist()]
    assert {r["recording_id"]: r["windows"] for r in rows} == {"a": 2, "b": 1, "c": 2}
    assert list(export.recordings(scattered, where="window > 9")) == []


@pytest.mark.parametrize("ending", ["parquet", "csv", "npz"])
def test_recordings_of_a_real_table(
    capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path, ending: str
) -> None:
    target = tmp_path / f"clips.{ending}"
    assert main(["export", str(target), "--by", "recordings", "--lake", made.lake.root]) == 0
    model = lookup.find_model(made.lake, None)
    windows = table.need_table(made.lake, model.model_id).to_table().to_pylist()
    wanted: dict[str, list[list[float]]] = {}
    for one in windows:
        wanted.setdefault(one["recording_id"], []).append(one["embedding"])
    assert f"{len(wanted)} recordings written" in capsys.readouterr().out
    if ending == "npz":
        loaded = np.load(target, allow_pickle=False)
        found = dict(zip(loaded["recording_id"], loaded["embedding"], strict=True))
    elif ending == "csv":
        rows = csv.read_csv(target).to_pylist()
        width = 2 * model.embedding_dim
        found = {r["recording_id"]: [r[f"z{i}"] for i in range(width)] for r in rows}
    else:
        found = {r["recording_id"]: r["embedding"] for r in parquet.read_table(target).to_pylist()}
    assert found.keys() == wanted.keys()
    for name, vectors in wanted.items():
        np.testing.assert_allclose(found[name], pooled(np.array(vectors, np.float32)), atol=1e-4)


@pytest.mark.parametrize("by", ["windows", "recordings"])
def test_nothing_to_export(capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path, by: str) -> None:
    target = tmp_path / "none.parquet"
    arguments = ["export", str(target), "--by", by, "--where", "label = 'unicorn'", "--lake", made.lake.root]
    assert main(arguments) == 2
    assert "no row of the table passes" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
