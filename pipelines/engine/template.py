"""A pipeline that is written down, for a service that runs it later."""

from collections.abc import Sequence

from soundlake.model.errors import InputError


def is_template(beam: Sequence[str]) -> bool:
    """Whether Beam's options are to write a pipeline down, for a service that runs it later, in place of running it."""
    return any(argument.startswith("--template_location=") for argument in beam)


def refuse_template(beam: Sequence[str], command: str) -> None:
    """Raise `InputError` if so: what comes after the first pipeline of `command` has to wait for it."""
    if is_template(beam):
        raise InputError(f"{command} cannot write a template: it needs the result; leave out --template_location")
