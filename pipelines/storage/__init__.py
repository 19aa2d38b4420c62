"""Storage: how do bytes lie in a folder or a bucket?"""

# What other rooms may import.
__all__ = ["bucket", "folder", "opening", "patience", "secrecy", "store"]
