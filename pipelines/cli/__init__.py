"""The command line: what does a person type and read?"""

# What other rooms may import.
__all__ = ["program"]
