"""A pipeline that is written down, for a service that runs it later."""

from collections.abc import Sequence


def is_template(beam: Sequence[str]) -> bool:
    """Whether Beam's options are to write a pipeline down, for a service that runs it later, in place of running it."""
    return any(argument.startswith("--template_location=") for argument in beam)
