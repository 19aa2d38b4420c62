"""Leftovers of killed runs in a lake, by kind; all of them are recognised by the time of their last change."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from soundlake.model.errors import storage_errors
from soundlake.model.paths import is_id
from soundlake.model.saved import artifact
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.storage.store import Store

# Half-written files, folders of runs, folders of rows that encode has not committed, and the two files of a bundle.
PARTS, RUNS, STAGED, OUTCOMES, SHARDS = KINDS = ("parts", "runs", "staged", "outcomes", "shards")
# Folders of a lake; anything else beside them does not belong to soundlake.
FOLDERS = ("features", "models", "runs", "tables")


@dataclass(frozen=True)
class Left:
    """A file, or a folder with its contents.

    Attributes
    ----------
    name : str
        Its name in the lake.
    size : int
        Bytes.
    began, changed : float
        Times when its oldest and its newest file were last written, in seconds of the epoch; equal for a file.
    is_folder : bool
    """

    name: str
    size: int
    began: float
    changed: float
    is_folder: bool = False

    @property
    def base_name(self) -> str:
        """The last part of the name."""
        return self.name.rpartition("/")[2]


def _below(lake: Lake, folder: str, *, recursive: bool = True) -> Iterator[Left]:
    """All files and folders in a folder of the lake; none if it is not there."""
    with storage_errors(lake.uri(folder)):
        for info in lake.store.below(folder, recursive=recursive):
            changed = info.changed_ns / 1e9
            yield Left(info.name, info.size, changed, changed, info.is_folder)


def folders(lake: Lake, folder: str) -> list[Left]:
    """The folders in a folder, sorted; each is as old as its newest file."""
    contents: dict[str, list[Left]] = {}
    for entry in _below(lake, folder):
        first, _, rest = entry.name.removeprefix(f"{folder}/").partition("/")
        if rest or entry.is_folder:
            contents.setdefault(first, []).append(entry)
    left = []
    for name, inside in sorted(contents.items()):
        files = [entry for entry in inside if not entry.is_folder] or inside
        times = [entry.changed for entry in files]
        left.append(Left(f"{folder}/{name}", sum(entry.size for entry in files), min(times), max(times), True))
    return left


def dead_runs(lake: Lake, before: float) -> list[Left]:
    """Folders of runs that have written nothing since a moment."""
    return [run for run in folders(lake, "runs") if run.changed < before]


def at_work(lake: Lake, moment: float) -> tuple[set[str], float]:
    """Commands that may be at work: runs and trainings that wrote a file since a moment, even if killed later.

    Returns
    -------
    (set of str, float)
        The commands of the runs; and the moment, or the start of the first run or training if that was earlier: they
        may still use anything that was in use then.
    """
    runs = [run for run in folders(lake, "runs") if run.changed >= moment]
    trainings = [
        model
        for model in folders(lake, "models")
        if model.changed >= moment and not lake.exists(f"{model.name}/{artifact.MANIFEST}")
    ]
    # 20260131T235959Z-extract-1a2b3c
    commands = {run.base_name.partition("-")[2].rpartition("-")[0] for run in runs}
    return commands, min([moment, *(item.began for item in (*runs, *trainings))])


def parts(lake: Lake, before: float) -> list[Left]:
    """Half-written files whose writers are gone, except those in folders that are removed as a whole."""
    if not lake.is_local:
        return []  # files for a bucket are prepared elsewhere
    entries = [*_below(lake, "", recursive=False), *(entry for name in FOLDERS for entry in _below(lake, name))]
    return [
        entry
        for entry in entries
        if entry.base_name.startswith(".part-")
        and not entry.is_folder
        and entry.changed < before
        and not _goes_as_a_whole(entry.name)
    ]


def _goes_as_a_whole(name: str) -> bool:
    first, *rest = name.split("/")
    return (first == "runs" and len(rest) > 1) or (first == "tables" and rest[0].endswith(".staged"))


def bundles(lake: Lake, spec_id: str, before: float) -> dict[str, dict[str, Left]]:
    """Bundles that have not changed since a moment, each with its files by kind."""
    by_bundle: dict[str, dict[str, Left]] = {}
    for kind, name_of in ((OUTCOMES, Lake.outcome), (SHARDS, Lake.shard)):
        for file in _below(lake, f"{Lake.spec(spec_id)}/{kind}", recursive=False):
            bundle = file.base_name.partition(".")[0]
            if is_id(bundle) and not file.is_folder and file.name == name_of(spec_id, bundle):
                by_bundle.setdefault(bundle, {})[kind] = file
    return {
        bundle: files for bundle, files in by_bundle.items() if all(file.changed < before for file in files.values())
    }


class Sweep:
    """Removes leftovers, and counts them by kind; in a dry run it only counts.

    Attributes
    ----------
    told : dict
        ``count`` and ``bytes`` for each of `KINDS`.
    """

    def __init__(self, lake: Lake, *, dry_run: bool) -> None:
        self.lake, self.dry_run = lake, dry_run
        self.told: dict[str, dict[str, int]] = {kind: {"count": 0, "bytes": 0} for kind in KINDS}

    def __call__(self, kind: str, found: Iterable[Left]) -> None:
        """Remove leftovers of a kind."""
        for item in found:
            if self.dry_run or self._removed(item):
                self.told[kind]["count"] += 1
                self.told[kind]["bytes"] += item.size

    def _removed(self, one: Left) -> bool:
        """Remove a file or folder; False if another call was faster, or a run has rewritten the file meanwhile."""
        files = self.lake.store
        with storage_errors(self.lake.path(one.name)):
            if one.is_folder:
                existed = files.exists(one.name)
                files.remove(one.name)
                return existed
            if _changed(files, one.name) == one.changed:
                files.delete(one.name)
                return True
        return False


def _changed(files: Store, name: str) -> float | None:
    info = files.info(name)
    return None if info is None else info.changed_ns / 1e9
