"""Learning: train, evaluate and promote models."""

# The modules that other rooms may import.
__all__ = ["judging", "training"]
