"""Settings of the DAGs: the corpora, the lake, where and when commands run; one TOML file, checked as a whole.

The file is ``soundlake.toml`` beside the DAGs, or the file that SOUNDLAKE_SETTINGS names. Standard library only.
"""

import os
import re
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

VAE_PRESETS = (None, "default", "seed")
PLACES = ("local", "dataflow", "spark", "flink", "kubernetes")
# Beam's runner for a place; for other places the pipeline runs in the process of the command.
RUNNERS = {"dataflow": "DataflowRunner", "spark": "SparkRunner", "flink": "FlinkRunner"}
# Matches names of Beam options that hold a secret.
_SECRET = re.compile(r"secret|passw|token|credential|signature|access_?key|connection_?string", re.IGNORECASE)
_WEB_ADDRESS = re.compile(r"https?://[\w.:\[\]-]+(/[!-~]*)?", re.ASCII)
# Names for cron expressions that Airflow accepts.
PRESETS = ("@hourly", "@daily", "@weekly", "@monthly", "@quarterly", "@yearly")


class SettingsError(ValueError):
    """The settings are wrong; one line names the place, the error, and the allowed values."""


@dataclass(frozen=True)
class Corpus:
    """A folder or bucket prefix of audio.

    Attributes
    ----------
    audio : str
    labels : str or None
        A file of labels; by default the corpus's own ``labels.csv``.
    by_folder : bool
        Whether each folder of it is a partition, processed by a task of its own.
    """

    audio: str
    labels: str | None = None
    by_folder: bool = False


@dataclass(frozen=True)
class Schedule:
    """When DAGs run: cron expressions or presets such as ``@daily``; ``""`` for manual runs only. Times are UTC."""

    extract: str = "@daily"
    train: str = "@weekly"
    maintain: str = "@weekly"


@dataclass(frozen=True)
class Training:
    """When a new model is due, and how it is trained.

    Attributes
    ----------
    grown : float
        A model is due if the lake holds this share more windows than any of its models has seen.
    preset : str or None
    steps : int or None
        Most training steps.
    """

    grown: float = 0.2
    preset: str | None = None
    steps: int | None = None


@dataclass(frozen=True)
class Limits:
    """Limits of a run.

    Attributes
    ----------
    side_by_side : int
        Partitions extracted at the same time, by one run.
    retries : int
    retry_minutes, longest_retry_minutes : float
        The pause before the first retry, doubled for each further one, up to the second number.
    hours : float
        A task is stopped after this time.
    late_hours : float
        A run that takes this much longer than the last ten that succeeded did on average raises the alert.
    recall : float
        Least recall of a table's index.
    max_rejects : int or None
        Extract fails if the ledger holds more rejected files than this; None for any number.
    """

    side_by_side: int = 2
    retries: int = 3
    retry_minutes: float = 5.0
    longest_retry_minutes: float = 60.0
    hours: float = 12.0
    late_hours: float = 6.0
    recall: float = 0.9
    max_rejects: int | None = None


@dataclass(frozen=True)
class Kubernetes:
    """One pod for each command, for the place ``kubernetes``.

    Attributes
    ----------
    image : str
        With `soundlake` as its entry point: infra/containers/Dockerfile.
    namespace, service_account : str
    cpu, memory : str
        Requests of the pod; memory is also its limit.
    claim, mounted_at : str
        A volume claim for lake and corpora, and where the pod mounts it; empty for buckets.
    """

    image: str = ""
    namespace: str = "default"
    service_account: str = "soundlake"
    cpu: str = "2"
    memory: str = "4Gi"
    claim: str = ""
    mounted_at: str = ""


@dataclass(frozen=True)
class Settings:
    """All settings; see the classes of its parts.

    Attributes
    ----------
    lake : str
    corpora : dict of str to Corpus
    command : tuple of str
        The program, in the pipelines' environment.
    spec : str
        A preset's name, or a JSON file.
    where : str
        One of `PLACES`; this setting alone decides where tasks run.
    beam : dict of str to tuple of str
        Beam's options by place.
    environment : dict of str to str
        Variables that commands get in addition to a plain environment.
    inherit : tuple of str
        Names of the worker's own variables that commands also get.
    alert : str
        URL that gets a POST when a run fails or is late; the message is logged in any case.
    """

    lake: str
    corpora: dict[str, Corpus]
    command: tuple[str, ...] = ("soundlake",)
    spec: str = "general"
    where: str = "local"
    alert: str = ""
    inherit: tuple[str, ...] = ()
    schedule: Schedule = field(default_factory=Schedule)
    training: Training = field(default_factory=Training)
    limits: Limits = field(default_factory=Limits)
    kubernetes: Kubernetes = field(default_factory=Kubernetes)
    beam: dict[str, tuple[str, ...]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)


def _made(kind: type, found: Any, where: str) -> Any:
    """A dataclass from a table of the file; raises `SettingsError` for unknown names and wrong types."""
    if not isinstance(found, dict):
        raise SettingsError(f"{where} must be a table, [{where}]")
    known_settings = {setting.name: setting for setting in fields(kind)}
    unknown = sorted(found.keys() - known_settings.keys())
    if unknown:
        raise SettingsError(f"{where} has no setting {unknown[0]!r}; it has: {', '.join(known_settings)}")
    values = {}
    for name, value in found.items():
        type_name = str(known_settings[name].type)
        place = f"{where}.{name}"
        if name in _PARTS and kind is Settings:
            value = _PARTS[name](value, place)
        elif "bool" in type_name and "str" not in type_name:
            _check(isinstance(value, bool), place, "true or false", value)
        elif "int" in type_name or "float" in type_name:
            number = isinstance(value, int) if "int" in type_name else isinstance(value, int | float)
            _check(number and not isinstance(value, bool), place, "a number", value)
        else:
            _check(isinstance(value, str), place, "a text", value)
        values[name] = value
    missing = [name for name in ("lake", "corpora", "audio") if name in known_settings and name not in values]
    if missing:
        raise SettingsError(f"{where} lacks {missing[0]!r}")
    return kind(**values)


def _check(right: bool, where: str, wanted: str, value: Any) -> None:
    if not right:
        raise SettingsError(f"{where} must be {wanted}, not {value!r}")


def _texts(found: Any, where: str) -> tuple[str, ...]:
    _check(isinstance(found, list) and all(isinstance(text, str) for text in found), where, "a list of texts", found)
    return tuple(found)


def _by_name(each: Any) -> Any:
    def read(found: Any, where: str) -> dict[str, Any]:
        _check(isinstance(found, dict), where, "a table", found)
        return {name: each(value, f"{where}.{name}") for name, value in found.items()}

    return read


def _text(found: Any, where: str) -> str:
    _check(isinstance(found, str), where, "a text", found)
    return str(found)


def _table_of(kind: type) -> Any:
    return lambda found, where: _made(kind, found, where)


_PARTS: dict[str, Any] = {
    "command": _texts,
    "inherit": _texts,
    "corpora": _by_name(_table_of(Corpus)),
    "beam": _by_name(_texts),
    "environment": _by_name(_text),
    "schedule": _table_of(Schedule),
    "training": _table_of(Training),
    "limits": _table_of(Limits),
    "kubernetes": _table_of(Kubernetes),
}


def parse(text: str, where: str) -> Settings:
    """Read settings from TOML.

    Raises
    ------
    SettingsError
        With the file and its first error.
    """
    try:
        settings: Settings = _made(Settings, tomllib.loads(text), "settings")
        _judge(settings)
    except (SettingsError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{where}: {error}") from error
    return settings


def _judge(found: Settings) -> None:
    """Check rules that types cannot express."""
    for name in found.corpora:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", name):
            raise SettingsError(f"corpora.{name}: a name is made of a-z, 0-9, - and _")
    _check(bool(found.corpora), "corpora", "at least one, such as [corpora.birds]", {})
    _check(bool(found.command and found.command[0]), "command", "the program and what comes before a command", ())
    _check(found.where in PLACES, "where", f"one of {', '.join(PLACES)}", found.where)
    unknown = sorted(found.beam.keys() - RUNNERS.keys())
    if unknown:
        raise SettingsError(f"beam.{unknown[0]} is no place with a runner; there are {', '.join(RUNNERS)}")
    # Command lines are logged, and shown on Airflow's pages.
    for place_name, options in found.beam.items():
        for option in options:
            name = option.partition("=")[0]
            if _SECRET.search(name):
                raise SettingsError(f"beam.{place_name}: {name} would be seen in logs: give it by `inherit`")
    place, limits = found.kubernetes, found.limits
    if found.where == "kubernetes":
        _check(bool(place.image), "kubernetes.image", "the pipelines' image", "")
    if place.claim:
        _check(place.mounted_at.startswith("/"), "kubernetes.mounted_at", "an absolute path", place.mounted_at)
    for name, cron in vars(found.schedule).items():
        valid = cron in ("", *PRESETS) or len(cron.split()) == 5
        _check(valid, f"schedule.{name}", f"five fields of cron, one of {', '.join(PRESETS)}, or empty", cron)
    for name in ("hours", "late_hours", "retry_minutes", "longest_retry_minutes", "side_by_side"):
        value = getattr(limits, name)
        _check(0 < value < 1e6, f"limits.{name}", "more than 0, and less than a million", value)
    _check(limits.retries >= 0, "limits.retries", "0 or more", limits.retries)
    _check(0 <= limits.recall <= 1, "limits.recall", "from 0 to 1", limits.recall)
    _check((limits.max_rejects or 0) >= 0, "limits.max_rejects", "0 or more", limits.max_rejects)
    _check(found.training.grown >= 0, "training.grown", "0 or more", found.training.grown)
    _check(found.training.preset in VAE_PRESETS, "training.preset", "default or seed", found.training.preset)
    steps = found.training.steps
    _check(steps is None or steps > 0, "training.steps", "more than 0", steps)
    # Do not show the URL: anyone who has it may post to it.
    if found.alert and not _WEB_ADDRESS.fullmatch(found.alert):
        raise SettingsError("alert must be a URL such as https://example.org/hook, and hold no user's name")
    # Paths must be absolute: the processes that use them have other working directories.
    paths = {"lake": found.lake} | {f"corpora.{name}.audio": corpus.audio for name, corpus in found.corpora.items()}
    paths |= {
        f"corpora.{name}.labels": corpus.labels for name, corpus in found.corpora.items() if corpus.labels is not None
    }
    paths |= {"spec": found.spec} if found.spec.endswith(".json") else {}
    for name, path in paths.items():
        if re.match(r"[^/]+://[^/]*:[^/]*@", path):
            raise SettingsError(f"{name} holds a password, which would be seen in logs: give it by `inherit`")
        _check(path.startswith("/") or "://" in path, name, "an absolute path or a URI", path)


def load() -> Settings:
    """Load the settings of this Airflow.

    Raises
    ------
    SettingsError
        If the file is missing or wrong.
    """
    path = Path(os.environ.get("SOUNDLAKE_SETTINGS") or Path(__file__).resolve().parents[1] / "soundlake.toml")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"cannot read the settings {path}: {error.strerror}; SOUNDLAKE_SETTINGS names them"
        ) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: it is not in UTF-8") from error
    return parse(text, str(path))
