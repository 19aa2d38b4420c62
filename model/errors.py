"""The kinds of failure that are not internal errors, and what an error of the operating system is told as.

The command line turns each kind into its exit code. Every library wraps the system's errors in its own way; `number_of`
finds the number again, and `of_system` says what it means. Nothing else in soundlake may guess at that.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from typing import Any


class SoundlakeError(Exception):
    """The root of what soundlake raises on purpose; each kind below says what a caller can do about it."""


class InputError(SoundlakeError, ValueError):
    """The call or its input is wrong: the same call gives the same answer. Exit code 2.

    The message is one line: what is wrong, where, what to do.
    """


class TryLaterError(SoundlakeError, RuntimeError):
    """The same call may go through later: storage unreachable, disk full, lake busy. Exit code 75.

    The message is one line: what happened, where, what to do.
    """


class HeldError(SoundlakeError, RuntimeError):
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

# The next call would meet these, too: exit code 2.
_OF_THE_CALL = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_OF_THE_CALL |= {errno.ENAMETOOLONG, errno.ELOOP, errno.EXDEV}
# This machine or process has run out of something, whatever file was being read: the file is not to blame.
OF_THE_MACHINE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT}
# The network, or a server behind it: the next try may go through.
OF_THE_NETWORK = {errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENETDOWN}
OF_THE_NETWORK |= {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EHOSTDOWN}
# A folder that cannot be listed for one of these is there all the same, and so is what it holds.
PASSING = OF_THE_MACHINE | OF_THE_NETWORK | {errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE}
_KNOWN = OF_THE_MACHINE | OF_THE_NETWORK | _OF_THE_CALL
_KNOWN |= {errno.EIO, errno.EFBIG, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ETXTBSY, errno.EBUSY, errno.ENOLCK}

# How libraries write the number: Rust (Lance, obstore), Arrow, HDF5, Python in the text of a worker's traceback.
_NUMBER = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]|\berrno = (\d+)|\[Errno (\d+)\]|system error number (\d+)")
# TensorFlow writes the system's words alone, after the path.
_WORDS = {os.strerror(number): number for number in _KNOWN}
_IN_WORDS = re.compile(f"(?:^|; )({'|'.join(map(re.escape, _WORDS))})(?!\\w)", re.MULTILINE)
# Where the message of a library names the file.
_PLACE = re.compile(
    r"(?:Unable to open file |at path |local file |input source |name = )['\"]?(/.+?)['\"]?(?:[:,;)]|\. Detail|$)"
    r"|(?:^|\}\} )(/[^;\n]+);",
    re.MULTILINE,
)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it came from; a chain may go round in circles, as with Beam."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        yield following
        seen.add(id(following))
        following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)


def _own_number(error: BaseException) -> int | None:
    if isinstance(error, OSError) and error.errno is not None:
        # PyAV's errors have the numbers of FFmpeg's own, too.
        return error.errno if error.errno in errno.errorcode else None
    text = str(error)
    if numbers := _NUMBER.findall(text):
        return int("".join(numbers[-1]))
    found = _IN_WORDS.search(text)
    return _WORDS[found[1]] if found else None


def number_of(error: BaseException) -> int | None:
    """The operating system's number of an error, whatever library raised it; None if it is not the system's.

    It is found in ``errno``, or in the words of the error or of those that it came from: Lance raises ``ValueError``,
    Arrow ``ArrowInvalid``, TensorFlow its own classes, and Beam a ``RuntimeError`` with a worker's traceback.
    """
    for one in _chain(error):
        if (number := _own_number(one)) is not None:
            return number
    return None


def _place_of(error: BaseException) -> str:
    """The file that an error names; words that stand for it if it names none."""
    for one in _chain(error):
        name = getattr(one, "filename", None)
        if name:
            return os.fsdecode(name) if isinstance(name, str | bytes) else str(name)
        if found := _PLACE.search(str(one)):
            return found[1] or found[2]
    return "a file of the lake or the corpus"


def of_system(error: BaseException, where: str | os.PathLike[str] | None = None) -> InputError | TryLaterError | None:
    """What to tell of an error that comes from the operating system.

    Parameters
    ----------
    error : BaseException
    where : path or None
        What was being read or written; None for the file that the error names.

    Returns
    -------
    InputError, TryLaterError or None
        One line with what happened, where, and what to do; None if the error has no number of the system that is known.
    """
    number = number_of(error)
    if number is None or number not in _KNOWN:
        return None
    said = os.strerror(number)
    if isinstance(error, OSError) and error.errno == number and type(error).__module__ == "builtins":
        # Such as a bucket's own words. Of a library's many lines the system's are enough.
        said = error.strerror if error.strerror and not _NUMBER.search(str(error.strerror)) else said
    place = _place_of(error) if where is None else os.fspath(where)
    if number == errno.ENOENT and is_of_lance(error):
        return InputError(f"{place} is missing: a ledger or table has lost a file; restore its folder from a backup")
    if number in _OF_THE_CALL:
        return InputError(f"cannot use {place}: {said}")
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
            return TryLaterError(f"storage failed at {place}: {said}; check the disk or network share, then {again}")
        case errno.ESTALE if said == os.strerror(number):
            return TryLaterError(
                f"storage failed at {place}: {said}; mount the network share anew if it lasts, and {again}"
            )
    if number in OF_THE_NETWORK:
        return TryLaterError(f"no connection to {place}: {said}; check the network, then {again}")
    return TryLaterError(f"storage failed at {place}: {said}; {again}")


@contextlib.contextmanager
def storage_errors(where: str | os.PathLike[str]) -> Iterator[None]:
    """Turn what the system or a library says of storage into one line and the right exit code.

    Raises
    ------
    InputError
        Missing, not a folder, or one where a file is wanted, a name too long, read-only, or not permitted: the same
        call fails again.
    TryLaterError
        Full, a file larger than it may be, too many open files, or anything else that storage says.
    """
    try:
        yield
    except (InputError, TryLaterError, HeldError):
        raise
    except Exception as error:
        if (clear := of_system(error, where)) is not None:
            raise clear from error
        if isinstance(error, OSError) and not is_of_lance(error):
            said = error.strerror or str(error)
            raise TryLaterError(f"storage failed at {where}: {said}; run the same command again") from error
        raise


# Lance has no class for what it cannot read: its words say so, or the place in its source that it adds to them.
_OF_READING = re.compile(r"LanceError\(IO\)|/lance-(?:file|encoding|io|table)/|panicked with message")


def is_of_lance(error: BaseException) -> bool:
    """Whether Lance could not read or write; not whether it was asked for something wrong, such as a filter."""
    return bool(_OF_READING.search(str(error))) or type(error).__name__ == "PanicException"
