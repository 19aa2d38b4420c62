"""Local copies of a lake's models: in the lake's own folder or, if the lake is in a bucket, in a cache on this machine.

In a bucket a model exists once its model.json exists. It is sent last; without it, the files sent before belong to no
model. Fetched files are verified by the digests in model.json, and used again. A training keeps its checkpoints in the
bucket, too, so that another machine can continue it.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from soundlake.model.errors import InputError, TryLaterError, storage_errors
from soundlake.model.paths import checked_id, is_id
from soundlake.model.saved import artifact, promotion
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.storage import opening
from soundlake.pipelines.storage.bucket import Bucket
from soundlake.pipelines.storage.patience import endpoint
from soundlake.pipelines.storage.store import Info

CURRENT = f"models/{promotion.CURRENT}"
CHECKPOINTS = "checkpoints"
# Number of files fetched or sent at the same time.
SIDE_BY_SIDE = 8
# Bytes of a disk that stay free.
_SPARE_BYTES = 64 << 20


def cache() -> Path:
    """The folder for files from buckets: ``SOUNDLAKE_CACHE``, or a folder in the user's cache."""
    path = os.environ.get("SOUNDLAKE_CACHE")
    return Path(path) if path else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "soundlake"


def _cached(lake: Lake) -> Path:
    # Two endpoints may have buckets of the same name.
    text = f"{endpoint(lake.root)} {lake.root}"
    return cache() / "lakes" / hashlib.sha256(text.encode()).hexdigest()[:16]


def folder(lake: Lake) -> Path:
    """The local folder in which models of the lake lie, or into which they are fetched."""
    return Path(lake.path("models")) if lake.is_local else _cached(lake) / "models"


def _bucket(lake: Lake) -> Bucket:
    bucket = lake.store
    assert isinstance(bucket, Bucket)
    return bucket


def known(lake: Lake) -> list[str]:
    """Sorted ids of the finished models."""
    if lake.is_local:
        return artifact.models(folder(lake))
    model_ids = filter(is_id, lake.names("models"))
    return [name for name in model_ids if _bucket(lake).info(f"models/{name}/{artifact.MANIFEST}")]


def _current(lake: Lake) -> tuple[dict[str, Any], Any]:
    """The content of current.json of a lake in a bucket, and its version."""
    try:
        data, version = _bucket(lake).read_version(CURRENT)
    except FileNotFoundError:
        return promotion.nothing_promoted(), None
    return promotion.current_of(data, lake.uri(CURRENT)), version


def promoted(lake: Lake, spec_id: str) -> str | None:
    """The id of the promoted model of a spec, or None."""
    if lake.is_local:
        return promotion.promoted(folder(lake), spec_id)
    return _current(lake)[0]["promoted"].get(spec_id)


def usable(lake: Lake, spec_id: str) -> str | None:
    """The id of the promoted model of a spec; None without one, or if this soundlake does not read its format."""
    model_id = promoted(lake, spec_id)
    return model_id if model_id is not None and _is_read(lake, model_id) else None


def _is_read(lake: Lake, model_id: str) -> bool:
    """Whether this soundlake reads a model's format; True for a damaged or missing model, which may be restored."""
    try:
        told(lake, model_id)
    except artifact.FormatError:
        return False
    except InputError:
        return True
    return True


def promote(lake: Lake, model: artifact.Model, *, reason: str, first: bool = False) -> None:
    """Promote a model: commands use it for its spec. With `first`, only if the spec has no `usable` promoted model.

    No concurrent promotion is lost: in a bucket the file is written only if nobody has changed it since it was read.
    """
    if lake.is_local:
        with lake.locked("models/current"):
            if not (first and usable(lake, model.spec.spec_id)):
                promotion.promote(folder(lake), model, reason=reason)
        return
    entry = promotion.promotion(model, reason=reason)
    while True:
        current, version = _current(lake)
        # The history has the entry if an earlier try wrote it, its answer was lost, and another promotion followed.
        promoted_id = current["promoted"].get(model.spec.spec_id)
        if (first and promoted_id is not None and _is_read(lake, promoted_id)) or entry in current["history"]:
            return
        text = json.dumps(promotion.promoting(current, entry), indent=1, sort_keys=True) + "\n"
        with storage_errors(lake.uri(CURRENT)):
            if _bucket(lake).swap(CURRENT, text.encode(), version) is not None:
                return


def load(lake: Lake, model_id: str) -> artifact.Model:
    """Load a model, with all its files on this machine and verified.

    Raises
    ------
    InputError
        If there is no such finished model, or if a file does not match model.json.
    TryLaterError
        If the bucket does not answer, or if the disk of the cache is full.
    """
    if not lake.is_local:
        _fetch(lake, model_id)
    return artifact.find(folder(lake), model_id)


def told(lake: Lake, model_id: str) -> artifact.Model:
    """Load a model's model.json; from a bucket no other file is fetched."""
    if not lake.is_local:
        _fetch(lake, model_id, only_manifest=True)
    return artifact.find(folder(lake), model_id, files=lake.is_local)


def report(lake: Lake, model: artifact.Model) -> str:
    """The path or URI of a model's report."""
    return lake.uri(f"models/{model.model_id}/{artifact.REPORT}")


def _fetch(lake: Lake, model_id: str, *, only_manifest: bool = False) -> None:
    name = f"models/{checked_id(model_id, 'model')}"
    directory = folder(lake) / model_id
    try:
        data = lake.read(f"{name}/{artifact.MANIFEST}")
    except FileNotFoundError as error:
        raise InputError(f"no finished model at {lake.uri(name)}: {artifact.MANIFEST} is missing") from error
    local_store = opening.at(str(directory))
    if not only_manifest:
        try:
            digests = dict(json.loads(data)["files"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{lake.uri(name)}/{artifact.MANIFEST} is damaged: {error}") from error
        own = {base: digest for base, digest in digests.items() if Path(base).name == base}
        lacking = [base for base, digest in own.items() if not artifact.is_file(directory / base, digest)]
        # Evaluate and promote may have rewritten these two, on any machine.
        _copy(lake, name, directory, lacking)
        _copy(lake, name, directory, [artifact.METRICS, promotion.PROMOTIONS], if_there=True)
    with storage_errors(directory), local_store.create(artifact.MANIFEST) as file:
        file.write(data)


def _copy(lake: Lake, name: str, directory: Path, names: Iterable[str], *, if_there: bool = False) -> None:
    """Copy files of a folder of the lake into a local folder, each whole."""

    def one(base: str) -> None:
        try:
            with storage_errors(directory / base), opening.at(str(directory)).create(base) as file:
                lake.store.copy_to(f"{name}/{base}", file)
        except InputError as error:
            if not (if_there and isinstance(error.__cause__, FileNotFoundError)):
                raise
            (directory / base).unlink(missing_ok=True)

    _side_by_side(one, names)


def _side_by_side(work: Callable[[Any], Any], items: Iterable[Any]) -> None:
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for _ in pool.map(work, items):
            pass


def keep(lake: Lake, model: artifact.Model, *names: str) -> None:
    """Store rewritten files of a model's folder in the lake."""
    if not lake.is_local:
        _side_by_side(lambda name: _send(lake, model.directory, name), names)


def _send(lake: Lake, directory: Path, name: str) -> None:
    target = f"models/{directory.name}/{name}"
    with storage_errors(lake.uri(target)):
        _bucket(lake).send(target, str(directory / name))


def _files(directory: Path) -> list[str]:
    """Sorted names of all files in a model's folder, except its lock and hidden files."""
    names = (str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    return sorted(name for name in names if name != "lock" and not Path(name).name.startswith("."))


@contextlib.contextmanager
def being_trained(lake: Lake, model_id: str) -> Iterator[Callable[[Path], None]]:
    """Hold a model for training. If the lake is in a bucket, training runs in the cache.

    It then continues from the last checkpoints of any machine, and the model is sent to the bucket at the end.

    Yields
    ------
    callable
        Takes the model's local folder and stores its checkpoints in the bucket. For a lake on a disk it does nothing.

    Raises
    ------
    TryLaterError
        If another machine is training the model, or has taken over because this one gave no sign of life.
    """
    if lake.is_local:
        yield lambda directory: None
        return
    name, directory = f"models/{model_id}", folder(lake) / model_id
    with lake.locked(name, wait=False) as still_ours:
        remote = [info.name.removeprefix(f"{name}/") for info in lake.store.below(f"{name}/{CHECKPOINTS}")]
        if remote:
            # Local checkpoints are old if another machine has continued the training meanwhile.
            shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
            _copy(lake, name, directory, remote)

        yield lambda local: _keep_checkpoints(lake, local, still_ours)
        still_ours()
        files = [
            file for file in _files(directory) if not file.startswith(f"{CHECKPOINTS}/") and file != artifact.MANIFEST
        ]
        _side_by_side(lambda one: _send(lake, directory, one), files)
        still_ours()
        _send(lake, directory, artifact.MANIFEST)
        lake.remove(f"{name}/{CHECKPOINTS}")
        shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)


def _keep_checkpoints(lake: Lake, directory: Path, still_ours: Callable[[], None]) -> None:
    """Send new checkpoint files: values first, then the files that name the valid checkpoints, that of the newest last.

    `still_ours` raises if another machine trains the same model now. The checkpoints in the bucket then belong to that
    machine, and must not be touched.
    """
    still_ours()
    name = f"models/{directory.name}"
    local = [file for file in _files(directory) if file.startswith(f"{CHECKPOINTS}/")]
    stored = {info.name.removeprefix(f"{name}/"): info.size for info in lake.store.below(f"{name}/{CHECKPOINTS}")}
    states = sorted((file for file in local if file.endswith("/checkpoint")), key=len, reverse=True)
    values = [file for file in local if file not in states]
    # Values are named by their step, and the same step has the same values.
    new = [file for file in values if stored.get(file) != (directory / file).stat().st_size]
    _side_by_side(lambda one: _send(lake, directory, one), new)
    for file in states:
        still_ours()
        _send(lake, directory, file)
    for file in stored.keys() - set(local):
        still_ours()
        with storage_errors(lake.uri(f"{name}/{file}")):
            lake.store.delete(f"{name}/{file}")


def shards(lake: Lake, spec_id: str, bundles: Mapping[str, Collection[str]]) -> dict[str, Collection[str]]:
    """Local paths of shards, for TensorFlow, each with its value in `bundles`; from a bucket, shards are cached here.

    Raises
    ------
    InputError
        If a shard is missing.
    TryLaterError
        If the disk of the cache has not enough space.
    """
    if lake.is_local:
        return {lake.path(Lake.shard(spec_id, bundle)): wanted for bundle, wanted in bundles.items()}
    base = _cached(lake)
    names = {bundle: Lake.shard(spec_id, bundle) for bundle in bundles}
    (base / Lake.spec(spec_id) / "shards").mkdir(parents=True, exist_ok=True)
    stored = {info.name: info for info in lake.store.below(f"{Lake.spec(spec_id)}/shards", recursive=False)}
    missing = sorted(set(names.values()) - set(stored))
    if missing:
        raise InputError(
            f"the shard {lake.uri(missing[0])} is missing; to rebuild it run: {lake.command('extract AUDIO --repair')}"
        )
    lacking = [stored[name] for name in names.values() if not _is_here(base, stored[name])]
    need, free = sum(info.size for info in lacking), shutil.disk_usage(base).free
    if need + _SPARE_BYTES > free:
        raise TryLaterError(
            f"not enough space in {base}: the shards need {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; free some "
            "space, or set SOUNDLAKE_CACHE to another folder"
        )

    def one(info: Info) -> None:
        with storage_errors(base / info.name), opening.at(str(base)).create(info.name) as file:
            lake.store.copy_to(info.name, file)
        # The time is compared, too, in `_is_here`: a damaged shard that was made again has the same size as before.
        os.utime(base / info.name, ns=(info.changed_ns, info.changed_ns))

    _side_by_side(one, lacking)
    return {str(base / names[bundle]): wanted for bundle, wanted in bundles.items()}


def uncache(lake: Lake, name: str) -> None:
    """Remove a file from the cache on this machine, if the lake is in a bucket."""
    if not lake.is_local:
        (_cached(lake) / name).unlink(missing_ok=True)


def _is_here(base: Path, info: Info) -> bool:
    try:
        status = (base / info.name).stat()
    except FileNotFoundError:
        return False
    return (status.st_size, status.st_mtime_ns) == (info.size, info.changed_ns)
