"""Judge a candidate, and put it in use if it is not worse than the model that is.

Runs for each candidate that `train_vae` hands on, or by hand for any model of the lake (field *model_id*).

**candidate** says which · **evaluate** writes its metrics and report · **promote** is the gate: reconstruction, ELBO
and, with labels, probes, on the same recordings · **verdict** goes one of two ways: **promoted** tells the asset
*soundlake models*, which `encode_corpus` waits for; **held** tells *soundlake held*, with the reason and the figures,
and writes them to its log. A held model stays in the lake; `soundlake promote MODEL --force` puts it in use all the
same. **verdict** fails where the two models could not be compared, such as where the one in use cannot be read: nobody
has judged the candidate then. Clear **promote** when the cause is mended.
"""

from airflow.sdk import Param, dag, task
from airflow.sdk.exceptions import AirflowFailException
from soundlake_airflow import command_lines, tasks
from soundlake_airflow.settings import load

SETTINGS = load()
CANDIDATES, MODELS, HELD = tasks.candidates(SETTINGS), tasks.models(SETTINGS), tasks.held(SETTINGS)


@task
def candidate(params: dict | None = None, triggering_asset_events: dict | None = None) -> str:
    """The model that was named by hand, else the newest that was handed on."""
    named = (params or {}).get("model_id")
    events = [event for asset_events in (triggering_asset_events or {}).values() for event in asset_events]
    if not named and not events:
        raise AirflowFailException("no candidate: give a model_id, or wait for train_vae to hand one on")
    return str(named or max(events, key=lambda event: event.timestamp).extra["model_id"])


@task
def evaluation(model_id: str) -> list[str]:
    """The command line."""
    return command_lines.evaluate(SETTINGS, model_id)


@task
def promotion(model_id: str) -> list[str]:
    """The command line."""
    return command_lines.promote(SETTINGS, model_id)


@task.branch
def verdict(result: dict) -> str:
    """Which way it goes; a candidate is held only if it is worse in something."""
    if "held" in result and not result.get("worse"):
        raise AirflowFailException(result["held"])
    return "held" if "held" in result else "promoted"


@task(outlets=[MODELS])
def promoted(result: dict, *, outlet_events: dict | None = None) -> None:
    """Tell that a model is in use, and by which figures."""
    assert outlet_events is not None
    outlet_events[MODELS].extra = tasks.told(result, "model_id", "instead_of", "measures")
    model_id, before = result["model_id"], result["instead_of"]
    print(f"model {model_id} is in use, {'as before' if before == model_id else f'before: {before}'}")


@task(outlets=[HELD])
def held(result: dict, *, outlet_events: dict | None = None) -> str:
    """Tell that a model is worse, and in what."""
    assert outlet_events is not None
    outlet_events[HELD].extra = tasks.told(result, "held", "model_id", "instead_of", "measures", "worse")
    print(f"held: {result['held']}")
    return str(result["held"])


@dag(
    dag_id="evaluate_and_promote",
    schedule=[CANDIDATES],
    description="The gate: a worse model is held, and the run says why.",
    doc_md=__doc__,
    params={"model_id": Param(None, title="Model, from soundlake status", **command_lines.MODEL_ID)},
    **tasks.dag_defaults(SETTINGS),
)
def evaluate_and_promote() -> None:
    """Choose the candidate, evaluate it, compare it at the gate, and take one of two branches."""
    model_id = candidate()
    evaluate = tasks.command(SETTINGS, "evaluate", evaluation(model_id), pool=tasks.TRAINING_POOL)
    promote = tasks.command(SETTINGS, "promote", promotion(model_id), pool=tasks.TRAINING_POOL, gate=True)
    evaluate >> promote
    verdict(promote.output) >> [promoted(promote.output), held(promote.output)]


evaluate_and_promote()
