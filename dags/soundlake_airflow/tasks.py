"""Tasks, assets and defaults that the DAGs share: the one place that knows where a command runs."""

import urllib.parse
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk import Asset, DeadlineAlert, DeadlineReference, SyncCallback

from soundlake_airflow import alert, command_lines
from soundlake_airflow.operator import SoundlakeOperator
from soundlake_airflow.settings import Settings

# Made once in Airflow (`airflow pools import infra/airflow/pools.json`): what shares the lake's disks, and its cores.
LAKE_POOL, TRAINING_POOL = "soundlake_lake", "soundlake_training"


def _asset(settings: Settings, name: str) -> Asset:
    root = settings.lake if "://" in settings.lake else "file://" + urllib.parse.quote(settings.lake)
    return Asset(name=f"soundlake {name}", uri=f"{root.rstrip('/')}/{name}")


def features(settings: Settings) -> Asset:
    """The lake's shards and ledger."""
    return _asset(settings, "features")


def candidates(settings: Settings) -> Asset:
    """Models that are trained, and not judged yet."""
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
    """What the tasks of a mapped one handed on; by index, since to go on to the end has Airflow log an error."""
    return [found[i] for i in range(len(found))] if found else []


def told(result: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """What an asset's event carries of a command's result: what was asked for, and the manifest of the run."""
    return {name: result[name] for name in names} | {"manifest": result.get("manifest")}


def dag_defaults(settings: Settings) -> dict[str, Any]:
    """Arguments that every DAG has: one run at a time, retries with back-off, an alert for one that fails or is late.

    No date to start from: where a DAG has one, Airflow runs it as soon as it is switched on.
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
        # Of the run, not of its tasks: of ten partitions that fail for one reason, one message tells.
        "on_failure_callback": alert.failed,
        "deadline": [
            DeadlineAlert(
                # Not of when the run was queued: Airflow 3.3 then fails to clear a task (apache/airflow#70368).
                reference=DeadlineReference.AVERAGE_RUNTIME(max_runs=10, min_runs=1),
                interval=timedelta(hours=limits.late_hours),
                callback=SyncCallback(alert.late),
            )
        ],
    }


def _place(settings: Settings) -> tuple[type, dict[str, Any]]:
    """The operator of the place where commands run, and the arguments that it needs for that."""
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
    arguments : list of str, or what gives one when it runs
        From `soundlake_airflow.command_lines`.
    pool : str
    more
        As for `SoundlakeOperator`, and any operator.
    """
    operator, place = _place(settings)
    return operator(task_id=task_id, arguments=arguments, pool=pool, **place, **more)


def commands(
    settings: Settings, task_id: str, works: Any, *, side_by_side: int, pool: str = LAKE_POOL, **more: Any
) -> Any:
    """A task mapped over command lines: those of `works` (`command_lines.works`), so many side by side."""
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
    """A task for each corpus that is worked on by folder: what parts it has."""
    each = [
        {"arguments": command_lines.partitions(settings, settings.corpora[name]), "title": name}
        for name in command_lines.by_folder(settings)
    ]
    return commands(settings, "partitions", each, side_by_side=4)
