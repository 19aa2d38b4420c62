"""One lake, kept up to date every night: extract, train if there is no model yet, encode, and say what there is.

Standard library and Airflow only; every task is one `soundlake` command, run in the pipelines' environment. Where the
audio and the lake are, and which `soundlake`, comes from the environment of the Airflow workers: SOUNDLAKE_AUDIO,
SOUNDLAKE_LAKE, SOUNDLAKE_COMMAND.
"""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

# The commands as the shell gets them; a test feeds each to the real command line's parser.
COMMANDS = {
    "extract": '"${SOUNDLAKE_COMMAND:-soundlake}" extract "$SOUNDLAKE_AUDIO" --json',
    "train": '"${SOUNDLAKE_COMMAND:-soundlake}" train --if-missing --json',
    "encode": '"${SOUNDLAKE_COMMAND:-soundlake}" encode --json',
    "status": '"${SOUNDLAKE_COMMAND:-soundlake}" status --json',
}

with DAG(
    dag_id="soundlake_lake",
    description="A folder of raw audio in, a searchable table of embeddings out.",
    doc_md=__doc__,
    schedule="@daily",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    # Two runs at once would do the same work twice.
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=5), "retry_exponential_backoff": True},
    tags=["soundlake"],
) as dag:
    before = None
    for task_id, command in COMMANDS.items():
        task = BashOperator(
            task_id=task_id,
            bash_command=command,
            append_env=True,
            execution_timeout=timedelta(hours=12),
        )
        if before is not None:
            before >> task
        before = task
