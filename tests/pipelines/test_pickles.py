"""Nothing of a lake is unpickled, or run: its files are of kinds that hold data alone, and a model's are verified."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from soundlake.model.saved import artifact
from soundlake.pipelines.corpus import labels
from soundlake.pipelines.extract import bundle
from tests.conftest import Made
from tests.pipelines.hostile import COMMANDS, SPEC, model_of, refused


class Planted:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def planted(tmp_path: Path) -> tuple[bytes, Path]:
    """A pickle, and the folder that whoever unpickles it makes."""
    path = tmp_path / "unpickled"
    return pickle.dumps(Planted(path)), path


def with_a_pickled_type(data: bytes, rows: pa.Table) -> bytes:
    """A Parquet file whose schema asks Arrow to unpickle a type (CVE-2023-47248)."""
    first = rows.schema.field(0)
    hostile = first.with_metadata(
        {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": data}
    )
    rows = rows.cast(rows.schema.set(0, hostile))
    sink = io.BytesIO()
    parquet.write_table(rows, sink)
    assert parquet.read_schema(sink).field(0).metadata[b"ARROW:extension:metadata"] == data
    return sink.getvalue()


def test_files_of_a_model_are_refused_by_digest(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], planted: tuple[bytes, Path]
) -> None:
    data, path = planted
    for name in sorted(artifact.VERIFIED):
        lake = made.copy(tmp_path)
        folder = Path(lake.root, "models", model_of(made))
        (folder / name).write_bytes(data)
        for command in ("search", "train", "encode"):
            refused(capsys, f"{name} has changed since the training", *COMMANDS[command](made), "--lake", lake.root)
        shutil.rmtree(lake.root)
    assert not path.exists()


def test_parquet_unpickles_nothing(made: Made, tmp_path: Path, planted: tuple[bytes, Path]) -> None:
    data, path = planted
    rows = pa.table({"uri": ["a.wav"], "label": ["x"]})
    (tmp_path / "labels.parquet").write_bytes(with_a_pickled_type(data, rows))
    assert labels.read_labels(str(tmp_path / "labels.parquet"), "/r").lines == {"/r/a.wav": (1, ("x", None))}
    lake = made.copy(tmp_path)
    name = next(Path(lake.root).glob("features/*/outcomes/*.parquet"))
    name.write_bytes(with_a_pickled_type(data, parquet.read_table(name)))
    assert bundle.read_outcomes(lake, SPEC, name.stem)
    assert not path.exists()


# Runs commands one after the other, and tells what was opened in the lake, and whatever looked for something by name to
# unpickle, with the packages on the way there.
WATCHED = """
import json, os, sys
lake, calls = sys.argv[1], json.loads(sys.argv[2])
opened, unpickled = set(), set()
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        name = os.fsdecode(arguments[0])
        if name.startswith(lake + "/") and not os.path.isdir(name):
            opened.add(name)
    elif event == "pickle.find_class":
        frame, packages = sys._getframe(1), []
        while frame:
            packages.append(frame.f_globals.get("__name__", "").split(".")[0])
            frame = frame.f_back
        unpickled.add((str(arguments[0]), str(arguments[1]), " ".join(sorted(set(packages)))))
sys.addaudithook(watch)
from soundlake.pipelines.learning import sampling, showing
from soundlake.pipelines.cli.program import main
sampling.WINDOWS, showing.PAIRS, showing.QUERIES, showing.NEIGHBOURS = 100, 1, 1, 1
codes = []
for call in calls:
    sys.stdout.flush()
    unpickled_before = len(unpickled)
    codes.append([main([*call, "--lake", lake]), len(unpickled) - unpickled_before])
print("\\n" + json.dumps({"codes": codes, "opened": sorted(opened), "unpickled": sorted(unpickled)}))
"""


def test_no_command_unpickles_what_lies_in_a_lake(made: Made, tmp_path: Path, planted: tuple[bytes, Path]) -> None:
    """Pickles and a Keras archive with a lambda lie there, under names that tools look for.

    Beam pickles its steps on the way to its workers, the sandbox of the decoders what it hands over, and Numba what it
    compiles: those come from this very process, and never from a lake.
    """
    data, path = planted
    lake = made.copy(tmp_path)
    root = Path(lake.root)
    folder = root / "models" / model_of(made)
    with zipfile.ZipFile(folder / "model.keras", "w") as archive:
        layer = {
            "class_name": "Lambda",
            "config": {"function": {"class_name": "__lambda__", "config": {"code": "4w=="}}},
        }
        archive.writestr("config.json", json.dumps(layer))
        archive.writestr("data.pkl", data)
    for name in ("model.pkl", "weights.pkl", "weights.npy", "saved_model.pb", "encoder.ort", "encoder.onnx.data"):
        (folder / name).write_bytes(data)
    for name in (
        "features",
        f"features/{SPEC}",
        f"features/{SPEC}/shards",
        f"features/{SPEC}/outcomes",
        "tables",
        "runs",
    ):
        for kind in ("x.pkl", "x.pickle", "x.joblib", "x.npy"):
            (root / name / kind).write_bytes(data)
    shutil.rmtree(root / "tables" / f"{model_of(made)}.lance")
    query = str(sorted(made.audio.glob("bird/*"))[0])
    calls = [["status"], ["encode"], ["search", query], ["search", "--where", "label = 'bird'"]]
    calls += [["export", str(tmp_path / "t.npz")], ["status"], ["evaluate"], ["maintain"]]
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(root), json.dumps(calls)], capture_output=True, text=True, check=True
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert [code for code, _ in told["codes"]] == [0] * len(calls), done.stderr
    assert not path.exists()
    # Without a pipeline nothing is unpickled at all.
    assert [count for call, (_, count) in zip(calls, told["codes"], strict=True) if call[0] in PLAIN] == [0] * 5
    for module, name, packages in told["unpickled"]:
        assert {"apache_beam", "multiprocessing", "joblib", "concurrent", "numba"} & set(packages.split()), (
            module,
            name,
            packages,
        )
    assert told["opened"]
    for name in told["opened"]:
        assert Path(name).name == "lock" or name.endswith(KINDS) or "/.part-" in name, name


PLAIN = {"status", "search", "export"}
# What a lake holds: JSON, TFRecord, Parquet, HDF5 (weights, verified and not read), ONNX, numbers (verified), a report;
# locks are empty.
KINDS = (".json", ".tfrecord", ".parquet", ".weights.h5", ".onnx", "/trained.npy", ".html", ".lock")


def test_every_file_of_a_lake_is_of_a_kind_we_know(made: Made) -> None:
    """By what is in it, not by its name; Lance's own, TensorFlow's checkpoints and logs among them."""
    seen = set()
    for path in Path(made.lake.root).rglob("*"):
        if path.is_file():
            head, tail = path.read_bytes()[:8], path.read_bytes()[-8:]
            kind = next((name for name, is_one in FORMATS.items() if is_one(path, head, tail)), None)
            assert kind is not None, path
            assert not head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")), path
            seen.add(kind)
    assert seen >= {"JSON", "Parquet", "TFRecord", "HDF5", "ONNX", "NumPy", "HTML", "Lance", "Lance manifest"}


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except ValueError:
        return False
    return True


FORMATS: dict[str, Callable[[Path, bytes, bytes], bool]] = {
    "empty": lambda path, head, tail: not head,
    "JSON": lambda path, head, tail: path.suffix == ".json" and _is_json(path),
    "Parquet": lambda path, head, tail: head[:4] == tail[-4:] == b"PAR1",
    "HDF5": lambda path, head, tail: head == b"\x89HDF\r\n\x1a\n",
    "NumPy": lambda path, head, tail: head[:6] == b"\x93NUMPY" and b"{'descr': '<u8'," in path.read_bytes()[:128],
    "HTML": lambda path, head, tail: head == b"<!doctyp",
    "ONNX": lambda path, head, tail: path.suffix == ".onnx" and head[0] == 8,
    "Lance": lambda path, head, tail: path.suffix in (".lance", ".idx") and tail[-4:] == b"LANC",
    "Lance manifest": lambda path, head, tail: path.suffix == ".manifest" and tail[-4:] == b"LANC",
    "Lance transaction": lambda path, head, tail: path.suffix == ".txn",
    "TFRecord": lambda path, head, tail: path.suffix == ".tfrecord" or path.name.startswith("events.out.tfevents."),
    "checkpoint": lambda path, head, tail: path.suffix == ".index" or ".data-0000" in path.name,
    "list of checkpoints": lambda path, head, tail: head == b"model_ch",
}
