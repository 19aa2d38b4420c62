"""Checks that the ids and names in a lake's files never lead out of the lake, whoever wrote those files.

Manifests, rows and JSON contain ids, which become names of files. A lake may come from a stranger. So an id may consist
only of letters and digits, a name may go down but never up, and no link is followed below a lake's root.
"""

import os
import re
import stat

from soundlake.model.errors import InputError

# Ids are digests in hexadecimal. Other text that matches does no harm either.
_ID = re.compile(r"[0-9a-z]{1,64}")


def is_id(text: object) -> bool:
    """Whether a value has the form of an id (of a spec, a model, a bundle or a piece)."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def checked_id(text: str, what: str) -> str:
    """Return the same text if it is an id.

    Parameters
    ----------
    text : str
    what : str
        What the id should identify, for the message of the error.

    Raises
    ------
    InputError
        If the text is not an id.
    """
    if not is_id(text):
        raise InputError(f"{str(text)[:80]!r} is not a valid {what} id; lake metadata may have been tampered with")
    return text


def inside(root: str, name: str, *, on_disk: bool = True) -> str:
    """The full path of a name below a root.

    Parameters
    ----------
    root : str
        A folder, which may itself be a link, or a URI.
    name : str
        Parts separated by ``/``; ``""`` for the root.
    on_disk : bool
        Whether to check each part for a link.

    Raises
    ------
    InputError
        If the name does not go straight down, or one of its parts is a link.
    """
    path = root
    for part in name.split("/") if name else ():
        if part in ("", ".", "..") or "\0" in part:
            raise InputError(f"{name[:200]!r} is not a name inside {root}: it leads out of it")
        path = f"{path}/{part}"
        if on_disk and os.path.islink(path):
            raise _is_link(path)
    return path


def no_links(folder: str | os.PathLike[str]) -> None:
    """Check that a folder is not a link and contains none at any depth; a missing folder passes.

    Raises
    ------
    InputError
        At the first link.
    """
    pending = [os.fspath(folder)]
    if os.path.islink(pending[0]):
        raise _is_link(pending[0])
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        raise _is_link(entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue  # deleted in the meantime


def regular(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return the same path if it is a regular file or a folder.

    Opening a pipe could block for ever, so pipes are refused, and so are devices.

    Raises
    ------
    InputError
        If the path is neither a regular file nor a folder.
    OSError
        If the path does not exist.
    """
    mode = os.stat(path, follow_symlinks=False).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path} is not a regular file: move it out of the lake")
    return path


def _is_link(path: str) -> InputError:
    return InputError(
        f"{path} is a symbolic link, which a lake may not contain: replace it with the file or folder itself"
    )
