"""A lock in a bucket: an object that says who holds it, for how long without a sign of life, and is never removed.

Each change of it is a conditional put, so of two that would have it one gets it. The holder writes it anew every third
of its length. Who waits takes it over when it has seen the same version for all of that length, by its own clock: no
two machines' clocks are compared. A lease is no fence, since a holder may sleep and wake up after another took over:
what is done under it checks for itself (`pipelines.fragments.commit`, `pipelines.bucket.Bucket.swap`).
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from model.errors import TryLaterError
from pipelines.bucket import Bucket, Token

log = logging.getLogger(__name__)

# Seconds that a holder may give no sign of life.
LENGTH_S = float(os.environ.get("SOUNDLAKE_LEASE_SECONDS", "30"))
# Seconds between two looks of one that waits.
LOOK_S = 1.0


class _Lease:
    """What this process writes into the object, each time a little different."""

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._bucket, self._name = bucket, name
        self._beat = 0
        self._says = {"owner": f"{socket.gethostname()} {os.getpid()}", "id": secrets.token_hex(8)}
        self.token: Token | None = None

    def write(self, before: Token | None, *, free: bool = False) -> bool:
        """Take it, show that it is held, or let it go; False if another was first."""
        self._beat += 1
        says = self._says | {"beat": self._beat, "seconds": LENGTH_S, "free": free}
        self.token = self._bucket.swap(self._name, json.dumps(says).encode() + b"\n", before)
        return self.token is not None


def _read(bucket: Bucket, name: str) -> tuple[dict[str, Any], Token | None]:
    try:
        data, token = bucket.read_version(name)
        return dict(json.loads(data)), token
    except FileNotFoundError:
        return {"free": True}, None


@contextlib.contextmanager
def held(bucket: Bucket, name: str, *, wait: bool = True) -> Iterator[None]:
    """Hold a lease for the length of the block.

    Parameters
    ----------
    bucket : Bucket
    name : str
        Of the object.
    wait : bool
        Whether to wait as long as another shows that it is alive.

    Raises
    ------
    TryLaterError
        If another holds it and `wait` is False, or the bucket does not answer.
    """
    lease = _Lease(bucket, name)
    _take(lease, bucket, name, wait=wait)
    over = threading.Event()

    def show() -> None:
        while not over.wait(LENGTH_S / 3):
            try:
                if not lease.write(lease.token):
                    log.warning("another took over the lock %s/%s: this one was too slow", bucket.root, name)
                    return
            except Exception as error:
                # Who waits takes over then; the block goes on and finds out by itself.
                log.warning("the lock %s/%s cannot be kept: %s", bucket.root, name, error)
                return

    keeper = threading.Thread(target=show, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        over.set()
        keeper.join()
        # If it cannot be let go, it ends by itself.
        with contextlib.suppress(TryLaterError, OSError):
            if lease.token is not None:
                lease.write(lease.token, free=True)


def _take(lease: _Lease, bucket: Bucket, name: str, *, wait: bool) -> None:
    seen: Token | None = None
    since = time.monotonic()
    while True:
        says, token = _read(bucket, name)
        if token != seen:
            if seen is not None and not wait and not says.get("free"):
                raise TryLaterError(f"{says.get('owner')} has locked {bucket.root}/{name}: run the same command later")
            seen, since = token, time.monotonic()
        if (says.get("free") or time.monotonic() - since > float(says.get("seconds", LENGTH_S))) and lease.write(token):
            return
        if not says.get("free"):
            time.sleep(min(LOOK_S, LENGTH_S / 10))
