"""Engines: where does a pipeline run?"""

# What other rooms may import.
__all__ = ["joins", "machine", "runners", "template", "worker_boot"]
