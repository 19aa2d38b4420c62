"""Bring features up to date: whatever is new, changed or gone in the corpora, a task a partition.

Every run lists the corpora and compares them with the lake's ledger; only what is new or changed is decoded. Clearing a
task, or a run, does no harm and no work twice.

**partitions** lists the folders of corpora with `by_folder` · **works** makes a command line of each · **extract** runs
them side by side · **features** reads the ledger's totals and tells them to the asset *soundlake features*, also if a
partition failed, since what the others did is done · **complete** does not succeed then. It fails, although
every partition succeeded, if a corpus has no files, or if files are new and none of them could be used.
"""

from datetime import UTC, datetime

from airflow.sdk import dag, task
from airflow.sdk.exceptions import AirflowFailException
from soundlake_airflow import command_lines, tasks
from soundlake_airflow.settings import load

SETTINGS = load()


def told(status: dict) -> dict:
    """The extra of the event of the features asset: each spec's row counts, hours, and rejects by reason."""
    numbers = ("ledger_version", "listed", "done", "rejected", "recordings", "windows", "shards", "hours")
    return {
        "specs": {
            spec_id: {name: summary[name] for name in numbers}
            | {"rejects": {reason: reject["count"] for reason, reject in summary["rejects"].items()}}
            for spec_id, summary in status["specs"].items()
        }
    }


@task(trigger_rule="none_failed")
def works(found: list | None = None) -> list[dict]:
    """A command line for each partition."""
    return command_lines.works(SETTINGS, tasks.each(found), command="extract")


@task(trigger_rule="none_failed")
def complete(made: list | None = None, found: list | None = None) -> None:
    """Fail if a corpus has no files, or if files are new and none of them could be used."""
    results = tasks.each(found)
    files = dict.fromkeys(SETTINGS.corpora, 0)
    for work, result in zip(made or [], results, strict=True):
        # Names of corpora have no slash.
        files[work["title"].partition("/")[0]] += result["listed"]
    if empty := [name for name, count in files.items() if not count]:
        raise AirflowFailException(
            f"no files in the corpus {', '.join(empty)}: is it mounted, and is its `audio` right in the settings?"
        )
    new, rejected, done = (sum(result[name] for result in results) for name in ("new", "rejected", "done"))
    new += sum(result["changed"] for result in results)
    if new and rejected and not done:
        raise AirflowFailException(
            f"none of the {new} new or changed files could be used; `soundlake status --lake {SETTINGS.lake}` shows why"
        )


@dag(
    dag_id="extract_features",
    schedule=SETTINGS.schedule.extract or None,
    description="Corpora in, log-mel shards and a full account of every file out.",
    doc_md=__doc__,
    # With a start date, the DAG runs as soon as it is switched on, and then the DAGs that wait for it run, too.
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    **tasks.dag_defaults(SETTINGS),
)
def extract_features() -> None:
    """List the partitions, extract each by a command line of its own, read the totals."""
    lines = works(tasks.partitions(SETTINGS).output)
    extract = tasks.commands(SETTINGS, "extract", lines, side_by_side=SETTINGS.limits.side_by_side)
    features = tasks.command(
        SETTINGS,
        "features",
        command_lines.status(SETTINGS),
        outlets=[tasks.features(SETTINGS)],
        asset_extra=told,
        trigger_rule="all_done_min_one_success",
    )
    extract >> features
    # The last tasks decide the state of a run: without this one a failed partition would not show.
    complete(lines, extract.output)


extract_features()
