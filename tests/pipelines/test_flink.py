"""What a pipeline is told on Flink: embedded by default, all slots of a cluster that answers, a clear word otherwise.

The cluster here only answers as Flink does, on loopback: `make test-flink` has real ones.
"""

import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from soundlake.model.errors import TryLaterError
from soundlake.pipelines.engine.flink import EMBEDDED_PARALLELISM, with_defaults
from soundlake.pipelines.engine.runners import beam_options

RUNNER = "--runner=FlinkRunner"


def told(given: list[str]) -> dict[str, str]:
    """What is added, by name."""
    found = with_defaults(given)
    assert found[: len(given)] == given
    return dict(argument.removeprefix("--").split("=", 1) for argument in found[len(given) :])


@pytest.fixture
def cluster() -> Iterator[Callable[[str], str]]:
    """Starts something that says one thing on ``/overview``, and nothing elsewhere; gives its address."""
    servers = []

    def start(says: str) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/overview" else 404)
                self.end_headers()
                self.wfile.write(says.encode())

            def log_message(self, *_: object) -> None: ...

        server = ThreadingHTTPServer(("localhost", 0), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"localhost:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_embedded_where_no_cluster_is_named() -> None:
    parallelism = str(min(len(os.sched_getaffinity(0)), EMBEDDED_PARALLELISM))
    assert told([RUNNER]) == {"flink_master": "[local]", "parallelism": parallelism}
    assert told([RUNNER, "--flink_master=[auto]", "--parallelism=1"]) == {}


@pytest.mark.parametrize("scheme", ["", "http://"])
def test_a_cluster_gives_all_its_slots(cluster: Callable[[str], str], scheme: str) -> None:
    master = scheme + cluster('{"taskmanagers": 2, "slots-total": 7, "slots-available": 0}')
    assert told([RUNNER, f"--flink_master={master}"]) == {
        "parallelism": "7",
        "execution_mode_for_batch": "BATCH_FORCED",
    }


def test_what_is_given_stays_and_nobody_is_asked_for_it() -> None:
    given = [RUNNER, "--flink_master=localhost:1", "--parallelism=3", "--execution_mode_for_batch=PIPELINED"]
    assert told(given) == {}


def test_a_job_server_of_others_knows_its_cluster(cluster: Callable[[str], str]) -> None:
    assert told([RUNNER, "--job_endpoint=localhost:1"]) == {}
    master = cluster('{"slots-total": 2}')
    assert told([RUNNER, "--job_endpoint=localhost:1", f"--flink_master={master}"])["parallelism"] == "2"


@pytest.mark.parametrize("name", ["--flink-master", "--flink_master"])
def test_nobody_there(name: str) -> None:
    with pytest.raises(TryLaterError, match=r"no Flink answers at localhost:1 \(.*refused.*REST interface"):
        beam_options([RUNNER, f"{name}=localhost:1"])


@pytest.mark.parametrize("says", ["<html>", "[]", "{}", '{"slots-total": null}'])
def test_somebody_else_there(cluster: Callable[[str], str], says: str) -> None:
    with pytest.raises(TryLaterError, match="no Flink answers at localhost"):
        with_defaults([RUNNER, f"--flink_master={cluster(says)}"])


def test_a_cluster_without_taskmanagers(cluster: Callable[[str], str]) -> None:
    master = cluster('{"slots-total": 0}')
    with pytest.raises(TryLaterError, match="has no slots now: are its TaskManagers running"):
        with_defaults([RUNNER, f"--flink_master={master}"])
