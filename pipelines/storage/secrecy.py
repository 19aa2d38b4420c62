"""Secrets: keep passwords and keys out of lakes and messages.

Secrets belong in the environment (``AWS_SECRET_ACCESS_KEY`` and the like), which soundlake neither reads nor records.
"""

import re
from typing import Any

from soundlake.model.errors import InputError

# Names of options and of URI parameters that hold a secret.
_SECRET = re.compile(
    r"secret|passw|token|credential|signature|access_?key|connection_?string|^-*(sig|key)$", re.IGNORECASE
)


def refuse_secrets(uri: str) -> None:
    """Raise `InputError` for a URI that contains a password or a key, since URIs are recorded, printed and listed.

    The message does not contain the secret.
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
    """Copy lists, dicts and texts; an ``--option=value`` that holds a secret keeps only its name."""
    if isinstance(found, dict):
        return {name: without_secrets(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [without_secrets(value) for value in found]
    if isinstance(found, str) and found.startswith("--") and _SECRET.search(found.partition("=")[0]):
        return f"{found.partition('=')[0]}=…"
    return found
