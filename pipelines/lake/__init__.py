"""The lake: what lies where, and how does it become visible?"""

# What other rooms may import.
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
