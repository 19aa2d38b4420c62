"""Queries: what sounds like this? And what comes out of a table."""

# What other rooms may import.
__all__ = ["export", "query", "random_pairs", "search"]
