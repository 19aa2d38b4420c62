"""Queries: search by sound, and export of tables."""

# The modules that other rooms may import.
__all__ = ["export", "query", "random_pairs", "search"]
