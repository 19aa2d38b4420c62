"""Every file that is done answers to its own name, label and group, however many hold the same bytes.

Expected values come from the files' digests and the label file itself.
"""

import csv
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from soundlake.model.saved.artifact import pooled
from soundlake.pipelines import commands
from soundlake.pipelines.cli.program import main
from soundlake.pipelines.lake import ledger, lookup, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.learning import sampling
from soundlake.pipelines.learning.evaluation import folds_of
from tests.conftest import Made
from tests.pipelines.test_extract import write

LABELS = "uri,label,group\na/a.wav,dog,g1\nb.wav,wolf,g2\n"


@dataclass
class Copies:
    """A corpus with files of the same bytes, beside the demo corpus in one lake."""

    lake: Lake
    audio: Path

    def extract(self, **how: Any) -> dict[str, Any]:
        return commands.extract(self.lake, str(self.audio), spec=lookup.parse_spec("general"), **how)

    def expected(self) -> dict[str, tuple[str, str | None, str | None]]:
        """Path → digest, label and group, by the files themselves and the label file."""
        with open(self.audio / "labels.csv", newline="") as file:
            named = {row["uri"]: (row["label"] or None, row["group"] or None) for row in csv.DictReader(file)}
        return {
            str(path): (
                hashlib.sha256(path.read_bytes()).hexdigest(),
                *named.get(path.relative_to(self.audio).as_posix(), (None, None)),
            )
            for path in sorted(self.audio.rglob("*.wav"))
        }

    def rows(self) -> list[dict[str, Any]]:
        """The table's rows of this corpus."""
        dataset = table.need_table(self.lake, lookup.find_model(self.lake, None).model_id)
        found = dataset.to_table().to_pylist()
        assert len({row["id"] for row in found}) == len(found)
        return sorted((row for row in found if row["uri"].startswith(f"{self.audio}/")), key=lambda row: row["id"])

    def check(self) -> None:
        """Each file has all its windows under its own name, and nothing else is there."""
        found, expected = self.rows(), self.expected()
        assert {(r["uri"], r["recording_id"], r["label"], r["group"]) for r in found} == {
            (uri, *values) for uri, values in expected.items()
        }
        for digest in {values[0] for values in expected.values()}:
            uris = sorted(uri for uri, values in expected.items() if values[0] == digest)
            windows = {uri: {r["window"]: r for r in found if r["uri"] == uri} for uri in uris}
            first = windows[uris[0]]
            for uri in uris:
                assert windows[uri].keys() == first.keys()
                suffix = "" if uri == uris[0] else ":" + hashlib.sha256(uri.encode()).hexdigest()[:16]
                for number, row in windows[uri].items():
                    assert row["id"] == f"{digest}:{number}{suffix}"
                    same = ("embedding", "start_s", "end_s", "bundle", "record_offset", "reconstruction_error")
                    assert [row[name] for name in same] == [first[number][name] for name in same]


@pytest.fixture
def copies(made: Made, tmp_path: Path) -> Copies:
    """Four files, three of them equal, named in three ways and lying in three partitions."""
    audio = tmp_path / "audio"
    write(audio / "a/a.wav", 5.0, seed=31)
    write(audio / "d.wav", 3.0, seed=32)
    (audio / "sub").mkdir()
    for name in ("b.wav", "sub/c.wav"):
        shutil.copyfile(audio / "a/a.wav", audio / name)
    (audio / "labels.csv").write_text(LABELS)
    return Copies(made.copy(tmp_path), audio)


def test_filters_exports_and_status(
    copies: Copies, made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, audio = copies.lake.root, copies.audio
    copies.extract()
    encoded = commands.encode(copies.lake)
    copies.check()
    # 5 s and 3 s in windows of 128 frames of 256 samples, a new one every 64: the equal files once.
    windows = {name: -(-max(0, 1 + seconds * 16_000 // 256 - 128) // 64) + 1 for name, seconds in (("a", 5), ("d", 3))}
    assert (encoded["encoded"], encoded["renamed"]) == (windows["a"] + windows["d"], 0)
    # Each label finds its file, and no other.
    expected = copies.expected()
    for uri, (_, label, group) in expected.items():
        where = f"uri = '{uri}'" if label is None else f"label = '{label}' AND group = '{group}'"
        hits = commands.search(copies.lake, [], k=9, where=where, by="recordings")["results"][0]["hits"]
        assert [(hit.uri, hit.label, hit.group) for hit in hits] == [(uri, label, group)]
    # Both forms of export, row by row.
    ours = f"uri LIKE '{audio}/%'"
    for by, rows in (("windows", 3 * windows["a"] + windows["d"]), ("recordings", 4)):
        target = tmp_path / f"{by}.parquet"
        assert main(["export", str(target), "--by", by, "--where", ours, "--lake", lake]) == 0
        assert f"{rows} rows" in capsys.readouterr().out
        exported = parquet.read_table(target).to_pylist()
        assert {(r["uri"], r["recording_id"], r["label"], r["group"]) for r in exported} == {
            (uri, *values) for uri, values in expected.items()
        }
        assert len(exported) == rows
    vectors: dict[str, list[Any]] = {}
    for row in copies.rows():
        vectors.setdefault(row["uri"], []).append(row["embedding"])
    for row in exported:
        assert row["windows"] == len(vectors[row["uri"]])
        np.testing.assert_allclose(row["embedding"], pooled(np.array(vectors[row["uri"]], np.float32)), atol=1e-4)
    # Status tells files and recordings apart.
    assert main(["status", "--lake", lake]) == 0
    done, recordings = made.result["ledger"]["done"] + 4, made.result["ledger"]["recordings"] + 2
    said = capsys.readouterr().out
    assert f"{done} done" in said
    assert f"{recordings} recordings ({done} files hold them: 2 are copies of others, byte for byte)" in said
    assert "up to date" in said


def test_names_change_and_nothing_is_encoded_again(copies: Copies) -> None:
    copies.extract()
    commands.encode(copies.lake)
    kept = {row["id"].split(":")[1]: row["embedding"] for row in copies.rows() if row["uri"].endswith("/a.wav")}

    def again() -> None:
        copies.extract()
        encoded = commands.encode(copies.lake)
        assert (encoded["encoded"], encoded["renamed"], encoded["stale_recordings"]) == (0, len(kept), 1)
        copies.check()
        assert commands.encode(copies.lake)["run_id"] is None
        first = [row for row in copies.rows() if row["window"] == 0 and row["uri"] != str(copies.audio / "d.wav")]
        assert all(row["embedding"] == kept["0"] for row in first)

    labels, audio = copies.audio / "labels.csv", copies.audio
    labels.write_text(LABELS.replace("wolf", "fox"))
    again()
    # The first by uri goes, and another stands for the recording.
    (audio / "a/a.wav").unlink()
    again()
    # A new one comes before all others.
    shutil.copyfile(audio / "b.wav", audio / "0.wav")
    again()
    os.rename(audio / "sub/c.wav", audio / "sub/renamed.wav")
    again()
    for name in ("0.wav", "b.wav"):
        (audio / name).unlink()
    again()
    # With the last name the recording goes.
    (audio / "sub/renamed.wav").unlink()
    copies.extract()
    assert commands.encode(copies.lake)["stale_recordings"] == 1
    copies.check()


def test_a_partition_at_a_time(copies: Copies) -> None:
    """Each brings its own names; none is lost, none comes twice, whatever the order."""
    audio = copies.audio
    for partition in ("sub", ".", "a"):
        copies.extract(partition=partition)
    made_of = {}
    for partition, names in (("sub", ["sub/c.wav"]), ("a", ["a/a.wav", "sub/c.wav"])):
        made_of[partition] = commands.encode(copies.lake, audio=str(audio), partition=partition)
        assert sorted({row["uri"] for row in copies.rows()}) == [f"{audio}/{name}" for name in names]
        assert len({(row["uri"], row["window"]) for row in copies.rows()}) == len(copies.rows())
        # Nothing to do the second time.
        again = commands.encode(copies.lake, audio=str(audio), partition=partition)
        assert (again["encoded"], again["renamed"], again["stale_recordings"]) == (0, 0, 0)
    assert made_of["sub"]["encoded"] == made_of["a"]["renamed"] > 0 == made_of["a"]["encoded"]
    commands.encode(copies.lake, audio=str(audio), partition=".")
    copies.check()
    whole = commands.encode(copies.lake)
    assert (whole["encoded"], whole["renamed"]) == (0, 0)
    # One moves from a partition to another: its new name comes with that one, and the old one goes.
    os.rename(audio / "a/a.wav", audio / "sub/a.wav")
    copies.extract()
    commands.encode(copies.lake, audio=str(audio), partition="sub")
    (audio / "labels.csv").write_text(LABELS.replace("a/a.wav", "gone.wav"))
    copies.check()


def test_a_table_of_before_gets_the_names_that_it_lacks(copies: Copies) -> None:
    """Before, it had rows of the first file of each recording alone, and what encode said of it told no format."""
    copies.extract()
    model_id = commands.encode(copies.lake)["model_id"]
    table.need_table(copies.lake, model_id).delete("id LIKE '%:%:%'")
    assert {Path(row["uri"]).name for row in copies.rows()} == {"a.wav", "d.wav"}
    said = table.said(copies.lake, model_id)
    said.pop("row_format")
    dataset = table.need_table(copies.lake, model_id)
    table.say(copies.lake, model_id, said | {"rows": dataset.count_rows(), "table_version": int(dataset.version)})
    encoded = commands.encode(copies.lake)
    assert encoded["encoded"] == 0 < encoded["renamed"]
    copies.check()
    assert commands.encode(copies.lake)["run_id"] is None


def test_copies_do_not_spoil_the_recall_of_an_index(tmp_path: Path) -> None:
    """All parts of the index are looked at, so it finds what there is; which of three equal rows it gives is chance."""
    vectors = np.random.default_rng(5).standard_normal((300, 4)).astype(np.float32)
    rows = [
        {
            "id": table.row_id(f"r{i}", 0, copy=uri if uri != "a" else None),
            "recording_id": f"r{i}",
            "window": 0,
            "uri": f"{uri}{i}",
            "start_s": 0.0,
            "end_s": 1.0,
            "embedding": vectors[i].tolist(),
            "posterior_std": 0.0,
            "reconstruction_error": 0.0,
            "bundle": "b",
            "record_offset": 0,
        }
        for uri in ("a", "b", "c")
        for i in range(len(vectors))
    ]
    found = pa.Table.from_pylist(rows, schema=table.schema(4))
    dataset = lance.write_dataset(found, tmp_path / "t.lance", max_rows_per_file=200)
    dataset.create_index("embedding", "IVF_FLAT", name="embedding_idx", metric="l2", num_partitions=8)
    assert table.recall(dataset) == 1


def test_a_recording_is_judged_once(copies: Copies, caplog: pytest.LogCaptureFixture) -> None:
    """By the label and the fold that its files agree on, whichever of them has one; groups that they link are one."""
    labels, audio = copies.audio / "labels.csv", copies.audio
    spec = lookup.spec_of_lake(copies.lake, None)

    def clips(text: str) -> dict[str, sampling.Clip]:
        labels.write_text("uri,label,group\n" + text)
        copies.extract()
        caplog.clear()
        known = ledger.open_ledger(copies.lake, spec.spec_id)
        found = sampling.sample(copies.lake, spec, known, ledger.training_input(known)[1])
        assert len({clip.recording_id for clip in found}) == len(found) == known.count_rows("status = 'done'") - 2
        return {Path(clip.uri).name: clip for clip in found if clip.uri.startswith(str(audio))}

    found = clips("a/a.wav,dog,g2\nb.wav,wolf,g1\nd.wav,cat,g2\n")
    assert (found["a.wav"].label, found["d.wav"].label) == (None, "cat")
    assert found["a.wav"].group == found["d.wav"].group == "g1"
    assert "1 recordings of the sample are files of the same content with different labels" in caplog.text
    found = clips("b.wav,wolf,g1\nsub/c.wav,wolf,\nd.wav,cat,g2\n")
    assert (found["a.wav"].label, found["a.wav"].group, found["d.wav"].group) == ("wolf", "g1", "g2")
    assert not caplog.text
    # A set's own folds may name any of the files.
    each = list(found.values())
    folds = {str(audio / "sub/c.wav"): "1", str(audio / "d.wav"): "2"}
    places, names, _, fold, said = folds_of(each, folds)
    assert {(names[i], fold[i]) for i in places} == {("wolf", 0), ("cat", 1)}
    assert said == "the 2 folds that the file gives"
    said = folds_of(each, folds | {str(audio / "b.wav"): "2", str(audio / "d.wav"): "1"})[-1]
    assert said.endswith("(files of 1 recordings are in several: the first by name counts)")
