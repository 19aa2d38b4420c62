"""Patience with a bucket: retry transient errors for a while, and report permanent errors at once, in one line.

The libraries below retry most requests a few times by themselves. They do not retry a request that may already have
succeeded, nor one whose answer breaks off late.
"""

import errno
import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from soundlake.model.errors import OF_THE_MACHINE, OF_THE_NETWORK, InputError, TryLaterError, number_of, of_system

# Seconds that one request may take, and seconds without an answer from a bucket before a command gives up.
REQUEST_S = float(os.environ.get("SOUNDLAKE_REQUEST_SECONDS", "30"))
PATIENCE_S = float(os.environ.get("SOUNDLAKE_PATIENCE_SECONDS", "60"))
# Seconds between two tries.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
# Once a bucket has not answered for `PATIENCE_S`, later calls of this process wait only this many seconds, until a call
# succeeds.
_TIRED_S = 5.0
_patience = {True: PATIENCE_S, False: _TIRED_S}
_answers = True

Result = TypeVar("Result")

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_BAD_KEYS = {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired"}
_BAD_KEYS |= {"XAdminUserNotFound"}  # versitygw's
# Of the errors that blame the request, those that a new request may cure: above all, a body that arrived incomplete.
_MAY_PASS = {"BadDigest", "ConditionalRequestConflict", "IncompleteBody", "OperationAborted", "RequestTimeout"}
# Lance gives the details only in the text of its errors.
_OF_STORAGE = re.compile(
    r"Generic (S3|GCS) error|status code: \d{3}|error sending request|error decoding|timed out|Could not parse path"
)


def is_of_storage(error: Exception) -> bool:
    """Whether an error of obstore or Lance comes from a bucket."""
    return type(error).__module__.startswith("obstore") or (
        isinstance(error, OSError | ValueError) and bool(_OF_STORAGE.search(str(error)))
    )


def told(error: Exception, where: str) -> Exception | None:
    """Translate an error of a bucket into the error to raise; None if the error may be transient.

    Returns
    -------
    OSError, InputError or None
    """
    text = str(error)
    status, code = (match[1] if (match := pattern.search(text)) else "" for pattern in (_STATUS, _CODE))
    bucket = "/".join(where.split("/")[:3])
    if code == "NoSuchBucket" or "specified bucket does not exist" in text:
        return InputError(f"there is no bucket {bucket}: create it, or correct the name or the endpoint")
    if code in _BAD_KEYS or status == "401":
        return InputError(
            f"{bucket} rejects the credentials of the environment ({code or status}): correct or renew them"
        )
    if "169.254." in text or "metadata.google" in text:
        return InputError(f"no credentials for {bucket}: set the variables listed in docs/storage.md")
    if status == "403":
        return PermissionError(errno.EACCES, f"no permission ({code or status}): look at the credentials", where)
    if code == "NoSuchUpload":
        return None  # the answer to the end of an upload in parts was lost: the whole upload is sent again
    if status == "404" and code not in ("", "NoSuchKey", "NotFound"):
        return InputError(f"the request for {where} was refused: {code}")
    if status == "404" or (isinstance(error, FileNotFoundError) and not status):
        return FileNotFoundError(errno.ENOENT, "there is no such object", where)
    if status == "412":
        return OSError(errno.ESTALE, "it changed while it was read", where)
    if status.startswith("4") and status not in ("408", "409", "425", "429") and code not in _MAY_PASS:
        return InputError(f"the request for {where} was refused: {code or status}")
    if "Could not parse path" in text:
        return InputError(f"the name {where} cannot be used: no part of it may be empty, . or ..")
    return None


def _cause(error: Exception) -> str:
    text = str(error).split("\n\nDebug source")[0].splitlines()[0]
    status, code = (match[1] if (match := pattern.search(str(error))) else "" for pattern in (_STATUS, _CODE))
    # Lance adds the line of its source code.
    text = text.rpartition(" - ")[2].split(", /")[0].split(", rust/")[0].strip()
    return f"{status} {code}".strip() or text[:120] or type(error).__name__


def endpoint(root: str) -> str:
    """The endpoint of a bucket: the configured address of another S3 server, or the cloud's name."""
    if root.startswith("gs:"):
        return "Google Cloud Storage"
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS S3"


def patiently(where: str, call: Callable[[], Result]) -> Result:
    """Call a function that reads or writes in a bucket, and call it again while its errors may be transient.

    Parameters
    ----------
    where : str
        Path or URI, for messages; with a path on a disk, `call` is never repeated.
    call : callable
        Must be idempotent.

    Returns
    -------
    object
        The result of `call`.

    Raises
    ------
    OSError, InputError
        The errors of `told`: no such object, no permission, a changed version; no such bucket, bad credentials.
    TryLaterError
        If the bucket has not answered for too long.
    """
    global _answers
    if "://" not in where:
        return call()
    began, pause = time.monotonic(), FIRST_PAUSE_S
    while True:
        try:
            result = call()
        except (TryLaterError, InputError):
            raise
        except Exception as error:
            if not is_of_storage(error) and number_of(error) not in OF_THE_NETWORK:
                raise
            if (translated := told(error, where)) is not None:
                # An InputError is not about the requested file, so it carries no cause.
                raise translated from (None if isinstance(translated, InputError) else error)
            waited = time.monotonic() - began
            if waited + pause > _patience[_answers]:
                _answers = False
                if number_of(error) in OF_THE_MACHINE and (system_error := of_system(error, where)) is not None:
                    raise system_error from error  # the bucket is not to blame
                raise TryLaterError(
                    f"no answer from {endpoint(where)} for {waited:.0f} s ({_cause(error)}), at {where}: "
                    "run the same command again"
                ) from error
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE_S)
        else:
            _answers = True
            return result
