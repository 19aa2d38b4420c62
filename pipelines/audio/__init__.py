"""Audio: what does a file sound like? Readers, their time line, and the process that they run in."""

# What other rooms may import.
__all__ = ["isolation", "reading", "recording", "resampling"]
