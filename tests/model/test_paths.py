"""Paths: what a lake's files name stays in the lake."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soundlake.model.errors import InputError
from soundlake.model.paths import checked_id, inside, is_id, no_links, regular

# What leads out, or may somewhere: on a disk, in a URI, in a shell, on a terminal.
HOSTILE = ["../x", "..", ".", "", "/etc/passwd", "a/../../x", "a//b", "a/", "a/./b", "x\0y"]


@pytest.mark.parametrize("name", [name for name in HOSTILE if name])
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    for on_disk in (True, False):
        with pytest.raises(InputError, match="leads out"):
            inside(str(tmp_path), name, on_disk=on_disk)


@pytest.mark.parametrize(
    "text", [*HOSTILE, "--force", "a b", "A", "a\n", "\x1b[31m", "é", "a'", "0" * 65, None, 3, ["a"]]
)
def test_what_is_no_id(text: object) -> None:
    assert not is_id(text)
    with pytest.raises(InputError, match="is not a valid bundle id"):
        checked_id(text, "bundle")  # type: ignore[arg-type]


@given(st.text())
def test_an_id_is_one_part_of_a_path(text: str) -> None:
    """By the standard library: joined to a folder it is a file in it, and no shell or terminal sees more in it."""
    if is_id(text):
        path = os.path.normpath(os.path.join("/lake", text))
        assert (os.path.dirname(path), os.path.basename(path)) == ("/lake", text)
        assert text.isascii()
        assert text.isalnum()


@given(st.lists(st.text(min_size=1), min_size=1).map("/".join))
def test_a_name_goes_down_or_is_refused(name: str) -> None:
    try:
        path = inside("/lake", name, on_disk=False)
    except InputError:
        return
    assert os.path.normpath(path) == path == f"/lake/{name}"


def test_links_on_the_way_are_refused(tmp_path: Path) -> None:
    lake, outside = tmp_path / "lake", tmp_path / "outside"
    (lake / "a" / "b").mkdir(parents=True)
    outside.mkdir()
    assert inside(str(lake), "a/b/c") == f"{lake}/a/b/c"
    (lake / "a" / "b" / "c").symlink_to(tmp_path / "nothing")
    (lake / "d").symlink_to(outside)
    (lake / "e").symlink_to(lake / "a")  # inside it, and a link all the same
    for name in ("a/b/c", "d", "d/x", "e/b"):
        with pytest.raises(InputError, match="is a symbolic link"):
            inside(str(lake), name)
    # The lake itself may be one.
    (tmp_path / "mine").symlink_to(lake)
    assert inside(str(tmp_path / "mine"), "a/b") == f"{tmp_path}/mine/a/b"


def test_links_anywhere_below(tmp_path: Path) -> None:
    no_links(tmp_path / "nothing")
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "f").write_text("x")
    no_links(tmp_path)
    (tmp_path / "a" / "b" / "l").symlink_to(tmp_path)
    with pytest.raises(InputError, match="b/l is a symbolic link"):
        no_links(tmp_path)
    with pytest.raises(InputError, match="b/l is a symbolic link"):
        no_links(tmp_path / "a" / "b" / "l")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p")
    (tmp_path / "f").write_text("x")
    assert regular(tmp_path / "f") == tmp_path / "f"
    for path in (tmp_path / "p", Path("/dev/zero")):
        with pytest.raises(InputError, match="is not a regular file"):
            regular(path)
    with pytest.raises(FileNotFoundError):
        regular(tmp_path / "nothing")
