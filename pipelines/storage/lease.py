"""A lock in a bucket: an object that records its holder and how long the holder may be silent. It is never removed.

Each change of the object is a conditional put, so only one of two competing processes gets the lock. The holder
rewrites the object every third of the lease's length. A waiting process takes the lease over when it has seen the same
version for one whole length. It uses its own clock, so the clocks of two machines are never compared.

A lease is no fence: a holder may sleep and wake up after another process took over. So the work under a lease checks
for itself that it was first (`pipelines.lake.fragments.commit`, `pipelines.storage.bucket.Bucket.swap`), or it checks
the lease again right before it writes (`pipelines.lake.models.being_trained`).
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

# Length of a lease: seconds that a holder may give no sign of life.
LENGTH_S = float(os.environ.get("SOUNDLAKE_LEASE_SECONDS", "30"))
# Seconds between two reads of the object by a waiting process.
LOOK_S = 1.0


class _Lease:
    """This process's hold on a lock object. Each write has a different content (`beat`)."""

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
        """Renew the lease, and so check that this process still holds it.

        Raises
        ------
        TryLaterError
            If another process took the lease over, or if the bucket does not answer. The caller must not write then.
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
        """Take, renew or release the lease; False if another process was first."""
        self._beat += 1
        content = self._says | {"beat": self._beat, "seconds": LENGTH_S, "free": free}
        self.token = self._bucket.swap(self._name, json.dumps(content).encode() + b"\n", before)
        return self.token is not None


def _read(bucket: Versioned, name: str) -> tuple[dict[str, Any], Token | None]:
    try:
        data, token = bucket.read_version(name)
        # An empty object is the lock of a lake that was copied from a disk. It has a version, which a put must match.
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
        Name of the lock object.
    wait : bool
        Whether to wait for as long as another holder shows that it is alive.

    Yields
    ------
    callable
        Raises `TryLaterError` if the lease is lost. Call it before any step that needs the lease.

    Raises
    ------
    TryLaterError
        If another process holds the lease and `wait` is False, or if the bucket does not answer.
    """
    lease = _Lease(bucket, name)
    _take(lease, bucket, name, wait=wait)
    released = threading.Event()

    def show() -> None:
        while not released.wait(LENGTH_S / 3):
            try:
                lease.keep()
            except Exception as error:
                # A waiting process takes over then. The block goes on until it checks the lease or a commit is refused.
                log.warning("the lock %s/%s is lost: %s", bucket.root, name, error)
                return

    keeper = threading.Thread(target=show, daemon=True)
    keeper.start()
    try:
        yield lease.keep
    finally:
        released.set()
        keeper.join()
        # A lease that cannot be released expires by itself.
        with contextlib.suppress(TryLaterError, OSError):
            if lease.token is not None:
                lease.write(lease.token, free=True)


def _take(lease: _Lease, bucket: Versioned, name: str, *, wait: bool) -> None:
    seen: Token | None = None
    since = time.monotonic()
    while True:
        lock, token = _read(bucket, name)
        if token != seen:
            if seen is not None and not wait and not lock.get("free"):
                raise TryLaterError(f"{lock.get('owner')} has locked {bucket.root}/{name}: run the same command later")
            seen, since = token, time.monotonic()
        if (lock.get("free") or time.monotonic() - since > float(lock.get("seconds", LENGTH_S))) and lease.write(token):
            return
        if not lock.get("free"):
            time.sleep(min(LOOK_S, LENGTH_S / 10))
