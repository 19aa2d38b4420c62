"""The lake: the place of every file, and the commits that make files visible."""

# The modules that other rooms may import.
__all__ = [
    "forgotten",
    "fragments",
    "lake",
    "ledger",
    "lookup",
    "models",
    "progress",
    "runs",
    "stages",
    "status",
    "table",
    "traces",
]
