"""Secrets: what was given as one is neither written into a lake nor said.

They belong into the environment (``AWS_SECRET_ACCESS_KEY`` and its like), which soundlake neither reads nor records.
"""

import re
from typing import Any

from soundlake.model.errors import InputError

# Names of options and of parameters of a URI that hold one.
_SECRET = re.compile(
    r"secret|passw|token|credential|signature|access_?key|connection_?string|^-*(sig|key)$", re.IGNORECASE
)


def refuse_secrets(uri: str) -> None:
    """Raise `InputError` for a URI with a password in it: uris are written down, told and listed.

    The message does not hold it.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return
    user, at, _ = rest.partition("/")[0].rpartition("@")
    names = [part.partition("=")[0] for part in rest.partition("?")[2].split("&")]
    if (at and ":" in user) or any(_SECRET.search(name) for name in names):
        raise InputError(
            f"the URI {scheme}://… holds a password or a key, and it would be written down: leave that out, and give "
            "it in the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, say)"
        )


def without_secrets(found: Any) -> Any:
    """The same lists, dicts and texts; of ``--options=value`` that hold a secret only the name."""
    if isinstance(found, dict):
        return {name: without_secrets(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [without_secrets(value) for value in found]
    if isinstance(found, str) and found.startswith("--") and _SECRET.search(found.partition("=")[0]):
        return f"{found.partition('=')[0]}=…"
    return found
