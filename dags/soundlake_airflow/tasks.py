"""Tasks, assets and defaults that the DAGs share; only this module depends on where commands run."""

import urllib.parse
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, DeadlineAlert, DeadlineReference, SyncCallback

from soundlake_airflow import alert, command_lines
from soundlake_airflow.operator import SoundlakeOperator
from soundlake_airflow.settings import Settings

# Pools of tasks that share the lake's disks, and of tasks that share the cores; created once in Airflow by
# `airflow pools import infra/airflow/pools.json`.
LAKE_POOL, TRAINING_POOL = "soundlake_lake", "soundlake_training"


def _asset(settings: Settings, name: str) -> Asset:
    root = settings.lake if "://" in settings.lake else "file://" + urllib.parse.quote(settings.lake)
    return Asset(name=f"soundlake {name}", uri=f"{root.rstrip('/')}/{name}")


def features(settings: Settings) -> Asset:
    """The lake's shards and ledger."""
    return _asset(settings, "features")


def candidates(settings: Settings) -> Asset:
    """Models that have been trained but not judged yet."""
    return _asset(settings, "candidates")


def models(settings: Settings) -> Asset:
    """Models in use."""
    return _asset(settings, "models")


def held(settings: Settings) -> Asset:
    """Models that the gate refused."""
    return _asset(settings, "held")


def tables(settings: Settings) -> Asset:
    """Tables of embeddings."""
    return _asset(settings, "tables")


def each(found: Any) -> list[Any]:
    """Results of a mapped task's instances; read by index, since iterating to the end makes Airflow log an error."""
    return [found[i] for i in range(len(found))] if found else []


def told(result: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The extra of an asset's event: the named values of a command's result, and the manifest of the run."""
    return {name: result[name] for name in names} | {"manifest": result.get("manifest")}


def dag_defaults(settings: Settings) -> dict[str, Any]:
    """Arguments that every DAG has: one run at a time, retries with back-off, an alert for one that fails or is late.

    There is no start date among them: Airflow runs a DAG with a start date as soon as it is switched on.
    """
    limits = settings.limits
    return {
        # Each run looks at the whole corpus: there is nothing to catch up on.
        "catchup": False,
        "max_active_runs": 1,
        "tags": ["soundlake"],
        "default_args": {
            "retries": limits.retries,
            "retry_delay": timedelta(minutes=limits.retry_minutes),
            "retry_exponential_backoff": 2.0,
            "max_retry_delay": timedelta(minutes=limits.longest_retry_minutes),
            "execution_timeout": timedelta(hours=limits.hours),
            "on_failure_callback": alert.keep_error,
        },
        # For the run, not for its tasks: if ten partitions fail for one reason, one message is enough.
        "on_failure_callback": alert.failed,
        "deadline": [
            DeadlineAlert(
                # Not relative to when the run was queued: Airflow 3.3 then fails to clear a task
                # (apache/airflow#70368).
                reference=DeadlineReference.AVERAGE_RUNTIME(max_runs=10, min_runs=1),
                interval=timedelta(hours=limits.late_hours),
                callback=SyncCallback(alert.late),
            )
        ],
    }


def _place(settings: Settings) -> tuple[type, dict[str, Any]]:
    """The operator for the place where commands run, and the arguments for that place."""
    if settings.where == "kubernetes":
        from soundlake_airflow.pod import SoundlakePodOperator, pod_settings

        return SoundlakePodOperator, pod_settings(settings.kubernetes, settings.environment)
    place = {"program": settings.command, "environment": settings.environment, "inherit": settings.inherit}
    return SoundlakeOperator, place


def command(settings: Settings, task_id: str, arguments: Any, *, pool: str = LAKE_POOL, **more: Any) -> Any:
    """A task that runs one command.

    Parameters
    ----------
    settings : Settings
    task_id : str
    arguments : list of str, or the output of a task that returns one
        From `soundlake_airflow.command_lines`.
    pool : str
    more
        Arguments of `SoundlakeOperator`, and of any operator.
    """
    operator, place = _place(settings)
    return operator(task_id=task_id, arguments=arguments, pool=pool, **place, **more)


def commands(
    settings: Settings, task_id: str, works: Any, *, side_by_side: int, pool: str = LAKE_POOL, **more: Any
) -> Any:
    """A task mapped over the command lines `works` (`command_lines.works`), at most `side_by_side` at a time."""
    operator, place = _place(settings)
    return operator.partial(
        task_id=task_id,
        pool=pool,
        max_active_tis_per_dagrun=side_by_side,
        map_index_template="{{ task.title }}",
        **place,
        **more,
    ).expand_kwargs(works)


def partitions(settings: Settings) -> Any:
    """A mapped task that lists the partitions of each corpus that is processed by folder."""
    lines = [
        {"arguments": command_lines.partitions(settings, settings.corpora[name]), "title": name}
        for name in command_lines.by_folder(settings)
    ]
    return commands(settings, "partitions", lines, side_by_side=4)
