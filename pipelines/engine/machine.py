"""What is asked of, or told to, the operating system in its own way: on one that lacks it, the next best."""

import ctypes
import os


def cores() -> int:
    """Cores that this process may use; of the whole machine where a process cannot be bound to some, as on macOS."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def keep_freed_memory(keep: bool) -> None:
    """Whether freed blocks of a megabyte and more stay with this process, where the C library can be told.

    The local engine moves all that is shuffled in one block a step, and several copies of it: kept, they add up. The
    batches of a model come and go a thousand times: given back, each costs a page fault every 4 kB.

    Parameters
    ----------
    keep : bool
    """
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(m_mmap_threshold, 32 << 20 if keep else 1 << 20)
        mallopt(m_trim_threshold, 512 << 20 if keep else 1 << 17)
        mallopt(m_arena_max, 2)
