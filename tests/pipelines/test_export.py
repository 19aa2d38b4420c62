"""The view of recordings: clip embeddings as the model pools them, wherever a recording's windows lie."""

import errno
import re
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet

from soundlake.model.errors import InputError, TryLaterError
from soundlake.model.saved.artifact import pooled
from soundlake.pipelines.cli.program import main
from soundlake.pipelines.lake import lookup, table
from soundlake.pipelines.query import export
from tests.conftest import Made
from tests.pipelines import limits


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


def written(folder: Path, schema: pa.Schema) -> Any:
    """Three recordings in three fragments; one of them in all."""
    parts = [
        [row("a", 0, [1, 2]), row("b", 0, [5, 5])],
        [row("a", 2, [3, 2])],
        [row("a", 1, [2, 8]), row("c", 0, [0, 1], None), row("c", 1, [0, 3], None)],
    ]
    for rows in parts:
        lance.write_dataset(pa.Table.from_pylist(rows, schema=schema), folder / "t.lance", mode="append")
    return lance.dataset(folder / "t.lance")


@pytest.fixture
def scattered(tmp_path: Path) -> Any:
    """A table of a model of this version."""
    return written(tmp_path, table.schema(2))


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


@pytest.mark.parametrize("said", [True, False])
def test_a_table_of_a_model_that_pools_the_deviation_too(tmp_path: Path, said: bool) -> None:
    """As models did up to format 4; a table of that time does not say so."""
    schema = table.schema(2, pooling="mean and deviation")
    if not said:
        schema = pa.schema([field.remove_metadata() for field in schema])
    rows = [row for batch in export.recordings(written(tmp_path, schema)) for row in batch.to_pylist()]
    found = {r["recording_id"]: r["embedding"] for r in rows}
    np.testing.assert_allclose(found["a"], [2, 4, (2 / 3) ** 0.5, 8**0.5], atol=1e-6)
    np.testing.assert_allclose(found["b"], [5, 5, 0, 0], atol=1e-6)


@pytest.mark.parametrize("ending", ["parquet", "csv", "npz"])
def test_windows_have_both_vectors(capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path, ending: str) -> None:
    target = tmp_path / f"windows.{ending}"
    assert main(["export", str(target), "--lake", made.lake.root]) == 0
    capsys.readouterr()
    model = lookup.find_model(made.lake, None)
    rows = table.need_table(made.lake, model.model_id).to_table().to_pylist()
    if ending == "csv":
        found = csv.read_csv(target).to_pylist()
        for name, letters, width in (("embedding", "z", model.embedding_dim), ("latent", "latent", model.latent_dim)):
            for old, new in zip(rows, found, strict=True):
                np.testing.assert_allclose([new[f"{letters}{i}"] for i in range(width)], old[name], rtol=1e-5)
        return
    loaded = np.load(target, allow_pickle=False) if ending == "npz" else parquet.read_table(target).to_pydict()
    for name in ("embedding", "latent"):
        np.testing.assert_array_equal(
            np.array(loaded[name], np.float32), np.array([row[name] for row in rows], np.float32)
        )
    assert model.embedding_dim != model.latent_dim


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
    assert f"{len(wanted)} rows, one for each file, written" in capsys.readouterr().out
    if ending == "npz":
        loaded = np.load(target, allow_pickle=False)
        found = dict(zip(loaded["recording_id"], loaded["embedding"], strict=True))
    elif ending == "csv":
        rows = csv.read_csv(target).to_pylist()
        width = model.embedding_dim
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
    assert "no row of the table matches" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["parquet", "csv", "npz"])
@pytest.mark.parametrize("where", [[], ["--where", "uri is not null"]])
def test_a_file_that_may_not_grow_so_large(
    capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path, ending: str, where: list[str]
) -> None:
    """Nothing is left of it, and with or without a filter it is told as what it is."""
    target = tmp_path / f"t.{ending}"
    with limits.file_size(8192):
        code = main(["export", str(target), *where, "--lake", made.lake.root])
    (line,) = capsys.readouterr().err.splitlines()
    assert (code, line.startswith(f"soundlake: a file at {target} may not grow so large")) == (75, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", [[], ["--where", "label is not null"]])
@pytest.mark.parametrize("name", ["a-file/x.csv", "a-file/y/x.csv", "a-folder.csv", f"{'x' * 300}.csv", "no/x.csv"])
def test_places_for_no_file(
    capsys: pytest.CaptureFixture[str], made: Made, tmp_path: Path, name: str, where: list[str]
) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "a-folder.csv").mkdir()
    assert main(["export", str(tmp_path / name), *where, "--lake", made.lake.root]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert name in line
    assert "filter" not in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-file", "a-folder.csv"]


def test_what_lies_beside_stays(scattered: Any, tmp_path: Path) -> None:
    """Another's unfinished export, say; and the file that was there, until the new one is whole."""
    for name in ("x.csv", "x.csv.part"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="cannot use the filter"):
        export.export(scattered, str(tmp_path / "x.csv"), where="nonsense = 3")
    assert (tmp_path / "x.csv").read_text() == "mine"
    assert export.export(scattered, str(tmp_path / "x.csv")) == 6
    assert (tmp_path / "x.csv.part").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.lance", "x.csv", "x.csv.part"]


def test_a_table_that_cannot_be_read(scattered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told of the table, not of the file that is written."""

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EIO, "said")

    monkeypatch.setattr(export, "windows", fail)
    with pytest.raises(TryLaterError, match=re.escape(f"storage failed at {scattered.uri}: said")):
        export.export(scattered, str(tmp_path / "x.csv"))
