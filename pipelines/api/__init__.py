"""The public interface: a lake as an object, for notebooks, jobs and other programs; `soundlake` exports it."""

# What `soundlake` exports.
__all__ = ["hits", "lake"]
