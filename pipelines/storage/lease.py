"""A lock in a bucket: an object that says who holds it, for how long without a sign of life, and is never removed.

Each change of it is a conditional put, so of two that would have it one gets it. The holder writes it anew every third
of its length. Who waits takes it over when it has seen the same version for all of that length, by its own clock: no
two machines' clocks are compared. A lease is no fence, since a holder may sleep and wake up after another took over:
what is done under it checks for itself (`pipelines.lake.fragments.commit`, `pipelines.storage.bucket.Bucket.swap`), or
asks the lease again right before it writes (`pipelines.lake.models.being_trained`).
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from soundlake.model.errors import TryLaterError
from soundlake.pipelines.storage.store import Token, Versioned

log = logging.getLogger(__name__)

# Seconds that a holder may give no sign of life.
LENGTH_S = float(os.environ.get("SOUNDLAKE_LEASE_SECONDS", "30"))
# Seconds between two looks of one that waits.
LOOK_S = 1.0


class _Lease:
    """What this process writes into the object, each time a little different."""

    def __init__(self, bucket: Versioned, name: str) -> None:
        self._bucket, self._name = bucket, name
        self._beat = 0
        self._says = {"owner": f"{socket.gethostname()} {os.getpid()}", "id": secrets.token_hex(8)}
        self.token: Token | None = None
        self._one = threading.Lock()
        self._lost = False

    @property
    def _place(self) -> str:
        return f"{self._bucket.root}/{self._name}"

    def keep(self) -> None:
        """Show that it is held, and so make sure that it still is.

        Raises
        ------
        TryLaterError
            If another has taken it over, or the bucket does not answer: nothing may be written any more.
        """
        with self._one:
            if not self._lost:
                self._lost = True  # also if the next line raises
                self._lost = not self.write(self.token)
            if self._lost:
                raise TryLaterError(
                    f"another process took over the lock {self._place}, since this one gave no sign of life for "
                    f"{LENGTH_S:g} s: this one stops; run the same command later"
                )

    def write(self, before: Token | None, *, free: bool = False) -> bool:
        """Take it, show that it is held, or let it go; False if another was first."""
        self._beat += 1
        says = self._says | {"beat": self._beat, "seconds": LENGTH_S, "free": free}
        self.token = self._bucket.swap(self._name, json.dumps(says).encode() + b"\n", before)
        return self.token is not None


def _read(bucket: Versioned, name: str) -> tuple[dict[str, Any], Token | None]:
    try:
        data, token = bucket.read_version(name)
        # Empty: a lock of a lake that was copied from a disk. Whoever takes it writes it by its version.
        return (dict(json.loads(data)) if data else {"free": True}), token
    except FileNotFoundError:
        return {"free": True}, None


@contextlib.contextmanager
def held(bucket: Versioned, name: str, *, wait: bool = True) -> Iterator[Callable[[], None]]:
    """Hold a lease for the length of the block.

    Parameters
    ----------
    bucket : Versioned
    name : str
        Of the object.
    wait : bool
        Whether to wait as long as another shows that it is alive.

    Yields
    ------
    callable
        Raises `TryLaterError` if the lease is lost; to be called before what must not be done then.

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
                lease.keep()
            except Exception as error:
                # Who waits takes over then; the block goes on until it asks, or a commit refuses.
                log.warning("the lock %s/%s is lost: %s", bucket.root, name, error)
                return

    keeper = threading.Thread(target=show, daemon=True)
    keeper.start()
    try:
        yield lease.keep
    finally:
        over.set()
        keeper.join()
        # If it cannot be let go, it ends by itself.
        with contextlib.suppress(TryLaterError, OSError):
            if lease.token is not None:
                lease.write(lease.token, free=True)


def _take(lease: _Lease, bucket: Versioned, name: str, *, wait: bool) -> None:
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
