"""Extract: how does audio become features?"""

# The modules that other rooms may import.
__all__ = ["account", "bundle", "cost", "estimate", "finish", "pipeline", "plan", "windows"]
