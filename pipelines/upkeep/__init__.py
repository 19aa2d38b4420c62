"""Upkeep: what is swept, repaired, read again and forgotten?"""

# The modules that other rooms may import.
__all__ = ["erasure", "forget", "leftovers", "maintain", "recheck", "remnants", "repair"]
