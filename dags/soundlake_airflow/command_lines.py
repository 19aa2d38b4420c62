"""Every command line that the DAGs run, from the settings alone: what a person would type. Standard library alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from soundlake_airflow.settings import RUNNERS, VAE_PRESETS, Corpus, Settings

Line = list[str]
# What `train_vae` may be told by hand: JSON schemas, which Airflow's form and its API check.
TRAINING: dict[str, dict[str, Any]] = {
    "preset": {"type": ["null", "string"], "enum": [*VAE_PRESETS]},
    "steps": {"type": ["null", "integer"], "minimum": 1, "maximum": 10_000_000},
    "seed": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    "grown": {"type": ["null", "number"], "minimum": 0},
}
MODEL_ID = {"type": ["null", "string"], "pattern": "^[0-9a-f]{16}$"}


def _beam(settings: Settings) -> Line:
    """Beam's options where tasks are to run, after ``--``."""
    if settings.where not in RUNNERS:
        return []
    return ["--", f"--runner={RUNNERS[settings.where]}", *settings.beam.get(settings.where, ())]


def _where(settings: Settings) -> Line:
    return ["--lake", settings.lake, "--json"]


def partitions(settings: Settings, corpus: Corpus) -> Line:
    """The parts of a corpus."""
    return ["partitions", corpus.audio, "--spec", settings.spec, *_where(settings)]


def extract(settings: Settings, corpus: Corpus, partition: str | None) -> Line:
    """A partition of a corpus, or all of it, into features."""
    line = ["extract", corpus.audio, "--spec", settings.spec, *_where(settings)]
    line += ["--labels", corpus.labels] if corpus.labels else []
    line += [] if partition is None else [f"--partition={partition}"]
    most = settings.limits.max_rejects
    line += [] if most is None else ["--max-rejects", str(most)]
    return line + _beam(settings)


def status(settings: Settings) -> Line:
    """The lake at a glance."""
    return ["status", "--spec", settings.spec, *_where(settings)]


def train(settings: Settings, told: Mapping[str, Any]) -> Line:
    """A new model; of what was told by hand (`TRAINING`), None is the settings' own."""
    given = {"preset": settings.training.preset, "steps": settings.training.steps, "grown": settings.training.grown}
    given |= {name: value for name, value in told.items() if value is not None}
    options = {"--preset": given["preset"], "--steps": given["steps"], "--seed": given.get("seed")}
    line = ["train", "--spec", settings.spec, *_where(settings), "--if-grown", str(given["grown"])]
    return line + [word for name, value in options.items() if value is not None for word in (name, str(value))]


def evaluate(settings: Settings, model_id: str) -> Line:
    """A model beside baselines."""
    return ["evaluate", "--model", model_id, *_where(settings)]


def promote(settings: Settings, model_id: str) -> Line:
    """A model through the gate."""
    return ["promote", model_id, *_where(settings)]


def encode(settings: Settings, corpus: Corpus | None = None, partition: str | None = None) -> Line:
    """What the table lacks: of a partition, or all of it."""
    line = ["encode", "--spec", settings.spec, *_where(settings)]
    if corpus is not None and partition is not None:
        line += ["--corpus", corpus.audio, f"--partition={partition}"]
    return line + _beam(settings)


def maintain(settings: Settings) -> Line:
    """Compaction, index, recall, old versions, and what killed runs left."""
    return ["maintain", "--recall-floor", str(settings.limits.recall), *_where(settings)]


def by_folder(settings: Settings) -> list[str]:
    """Names of the corpora whose folders are partitions, sorted."""
    return sorted(name for name, corpus in settings.corpora.items() if corpus.by_folder)


def works(settings: Settings, found: Sequence[Mapping[str, Any]], *, command: str) -> list[dict[str, Any]]:
    """A command line for each partition of each corpus, to map a task over.

    Parameters
    ----------
    settings : Settings
    found : sequence of mapping
        What `partitions` printed of each corpus that is worked on by folder, in the order of `by_folder`.
    command : str
        ``"extract"`` or ``"encode"``.

    Returns
    -------
    list of dict
        ``arguments``, and ``title``: the corpus's name, and its partition's.
    """
    line = {"extract": extract, "encode": encode}[command]
    parts = {name: one["partitions"] for name, one in zip(by_folder(settings), found, strict=True)}
    made = []
    for name, corpus in sorted(settings.corpora.items()):
        if corpus.by_folder:
            for partition in parts[name]:
                made.append({"arguments": line(settings, corpus, partition), "title": f"{name}/{partition}"})
        elif command == "extract":
            # What encode does at its end, for all that is left, is all of it here.
            made.append({"arguments": extract(settings, corpus, None), "title": name})
    return made
