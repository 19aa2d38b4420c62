"""A web server on loopback that takes what the DAGs' alert posts."""

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hook:
    """Messages taken so far, in order; and the status that each POST is answered with."""

    def __init__(self, url: str) -> None:
        self.url, self.status = url, 200
        self.texts: list[str] = []
        self.requests = 0


@contextlib.contextmanager
def listening() -> Iterator[Hook]:
    """Listen within this context; what is no JSON object with one text, ``text``, is answered with 400."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hook.requests += 1
            body = self.rfile.read(int(self.headers["Content-Length"]))
            right = self.headers["Content-Type"] == "application/json" and self.path == "/hook"
            if hook.status == 200 and right:
                hook.texts.append(json.loads(body)["text"])
            self.send_response(hook.status if right else 400)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook = Hook(f"http://127.0.0.1:{server.server_port}/hook")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
