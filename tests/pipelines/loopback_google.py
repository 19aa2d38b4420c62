"""Google on loopback, as much of it as Beam needs: buckets that take objects, and a service that runs jobs here.

A job's pipeline is what was staged in the bucket; the local engine runs it in place of workers.
"""

import base64
import hashlib
import json
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import google_crc32c
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner


def run_here(staged: beam_runner_api_pb2.Pipeline) -> None:
    """Run a pipeline in this process, which has what the image of the workers would have."""
    pipeline = beam_runner_api_pb2.Pipeline()
    pipeline.CopyFrom(staged)
    for one in pipeline.components.environments.values():
        one.urn, one.payload = "beam:env:embedded_python:v1", b""
    fn_runner.FnApiRunner().run_via_runner_api(pipeline, PipelineOptions([])).wait_until_finish()


class Google(ThreadingHTTPServer):
    """A server of both.

    Attributes
    ----------
    objects : dict of str to bytes
        By ``bucket/name``.
    job, error : dict, str or None
        The job that was asked for last, and what its worker raised.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, bytes] = {}
        self.job: dict[str, Any] = {}
        self.error: str | None = None

    @property
    def url(self) -> str:
        return f"http://localhost:{self.server_port}"

    def staged(self) -> beam_runner_api_pb2.Pipeline:
        """The pipeline that was staged last."""
        (data,) = (data for name, data in self.objects.items() if name.endswith("/pipeline.pb"))
        return beam_runner_api_pb2.Pipeline.FromString(data)

    def start(self, job: dict[str, Any]) -> dict[str, Any]:
        """Run a job to its end, and answer with the state it had before."""
        self.job = job | {"id": "job-1", "currentState": "JOB_STATE_PENDING"}
        answer, self.error = dict(self.job), None
        try:
            run_here(self.staged())
            self.job["currentState"] = "JOB_STATE_DONE"
        except Exception:
            # In these words a worker tells the service.
            self.error = traceback.format_exc()
            self.job["currentState"] = "JOB_STATE_FAILED"
        return answer


class _Handler(BaseHTTPRequestHandler):
    server: Google

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, code: int, found: dict[str, Any], **headers: str) -> None:
        data = json.dumps(found).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path.startswith("/v1b3/") and path.endswith("/messages"):
            told = {"time": "2026-11-26T12:00:00Z", "messageImportance": "JOB_MESSAGE_ERROR"}
            said = [] if self.server.error is None else [told | {"id": "1", "messageText": self.server.error}]
            self._answer(200, {"jobMessages": said})
        elif path.startswith("/v1b3/"):
            self._answer(200, {name: self.server.job[name] for name in ("id", "name", "currentState")})
        else:
            bucket, is_object, _ = path.removeprefix("/storage/v1/b/").partition("/o/")
            self._answer(404, {}) if is_object else self._answer(200, {"name": bucket})

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, json.loads(self._body())
        if path.startswith("/v1b3/"):
            started = self.server.start(body)
            self._answer(200, {name: started[name] for name in ("id", "name", "currentState")})
        else:
            bucket = path.removeprefix("/upload/storage/v1/b/").removesuffix("/o")
            self._answer(200, {}, Location=f"{self.server.url}/put/{bucket}/{body['name']}")

    def do_PUT(self) -> None:
        name, data = unquote(self.path.removeprefix("/put/")), self._body()
        self.server.objects[name] = data
        digests = {"md5Hash": hashlib.md5(data).digest(), "crc32c": google_crc32c.Checksum(data).digest()}
        told = {key: base64.b64encode(digest).decode() for key, digest in digests.items()}
        self._answer(200, {"name": name, "size": str(len(data))} | told)


@contextmanager
def google() -> Iterator[Google]:
    """A server on loopback, for as long as the block."""
    with Google() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
