"""Paths: what a lake's files name stays in the lake, whoever wrote them.

Ids stand in manifests, rows and JSON, and become names of files. A lake may come from a stranger: an id is letters and
digits, a name goes down and never up, and no link is followed below a lake's root.
"""

import os
import re
import stat

from soundlake.model.errors import InputError

# Ids are digests in hexadecimal. Whatever else is of this form does no harm either.
_ID = re.compile(r"[0-9a-z]{1,64}")


def is_id(text: object) -> bool:
    """Whether this may be the id of a spec, a model, a bundle or a piece."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def checked_id(text: str, what: str) -> str:
    """The same text.

    Raises
    ------
    InputError
        If it is no id; `what` says of what it should be one.
    """
    if not is_id(text):
        raise InputError(f"{str(text)[:80]!r} is not a valid {what} id; lake metadata may have been tampered with")
    return text


def inside(root: str, name: str, *, on_disk: bool = True) -> str:
    """The full path of a name below a root.

    Parameters
    ----------
    root : str
        A folder, which may be a link itself, or a URI.
    name : str
        With ``/``; ``""`` for the root.
    on_disk : bool
        Whether links are looked for.

    Raises
    ------
    InputError
        If the name does not go straight down, or a part of it is a link.
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
    """Look at a folder and all below; one that is not there holds none.

    Raises
    ------
    InputError
        At the first link.
    """
    waiting = [os.fspath(folder)]
    if os.path.islink(waiting[0]):
        raise _is_link(waiting[0])
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        raise _is_link(entry.path)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue  # gone meanwhile


def regular(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The same path; a pipe, which would be waited for for ever, or a device is refused.

    Raises
    ------
    InputError
        If there is something else than a file.
    OSError
        If there is nothing.
    """
    mode = os.stat(path, follow_symlinks=False).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path} is not a regular file: move it out of the lake")
    return path


def _is_link(path: str) -> InputError:
    return InputError(
        f"{path} is a symbolic link, which a lake may not contain: replace it with the file or folder itself"
    )
