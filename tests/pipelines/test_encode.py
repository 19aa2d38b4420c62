"""Encode: every window of the ledger has its row, and nothing else has."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import dequantise
from soundlake.model.saved import artifact
from soundlake.pipelines import commands
from soundlake.pipelines.encode.encoder import LoadedModel, Name, Window, read_shard
from soundlake.pipelines.lake import ledger, lookup, table
from soundlake.pipelines.lake.lake import Lake
from tests.conftest import Made


def rows_of(lake: Lake, model_id: str) -> list[dict]:
    return table.need_table(lake, model_id).to_table().sort_by("id").to_pylist()


def records_of(made: Made) -> list:
    spec = lookup.spec_of_lake(made.lake, None)
    bundles, _ = ledger.training_input(ledger.open_ledger(made.lake, spec.spec_id))
    return [(record, b, offset) for b in bundles for record, offset in read_shard(made.lake, spec, b)]


def test_one_row_a_window(made: Made) -> None:
    rows = rows_of(made.lake, made.result["model"]["model_id"])
    stored = {f"{record.recording_id}:{record.window}": (bundle, offset) for record, bundle, offset in records_of(made)}
    assert len(rows) == made.result["ledger"]["windows"] == len(stored)
    assert {row["id"]: (row["bundle"], row["record_offset"]) for row in rows} == stored


def test_row_against_numpy(made: Made) -> None:
    """Embedding, deviation and error of some rows, computed again outside the pipeline."""
    model = artifact.load(made.result["report"].rsplit("/", 1)[0])
    rows = {row["id"]: row for row in rows_of(made.lake, model.model_id)}
    for record, _, _ in records_of(made)[::40]:
        row = rows[f"{record.recording_id}:{record.window}"]
        raw = dequantise(record.values, model.spec)[None]
        mean, log_variance, embedding = model.encoder().encode(raw)
        # Bit for bit: a batch of one gives what a batch of many gave.
        np.testing.assert_array_equal(np.float32(row["embedding"]), embedding[0])
        assert row["posterior_std"] == pytest.approx(np.sqrt(np.exp(log_variance[0])).mean(), rel=1e-5)
        rebuilt = model.decoder().decode(mean)[0][: record.valid_frames]
        wanted = ((raw[0] - model.mean) / model.std)[: record.valid_frames]
        assert row["reconstruction_error"] == pytest.approx(np.mean((wanted - rebuilt) ** 2), rel=1e-3)
        assert row["start_s"] == pytest.approx(record.window * 64 * 256 / 16_000)
        assert row["end_s"] - row["start_s"] == pytest.approx(record.valid_frames * 256 / 16_000)


def test_ragged_batches_agree(made: Made) -> None:
    model = LoadedModel(made.result["report"].rsplit("/", 1)[0])
    windows = [Window(record, (Name("x", None, None),), b, o) for record, b, o in records_of(made)[:7]]
    together = model.rows(windows).to_pylist()
    alone = [row for window in windows for row in model.rows([window]).to_pylist()]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a["embedding"], b["embedding"])


def test_nothing_new_means_no_commit(made: Made) -> None:
    before = table.need_table(made.lake, made.result["model"]["model_id"]).version
    assert commands.encode(made.lake)["encoded"] == 0
    assert table.need_table(made.lake, made.result["model"]["model_id"]).version == before


def test_new_gone_and_renamed(made: Made, tmp_path: Path) -> None:
    """Only what is new is encoded; rows of what is gone leave; a renamed file's rows get its new name."""
    lake, audio = made.copy(tmp_path), tmp_path / "audio"
    shutil.copytree(made.audio, audio)
    spec = lookup.parse_spec("general")
    model_id = made.result["model"]["model_id"]
    kept = {row["id"]: row for row in rows_of(lake, model_id)}
    commands.extract(lake, str(audio), spec=spec)  # the same recordings under other names: copies
    gone, renamed = sorted(audio.glob("bell/*"))[0], sorted(audio.glob("rain/*"))[0]
    digests = {row["uri"]: row["recording_id"] for row in ledger.open_ledger(lake, spec.spec_id).to_table().to_pylist()}
    gone_id, renamed_id = digests[str(gone)], digests[str(renamed)]
    # The first corpus goes, as if the folder had been moved.
    shutil.move(made.audio, tmp_path / "aside")
    try:
        gone.unlink()
        os.rename(renamed, audio / "rain" / "renamed.bin")
        os.makedirs(made.audio)
        commands.extract(lake, str(made.audio), spec=spec, allow_empty=True)
    finally:
        os.rmdir(made.audio)
        shutil.move(tmp_path / "aside", made.audio)
    commands.extract(lake, str(audio), spec=spec)
    result = commands.encode(lake)
    rows = {row["id"]: row for row in rows_of(lake, model_id)}
    assert {i for i in kept if i.startswith(gone_id)} == set(kept) - set(rows)
    assert {row["uri"] for row in rows.values() if row["recording_id"] == renamed_id} == {
        str(audio / "rain" / "renamed.bin")
    }
    assert result["rows"] == len(rows)
    assert all(row["embedding"] == kept[i]["embedding"] for i, row in rows.items())
    assert all(row["uri"].startswith(str(audio)) for row in rows.values())


def test_damaged_shard_is_named(made: Made, tmp_path: Path) -> None:
    lake = made.copy(tmp_path)
    shard = sorted(Path(lake.root).glob("features/*/shards/*.tfrecord"))[0]
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    shutil.rmtree(Path(lake.root) / "tables")
    with pytest.raises(InputError, match=shard.name):
        commands.encode(lake)
    # Nothing half-done is visible.
    assert table.need_table(lake, made.result["model"]["model_id"]).count_rows() == 0


def test_no_features_for_the_model(made: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no lake"):
        commands.encode(Lake.at(str(tmp_path / "nowhere")))
