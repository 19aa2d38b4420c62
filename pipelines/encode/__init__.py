"""Encode: how do features become embeddings?"""

# The modules that other rooms may import.
__all__ = ["encoder", "finish", "pipeline"]
