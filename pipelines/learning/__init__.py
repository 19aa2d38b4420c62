"""Learning: how does a model come about, and is it any good?"""

# What other rooms may import.
__all__ = ["judging", "training"]
