"""The command line: arguments, output, messages and exit codes."""

# The modules that other rooms may import.
__all__ = ["program"]
