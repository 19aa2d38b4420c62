"""Limits of this process, for the length of a block."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def file_size(limit: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: what a full disk says, with another number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
