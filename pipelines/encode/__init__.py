"""Encode: how do features become embeddings?"""

# What other rooms may import.
__all__ = ["encoder", "finish", "pipeline"]
