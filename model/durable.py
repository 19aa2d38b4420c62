"""Syncs and renames that survive a power cut."""

import os
from pathlib import Path


def sync(path: str | os.PathLike[str]) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk.

    A rename without a sync may be lost: after a power cut the folder may have its old names again, although files
    written later survive.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(folder: str | os.PathLike[str]) -> None:
    """Make a folder and its missing parents, and sync them to the disk."""
    path = Path(folder)
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync(path.parent)


def replace(part: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Rename a file that is already synced, and sync the rename."""
    os.replace(part, target)
    sync(os.path.dirname(os.path.abspath(target)))
