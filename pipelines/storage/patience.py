"""Patience with a bucket: what may pass is tried again, for a while; what will not is told in one line, at once.

The libraries below try each request a few times by themselves, but none that may have been done already, and no answer
that breaks off late.
"""

import errno
import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from soundlake.model.errors import OF_THE_MACHINE, OF_THE_NETWORK, InputError, TryLaterError, number_of, of_system

# Seconds: what one request may take, and how long a bucket may not answer before a command gives up.
REQUEST_S = float(os.environ.get("SOUNDLAKE_REQUEST_SECONDS", "30"))
PATIENCE_S = float(os.environ.get("SOUNDLAKE_PATIENCE_SECONDS", "60"))
# Pauses between two tries, seconds.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
# Once a bucket did not answer for so long, the next call of this process waits no longer than that for it.
_TIRED_S = 5.0
_patience = {True: PATIENCE_S, False: _TIRED_S}
_answers = True

Result = TypeVar("Result")

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_BAD_KEYS = {"ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch", "TokenRefreshRequired"}
_BAD_KEYS |= {"XAdminUserNotFound"}  # versitygw's
# What of the errors that blame the request a new request may cure: a body that did not come through, above all.
_MAY_PASS = {"BadDigest", "ConditionalRequestConflict", "IncompleteBody", "OperationAborted", "RequestTimeout"}
# Lance has all in its words.
_OF_STORAGE = re.compile(
    r"Generic (S3|GCS) error|status code: \d{3}|error sending request|error decoding|timed out|Could not parse path"
)


def is_of_storage(error: Exception) -> bool:
    """Whether an error of obstore or Lance tells of a bucket."""
    return type(error).__module__.startswith("obstore") or (
        isinstance(error, OSError | ValueError) and bool(_OF_STORAGE.search(str(error)))
    )


def told(error: Exception, where: str) -> Exception | None:
    """What an error of a bucket means, as an error of ours; None if it may pass.

    Returns
    -------
    OSError, InputError or None
    """
    said = str(error)
    status, code = (found[1] if (found := pattern.search(said)) else "" for pattern in (_STATUS, _CODE))
    bucket = "/".join(where.split("/")[:3])
    if code == "NoSuchBucket" or "specified bucket does not exist" in said:
        return InputError(f"there is no bucket {bucket}: create it, or correct the name or the endpoint")
    if code in _BAD_KEYS or status == "401":
        return InputError(
            f"{bucket} rejects the credentials of the environment ({code or status}): correct or renew them"
        )
    if "169.254." in said or "metadata.google" in said:
        return InputError(f"no credentials for {bucket}: set the variables listed in docs/storage.md")
    if status == "403":
        return PermissionError(errno.EACCES, f"no permission ({code or status}): look at the credentials", where)
    if code == "NoSuchUpload":
        return None  # an upload in parts whose end was not heard of: it is sent again as a whole
    if status == "404" and code not in ("", "NoSuchKey", "NotFound"):
        return InputError(f"the request for {where} was refused: {code}")
    if status == "404" or (isinstance(error, FileNotFoundError) and not status):
        return FileNotFoundError(errno.ENOENT, "there is no such object", where)
    if status == "412":
        return OSError(errno.ESTALE, "it changed while it was read", where)
    if status.startswith("4") and status not in ("408", "409", "425", "429") and code not in _MAY_PASS:
        return InputError(f"the request for {where} was refused: {code or status}")
    if "Could not parse path" in said:
        return InputError(f"the name {where} cannot be used: no part of it may be empty, . or ..")
    return None


def _cause(error: Exception) -> str:
    said = str(error).split("\n\nDebug source")[0].splitlines()[0]
    status, code = (found[1] if (found := pattern.search(str(error))) else "" for pattern in (_STATUS, _CODE))
    # Lance adds the line of its source.
    said = said.rpartition(" - ")[2].split(", /")[0].split(", rust/")[0].strip()
    return f"{status} {code}".strip() or said[:120] or type(error).__name__


def endpoint(root: str) -> str:
    """Where a bucket is asked for: the address of a store of one's own, or the cloud's name."""
    if root.startswith("gs:"):
        return "Google Cloud Storage"
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS S3"


def patiently(where: str, call: Callable[[], Result]) -> Result:
    """What a call gives that reads or writes in a bucket; it is called again as long as what it raises may pass.

    Parameters
    ----------
    where : str
        Path or URI, for messages; on a disk nothing is called twice.
    call : callable
        To be called twice must be the same as once.

    Raises
    ------
    OSError, InputError
        As `told` says: there is no such object, no permission, a version that has changed; no bucket, bad credentials.
    TryLaterError
        If the bucket did not answer for long.
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
            if (clear := told(error, where)) is not None:
                # What is an InputError has nothing to do with the file that was asked for.
                raise clear from (None if isinstance(clear, InputError) else error)
            waited = time.monotonic() - began
            if waited + pause > _patience[_answers]:
                _answers = False
                if number_of(error) in OF_THE_MACHINE and (ours := of_system(error, where)) is not None:
                    raise ours from error  # the bucket is not to blame
                raise TryLaterError(
                    f"no answer from {endpoint(where)} for {waited:.0f} s ({_cause(error)}), at {where}: "
                    "run the same command again"
                ) from error
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, LONGEST_PAUSE_S)
        else:
            _answers = True
            return result
