"""Kinds of failure that are not internal errors, and the translation of operating system errors into them.

The command line turns each kind into its exit code. Every library wraps the system's errors in its own way. `number_of`
recovers the error number, and `of_system` turns it into one of the kinds below. No other code in soundlake interprets
system errors.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from typing import Any


class SoundlakeError(Exception):
    """Base class of all errors that soundlake raises on purpose; each subclass stands for what a caller can do next."""


class InputError(SoundlakeError, ValueError):
    """The call or its input is wrong: the same call would fail again. Exit code 2.

    The message is one line: what is wrong, where, what to do.
    """


class TryLaterError(SoundlakeError, RuntimeError):
    """The same call may succeed later: storage unreachable, disk full, lake busy. Exit code 75.

    The message is one line: what happened, where, what to do.
    """


class HeldError(SoundlakeError, RuntimeError):
    """A quality gate refused the result: it is worse than what is in use. Exit code 3.

    The message is one line: what is worse, by which figures, what to do.

    Parameters
    ----------
    message : str
    found : dict or None
        The figures that were measured for the decision.
    """

    def __init__(self, message: str, found: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.found = found or {}


# Errors of a file system without locks.
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}

# The same call would fail with these again: exit code 2.
_OF_THE_CALL = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_OF_THE_CALL |= {errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV}
# This machine or process has run out of a resource. The file that was being read is not the cause.
OF_THE_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT}
# The network, or a server behind it, failed: the next try may succeed.
OF_THE_NETWORK = {errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENETDOWN}
OF_THE_NETWORK |= {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN}
# A folder that cannot be listed because of one of these errors still exists, and so do its files.
PASSING = OF_THE_MACHINE | OF_THE_NETWORK | {errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE}
_KNOWN = OF_THE_MACHINE | OF_THE_NETWORK | _OF_THE_CALL
_KNOWN |= {errno.EIO, errno.EFBIG, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETXTBSY, errno.EBUSY, errno.ENOLCK}

# Forms in which libraries write the number: Rust (Lance, obstore), Arrow, HDF5, and Python in a worker's traceback.
_NUMBER = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]|\berrno = (\d+)|\[Errno (\d+)\]|system error number (\d+)")
# TensorFlow writes only the system's message, without the number, after the path.
_WORDS = {os.strerror(number): number for number in _KNOWN}
_IN_WORDS = re.compile(f"(?:^|; )({'|'.join(map(re.escape, _WORDS))})(?!\\w)", re.MULTILINE)
# Forms in which libraries name the file in a message.
_PLACE = re.compile(
    r"(?:Unable to open file |at path |local file |input source |name = )['\"]?(/.+?)['\"]?(?:[:,;)]|\. Detail|$)"
    r"|(?:^|\}\} )(/[^;\n]+);",
    re.MULTILINE,
)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes; a chain may contain a cycle, as with Beam."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        yield following
        seen.add(id(following))
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def _own_number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        # PyAV's errors may also have FFmpeg's own numbers, which are not the system's.
        return error.errno if error.errno in errno.errorcode else None
    text = str(error)
    if numbers := _NUMBER.findall(text):
        return int("".join(numbers[-1]))
    match = _IN_WORDS.search(text)
    return _WORDS[match[1]] if match else None


def number_of(error: BaseException) -> int | None:
    """The operating system's number of an error, whatever library raised it; None if it is not a system error.

    The number is read from ``errno``, or from the message of the error or of one of its causes: Lance raises
    ``ValueError``, Arrow ``ArrowInvalid``, TensorFlow its own classes, and Beam a ``RuntimeError`` with a worker's
    traceback.
    """
    for cause in _chain(error):
        if (number := _own_number(cause)) is not None:
            return number
    return None


def _place_of(error: BaseException) -> str:
    """The file that an error names, or a general phrase if it names none."""
    for cause in _chain(error):
        name = getattr(cause, "filename", None)
        if name:
            return os.fsdecode(name) if isinstance(name, str | bytes) else str(name)
        if match := _PLACE.search(str(cause)):
            return match[1] or match[2]
    return "a file of the lake or the corpus"


def of_system(error: BaseException, where: str | os.PathLike[str] | None = None) -> InputError | TryLaterError | None:
    """The soundlake error that stands for an error of the operating system.

    Parameters
    ----------
    error : BaseException
    where : path or None
        The path that was being read or written; None for the file that the error names.

    Returns
    -------
    InputError, TryLaterError or None
        Its message is one line: what happened, where, and what to do. None if the error has no known system number.
    """
    number = number_of(error)
    if number is None or number not in _KNOWN:
        return None
    message = os.strerror(number)
    if isinstance(error, OSError) and error.errno == number and type(error).__module__ == "builtins":
        # The error may have a better message of its own, such as a bucket's. Of a library's many lines only the
        # system's message is kept.
        message = error.strerror if error.strerror and not _NUMBER.search(str(error.strerror)) else message
    place = _place_of(error) if where is None else os.fspath(where)
    if number == errno.ENOENT and is_of_lance(error):
        return InputError(f"{place} is missing: a ledger or table has lost a file; restore its folder from a backup")
    if number in _OF_THE_CALL:
        return InputError(f"cannot use {place}: {message}")
    again = "run the same command again"
    match number:
        case errno.ENOSPC:
            return TryLaterError(f"no space left for {place}: free some and {again}")
        case errno.EDQUOT:
            return TryLaterError(
                f"the disk quota is used up at {place}: free some space, or have it raised, and {again}"
            )
        case errno.EFBIG:
            return TryLaterError(f"a file at {place} may not grow so large: raise the limit (ulimit -f) and {again}")
        case errno.EMFILE:
            return TryLaterError(f"too many open files while using {place}: raise the limit (ulimit -n) and {again}")
        case errno.ENFILE:
            return TryLaterError(
                f"too many open files on this machine while using {place}: stop other programs, or raise fs.file-max, "
                f"and {again}"
            )
        case errno.ENOMEM:
            return TryLaterError(
                f"not enough memory while using {place}: stop other programs, or use fewer --workers, and {again}"
            )
        case errno.EIO | errno.ENXIO | errno.ENODEV:
            return TryLaterError(f"storage failed at {place}: {message}; check the disk or network share, then {again}")
        case errno.ESTALE if message == os.strerror(number):
            return TryLaterError(
                f"storage failed at {place}: {message}; mount the network share anew if it lasts, and {again}"
            )
    if number in OF_THE_NETWORK:
        return TryLaterError(f"no connection to {place}: {message}; check the network, then {again}")
    return TryLaterError(f"storage failed at {place}: {message}; {again}")


@contextlib.contextmanager
def storage_errors(where: str | os.PathLike[str]) -> Iterator[None]:
    """Turn storage errors of the system or of a library into soundlake errors with one line and the right exit code.

    Raises
    ------
    InputError
        If the path is missing, not a folder, a folder where a file is wanted, too long, read-only or not permitted: the
        same call would fail again.
    TryLaterError
        If storage is full, a file exceeds the size limit, too many files are open, or storage fails in another way.
    """
    try:
        yield
    except (InputError, TryLaterError, HeldError):
        raise
    except Exception as error:
        if (clear := of_system(error, where)) is not None:
            raise clear from error
        if isinstance(error, OSError) and not is_of_lance(error):
            message = error.strerror or str(error)
            raise TryLaterError(f"storage failed at {where}: {message}; run the same command again") from error
        raise


# Lance has no exception class for read errors. They are recognised by the message, or by the place in Lance's source
# that the message names.
_OF_READING = re.compile(r"LanceError\(IO\)|/lance-(?:file|encoding|io|table)/|panicked with message")


def is_of_lance(error: BaseException) -> bool:
    """Whether Lance failed to read or write; False for a wrong request, such as an invalid filter."""
    return bool(_OF_READING.search(str(error))) or type(error).__name__ == "PanicException"
