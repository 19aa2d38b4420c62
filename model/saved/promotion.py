"""Promotion: which model the commands of a spec use, and what came of promoting one."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from soundlake.model.errors import InputError
from soundlake.model.paths import inside, is_id, regular
from soundlake.model.saved.artifact import Model, write_json

# Of a folder of models: the promoted model of each spec, and the history.
CURRENT = "current.json"
# Of a model's folder: what was found whenever it was to be promoted, and whether it was.
PROMOTIONS = "promotions.json"


def current_of(data: bytes, where: str) -> dict[str, Any]:
    """What a current.json says.

    Raises
    ------
    InputError
        If it is damaged.
    """
    try:
        found = json.loads(data)
        if not (isinstance(found["history"], list) and all(map(is_id, found["promoted"].values()))):
            raise ValueError("it has an invalid model id")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"{where} is damaged: {error}; restore it from a backup, or move it away and promote a model again"
        ) from error
    return dict(found)


def _current(models_dir: str | Path) -> dict[str, Any]:
    path = inside(str(models_dir), CURRENT)
    try:
        return current_of(Path(regular(path)).read_bytes(), path)
    except FileNotFoundError:
        return nothing_promoted()


def promoted(models_dir: str | Path, spec_id: str) -> str | None:
    """The promoted model of a spec, or None."""
    found: str | None = _current(models_dir)["promoted"].get(spec_id)
    return found


def promote(models_dir: str | Path, model: Model, *, reason: str) -> None:
    """Make a model the one that its spec's commands use; the history keeps when and why."""
    current = promoting(_current(models_dir), promotion(model, reason=reason))
    write_json(Path(models_dir) / CURRENT, current)


def nothing_promoted() -> dict[str, Any]:
    """What current.json says where no model was ever promoted."""
    return {"promoted": {}, "history": []}


def promotion(model: Model, *, reason: str) -> dict[str, str]:
    """What the history keeps of a promotion."""
    return {"model_id": model.model_id, "spec_id": model.spec.spec_id, "reason": reason, "at": _now()}


def promoting(current: Mapping[str, Any], entry: Mapping[str, str]) -> dict[str, Any]:
    """What current.json says after a `promotion`."""
    promoted = {**current["promoted"], entry["spec_id"]: entry["model_id"]}
    return {**current, "promoted": promoted, "history": [*current["history"], entry]}


def log_promotion(model: Model, entry: Mapping[str, Any]) -> None:
    """Add to the log, in the model's own folder, of what came of promoting it.

    Raises
    ------
    InputError
        If the log is damaged.
    """
    path = model.directory / PROMOTIONS
    try:
        before = json.loads(Path(regular(path)).read_text(encoding="utf-8")) if path.exists() else []
    except ValueError as error:
        raise InputError(
            f"{path} is damaged: {error}; restore it from a backup, or move it away and promote again"
        ) from error
    write_json(path, [*before, {**entry, "at": _now()}])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
