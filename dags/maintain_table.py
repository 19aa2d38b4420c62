"""Keep ledger and tables quick to read: compaction, index, old versions, and what killed runs left behind.

**maintain** fails, and is not tried again, if a table's index finds fewer than `limits.recall` of the true neighbours;
all else is done by then. Nothing that any ledger names is ever removed.
"""

from airflow.sdk import dag
from soundlake_airflow import command_lines, tasks
from soundlake_airflow.settings import load

SETTINGS = load()


@dag(
    dag_id="maintain_table",
    schedule=SETTINGS.schedule.maintain or None,
    description="Compaction, index, recall check, old versions.",
    doc_md=__doc__,
    **tasks.dag_defaults(SETTINGS),
)
def maintain_table() -> None:
    """Run one command."""
    tasks.command(SETTINGS, "maintain", command_lines.maintain(SETTINGS))


maintain_table()
