"""The Python worker of Spark and Flink: the `soundlake` command itself, started by Beam's Java side.

Beam calls one worker program by its path, with Beam's own arguments. Beam's own worker program comes only with its
container images. `soundlake` is installed on every worker in any case, so it serves as the worker program: the
environment variable `WORKER` marks such a call (`pipelines.engine.runners` sets it). Beam's program also fetches staged
packages. This one does not need to, since soundlake is installed.
"""

import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

WORKER = "SOUNDLAKE_BEAM_WORKER"
# Between two checks of a worker that the Java process that started it still lives.
SECONDS = 2.0


def _end_with(parent: int) -> None:
    """End this process once its parent is gone: a killed parent closes nothing, and a worker would wait for ever."""
    while os.getppid() == parent:
        time.sleep(SECONDS)
    os._exit(1)


def environment(worker_id: str, info: Any) -> dict[str, str]:
    """The environment variables that Beam's worker needs.

    Parameters
    ----------
    worker_id : str
    info : apache_beam.portability.api.beam_provision_api_pb2.ProvisionInfo
    """
    from google.protobuf import json_format, text_format

    variables = {"WORKER_ID": info.metadata.get("worker_id") or worker_id}
    variables["PIPELINE_OPTIONS"] = json_format.MessageToJson(info.pipeline_options)
    variables["RUNNER_CAPABILITIES"] = " ".join(info.runner_capabilities)
    for name in ("control", "logging", "status"):
        endpoint = getattr(info, f"{name}_endpoint")
        if endpoint.url:
            variables[f"{name.upper()}_API_SERVICE_DESCRIPTOR"] = text_format.MessageToString(endpoint)
    return variables


def work(arguments: Sequence[str]) -> None:
    """Run as a worker until Beam has no more work.

    Parameters
    ----------
    arguments : sequence of str
        From Beam's Java side: ``--id=ID``, ``--provision_endpoint=HOST:PORT`` and more.
    """
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    import grpc
    from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc

    options = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    with grpc.insecure_channel(options["provision_endpoint"]) as channel:
        service = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        info = service.GetProvisionInfo(request, metadata=(("worker_id", options["id"]),), wait_for_ready=True).info
    os.environ.update(environment(options["id"], info))
    # Processes that this one starts are no workers.
    os.environ.pop(WORKER, None)
    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)
