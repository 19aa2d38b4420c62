"""What a pipeline is told on Flink unless it says otherwise: where, how widely, and how it survives a lost worker."""

import json
import urllib.request
from collections.abc import Sequence

from soundlake.model.errors import TryLaterError
from soundlake.pipelines.engine.machine import cores

# A cluster in the job server itself.
EMBEDDED = "[local]"
# Its memory for exchanges, Flink's own 64 MB, is used up by some ten steps of 16 x 16 connections.
EMBEDDED_PARALLELISM = 4
# For a cluster to answer.
SECONDS = 15.0


def with_defaults(given: Sequence[str]) -> list[str]:
    """Beam's options with those added that Flink needs and that were not given.

    Parameters
    ----------
    given : sequence of str
        ``--name=value``, by Beam's names.

    Raises
    ------
    TryLaterError
        If a cluster is named and does not answer, or has no slot.
    """
    options = dict(argument.removeprefix("--").partition("=")[::2] for argument in given)
    if "job_endpoint" in options and "flink_master" not in options:
        return list(given)  # whoever started that server told it where to
    master = options.get("flink_master", EMBEDDED)
    defaults = {"flink_master": EMBEDDED}
    if master.startswith("["):
        defaults["parallelism"] = str(min(cores(), EMBEDDED_PARALLELISM))
    else:
        if "parallelism" not in options:
            defaults["parallelism"] = str(slots(master))
        # Every exchange is kept until it was read. Where workers stream to each other, all tasks of a lost one must
        # start again at the same time, and wait for slots that nobody has; so they start on those that are left.
        defaults["execution_mode_for_batch"] = "BATCH_FORCED"
    return [*given, *(f"--{name}={value}" for name, value in defaults.items() if name not in options)]


def slots(master: str) -> int:
    """Task slots of a session cluster, taken or not.

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
    # A proxy is for the way out, and clusters are inside.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{address}/overview", timeout=SECONDS) as answer:
            found = int(json.load(answer)["slots-total"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "reason", None) or error
        raise TryLaterError(
            f"no Flink answers at {master} ({reason}): is it running, and is that the port of its REST interface, "
            "8081 unless it was changed?"
        ) from error
    if not found:
        raise TryLaterError(f"the Flink at {master} has no slots now: are its TaskManagers running?")
    return found
