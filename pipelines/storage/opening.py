"""The store of a root: a folder on a disk, or a prefix of a bucket."""

import functools
import os

from soundlake.model.errors import InputError
from soundlake.pipelines.storage.bucket import Bucket
from soundlake.pipelines.storage.folder import Folder
from soundlake.pipelines.storage.store import Store, is_bucket

# The schemes of buckets; a root without a scheme is a folder.
_SCHEMES = ("gs", "s3")


@functools.lru_cache(maxsize=64)
def at(root: str) -> Store:
    """The store of a path or URI.

    Raises
    ------
    InputError
        If the URI has an unknown scheme or lacks a bucket name.
    """
    if not is_bucket(root):
        return Folder(os.path.abspath(root.removeprefix("file://")))
    if root.partition("://")[0] not in _SCHEMES or not root.partition("://")[2].partition("/")[0]:
        raise InputError(f"cannot open {root}: name a folder, or a place in a bucket as s3://BUCKET/… or gs://BUCKET/…")
    return Bucket(root.rstrip("/"))
