"""Leftovers: what killed runs left in a lake, by kind; all of it is known by the time of its last change."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from soundlake.model.errors import storage_errors
from soundlake.model.paths import is_id
from soundlake.model.saved import artifact
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.storage.store import Store

# Files half written, folders of runs and of what encode had not committed, and the two files of a bundle.
PARTS, RUNS, STAGED, OUTCOMES, SHARDS = KINDS = ("parts", "runs", "staged", "outcomes", "shards")
# Of a lake; what else lies beside them is not ours.
FOLDERS = ("features", "models", "runs", "tables")


@dataclass(frozen=True)
class Left:
    """A file, or a folder with all that is in it.

    Attributes
    ----------
    name : str
        In the lake.
    size : int
        Bytes.
    began, changed : float
        When its oldest and its newest file was written last, in seconds of the epoch; the same for a file.
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
    found: dict[str, list[Left]] = {}
    for one in _below(lake, folder):
        first, _, rest = one.name.removeprefix(f"{folder}/").partition("/")
        if rest or one.is_folder:
            found.setdefault(first, []).append(one)
    told = []
    for name, inside in sorted(found.items()):
        files = [one for one in inside if not one.is_folder] or inside
        times = [one.changed for one in files]
        told.append(Left(f"{folder}/{name}", sum(one.size for one in files), min(times), max(times), True))
    return told


def dead_runs(lake: Lake, before: float) -> list[Left]:
    """Folders of runs that have written nothing for long."""
    return [run for run in folders(lake, "runs") if run.changed < before]


def at_work(lake: Lake, moment: float) -> tuple[set[str], float]:
    """What may be going on: runs and trainings that wrote a file since a moment, or were killed since then.

    Returns
    -------
    (set of str, float)
        Their commands; and the moment, or when the first of them began if that was earlier: what was of use then may
        be so to them.
    """
    runs = [run for run in folders(lake, "runs") if run.changed >= moment]
    trainings = [
        model
        for model in folders(lake, "models")
        if model.changed >= moment and not lake.exists(f"{model.name}/{artifact.MANIFEST}")
    ]
    # 20260131T235959Z-extract-1a2b3c
    commands = {run.base_name.partition("-")[2].rpartition("-")[0] for run in runs}
    return commands, min([moment, *(one.began for one in (*runs, *trainings))])


def parts(lake: Lake, before: float) -> list[Left]:
    """Files that were to appear whole and whose writers are gone, but for those in folders that go as a whole."""
    if not lake.is_local:
        return []  # they are written elsewhere there
    everything = [*_below(lake, "", recursive=False), *(one for name in FOLDERS for one in _below(lake, name))]
    return [
        one
        for one in everything
        if one.base_name.startswith(".part-")
        and not one.is_folder
        and one.changed < before
        and not _goes_as_a_whole(one.name)
    ]


def _goes_as_a_whole(name: str) -> bool:
    first, *rest = name.split("/")
    return (first == "runs" and len(rest) > 1) or (first == "tables" and rest[0].endswith(".staged"))


def bundles(lake: Lake, spec_id: str, before: float) -> dict[str, dict[str, Left]]:
    """Bundles that were not touched for long: of each the files that it has, by kind."""
    found: dict[str, dict[str, Left]] = {}
    for kind, name_of in ((OUTCOMES, Lake.outcome), (SHARDS, Lake.shard)):
        for file in _below(lake, f"{Lake.spec(spec_id)}/{kind}", recursive=False):
            bundle = file.base_name.partition(".")[0]
            if is_id(bundle) and not file.is_folder and file.name == name_of(spec_id, bundle):
                found.setdefault(bundle, {})[kind] = file
    return {bundle: files for bundle, files in found.items() if all(file.changed < before for file in files.values())}


class Sweep:
    """Removes what is left, and counts it by kind; in a dry run it only counts.

    Attributes
    ----------
    told : dict
        Of each of `KINDS` ``count`` and ``bytes``.
    """

    def __init__(self, lake: Lake, *, dry_run: bool) -> None:
        self.lake, self.dry_run = lake, dry_run
        self.told: dict[str, dict[str, int]] = {kind: {"count": 0, "bytes": 0} for kind in KINDS}

    def __call__(self, kind: str, found: Iterable[Left]) -> None:
        """Remove some of a kind."""
        for one in found:
            if self.dry_run or self._removed(one):
                self.told[kind]["count"] += 1
                self.told[kind]["bytes"] += one.size

    def _removed(self, one: Left) -> bool:
        """Remove a file or folder; False if another call was faster, or a run has written the file anew meanwhile."""
        files = self.lake.store
        with storage_errors(self.lake.path(one.name)):
            if one.is_folder:
                there = files.exists(one.name)
                files.remove(one.name)
                return there
            if _changed(files, one.name) == one.changed:
                files.delete(one.name)
                return True
        return False


def _changed(files: Store, name: str) -> float | None:
    found = files.info(name)
    return None if found is None else found.changed_ns / 1e9
