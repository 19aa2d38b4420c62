"""Find the spec, model or table that a user names."""

from pathlib import Path
from typing import Any

from soundlake.model.errors import InputError, storage_errors
from soundlake.model.features.log_mel import PRESETS, FeatureSpec
from soundlake.model.paths import is_id
from soundlake.model.saved.artifact import FormatError
from soundlake.pipelines.lake import ledger, models, table
from soundlake.pipelines.lake.lake import Lake


def parse_spec(name: str) -> FeatureSpec:
    """The spec of a preset's name or of a JSON file.

    Raises
    ------
    InputError
        If there is no such preset or file, or the file holds no valid spec.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    with storage_errors(name):
        if not path.is_file():
            raise InputError(f"unknown spec {name!r}: name a preset ({', '.join(sorted(PRESETS))}) or a JSON file")
        data = path.read_bytes()
    return _read_spec(data, str(path))


def _read_spec(data: bytes, where: str) -> FeatureSpec:
    from pydantic import ValidationError

    try:
        return FeatureSpec.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        # The place is empty if the text is no JSON at all, or if fields contradict each other.
        place = ".".join(str(part) for part in first["loc"])
        detail = f"{place}: {first['msg']}" if place else first["msg"]
        raise InputError(f"the spec in {where} is not valid: {detail}") from error


def _spec_id(lake: Lake, name: str) -> str:
    """The spec_id of a preset, of a file, or of a spec of the lake."""
    return name if name in ledger.specs(lake) else parse_spec(name).spec_id


def spec_of_lake(lake: Lake, name: str | None) -> FeatureSpec:
    """The spec of a lake's features: the spec of this name (preset, file or spec_id), or the lake's only spec.

    Raises
    ------
    InputError
        If the lake has no features of the spec, or has several specs and `name` is None.
    """
    lake.check()
    spec_id = ledger.only_spec(lake) if name is None else _spec_id(lake, name)
    if spec_id not in ledger.specs(lake):
        raise InputError(f"the lake {lake.root} has no features of the spec {name}: run extract with this --spec first")
    where = f"{Lake.spec(spec_id)}/spec.json"
    spec = _read_spec(lake.read(where), lake.uri(where))
    if spec.spec_id != spec_id:
        raise InputError(f"{lake.uri(where)} does not match the name of its folder: restore the file from a backup")
    return spec


def find_model(lake: Lake, model_id: str | None, spec: str | None = None) -> Any:
    """Load a model of the lake: the model of this id, or the promoted model of the spec.

    Raises
    ------
    InputError
        If there is no such model, or if it does not belong to the given spec.
    """
    lake.check()
    wanted_id = _promoted(lake, spec) if model_id is None else model_id
    if model_id is not None and model_id not in models.known(lake):
        raise _no_model(lake, model_id)
    try:
        model = models.load(lake, wanted_id)
    except FormatError as error:
        raise InputError(f"{error}; {_way_out(lake, error, wanted_id)}") from error
    _refuse_other_spec(lake, model, model_id, spec)
    return model


def find_table(lake: Lake, model_id: str | None, spec: str | None = None) -> tuple[str, Any]:
    """Open the table of the model that `find_model` would load; none of the model's own files is needed.

    Returns
    -------
    (str, lance.LanceDataset)
        The id of the model, and its table.

    Raises
    ------
    InputError
        If there is no table, or if the model does not belong to the given spec.
    """
    lake.check()
    wanted_id = _promoted(lake, spec) if model_id is None else model_id
    dataset = table.open_table(lake, wanted_id) if is_id(wanted_id) else None
    if dataset is None and model_id is not None and model_id not in models.known(lake):
        raise _no_model(lake, model_id)
    if spec is not None and model_id is not None:
        _refuse_other_spec(lake, models.told(lake, model_id), model_id, spec)
    return wanted_id, table.need_table(lake, wanted_id) if dataset is None else dataset


def _promoted(lake: Lake, spec: str | None) -> str:
    spec_id = spec_of_lake(lake, spec).spec_id
    model_id = models.promoted(lake, spec_id)
    if model_id is None:
        raise InputError(f"the lake has no model for the spec {spec_id} yet; run: {lake.command('train')}")
    return model_id


def _no_model(lake: Lake, model_id: str) -> InputError:
    known = ", ".join(models.known(lake)) or "none"
    return InputError(f"the lake has no model {model_id!r}; it has: {known}")


def _way_out(lake: Lake, error: FormatError, model_id: str) -> str:
    """The advice for a model that this soundlake does not read."""
    if error.newer:
        return "update soundlake"
    specs = [spec_id for spec_id in ledger.specs(lake) if models.promoted(lake, spec_id) == model_id]
    if not specs:
        return f"choose another model from: {lake.command('status')}"
    return f"train a new one, which takes its place; run: {lake.command(f'train --spec {specs[0]}')}"


def _refuse_other_spec(lake: Lake, found: Any, model_id: str | None, spec: str | None) -> None:
    """Raise `InputError` if the user named both a model and a spec, and the model has another spec."""
    if spec is not None and found.spec.spec_id != (wanted := _spec_id(lake, spec)):
        raise InputError(
            f"the model {model_id} has the spec {found.spec.spec_id}, but --spec {spec} is {wanted}: "
            "leave one of them out"
        )
