"""Every command line that the DAGs run, made from the settings, as a person would type it. Standard library only."""

from collections.abc import Mapping, Sequence
from typing import Any

from soundlake_airflow.settings import RUNNERS, VAE_PRESETS, Corpus, Settings

Line = list[str]
# JSON schemas of the parameters that a person may give `train_vae`; Airflow's form and its API check them.
TRAINING: dict[str, dict[str, Any]] = {
    "preset": {"type": ["null", "string"], "enum": [*VAE_PRESETS]},
    "steps": {"type": ["null", "integer"], "minimum": 1, "maximum": 10_000_000},
    "seed": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
    "grown": {"type": ["null", "number"], "minimum": 0},
}
MODEL_ID = {"type": ["null", "string"], "pattern": "^[0-9a-f]{16}$"}


def _beam(settings: Settings) -> Line:
    """Beam's options for the place where tasks run, after ``--``."""
    if settings.where not in RUNNERS:
        return []
    return ["--", f"--runner={RUNNERS[settings.where]}", *settings.beam.get(settings.where, ())]


def _where(settings: Settings) -> Line:
    return ["--lake", settings.lake, "--json"]


def partitions(settings: Settings, corpus: Corpus) -> Line:
    """Command line that lists the partitions of a corpus."""
    return ["partitions", corpus.audio, "--spec", settings.spec, *_where(settings)]


def extract(settings: Settings, corpus: Corpus, partition: str | None) -> Line:
    """Command line that extracts features of a partition of a corpus, or of all of it."""
    line = ["extract", corpus.audio, "--spec", settings.spec, *_where(settings)]
    line += ["--labels", corpus.labels] if corpus.labels else []
    line += [] if partition is None else [f"--partition={partition}"]
    max_rejects = settings.limits.max_rejects
    line += [] if max_rejects is None else ["--max-rejects", str(max_rejects)]
    return line + _beam(settings)


def status(settings: Settings) -> Line:
    """Command line that summarises the lake."""
    return ["status", "--spec", settings.spec, *_where(settings)]


def train(settings: Settings, told: Mapping[str, Any]) -> Line:
    """Command line that trains a new model; a None among the parameters `told` (`TRAINING`) stands for the setting."""
    values = {"preset": settings.training.preset, "steps": settings.training.steps, "grown": settings.training.grown}
    values |= {name: value for name, value in told.items() if value is not None}
    options = {"--preset": values["preset"], "--steps": values["steps"], "--seed": values.get("seed")}
    line = ["train", "--spec", settings.spec, *_where(settings), "--if-grown", str(values["grown"])]
    return line + [word for name, value in options.items() if value is not None for word in (name, str(value))]


def evaluate(settings: Settings, model_id: str) -> Line:
    """Command line that evaluates a model beside baselines."""
    return ["evaluate", "--model", model_id, *_where(settings)]


def promote(settings: Settings, model_id: str) -> Line:
    """Command line that promotes a model if it passes the gate."""
    return ["promote", model_id, *_where(settings)]


def encode(settings: Settings, corpus: Corpus | None = None, partition: str | None = None) -> Line:
    """Command line that encodes what the table lacks, of a partition or of everything."""
    line = ["encode", "--spec", settings.spec, *_where(settings)]
    if corpus is not None and partition is not None:
        line += ["--corpus", corpus.audio, f"--partition={partition}"]
    return line + _beam(settings)


def maintain(settings: Settings) -> Line:
    """Command line for compaction, index, recall check, and removal of old versions and leftovers of killed runs."""
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
        Output of `partitions` for each corpus that is processed by folder, in the order of `by_folder`.
    command : str
        ``"extract"`` or ``"encode"``.

    Returns
    -------
    list of dict
        ``arguments``, and ``title``: the names of the corpus and the partition.
    """
    line = {"extract": extract, "encode": encode}[command]
    parts = {name: listing["partitions"] for name, listing in zip(by_folder(settings), found, strict=True)}
    mapped = []
    for name, corpus in sorted(settings.corpora.items()):
        if corpus.by_folder:
            for partition in parts[name]:
                mapped.append({"arguments": line(settings, corpus, partition), "title": f"{name}/{partition}"})
        elif command == "extract":
            # For encode no line is needed here: its last task encodes all that is left.
            mapped.append({"arguments": extract(settings, corpus, None), "title": name})
    return mapped
