"""Remnants of recordings beside features and tables: lists and reports of models, texts of runs, unfinished files."""

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Collection, Iterable
from typing import Any
from urllib.parse import quote

import numpy as np

from soundlake.model.errors import InputError
from soundlake.model.features import splits
from soundlake.model.features.records import DamagedShardError, read_framed, recording_of
from soundlake.model.paths import is_id
from soundlake.model.saved import artifact
from soundlake.model.saved.promotion import PROMOTIONS
from soundlake.pipelines.corpus import files
from soundlake.pipelines.lake import models
from soundlake.pipelines.lake.forgotten import Memory
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.upkeep import leftovers

# Replaces a name in a text.
GONE = "(forgotten)"
# Files of a model's folder that mention recordings, and that evaluate writes anew.
WRITTEN_ANEW = (artifact.REPORT, artifact.METRICS)


def tables(lake: Lake) -> list[str]:
    """Ids of the models that have a table, sorted."""
    names = (name.removesuffix(".lance") for name in lake.names("tables") if name.endswith(".lance"))
    return sorted(filter(is_id, names))


def _manifest(lake: Lake, model_id: str) -> dict[str, Any]:
    """The contents of model.json, whatever the model's format; empty if there is none."""
    try:
        return dict(json.loads(lake.read(f"models/{model_id}/{artifact.MANIFEST}")))
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def spec_of(lake: Lake, model_id: str) -> str | None:
    """The spec of a model, whatever its format; None if model.json has none."""
    spec_id = _manifest(lake, model_id).get("spec_id")
    return spec_id if is_id(spec_id) else None


def clear_models(lake: Lake, recordings: Collection[str], specs: set[str], *, moment: float) -> list[dict[str, Any]]:
    """Strike recordings off the training lists of all models; remove the reports of models of some specs.

    Returns
    -------
    list of dict
        Models that were trained on recordings forgotten now or before: ``model_id``, ``promoted``, and ``recordings``,
        their number; None if the model's format has no training list, so that the number is unknown.
    """
    affected: list[dict[str, Any]] = []
    for model_id in filter(is_id, lake.names("models")):
        spec_id, folder = spec_of(lake, model_id), f"models/{model_id}"
        touched = spec_id is None or spec_id in specs
        if not lake.exists(f"{folder}/{artifact.MANIFEST}"):
            # A training was killed while it wrote its list.
            for name in (artifact.TRAINED, f"part-{artifact.TRAINED}"):
                info = lake.store.info(f"{folder}/{name}")
                if info is not None and info.changed_ns / 1e9 < moment:
                    _remove(lake, f"{folder}/{name}")
            continue
        count = clear_model(lake, model_id, recordings, report=touched)
        if count is None or count:
            promoted = spec_id is not None and models.promoted(lake, spec_id) == model_id
            affected.append({"model_id": model_id, "promoted": promoted, "recordings": count})
    return affected


def clear_model(lake: Lake, model_id: str, recordings: Iterable[str], *, report: bool = True) -> int | None:
    """Strike recordings off the training list of a model; remove its report and its metrics from evaluate.

    Returns
    -------
    int or None
        As `_strike`.
    """
    for name in WRITTEN_ANEW if report else ():
        _remove(lake, f"models/{model_id}/{name}")
    return _strike(lake, model_id, splits.digests(sorted(recordings)))


def _strike(lake: Lake, model_id: str, digests: Any) -> int | None:
    """Take recordings off the training list of a model, and count them in model.json.

    model.json contains the digest of the list. Between the two writes it contains the old and the new one, so that the
    model can be read at any moment, and the next call finishes one that was killed.

    Parameters
    ----------
    digests : ndarray of uint64
        `model.features.splits.digests` of the recordings.

    Returns
    -------
    int or None
        Number of its training recordings that were forgotten since, these and earlier ones; None without a list.
    """
    list_name, manifest_name = f"models/{model_id}/{artifact.TRAINED}", f"models/{model_id}/{artifact.MANIFEST}"
    manifest = _manifest(lake, model_id)
    try:
        data = lake.read(list_name)
        trained = np.load(io.BytesIO(data), allow_pickle=False)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{lake.uri(list_name)} is damaged: {error}; restore it from a copy") from error
    kept, count = trained[~np.isin(trained, digests)], int(manifest.get(artifact.STRUCK, 0))
    if len(kept) == len(trained) and artifact.FORMER not in manifest:
        return count
    target = io.BytesIO()
    np.save(target, kept)
    new_digest = hashlib.sha256(target.getvalue()).hexdigest()
    if manifest["files"][artifact.TRAINED] != new_digest:
        count += len(trained) - len(kept)
        manifest["files"] = manifest["files"] | {artifact.TRAINED: new_digest}
        manifest |= {artifact.FORMER: hashlib.sha256(data).hexdigest(), artifact.STRUCK: count}
        _write(lake, manifest_name, manifest)
    lake.write(list_name, target.getvalue())
    manifest.pop(artifact.FORMER, None)
    _write(lake, manifest_name, manifest)
    models.uncache(lake, list_name)
    return count


def _write(lake: Lake, name: str, value: Any) -> None:
    lake.write(name, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")


def _remove(lake: Lake, name: str) -> None:
    lake.path(name)
    lake.store.delete(name)
    models.uncache(lake, name)


def forms(names: Iterable[str]) -> list[str]:
    """Forms of uris that texts may contain: whole, as paths, percent-encoded; the longest first."""
    variants: set[str] = set()
    for name in names:
        path = files.local_path(name)
        plain = name if path is None else os.fsdecode(path)
        variants |= {name, plain, quote(os.fsencode(plain)), plain.encode(errors="backslashreplace").decode()}
    return sorted(variants, key=len, reverse=True)


def _base_names(uris: Iterable[str]) -> list[str]:
    return forms({uri.rsplit("/", 1)[-1] for uri in uris})


class _Scrub:
    """Removes some names and ids from texts."""

    def __init__(self, uris: Iterable[str], recordings: Iterable[str]) -> None:
        whole = [*forms(uris), *recordings]
        # The base name of a file counts only where it stands alone.
        bases = [rf"(?<![\w-]){re.escape(name)}(?![\w-])" for name in _base_names(uris) if name]
        self._pattern = re.compile("|".join([*map(re.escape, whole), *bases]))
        texts = {*whole, *(json.dumps(form, ensure_ascii=plain)[1:-1] for form in whole for plain in (True, False))}
        self._bytes = [text.encode(errors="surrogateescape") for text in texts]

    def __call__(self, value: Any) -> Any:
        """A JSON value without these names and ids."""
        if isinstance(value, str):
            return self._pattern.sub(GONE, value)
        if isinstance(value, list):
            return [self(item) for item in value]
        if isinstance(value, dict):
            return {self(name): self(item) for name, item in value.items()}
        return value

    def is_in(self, data: bytes) -> bool:
        """Whether bytes contain one of them."""
        return any(form in data for form in self._bytes)


def clear_texts(lake: Lake, uris: set[str], recordings: set[str], memory: Memory, *, moment: float) -> None:
    """Take names and ids out of manifests and logs, and remove leftovers of killed runs that contain them."""
    if not (uris or recordings):
        return
    scrub = _Scrub(uris, recordings)
    texts = [f"runs/{name}" for name in lake.names("runs") if name.endswith(".json")]
    texts += [f"models/{model_id}/{PROMOTIONS}" for model_id in filter(is_id, lake.names("models"))]
    for name in texts:
        with contextlib.suppress(FileNotFoundError, ValueError):
            before = json.loads(lake.read(name))
            after = scrub(before)
            if after != before:
                _write(lake, name, after)
    for run in leftovers.folders(lake, "runs"):
        for info in lake.store.below(run.name):
            if not info.is_folder and scrub.is_in(_data(lake, info.name)):
                _remove(lake, info.name)
    for part in leftovers.parts(lake, moment):
        if _may_hold(lake, part.name, scrub, memory):
            _remove(lake, part.name)


def _data(lake: Lake, name: str) -> bytes:
    try:
        return lake.read(name)
    except FileNotFoundError:
        return b""  # its run has ended


def _may_hold(lake: Lake, name: str, scrub: _Scrub, memory: Memory) -> bool:
    """Whether a half-written file holds a forgotten recording or name, or cannot be read to find out."""
    if "/shards/" in name:
        try:
            with lake.open(name) as file:
                if any(memory.holds(recording_id=recording_of(data)) for data in read_framed(file)):
                    return True
        except FileNotFoundError:
            return False
        except DamagedShardError:
            pass  # cut where its writer was killed
    return "/outcomes/" in name or scrub.is_in(_data(lake, name))
