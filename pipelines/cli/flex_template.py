"""Dataflow's Flex Templates: translate the arguments of the launcher into a call of `soundlake`.

Google's launcher runs a Python file (infra/dataflow) with ``--name=value`` for each parameter of the template, and for
each Beam option that the service sets. Parameters have the names of the command's options, with ``_`` for ``-``. All
other arguments are Beam's and go after ``--``; a name that Beam does not accept either is an error there.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

# Parameters that cannot have their option's name, since Beam has an option of that name.
RENAMED = {"label_file": "labels"}
# Options that no template has: for the screen, for the local engine, and for work after a pipeline has ended.
LEFT_OUT = {"json", "verbose", "workers", "repair", "recheck", "max_rejects"}


def parameters(command: str) -> dict[str, Any]:
    """The parameters of a command's template: the options and arguments of the real command line, by parameter.

    Parameters
    ----------
    command : str
        ``"extract"`` or ``"encode"``.

    Returns
    -------
    dict
        Typer's object of each option by the parameter's name: flag, whether it is required, default, help.
    """
    from typer.main import get_command

    from soundlake.pipelines.cli.commands import app

    group: Any = get_command(app)
    renamed = {option: parameter for parameter, option in RENAMED.items()}
    options = {}
    for option in group.commands[command].params:
        name = max(option.opts, key=len).lstrip("-").replace("-", "_")
        if name not in LEFT_OUT:
            options[renamed.get(name, name)] = option
    return options


def _words(one: Any, value: str) -> Iterator[str]:
    """A parameter's value as words of the command line; none for a flag that is false."""
    if one.param_type_name == "argument":
        yield value
    elif not one.is_flag:
        yield f"{one.opts[0]}={value}"
    elif value.lower() == "true":
        yield one.opts[0]
    elif value.lower() != "false":
        # Do not guess: the command refuses the value and names the option.
        yield f"{one.opts[0]}={value}"


def command_line(command: str, given: Sequence[str]) -> list[str]:
    """The arguments of `soundlake` for the launcher's arguments.

    Parameters
    ----------
    command : str
        ``"extract"`` or ``"encode"``.
    given : sequence of str
        From the launcher, each ``--name=value``.
    """
    options = parameters(command)
    own_words, beam_options = [command], []
    for argument in given:
        name, _, value = argument.partition("=")
        option = options.get(name.removeprefix("--"))
        if option is None:
            beam_options.append(argument)
        elif value:
            own_words += _words(option, value)
            options.pop(name.removeprefix("--"))
    # If an argument is missing, the command would take the first Beam option for it.
    return own_words if any(option.required for option in options.values()) else [*own_words, "--", *beam_options]


def main(command: str, given: Sequence[str] | None = None) -> int:
    """Run the command, which writes down the template's job; return its exit code.

    Parameters
    ----------
    command : str
        ``"extract"`` or ``"encode"``.
    given : sequence of str or None
        By default the arguments of this process.
    """
    from soundlake.pipelines.cli import program

    return program.main(command_line(command, sys.argv[1:] if given is None else given))
