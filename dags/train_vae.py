"""Train a model when enough new audio has come: looked at each time features are new, and on a schedule.

A model is due if the lake holds `training.grown` (a share) more windows than any of its models has seen. By hand, with
the form's fields: another preset, number of steps, seed, or share (0: train in any case, if it is not there already).
A training that is killed goes on from its last checkpoint.

**arguments** makes the command line · **train** runs it · **due** goes on if there is a model that nobody has judged
yet · **candidate** tells it to the asset *soundlake candidates*, which `evaluate_and_promote` waits for.
"""

from airflow.sdk import AssetOrTimeSchedule, CronTriggerTimetable, Param, dag, task
from soundlake_airflow import command_lines, tasks
from soundlake_airflow.settings import load

SETTINGS = load()
FEATURES, CANDIDATES = tasks.features(SETTINGS), tasks.candidates(SETTINGS)


@task
def arguments(params: dict | None = None) -> list[str]:
    """The command line, of the settings and of what was filled in by hand."""
    return command_lines.train(SETTINGS, dict(params or {}))


@task.short_circuit
def due(result: dict) -> bool:
    """Whether there is a model to judge: one just trained, or one that a run before could not hand on."""
    if "seen" in result:
        print(f"the lake holds {result['windows']} windows; models have seen {result['seen']}")
    return bool(result["trained"] or not (result["promoted"] or result["judged"]))


@task(outlets=[CANDIDATES])
def candidate(result: dict, *, outlet_events: dict | None = None) -> str:
    """Hand the model on."""
    assert outlet_events is not None
    outlet_events[CANDIDATES].extra = tasks.told(result, "model_id", "trained") | {
        "windows": result["metrics"]["windows"]
    }
    return str(result["model_id"])


@dag(
    dag_id="train_vae",
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable(SETTINGS.schedule.train, timezone="UTC"), assets=[FEATURES]
    )
    if SETTINGS.schedule.train
    else [FEATURES],
    description="A new VAE when enough new audio has come.",
    doc_md=__doc__,
    params={
        "preset": Param(None, title="Preset", **command_lines.TRAINING["preset"]),
        "steps": Param(None, title="Steps at most", **command_lines.TRAINING["steps"]),
        "seed": Param(0, title="Seed", **command_lines.TRAINING["seed"]),
        "grown": Param(None, title="Share of new windows that makes a model due", **command_lines.TRAINING["grown"]),
    },
    **tasks.dag_defaults(SETTINGS),
)
def train_vae() -> None:
    """Train a model, and hand it on if it is due to be judged."""
    train = tasks.command(SETTINGS, "train", arguments(), pool=tasks.TRAINING_POOL)
    due(train.output) >> candidate(train.output)


train_vae()
