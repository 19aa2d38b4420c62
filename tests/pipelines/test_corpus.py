"""Listing: nothing twice, nothing silent, every name a person can make."""

import os
from pathlib import Path

import pytest

from soundlake.model.errors import InputError
from soundlake.pipelines.corpus.files import Entry, at_hand, corpus_root, listing, local_path, uri_of


def touch(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_listing(tmp_path: Path) -> None:
    wanted = [
        touch(tmp_path / name) for name in ("a.wav", "b", "sub/c.xyz", "dir.wav/d.flac", "UPPER.WAV", "x.wav.gz1")
    ]
    left = [touch(tmp_path / name) for name in (".hidden.wav", "notes.txt", "cover.JPG", "sub/labels.csv", "a.wav.gz")]
    touch(tmp_path / ".git/e.wav")
    (tmp_path / "empty").mkdir()
    found = list(listing(str(tmp_path)))
    assert sorted(item[0] for item in found if item) == sorted(map(str, wanted))
    assert found.count(None) == len(left)
    sizes = dict(item for item in found if item)
    assert sizes[str(wanted[0])] == Entry(1, wanted[0].stat().st_mtime_ns)


def test_links(tmp_path: Path) -> None:
    inside, outside = touch(tmp_path / "in/real/a.wav"), touch(tmp_path / "out/b.wav")
    os.symlink(tmp_path / "in", tmp_path / "in/loop")
    os.symlink(tmp_path / "in/real", tmp_path / "in/again")
    os.symlink(tmp_path / "out", tmp_path / "in/elsewhere")
    os.symlink(tmp_path / "out", tmp_path / "in/elsewhere-too")
    os.symlink(inside, tmp_path / "in/file-link.wav")
    os.symlink("nowhere", tmp_path / "in/dangling.wav")
    found = dict(item for item in listing(str(tmp_path / "in")) if item)
    assert sorted(Path(uri).relative_to(tmp_path / "in").as_posix() for uri in found) == [
        "dangling.wav",
        "elsewhere/b.wav",
        "file-link.wav",
        "real/a.wav",
    ]
    assert found[str(tmp_path / "in/dangling.wav")] == Entry(-1, -1)
    assert outside.exists()


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/latin-\xe9.wav"
    with open(raw, "wb") as file:
        file.write(b"x")
    (uri,) = (item[0] for item in listing(str(tmp_path)) if item)
    assert uri.startswith("file://")
    uri.encode()
    assert local_path(uri) == raw
    with at_hand(uri) as path, open(path, "rb") as file:
        assert file.read() == b"x"


@pytest.mark.parametrize("name", ["a b.wav", "new\nline.wav", "100%25.wav", "#?.wav", "[ab]{c}*?.wav", "🎵.wav", "-rf"])
def test_uris_come_back(name: str) -> None:
    raw = os.fsencode(f"/x/{name}")
    assert local_path(uri_of(raw)) == raw
    assert uri_of(raw) == f"/x/{name}"


@pytest.mark.parametrize("scheme", ["s3://b/a.wav", "gs://b/a.wav"])
def test_buckets_have_no_local_path(scheme: str) -> None:
    assert local_path(scheme) is None


def test_roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert corpus_root(".") == str(tmp_path)
    assert corpus_root(f"file://{tmp_path}") == str(tmp_path)
    assert corpus_root("s3://bucket/a/") == "s3://bucket/a"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert corpus_root("~") == str(tmp_path)
    name = os.fsdecode(b"n\xff")
    (tmp_path / name).mkdir()
    assert corpus_root(name) == corpus_root(f"file://{tmp_path}/n%ff") == f"file://{tmp_path}/n%FF"
    touch(tmp_path / name / "a.wav")
    assert [found[0] for found in listing(corpus_root(name)) if found] == [f"file://{tmp_path}/n%FF/a.wav"]
    with pytest.raises(InputError, match="no such folder"):
        corpus_root("nowhere")
    assert corpus_root("nowhere", may_be_gone=True) == f"{tmp_path}/nowhere"
    with pytest.raises(InputError, match="corpus path is empty"):
        corpus_root("")
    touch(tmp_path / "a.wav")
    with pytest.raises(InputError, match="it is a file"):
        corpus_root("a.wav")
