"""The two kinds of failure that are not a fault of ours; the command line turns each into its exit code."""


class InputError(ValueError):
    """The call or its input is wrong: the same call gives the same answer. Exit code 2.

    The message is one line: what is wrong, where, what to do.
    """


class TryLaterError(RuntimeError):
    """The same call may go through later: storage unreachable, disk full, lake busy. Exit code 75.

    The message is one line: what happened, where, what to do.
    """
