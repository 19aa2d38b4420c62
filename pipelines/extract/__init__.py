"""Extract: how does audio become features?"""

# What other rooms may import.
__all__ = ["account", "bundle", "cost", "estimate", "finish", "pipeline", "plan", "windows"]
