"""Engines: where does a pipeline run?"""

# The modules that other rooms may import.
__all__ = ["joins", "machine", "runners", "template", "worker_boot"]
