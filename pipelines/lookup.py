"""What a user names, found: a spec, a model, and the folder that models lie in."""

from pathlib import Path
from typing import Any

from model.errors import InputError
from model.features import PRESETS, FeatureSpec
from pipelines import ledger
from pipelines.lake import Lake


def parse_spec(name: str) -> FeatureSpec:
    """A spec by the name of a preset, or from a JSON file.

    Raises
    ------
    InputError
        If there is no such preset or file, or the file holds no valid spec.
    """
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if not path.is_file():
        raise InputError(f"no spec {name!r}: name a preset ({', '.join(sorted(PRESETS))}) or a JSON file")
    return _read_spec(path.read_text(), str(path))


def _read_spec(text: str, where: str) -> FeatureSpec:
    from pydantic import ValidationError

    try:
        return FeatureSpec.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"the spec in {where} is not valid: {place}: {first['msg']}") from error


def spec_of_lake(lake: Lake, name: str | None) -> FeatureSpec:
    """The spec of a lake's features: the one named (preset, file or spec_id), else the only one there is.

    Raises
    ------
    InputError
        If the lake has no features of it, or holds several and none is named.
    """
    lake.check()
    if name is None:
        spec_id = ledger.only_spec(lake)
    elif name in ledger.specs(lake):
        spec_id = name
    else:
        spec_id = parse_spec(name).spec_id
    if spec_id not in ledger.specs(lake):
        raise InputError(f"the lake {lake.root} has no features of the spec {name}: run extract with it first")
    where = f"{Lake.spec(spec_id)}/spec.json"
    spec = _read_spec(lake.read(where).decode(), lake.uri(where))
    if spec.spec_id != spec_id:
        raise InputError(f"{lake.uri(where)} is not the spec that its folder is named for: restore it")
    return spec


def models_dir(lake: Lake) -> Path:
    """The local folder of models.

    Raises
    ------
    InputError
        If the lake is in a bucket: training and models need a local lake as yet.
    """
    if not lake.is_local:
        raise InputError(f"models need a lake on a disk as yet, not {lake.root}: mount it, or copy its features")
    return Path(lake.path("models"))


def find_model(lake: Lake, model_id: str | None, spec: str | None = None) -> Any:
    """A model of the lake: the one named, else the promoted one of the spec.

    Raises
    ------
    InputError
        If there is none.
    """
    from model import artifact

    lake.check()
    folder = models_dir(lake)
    if model_id is None:
        spec_id = spec_of_lake(lake, spec).spec_id
        model_id = artifact.promoted(folder, spec_id)
        if model_id is None:
            raise InputError(f"the lake has no model of the spec {spec_id} yet: soundlake train --lake {lake.root}")
    elif model_id not in artifact.models(folder):
        known = ", ".join(artifact.models(folder)) or "none"
        raise InputError(f"the lake has no model {model_id!r}; it has: {known}")
    return artifact.find(folder, model_id)
