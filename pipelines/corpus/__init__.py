"""The corpus: its files, their names and their labels."""

# The modules that other rooms may import.
__all__ = ["files", "labels"]
