"""Bring the table of embeddings up to the ledger, whenever features or the model in use are new.

**model** ends the run here while no model is in use yet; one that is in use and cannot be read fails **encode** or
**table** · **partitions**, **works** and **encode** bring in what is new, a partition after the other, each with its
own retries · **table** does what is left: corpora without partitions, rows of what is gone, the index; and tells its
rows and recall to the asset *soundlake tables*.
"""

from airflow.sdk import dag, task
from soundlake_airflow import command_lines, tasks
from soundlake_airflow.settings import load

SETTINGS = load()


def told(result: dict) -> dict:
    """The extra of the event of the tables asset."""
    names = ("model_id", "rows", "encoded", "renamed", "stale_recordings", "index", "table_version", "ledger_version")
    return tasks.told(result, *names)


@task.short_circuit
def model(status: dict) -> bool:
    """Whether a model is in use; if not, `train_vae` makes one, and its promotion starts this again."""
    return any(spec["promoted"] for spec in status["specs"].values())


@task(trigger_rule="none_failed")
def works(found: list | None = None) -> list[dict]:
    """A command line for each partition."""
    return command_lines.works(SETTINGS, tasks.each(found), command="encode")


@dag(
    dag_id="encode_corpus",
    schedule=(tasks.features(SETTINGS) | tasks.models(SETTINGS)),
    description="Every window that the table lacks.",
    doc_md=__doc__,
    **tasks.dag_defaults(SETTINGS),
)
def encode_corpus() -> None:
    """Encode one partition after the other, then the rest."""
    status = tasks.command(SETTINGS, "status", command_lines.status(SETTINGS))
    partitions = tasks.partitions(SETTINGS)
    model(status.output) >> partitions
    # One at a time: they commit to the same table.
    encode = tasks.commands(SETTINGS, "encode", works(partitions.output), side_by_side=1)
    table = tasks.command(
        SETTINGS,
        "table",
        command_lines.encode(SETTINGS),
        outlets=[tasks.tables(SETTINGS)],
        asset_extra=told,
        trigger_rule="none_failed",
    )
    encode >> table


encode_corpus()
