"""Templates: pipelines that are written to a file, for a service that runs them later."""

from collections.abc import Sequence

from soundlake.model.errors import InputError


def is_template(beam: Sequence[str]) -> bool:
    """Whether Beam's options ask for a template, which a service runs later, instead of a run now."""
    return any(argument.startswith("--template_location=") for argument in beam)


def refuse_template(beam: Sequence[str], command: str) -> None:
    """Raise `InputError` if Beam's options ask for a template: `command` needs the result of its first pipeline."""
    if is_template(beam):
        raise InputError(f"{command} cannot write a template: it needs the result; leave out --template_location")
