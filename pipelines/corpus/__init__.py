"""The corpus: which files are there, and what are they called?"""

# What other rooms may import.
__all__ = ["files", "labels"]
