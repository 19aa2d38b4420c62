"""Promotion: the model that the commands of each spec use, and a log of attempts to promote a model."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from soundlake.model.errors import InputError
from soundlake.model.paths import inside, is_id, regular
from soundlake.model.saved.artifact import Model, write_json

# In a folder of models: the promoted model of each spec, and the history.
CURRENT = "current.json"
# In a model's folder: the result of each attempt to promote it, with the figures.
PROMOTIONS = "promotions.json"


def current_of(data: bytes, where: str) -> dict[str, Any]:
    """Parse the content of a current.json.

    Raises
    ------
    InputError
        If the file is damaged.
    """
    try:
        current = json.loads(data)
        if not (isinstance(current["history"], list) and all(map(is_id, current["promoted"].values()))):
            raise ValueError("it has an invalid model id")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{where} is damaged: {error}; restore it from a backup, or move it away and promote a model again"
        ) from error
    return dict(current)


def _current(models_dir: str | Path) -> dict[str, Any]:
    path = inside(str(models_dir), CURRENT)
    try:
        return current_of(Path(regular(path)).read_bytes(), path)
    except FileNotFoundError:
        return nothing_promoted()


def promoted(models_dir: str | Path, spec_id: str) -> str | None:
    """The promoted model of a spec, or None."""
    model_id: str | None = _current(models_dir)["promoted"].get(spec_id)
    return model_id


def promote(models_dir: str | Path, model: Model, *, reason: str) -> None:
    """Make the commands of a model's spec use it; the history records when and why."""
    current = promoting(_current(models_dir), promotion(model, reason=reason))
    write_json(Path(models_dir) / CURRENT, current)


def nothing_promoted() -> dict[str, Any]:
    """The content of current.json before any model is promoted."""
    return {"promoted": {}, "history": []}


def promotion(model: Model, *, reason: str) -> dict[str, str]:
    """The history's entry for a promotion made now."""
    return {"model_id": model.model_id, "spec_id": model.spec.spec_id, "reason": reason, "at": _now()}


def promoting(current: Mapping[str, Any], entry: Mapping[str, str]) -> dict[str, Any]:
    """The content of current.json after a `promotion`."""
    models = {**current["promoted"], entry["spec_id"]: entry["model_id"]}
    return {**current, "promoted": models, "history": [*current["history"], entry]}


def log_promotion(model: Model, entry: Mapping[str, Any]) -> None:
    """Append the result of an attempt to promote a model to the log in its folder.

    Raises
    ------
    InputError
        If the log is damaged.
    """
    path = model.directory / PROMOTIONS
    try:
        entries = json.loads(Path(regular(path)).read_text(encoding="utf-8")) if path.exists() else []
    except ValueError as error:
        raise InputError(
            f"{path} is damaged: {error}; restore it from a backup, or move it away and promote again"
        ) from error
    write_json(path, [*entries, {**entry, "at": _now()}])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
