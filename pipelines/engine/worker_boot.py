"""The Python worker of Spark and Flink: the `soundlake` command itself, where Beam's Java side starts it.

Beam calls one program, by path and with arguments of its own, and its own such program comes with its container images
alone. `soundlake` is on every worker in any case, so it is the one: the variable `WORKER` in its environment says that
it is called as a worker (`pipelines.engine.runners` sets it). What such a program fetches beside, staged packages, is
not needed here, since soundlake is installed.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

WORKER = "SOUNDLAKE_BEAM_WORKER"
# How often a worker looks whether the Java process that started it still lives.
SECONDS = 2.0


def _end_with(parent: int) -> None:
    """End this process once its parent is gone: killed, that closes nothing, and a worker would wait for ever."""
    while os.getppid() == parent:
        time.sleep(SECONDS)
    os._exit(1)


def environment(worker_id: str, info: Any) -> dict[str, str]:
    """What Beam's worker wants to find in its environment.

    Parameters
    ----------
    worker_id : str
    info : apache_beam.portability.api.beam_provision_api_pb2.ProvisionInfo
    """
    from google.protobuf import json_format, text_format

    found = {"WORKER_ID": info.metadata.get("worker_id") or worker_id}
    found["PIPELINE_OPTIONS"] = json_format.MessageToJson(info.pipeline_options)
    found["RUNNER_CAPABILITIES"] = " ".join(info.runner_capabilities)
    for name in ("control", "logging", "status"):
        endpoint = getattr(info, f"{name}_endpoint")
        if endpoint.url:
            found[f"{name.upper()}_API_SERVICE_DESCRIPTOR"] = text_format.MessageToString(endpoint)
    return found


def work(arguments: Sequence[str]) -> None:
    """Be a worker until Beam has no more work.

    Parameters
    ----------
    arguments : sequence of str
        What Beam's Java side gives: ``--id=ID``, ``--provision_endpoint=HOST:PORT`` and more.
    """
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    import grpc
    from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc

    given = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    with grpc.insecure_channel(given["provision_endpoint"]) as channel:
        service = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        info = service.GetProvisionInfo(request, metadata=(("worker_id", given["id"]),), wait_for_ready=True).info
    os.environ.update(environment(given["id"], info))
    # Not for processes that this one starts.
    os.environ.pop(WORKER, None)
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
