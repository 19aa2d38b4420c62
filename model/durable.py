"""Files that a power cut cannot undo: what is synced, and renames that are."""

import os
from pathlib import Path


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file's content, or a folder's names, are on the disk.

    A rename alone is not: after a power cut the folder may have its old names, though what was written later survives.
    """
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def make_folders(folder: str | os.PathLike[str]) -> None:
    """Make a folder and those above it that are missing, durably."""
    path = Path(folder)
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync(path.parent)


def replace(part: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Give a synced file its name, durably."""
    os.replace(part, target)
    sync(os.path.dirname(os.path.abspath(target)))
