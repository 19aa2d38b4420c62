"""Calls that depend on the operating system, with the next best behaviour where a system lacks them."""

import ctypes
import os


def cores() -> int:
    """Number of cores that this process may use; all cores where a process cannot be bound to some, as on macOS."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory(keep: bool) -> None:
    """Set whether this process keeps freed blocks of a megabyte and more, if the C library has such a setting.

    The local engine moves the shuffled data of a step as one block, and makes several copies of it: if they are kept,
    they add up. The batches of a model are allocated and freed a thousand times: if their memory is given back, each
    batch costs a page fault every 4 kB.

    Parameters
    ----------
    keep : bool
        False to give them back to the system.
    """
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(m_mmap_threshold, 32 << 20 if keep else 1 << 20)
        mallopt(m_trim_threshold, 512 << 20 if keep else 1 << 17)
        mallopt(m_arena_max, 2)
