"""Label files: what they say is read right, refused or told; never guessed, whatever the order of the rows."""

import json
import os
import unicodedata
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import PRESETS
from soundlake.pipelines import commands
from soundlake.pipelines.cli.program import main
from soundlake.pipelines.corpus.labels import Line, find_labels, read_folds, read_labels, resolved, without_file
from soundlake.pipelines.lake import ledger
from soundlake.pipelines.lake.lake import Lake
from tests.pipelines.test_extract import rows, write

NFC, NFD = unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")


def put(folder: Path, data: str | bytes, name: str = "labels.csv") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
    return str(folder / name)


def test_what_is_read(tmp_path: Path) -> None:
    text = "\ufeffuri, label,group \na.wav,dog,g1\n\n./sub/b.wav,cat,\n/abs/c.wav,,g2\n"
    put(tmp_path, text)
    found = find_labels(str(tmp_path), None)
    assert found == f"{tmp_path}/labels.csv"
    read = read_labels(found, str(tmp_path))
    assert read.lines == {
        f"{tmp_path}/a.wav": Line(2, ("dog", "g1")),
        f"{tmp_path}/sub/b.wav": Line(4, ("cat", None)),
        "/abs/c.wav": Line(5, (None, "g2")),
    }
    assert read.notes == []


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"uri": ["a.wav", "b.wav"], "label": [3.5, float("nan")]})
    parquet.write_table(table, tmp_path / "l.parquet")
    found = find_labels(str(tmp_path), str(tmp_path / "l.parquet"))
    assert read_labels(str(found), "/c").lines == {"/c/a.wav": (1, ("3.5", None)), "/c/b.wav": (2, (None, None))}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_other_programs_write(tmp_path: Path, separator: str, end: str) -> None:
    """Spreadsheets' separators and ends of lines; names with either in them, in quotes."""
    lines = [['"label"', "uri"], ["dog", f'"a{separator}b.wav"'], ["", ""], ['"""loud"""', '"c\n.wav"'], ["x"]]
    labels = put(tmp_path, end.join(separator.join(line) for line in lines[:-1]) + end)
    assert read_labels(labels, "/c").lines == {
        f"/c/a{separator}b.wav": (2, ("dog", None)),
        "/c/c\n.wav": (4, ('"loud"', None)),
    }


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("l.csv", "file,label\na,b\n", "no column `uri`"),
        ("l.csv", "a.wav,dog\nb.wav,wolf\n", "no column `uri`: name the columns in its first line"),
        ("l.csv", "a.wav,dog", "no column `uri`: name the columns in its first line"),
        ("l.csv", "", "is empty: name the columns in its first line"),
        ("l.csv", "\ufeff \r\n", "is empty"),
        ("l.csv", "uri,kind\na,b\n", "needs columns `uri` and `label` or `group`"),
        ("l.csv", "uri,label,label\na,b,c\n", "two columns `label`"),
        ("l.csv", b"uri\n\xff\xfe", "UTF-8"),
        ("l.csv", "uri,label\na.wav,dog\n".encode("utf-16"), "UTF-8"),
        ("l.csv", "uri,label\na, b.wav,dog\n", "3 values in line 2 and 2 columns"),
        ("l.csv", 'uri,label\na.wav,"dog\nb.wav,wolf\n', "line 2 is not valid CSV"),
        ("l.csv", "uri,label\na.wav,dog\n,wolf\n", "names no file in line 3"),
        ("l.parquet", b"PAR1", "cannot read"),
    ],
)
def test_what_is_refused(tmp_path: Path, name: str, data: str | bytes, said: str) -> None:
    labels = put(tmp_path, data, name)
    with pytest.raises(InputError, match=said):
        read_labels(labels, "/c")


def test_columns_that_are_no_text(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"uri": ["a.wav"], "label": [b"dog"]}), tmp_path / "l.parquet")
    with pytest.raises(InputError, match="a column of binary where text is needed: `label`"):
        read_labels(str(tmp_path / "l.parquet"), "/c")


def test_two_label_files(tmp_path: Path) -> None:
    put(tmp_path, "uri,label\n")
    put(tmp_path, b"", "labels.parquet")
    with pytest.raises(InputError, match=r"two label files, labels\.csv and labels\.parquet: choose one with --labels"):
        find_labels(str(tmp_path), None)
    assert find_labels(str(tmp_path), str(tmp_path / "labels.csv")) == f"{tmp_path}/labels.csv"
    with pytest.raises(InputError, match="no such file"):
        find_labels("/c", str(tmp_path / "no.csv"))


@pytest.mark.parametrize(
    "spelling",
    [
        "sub/a.wav",
        "./sub/a.wav",
        "sub//a.wav",
        "sub/./a.wav",
        "other/../sub/a.wav",
        "/c/sub/a.wav",
        "//c/sub/a.wav",
        "file:///c/sub/a.wav",
        "file:///c/sub/%61.wav",
    ],
)
def test_one_file_in_any_spelling(tmp_path: Path, spelling: str) -> None:
    """What the file system takes for one file is one here; and two rows that differ are found by it."""
    assert resolved(spelling, "/c") == "/c/sub/a.wav"
    labels = put(tmp_path, f"uri,label,group\nsub/a.wav,dog,\nb.wav,dog,\n{spelling},wolf,g\n")
    said = r"says two things about /c/sub/a.wav: label 'dog' in line 2, label 'wolf' and group 'g' in line 4\."
    with pytest.raises(InputError, match=said):
        read_labels(labels, "/c")
    labels = put(tmp_path, f"uri,label\nsub/a.wav,dog\n{spelling}, dog\n")
    assert [line.values for line in read_labels(labels, "/c").lines.values()] == [("dog", None)]


def test_spellings_in_buckets_and_of_names_that_are_not_utf8() -> None:
    assert resolved("./a.wav", "s3://b/c") == resolved("s3://b/c/a.wav", "s3://b/c") == "s3://b/c/a.wav"
    # To a bucket these are two names.
    assert resolved("x//a.wav", "s3://b/c") != resolved("x/a.wav", "s3://b/c")
    assert resolved("file:///c/n%ff", "/c") == "file:///c/n%FF"
    assert resolved("a.wav", "file:///n%FF") == "file:///n%FF/a.wav"


def test_folds_that_contradict_each_other(tmp_path: Path) -> None:
    labels = put(tmp_path, "uri,fold\na.wav,1\nb.wav,2\n./a.wav,2\n")
    with pytest.raises(InputError, match="fold '1' in line 2, fold '2' in line 4"):
        read_folds(labels)
    put(tmp_path, "uri,fold\na.wav,1\nb.wav,2\n./a.wav,1\n")
    assert read_folds(labels) == {f"{tmp_path}/a.wav": "1", f"{tmp_path}/b.wav": "2"}


def test_labels_that_look_alike_are_told(tmp_path: Path) -> None:
    names = ["Dog", "dog", " robin ", "robin", "barn owl", "barn  owl", f"caf{NFC}", f"caf{NFD}", "cat"]
    text = "uri,label\n" + "".join(f"{i}.wav,{name}\n" for i, name in enumerate(names))
    found = read_labels(put(tmp_path, text), "/c")
    assert [line.values[0] for line in found.lines.values()] == [name.strip() for name in names]
    blanks, *alike = found.notes
    assert blanks == "1 rows have blanks around a label or group, the first in line 4: the blanks were removed"
    assert [note.partition(" differ only")[0] for note in alike] == [
        "'Dog', 'dog'",
        "'barn  owl', 'barn owl'",
        f"'caf{NFD}', 'caf{NFC}'",
    ]


@pytest.mark.parametrize(
    ("label", "file", "differs"),
    [
        (f"{NFD}.wav", f"{NFC}.wav", "in Unicode form"),
        (f"{NFC}.wav", f"{NFD}.wav", "in Unicode form"),
        ("Robin.WAV", "robin.wav", "in case"),
        ("Sub/a.wav", "sub/a.wav", "in case"),
        (" robin.wav", "robin.wav", "in blanks"),
        ("robin .wav", "robin.wav", "in blanks"),
        (f" {NFD.upper()}.wav ", f"{NFC}.wav", "in case, blanks, slashes or Unicode form"),
        ("sub\\a.wav", "sub/a.wav", "in case, blanks, slashes or Unicode form"),
        ("brid/a.wav", "bird/a.wav", "in its folder"),
        ("robin.wav", "robin.flac", "in its ending"),
        ("robin-o1.wav", "robin-01.wav", "in a few letters"),
        ("robin.wav", "sub/heron.wav", None),
    ],
)
def test_the_nearest_name(tmp_path: Path, label: str, file: str, differs: str | None) -> None:
    for name in (file, "zzz.wav", "zzz/yyyyyyy.wav"):
        put((tmp_path / name).parent, "x", Path(name).name)
    (told,) = without_file([(7, f"{tmp_path}/{label}")], str(tmp_path))
    nearest = None if differs is None else f"{tmp_path}/{file}"
    assert told == {"line": 7, "uri": f"{tmp_path}/{label}", "nearest": nearest, "differs": differs}


def test_commands_tell_and_refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that differs by its Unicode form alone is told, not joined; what contradicts itself changes nothing."""
    audio, lake = tmp_path / "audio", str(tmp_path / "lake")
    for number, name in enumerate([f"caf{NFC}.wav", "robin.wav", "sub/c.wav"]):
        write(audio / name, 1.0, seed=number)
    unmatched = "".join(f"no{i}.wav,x\n" for i in range(7))
    put(audio, f"uri,label\ncaf{NFD}.wav,cat\nROBIN.wav, robin \nsub/c.wav,dog\n{unmatched}")
    for command in ("plan", "extract"):
        assert main([command, str(audio), "--lake", lake]) == 0
        out = capsys.readouterr().out
        assert "9 labels without a file" in out
        assert f"line 2 names {audio}/caf{NFD}.wav: there is no such file; the nearest is {audio}/caf{NFC}.wav, " in out
        assert "which differs in Unicode form" in out
        assert f"the nearest is {audio}/robin.wav, which differs in case" in out
        assert f"line 5 names {audio}/no0.wav: there is no such file\n" in out
        assert "4 more have no file" in out
        assert "1 rows have blanks around a label or group, the first in line 3" in out
    spec = PRESETS["general"].spec_id

    def labels() -> dict[str, str | None]:
        found = ledger.open_ledger(Lake.at(lake), spec).to_table().to_pylist()
        return {os.path.relpath(row["uri"], audio): row["label"] for row in found}

    expected = {f"caf{NFC}.wav": None, "robin.wav": None, "sub/c.wav": "dog"}
    assert labels() == expected
    # By partitions: a label that lies in none is told by each.
    assert main(["extract", str(audio), "--lake", lake, "--partition", "sub", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels_without_file"] == 0
    put(audio, "uri,label\nSub/c.wav,wolf\nsub/c.wav,dog\nnone.wav,x\n")
    assert main(["extract", str(audio), "--lake", lake, "--partition", "sub", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["unmatched_labels"]
    assert told == {
        "line": 2,
        "uri": f"{audio}/Sub/c.wav",
        "nearest": f"{audio}/sub/c.wav",
        "differs": "in case",
    }
    # Two rows, in either order.
    for text in ("sub/c.wav,dog\n./sub/c.wav,wolf\n", "./sub/c.wav,wolf\nsub/c.wav,dog\n"):
        put(audio, f"uri,label\n{text}")
        assert main(["extract", str(audio), "--lake", lake]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"soundlake: {audio}/labels.csv says two things about {audio}/sub/c.wav: label '")
        assert all(word in line for word in ("'dog' in line", "'wolf' in line"))
    put(audio, "sub/c.wav,dog\n")
    assert main(["extract", str(audio), "--lake", lake]) == 2
    assert "no column `uri`" in capsys.readouterr().err
    assert labels() == expected


def test_a_label_of_a_file_that_comes_later(tmp_path: Path) -> None:
    audio, lake = tmp_path / "audio", Lake.at(str(tmp_path / "lake"))
    write(audio / "a.wav", 1.0, seed=1)
    put(audio, "uri,label\na.wav,dog\nb.wav,wolf\n")
    assert commands.extract(lake, str(audio), spec=PRESETS["general"])["labels_without_file"] == 1
    write(audio / "b.wav", 1.0, seed=2)
    assert commands.extract(lake, str(audio), spec=PRESETS["general"])["labels_without_file"] == 0
    assert {Path(uri).name: row["label"] for uri, row in rows(lake).items()} == {"a.wav": "dog", "b.wav": "wolf"}
