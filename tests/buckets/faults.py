"""A proxy between soundlake and a bucket's server that spoils requests: places by a seed, kinds in turn, all counted.

It knows just enough HTTP to tell one request from the next. What it passes on it passes on as it came, signature and
all.
"""

import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable

# Answered with 503 and not passed on; held up; cut before the server saw it, in the middle of what it sends, in the
# middle of the answer: then the server has done the work, and nobody knows.
KINDS = ("busy", "slow", "cut before", "cut in the request", "cut in the answer")

BUSY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
# Seconds that a slow request is held up; a client that waits no more than two of them gives some up.
DELAYS = (0.5, 3.0)

# Of (method, path): whether it may be spoiled.
Where = Callable[[str, str], bool]


class FaultyProxy:
    """Listens on loopback in threads of its own, as a context manager.

    Parameters
    ----------
    server : (str, int)
        Where requests go.
    seed : int
    share : float
        Of the requests, how many are spoiled.
    kinds : sequence of str
        Of `KINDS`; the one that came least comes next.
    where : callable
        Which requests may be.

    Attributes
    ----------
    counts : Counter
        Faults of each kind.
    requests : int
    """

    def __init__(
        self,
        server: tuple[str, int],
        *,
        seed: int = 0,
        share: float = 0.2,
        kinds: tuple[str, ...] = KINDS,
        where: Where = lambda method, path: True,
    ) -> None:
        self._server, self._share, self._kinds, self._where = server, share, kinds, where
        self._drawn, self._lock = random.Random(seed), threading.Lock()
        self.counts: Counter[str] = Counter()
        self.requests = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> "FaultyProxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _chosen(self, method: str, path: str, size: int) -> tuple[str | None, float]:
        """The fault of a request, and a number from 0 to 1 that says how exactly."""
        with self._lock:
            self.requests += 1
            spoiled, how = self._drawn.random() < self._share, self._drawn.random()
            if not spoiled or not self._where(method, path):
                return None, how
            possible = [kind for kind in self._kinds if kind != "cut in the request" or size]
            if not possible:
                return None, how
            kind = min(possible, key=lambda kind: self.counts[kind])
            self.counts[kind] += 1
            return kind, how

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as stream:
            try:
                while self._one(client, stream):
                    pass
            except (OSError, ValueError):
                return

    def _one(self, client: socket.socket, stream: "socket.SocketIO") -> bool:
        """Pass on one request; whether the connection goes on."""
        head = _head(stream)
        if head is None:
            return False
        method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        size = _length(head)
        kind, how = self._chosen(method, path, size)
        if kind == "cut before":
            return False
        body = stream.read(int(how * size) if kind == "cut in the request" else size)
        if kind == "cut in the request":
            return False
        if kind == "busy":
            said = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n" % len(BUSY)
            client.sendall(said + (b"" if method == "HEAD" else BUSY))
            return True
        if kind == "slow":
            # In half of them the server has done the work by the time that the client gives up.
            time.sleep(DELAYS[how < 0.5])
        answer = self._asked(method, head, body)
        client.sendall(answer[: int(how * len(answer))] if kind == "cut in the answer" else answer)
        return kind != "cut in the answer"

    def _asked(self, method: str, head: bytes, body: bytes) -> bytes:
        """The server's whole answer."""
        with socket.create_connection(self._server) as server, server.makefile("rb") as stream:
            server.sendall(head + body)
            while True:
                answer = _head(stream)
                if answer is None:
                    raise OSError("the server has hung up")
                # 100 Continue and the like are followed by the answer.
                if not answer.startswith(b"HTTP/1.1 1"):
                    break
            status = int(answer.split(b" ", 2)[1])
            if method == "HEAD" or status in (204, 304):
                return answer
            if b"transfer-encoding: chunked" in answer.lower():
                return answer + _chunks(stream)
            return answer + stream.read(_length(answer))


def _head(stream: "socket.SocketIO") -> bytes | None:
    """All until the empty line; None if there is nothing more."""
    lines = []
    while line := stream.readline():
        lines.append(line)
        if line == b"\r\n":
            return b"".join(lines)
    return None


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def _chunks(stream: "socket.SocketIO") -> bytes:
    found = []
    while True:
        line = stream.readline()
        size = int(line.split(b";")[0], 16)
        found += [line, stream.read(size + 2)]
        if not size:
            return b"".join(found)
