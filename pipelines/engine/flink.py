"""Defaults of Beam's options on Flink: the cluster, the parallelism, and the mode that survives a lost worker."""

import json
import urllib.request
from collections.abc import Sequence

from soundlake.model.errors import TryLaterError
from soundlake.pipelines.engine.machine import cores

# Flink's embedded cluster, inside the job server.
EMBEDDED = "[local]"
# On the embedded cluster. Some ten steps of 16 x 16 connections use up its memory for exchanges, Flink's own 64 MB.
EMBEDDED_PARALLELISM = 4
# Timeout of a request to a cluster.
SECONDS = 15.0


def with_defaults(given: Sequence[str]) -> list[str]:
    """Add the options that Flink needs to Beam's options, where they are missing.

    Parameters
    ----------
    given : sequence of str
        ``--name=value``, with Beam's names.

    Raises
    ------
    TryLaterError
        If a cluster is named and does not answer, or has no slot.
    """
    options = dict(argument.removeprefix("--").partition("=")[::2] for argument in given)
    if "job_endpoint" in options and "flink_master" not in options:
        return list(given)  # whoever started that server chose its cluster
    master = options.get("flink_master", EMBEDDED)
    defaults = {"flink_master": EMBEDDED}
    if master.startswith("["):
        defaults["parallelism"] = str(min(cores(), EMBEDDED_PARALLELISM))
    else:
        if "parallelism" not in options:
            defaults["parallelism"] = str(slots(master))
        # In this mode every exchange is stored until it is read, so the tasks of a lost worker can start again in the
        # slots that are left. If workers streamed to each other, all these tasks would have to start at the same time,
        # and would wait for slots that do not exist.
        defaults["execution_mode_for_batch"] = "BATCH_FORCED"
    return [*given, *(f"--{name}={value}" for name, value in defaults.items() if name not in options)]


def slots(master: str) -> int:
    """Number of task slots of a session cluster, free or taken.

    Parameters
    ----------
    master : str
        ``HOST:PORT`` of its REST interface, with a scheme or without.

    Raises
    ------
    TryLaterError
        If no Flink answers there, or it has no TaskManager.
    """
    address = master if "://" in master else f"http://{master}"
    # No proxy: proxies lead out of the local network, and clusters are inside it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}/overview", timeout=SECONDS) as answer:
            total = int(json.load(answer)["slots-total"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "reason", None) or error
        raise TryLaterError(
            f"no Flink answers at {master} ({reason}): is it running, and is that the port of its REST interface, "
            "8081 unless it was changed?"
        ) from error
    if not total:
        raise TryLaterError(f"the Flink at {master} has no slots now: are its TaskManagers running?")
    return total
