"""The kinds of failure that are not a fault of ours; the command line turns each into its exit code."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from typing import Any


class InputError(ValueError):
    """The call or its input is wrong: the same call gives the same answer. Exit code 2.

    The message is one line: what is wrong, where, what to do.
    """


class TryLaterError(RuntimeError):
    """The same call may go through later: storage unreachable, disk full, lake busy. Exit code 75.

    The message is one line: what happened, where, what to do.
    """


class HeldError(RuntimeError):
    """A gate said no: what was made is worse than what is in use. Exit code 3.

    The message is one line: what is worse, by which figures, what to do.

    Parameters
    ----------
    message : str
    found : dict or None
        What was found on the way there: the figures.
    """

    def __init__(self, message: str, found: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.found = found or {}


# What a file system without locks says.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}

# What the next call would meet, too.
_OF_THE_CALL = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_OF_THE_CALL |= {errno.ENAMETOOLONG, errno.ELOOP}


@contextlib.contextmanager
def storage_errors(where: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what a file system says into one line and the right exit code.

    Raises
    ------
    InputError
        Missing, not a folder, or one where a file is wanted, a name too long, read-only, or not permitted: the same
        call fails again.
    TryLaterError
        Full, a file larger than it may be, or anything else that storage says.
    """
    try:
        yield
    except OSError as error:
        said, number = error.strerror or str(error), error.errno
        # Lance has the number only in its words.
        if number is None and (found := re.search(r"\(os error (\d+)\)", said)):
            number = int(found[1])
            said = os.strerror(number)
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise TryLaterError(f"no space left for {where}: free some and run the same command again") from error
        if number == errno.EFBIG:
            raise TryLaterError(
                f"a file at {where} may not grow so large: raise the limit (ulimit -f) and run the same command again"
            ) from error
        if number in _OF_THE_CALL:
            raise InputError(f"cannot use {where}: {said}") from error
        raise TryLaterError(f"storage failed at {where}: {said}; run the same command again") from error
