"""A Flex Template of Dataflow: what its launcher is given, as the call of `soundlake` that it stands for.

Google's launcher runs a file of Python (infra/dataflow) with ``--name=value`` for each parameter of the template, and
for each of Beam's options that the service sets. Parameters have the names of the command's options, with ``_`` for
``-``; all else is Beam's, and goes after ``--``, where a name that Beam does not know either ends the call.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

# Parameters that cannot have their option's name, since Beam has an option of that name.
RENAMED = {"label_file": "labels"}
# Options that no template has: of the screen, of the local engine, of what follows a pipeline that was waited for.
LEFT_OUT = {"json", "verbose", "workers", "repair", "recheck", "max_rejects"}


def parameters(command: str) -> dict[str, Any]:
    """What a command takes of a template: the options and arguments of the real command line, by parameter.

    Parameters
    ----------
    command : str
        ``"extract"`` or ``"encode"``.

    Returns
    -------
    dict
        By the parameter's name what Typer makes of the option: its flag, whether it is needed, its default, its help.
    """
    from typer.main import get_command

    from soundlake.pipelines.cli.commands import app

    group: Any = get_command(app)
    short = {option: parameter for parameter, option in RENAMED.items()}
    found = {}
    for one in group.commands[command].params:
        name = max(one.opts, key=len).lstrip("-").replace("-", "_")
        if name not in LEFT_OUT:
            found[short.get(name, name)] = one
    return found


def _words(one: Any, value: str) -> Iterator[str]:
    """A parameter's value as words of the command line; none for a blank field of a form."""
    if one.param_type_name == "argument":
        yield value
    elif not one.is_flag:
        yield f"{one.opts[0]}={value}"
    elif value.lower() == "true":
        yield one.opts[0]
    elif value.lower() != "false":
        # Not for us to guess: the command refuses it by name.
        yield f"{one.opts[0]}={value}"


def command_line(command: str, given: Sequence[str]) -> list[str]:
    """The arguments of `soundlake`.

    Parameters
    ----------
    command : str
        ``"extract"`` or ``"encode"``.
    given : sequence of str
        From the launcher, each ``--name=value``.
    """
    known = parameters(command)
    ours, beams = [command], []
    for argument in given:
        name, _, value = argument.partition("=")
        one = known.get(name.removeprefix("--"))
        if one is None:
            beams.append(argument)
        elif value:
            ours += _words(one, value)
            known.pop(name.removeprefix("--"))
    # Without its argument the command would take the first of Beam's options for it.
    return ours if any(one.required for one in known.values()) else [*ours, "--", *beams]


def main(command: str, given: Sequence[str] | None = None) -> int:
    """Write the template's job down; return `soundlake`'s exit code.

    Parameters
    ----------
    command : str
        ``"extract"`` or ``"encode"``.
    given : sequence of str or None
        By default what this process was started with.
    """
    from soundlake.pipelines.cli import program

    return program.main(command_line(command, sys.argv[1:] if given is None else given))
