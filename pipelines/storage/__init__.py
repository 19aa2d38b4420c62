"""Storage: read and write files in a folder or a bucket."""

# The modules that other rooms may import.
__all__ = ["bucket", "folder", "opening", "patience", "secrecy", "store"]
