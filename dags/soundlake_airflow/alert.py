"""Alerts: one message for each run that failed or is late, sent to the URL in the setting `alert`.

``python -m soundlake_airflow.alert`` sends a test message.
"""

import json
import logging
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any

from airflow.sdk.exceptions import AirflowException

from soundlake_airflow.settings import SettingsError, load

log = logging.getLogger(__name__)

# XCom key under which a failed task keeps its error: the callback of the run is called later, in another process.
ERROR = "error"
LONGEST_ERROR = 1000
# Most tasks that one message names.
MOST_TASKS = 5
# Airflow ends a process that parses a DAG file, and its callbacks with it, after 50 seconds.
TIMEOUT_S = 10.0
PAUSES_S = (1.0, 3.0)


class AlertError(RuntimeError):
    """A message could not be delivered; the text names the host and the reason."""


def keep_error(context: Any) -> None:
    """Keep the error of a task that failed, in one line, with the address of its log.

    Airflow calls this after the last try of a task. A task that was killed has no error to keep.
    """
    error = context.get("exception")
    if error is None:
        return
    ti = context["ti"]
    # Soundlake's operators raise Airflow's exceptions: their text is complete without the type.
    line = " ".join(str(error).split()) or "no message"
    if not isinstance(error, AirflowException):
        line = f"{type(error).__name__}: {line}"
    error_info = {
        "title": ti.rendered_map_index,
        "try": ti.try_number,
        "error": line[:LONGEST_ERROR],
        "log": ti.log_url,
    }
    ti.xcom_push(key=ERROR, value=error_info)


def failed(context: Any) -> None:
    """Report a run that failed: its tasks that failed, each with its error and the address of its log.

    Raises
    ------
    AlertError
        If the message could not be delivered.
    """
    send(failure(context))


def failure(context: Any) -> str:
    """The message of `failed`.

    Parameters
    ----------
    context : Context
        Of Airflow's DAG processor: ``dag``, ``run_id``, ``reason``, and ``ti``, one of the tasks that failed, if any.
    """
    dag, ti = context["dag"], context.get("ti")
    first = f"soundlake: {dag.dag_id} failed, run {context['run_id']}"
    if ti is None:
        return f"{first}: {context.get('reason')}"
    page = ti.log_url.partition("/tasks/")[0]
    lines = [first, page]
    try:
        tasks = _failed_tasks(dag, ti)
        lines += [_task_text(ti, page, *task) for task in tasks[:MOST_TASKS]] or [str(context.get("reason"))]
        if len(tasks) > MOST_TASKS:
            lines.append(f"and {len(tasks) - MOST_TASKS} more tasks")
    except Exception as error:
        # Whatever the error is, the message must be sent.
        log.exception("the errors of the tasks could not be read")
        lines.append(f"{ti.task_id}: its error could not be read ({type(error).__name__})\n  {ti.log_url}")
    return "\n".join(lines)


def _failed_tasks(dag: Any, ti: Any) -> list[tuple[str, int]]:
    """Names of the tasks that failed in the run of `ti`, with the index of a mapped one, else -1."""
    # Keyed by task, or, for a mapped task, by task and index, as in extract_0.
    states = ti.get_task_states(dag_id=dag.dag_id, run_ids=[ti.run_id])[ti.run_id]
    failures = []
    for task in dag.tasks:
        # A mapped task that could not be expanded has no index either.
        names = {task.task_id: -1} | ({f"{task.task_id}_{i}": i for i in range(len(states))} if task.is_mapped else {})
        failures += [(task.task_id, index) for name, index in names.items() if states.get(name) == "failed"]
    return failures


def _task_text(ti: Any, page: str, task_id: str, index: int) -> str:
    """Lines of a message on a task that failed in the run of `ti`; `page` is the address of that run."""
    error_info = ti.xcom_pull(task_ids=task_id, key=ERROR, map_indexes=index)
    if error_info:
        title = f"{task_id} {error_info['title']}" if error_info["title"] else task_id
        return f"{title}, try {error_info['try']}: {error_info['error']}\n  {error_info['log']}"
    name, place = (f"{task_id} {index}", f"{task_id}/mapped/{index}") if index >= 0 else (task_id, task_id)
    return f"{name}: it was killed or lost before it could report an error; see its log\n  {page}/tasks/{place}"


def late(context: Mapping[str, Any]) -> None:
    """Report a run that takes longer than it should, unless it has ended meanwhile.

    Raises
    ------
    AlertError
        If the message could not be delivered.
    """
    run = context["dag_run"]
    dag_id, run_id = run["dag_id"], run["dag_run_id"]
    # Airflow keeps the deadline of a run that failed (apache/airflow#60927); that failure has been reported.
    if run["state"] in ("success", "failed"):
        log.info("%s has ended, run %s: %s", dag_id, run_id, run["state"])
        return
    send(f"soundlake: {dag_id} is late, run {run_id}: it has not ended yet")


def send(text: str) -> None:
    """Write a message to the log, and post it to the URL in the settings, if there is one.

    Raises
    ------
    AlertError
        If the URL does not accept it in three tries.
    """
    log.error("%s", text)
    url = load().alert
    if not url:
        return
    data = json.dumps({"text": text}).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"}, method="POST")
    for pause in (*PAUSES_S, None):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S):
                return
        except (OSError, HTTPException) as error:
            if pause is None:
                # Name the host alone: the rest of the URL may be secret.
                place = urllib.parse.urlsplit(url).hostname
                raise AlertError(f"no alert was delivered: {place} did not accept the message: {error}") from error
            time.sleep(pause)


def main() -> int:
    """Send a test message; return the exit code."""
    logging.basicConfig(format="%(message)s")
    try:
        if not load().alert:
            print("no URL is set: see `alert` in the settings", file=sys.stderr)
            return 2
        send("soundlake: this is a test message; runs that fail or are late are reported here")
    except (AlertError, SettingsError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
