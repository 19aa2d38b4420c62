"""Storage: how do bytes lie in a folder or a bucket?"""

__all__ = ["bucket", "folder", "opening", "patience", "secrecy", "store"]
