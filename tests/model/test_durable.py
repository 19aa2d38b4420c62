"""What a power cut must not undo: files are synced before they get their names, folders after."""

import os
from pathlib import Path
from typing import Any

import pytest

from soundlake.model.saved import artifact
from soundlake.pipelines.storage.folder import Folder


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What was synced and renamed, in order; all of it is done."""
    seen: list[tuple[str, str]] = []
    sync, rename = os.fsync, os.replace

    def fsync(number: int) -> None:
        seen.append(("sync", os.readlink(f"/proc/self/fd/{number}")))
        sync(number)

    def replace(source: Any, target: Any) -> None:
        seen.append(("name", os.fspath(target)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    return seen


def test_a_file_in_new_folders(tmp_path: Path, events: list[tuple[str, str]]) -> None:
    with Folder(str(tmp_path)).create("a/b/c") as file:
        file.write(b"x")
    a, b = tmp_path / "a", tmp_path / "a" / "b"
    (first, second, (how, part), *rest) = events
    assert (first, second) == (("sync", str(tmp_path)), ("sync", str(a)))
    assert (how, os.path.dirname(part)) == ("sync", str(b))
    assert rest == [("name", str(b / "c")), ("sync", str(b))]


def test_what_nobody_needs_after_a_power_cut_is_not_synced(tmp_path: Path, events: list[tuple[str, str]]) -> None:
    with Folder(str(tmp_path)).create("a/c", durable=False) as file:
        file.write(b"x")
    assert events == [("name", str(tmp_path / "a" / "c"))]


def test_a_text_of_a_model(tmp_path: Path, events: list[tuple[str, str]]) -> None:
    artifact.write_json(tmp_path / "model.json", {"a": 1})
    assert [how for how, _ in events] == ["sync", "name", "sync"]
    assert events[1:] == [("name", str(tmp_path / "model.json")), ("sync", str(tmp_path))]
