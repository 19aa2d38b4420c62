"""Audio: readers of sound files, their time line, and the process in which they run."""

# The modules that other rooms may import.
__all__ = ["isolation", "reading", "recording", "resampling"]
