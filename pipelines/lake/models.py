"""Models of a lake at hand: in its own folder, or, of a lake in a bucket, in a cache on this machine.

In a bucket a model exists once its model.json is there, which is sent last; what was sent before is of no model. What
is fetched is verified by the digests in model.json and used again. A training keeps its checkpoints in the bucket, too,
so that another machine may go on with it.
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
# Files fetched or sent side by side.
SIDE_BY_SIDE = 8
# Of a disk, what stays free.
_SPARE_BYTES = 64 << 20


def cache() -> Path:
    """Where what comes out of buckets is kept: ``SOUNDLAKE_CACHE``, or a folder of the user's cache."""
    given = os.environ.get("SOUNDLAKE_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "soundlake"


def _cached(lake: Lake) -> Path:
    # A bucket of the same name may be at two addresses.
    text = f"{endpoint(lake.root)} {lake.root}"
    return cache() / "lakes" / hashlib.sha256(text.encode()).hexdigest()[:16]


def folder(lake: Lake) -> Path:
    """The local folder that models of the lake lie in, or come into."""
    return Path(lake.path("models")) if lake.is_local else _cached(lake) / "models"


def _bucket(lake: Lake) -> Bucket:
    found = lake.store
    assert isinstance(found, Bucket)
    return found


def known(lake: Lake) -> list[str]:
    """Ids of the finished models, sorted."""
    if lake.is_local:
        return artifact.models(folder(lake))
    there = filter(is_id, lake.names("models"))
    return [name for name in there if _bucket(lake).info(f"models/{name}/{artifact.MANIFEST}")]


def _current(lake: Lake) -> tuple[dict[str, Any], Any]:
    """What current.json of a lake in a bucket says, and the version of it."""
    try:
        data, version = _bucket(lake).read_version(CURRENT)
    except FileNotFoundError:
        return promotion.nothing_promoted(), None
    return promotion.current_of(data, lake.uri(CURRENT)), version


def promoted(lake: Lake, spec_id: str) -> str | None:
    """The promoted model of a spec, or None."""
    if lake.is_local:
        return promotion.promoted(folder(lake), spec_id)
    return _current(lake)[0]["promoted"].get(spec_id)


def usable(lake: Lake, spec_id: str) -> str | None:
    """The promoted model of a spec; None if there is none, or if it has a format that this soundlake does not read."""
    model_id = promoted(lake, spec_id)
    return model_id if model_id is not None and _is_read(lake, model_id) else None


def _is_read(lake: Lake, model_id: str) -> bool:
    """Whether this soundlake reads a model's format. A model that is damaged or missing may be restored: it counts."""
    try:
        told(lake, model_id)
    except artifact.FormatError:
        return False
    except InputError:
        return True
    return True


def promote(lake: Lake, model: artifact.Model, *, reason: str, first: bool = False) -> None:
    """Make a model the one that its spec's commands use; with `first`, only if the spec has none that is `usable`.

    Of two at once none is lost: in a bucket the file is written only if it still is what was read.
    """
    if lake.is_local:
        with lake.locked("models/current"):
            if not (first and usable(lake, model.spec.spec_id)):
                promotion.promote(folder(lake), model, reason=reason)
        return
    entry = promotion.promotion(model, reason=reason)
    while True:
        current, version = _current(lake)
        # The second: written, and its answer lost, and another promotion came after it.
        there = current["promoted"].get(model.spec.spec_id)
        if (first and there is not None and _is_read(lake, there)) or entry in current["history"]:
            return
        text = json.dumps(promotion.promoting(current, entry), indent=1, sort_keys=True) + "\n"
        with storage_errors(lake.uri(CURRENT)):
            if _bucket(lake).swap(CURRENT, text.encode(), version) is not None:
                return


def load(lake: Lake, model_id: str) -> artifact.Model:
    """A model with all its files at hand, verified.

    Raises
    ------
    InputError
        If there is no finished model, or a file is not what model.json says.
    TryLaterError
        If the bucket does not answer, or the disk of the cache is full.
    """
    if not lake.is_local:
        _fetch(lake, model_id)
    return artifact.find(folder(lake), model_id)


def told(lake: Lake, model_id: str) -> artifact.Model:
    """What a model says of itself; of one in a bucket no more than that is fetched."""
    if not lake.is_local:
        _fetch(lake, model_id, only_manifest=True)
    return artifact.find(folder(lake), model_id, files=lake.is_local)


def report(lake: Lake, model: artifact.Model) -> str:
    """Where a model's report lies: a path, or a URI."""
    return lake.uri(f"models/{model.model_id}/{artifact.REPORT}")


def _fetch(lake: Lake, model_id: str, *, only_manifest: bool = False) -> None:
    name = f"models/{checked_id(model_id, 'model')}"
    directory = folder(lake) / model_id
    try:
        data = lake.read(f"{name}/{artifact.MANIFEST}")
    except FileNotFoundError as error:
        raise InputError(f"no finished model at {lake.uri(name)}: {artifact.MANIFEST} is missing") from error
    here = opening.at(str(directory))
    if not only_manifest:
        try:
            digests = dict(json.loads(data)["files"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{lake.uri(name)}/{artifact.MANIFEST} is damaged: {error}") from error
        own = {one: digest for one, digest in digests.items() if Path(one).name == one}
        lacking = [one for one, digest in own.items() if not artifact.is_file(directory / one, digest)]
        # These two may be written anew, wherever evaluate and promote ran last.
        _copy(lake, name, directory, lacking)
        _copy(lake, name, directory, [artifact.METRICS, promotion.PROMOTIONS], if_there=True)
    with storage_errors(directory), here.create(artifact.MANIFEST) as file:
        file.write(data)


def _copy(lake: Lake, name: str, directory: Path, names: Iterable[str], *, if_there: bool = False) -> None:
    """Bring files of a folder of the lake into a local one, each whole."""

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
    """Keep files of a model's folder that were written anew."""
    if not lake.is_local:
        _side_by_side(lambda name: _send(lake, model.directory, name), names)


def _send(lake: Lake, directory: Path, name: str) -> None:
    target = f"models/{directory.name}/{name}"
    with storage_errors(lake.uri(target)):
        _bucket(lake).send(target, str(directory / name))


def _files(directory: Path) -> list[str]:
    """Names of all files in a model's folder but its lock, sorted."""
    found = (str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    return sorted(name for name in found if name != "lock" and not Path(name).name.startswith("."))


@contextlib.contextmanager
def being_trained(lake: Lake, model_id: str) -> Iterator[Callable[[Path], None]]:
    """Train a model of a lake in a bucket in the cache: it is taken up where any machine left it, and sent at the end.

    Yields
    ------
    callable
        Of the model's local folder: keeps its checkpoints in the bucket. For a lake on a disk it has nothing to do.

    Raises
    ------
    TryLaterError
        If another machine is training it, or has taken over since this one gave no sign of life.
    """
    if lake.is_local:
        yield lambda directory: None
        return
    name, directory = f"models/{model_id}", folder(lake) / model_id
    with lake.locked(name, wait=False) as still_ours:
        there = [info.name.removeprefix(f"{name}/") for info in lake.store.below(f"{name}/{CHECKPOINTS}")]
        if there:
            # Where a machine has trained on meanwhile, what lies here is old.
            shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)
            _copy(lake, name, directory, there)

        yield lambda local: _keep_checkpoints(lake, local, still_ours)
        still_ours()
        files = [one for one in _files(directory) if not one.startswith(f"{CHECKPOINTS}/") and one != artifact.MANIFEST]
        _side_by_side(lambda one: _send(lake, directory, one), files)
        still_ours()
        _send(lake, directory, artifact.MANIFEST)
        lake.remove(f"{name}/{CHECKPOINTS}")
        shutil.rmtree(directory / CHECKPOINTS, ignore_errors=True)


def _keep_checkpoints(lake: Lake, directory: Path, still_ours: Callable[[], None]) -> None:
    """Send what is new of the checkpoints: values first, then the files that say which ones count, the newest last.

    `still_ours` raises if another machine trains the same model now: then its checkpoints are there, not to be touched.
    """
    still_ours()
    name = f"models/{directory.name}"
    here = [one for one in _files(directory) if one.startswith(f"{CHECKPOINTS}/")]
    there = {info.name.removeprefix(f"{name}/"): info.size for info in lake.store.below(f"{name}/{CHECKPOINTS}")}
    states = sorted((one for one in here if one.endswith("/checkpoint")), key=len, reverse=True)
    values = [one for one in here if one not in states]
    # Values are named by their step, and the same step has the same values.
    new = [one for one in values if there.get(one) != (directory / one).stat().st_size]
    _side_by_side(lambda one: _send(lake, directory, one), new)
    for one in states:
        still_ours()
        _send(lake, directory, one)
    for one in there.keys() - set(here):
        still_ours()
        with storage_errors(lake.uri(f"{name}/{one}")):
            lake.store.delete(f"{name}/{one}")


def shards(lake: Lake, spec_id: str, bundles: Mapping[str, Collection[str]]) -> dict[str, Collection[str]]:
    """Local paths of shards, for TensorFlow, with what `bundles` has for each; those in a bucket come into the cache.

    Raises
    ------
    InputError
        If a shard is missing.
    TryLaterError
        If the disk of the cache has not enough room.
    """
    if lake.is_local:
        return {lake.path(Lake.shard(spec_id, bundle)): wanted for bundle, wanted in bundles.items()}
    base = _cached(lake)
    names = {bundle: Lake.shard(spec_id, bundle) for bundle in bundles}
    (base / Lake.spec(spec_id) / "shards").mkdir(parents=True, exist_ok=True)
    there = {info.name: info for info in lake.store.below(f"{Lake.spec(spec_id)}/shards", recursive=False)}
    missing = sorted(set(names.values()) - set(there))
    if missing:
        raise InputError(
            f"the shard {lake.uri(missing[0])} is missing; to rebuild it run: {lake.command('extract AUDIO --repair')}"
        )
    lacking = [there[name] for name in names.values() if not _is_here(base, there[name])]
    need, free = sum(info.size for info in lacking), shutil.disk_usage(base).free
    if need + _SPARE_BYTES > free:
        raise TryLaterError(
            f"not enough space in {base}: the shards need {need / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; free some "
            "space, or set SOUNDLAKE_CACHE to another folder"
        )

    def one(info: Info) -> None:
        with storage_errors(base / info.name), opening.at(str(base)).create(info.name) as file:
            lake.store.copy_to(info.name, file)
        # By its time, too: a shard that was damaged and made again has the size that it had.
        os.utime(base / info.name, ns=(info.changed_ns, info.changed_ns))

    _side_by_side(one, lacking)
    return {str(base / names[bundle]): wanted for bundle, wanted in bundles.items()}


def uncache(lake: Lake, name: str) -> None:
    """Remove a file of a lake in a bucket from the cache on this machine."""
    if not lake.is_local:
        (_cached(lake) / name).unlink(missing_ok=True)


def _is_here(base: Path, info: Info) -> bool:
    try:
        found = (base / info.name).stat()
    except FileNotFoundError:
        return False
    return (found.st_size, found.st_mtime_ns) == (info.size, info.changed_ns)
