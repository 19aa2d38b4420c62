"""Tidying: bring a Lance dataset to few fragments, few versions and one index, with the same rows.

Small fragments are merged, and so are the parts of the index. Versions that nobody reads any more are removed.
"""

from itertools import pairwise
from typing import Any

from soundlake.model.errors import TryLaterError
from soundlake.pipelines.lake import fragments, table
from soundlake.pipelines.lake.stages import stage
from soundlake.pipelines.storage.patience import patiently

# Fragments with fewer rows are merged, to at most twice as many rows. Lance's default of a million is too large:
# pipelines read fragments side by side, and `pipelines.query.export.recordings` holds all recordings of one.
FRAGMENT_ROWS = 65_536
INDEX = "embedding_idx"


class Tidying:
    """Steps that tidy a dataset, and the report about them.

    Parameters
    ----------
    dataset : lance.LanceDataset or None
        At its newest version; None where there is none yet.
    since : float
        Versions that were current later than this stay; in seconds of the epoch.
    dry_run : bool
        Change nothing, and report what would be done.

    Attributes
    ----------
    current, old : list of int
        Versions that a run which began after `since` may read; and versions that were replaced before `since`. The age
        of a version itself does not matter: a run that began a minute before the next version may read one a year old.
    told : dict
        ``version`` and ``fragments`` before and after, ``merged`` fragments, ``versions_removed`` and
        ``bytes_removed``.
    """

    def __init__(self, dataset: Any, *, since: float, dry_run: bool) -> None:
        self.dataset, self.dry_run = dataset, dry_run
        version, count = fragments.version_of(dataset), len(fragments.numbers(dataset))
        self.told: dict[str, Any] = {"version": {"before": version, "after": version}}
        self.told |= {"fragments": {"before": count, "after": count}, "merged": 0}
        self.told |= {"versions_removed": 0, "bytes_removed": 0}
        self._rows = 0 if dataset is None else dataset.count_rows()
        self._added = 0
        listed = [] if dataset is None else patiently(dataset.uri, dataset.versions)
        versions = sorted(listed, key=lambda one: one["version"])
        self.old = [
            earlier["version"] for earlier, later in pairwise(versions) if later["timestamp"].timestamp() < since
        ]
        self.current = [entry["version"] for entry in versions[len(self.old) :]]

    def step(self) -> None:
        """Make a new version with the same rows, so that runs planned from the version before plan again."""
        uri, version = self.dataset.uri, int(self.dataset.version)
        if fragments.commit(uri, version, self.dataset.schema, [], []) is None:
            raise TryLaterError(f"commit conflict at {uri}")
        patiently(uri, self.dataset.checkout_latest)

    def compact(self) -> None:
        """Merge small fragments, and leave out deleted rows."""
        from lance.optimize import Compaction

        options: Any = {"target_rows_per_fragment": FRAGMENT_ROWS}
        if self.dry_run:
            self.told["merged"] = sum(len(task.fragments) for task in Compaction.plan(self.dataset, options).tasks)
        else:
            with stage("putting small fragments together"):
                done = fragments.changed(self.dataset, lambda dataset: dataset.optimize.compact_files(**options))
            self.told["merged"], self._added = done.fragments_removed, done.fragments_added

    def fold(self) -> None:
        """Bring all rows into one part of the index: each encode adds one, and fragments of two parts do not merge."""
        parts, incomplete = self._index()
        if not self.dry_run and (parts > 1 or (parts and incomplete)):
            with stage("merging the parts of the index"):
                fragments.changed(
                    self.dataset,
                    lambda dataset: dataset.optimize.optimize_indices(num_indices_to_merge=parts, index_names=[INDEX]),
                )

    def index(self, *, floor: float, anew: bool) -> dict[str, Any]:
        """Build an index if one is due, and measure its recall; rebuild it, once, if the recall is too low.

        Parameters
        ----------
        floor : float
            Share of the true nearest that the index must find.
        anew : bool
            Whether the index was rebuilt from these same rows before: another rebuild changes nothing.

        Returns
        -------
        dict
            As `pipelines.lake.table.index`; ``anew`` if it was built from these rows, now or before; in a dry run
            ``due``, whether an index would be built or updated.
        """
        parts, incomplete = self._index()
        result: dict[str, Any] = {"kind": "IVF_FLAT" if parts else "exact", "rows": self._rows}
        if parts:
            result["recall"] = patiently(self.dataset.uri, lambda: table.recall(self.dataset))
        if self.dry_run:
            return result | {"due": parts > 1 or (incomplete and (parts > 0 or self._rows >= table.INDEX_ROWS))}
        if not parts or (result["recall"] < floor and not anew):
            if parts:
                fragments.changed(self.dataset, without_index)
            result = fragments.changed(self.dataset, table.index)
            anew = "recall" in result
        return result | {"anew": True} if anew else result

    def clean(self) -> None:
        """Remove old versions, and files that belong to no version.

        Of such files Lance removes those that are 7 days old: younger ones may belong to a commit on its way. With
        ``delete_unverified`` it would remove all of them, including rows of an encode or extract at work, so that is
        not set.
        """
        self.told["version"]["after"] = int(self.dataset.version)
        self.told["fragments"]["after"] = len(fragments.numbers(self.dataset))
        name = "explain_cleanup_old_versions" if self.dry_run else "cleanup_old_versions"
        # There is no version 0. It is named if no version is old, since Lance looks at those files only if a version is
        # named. Versions with a tag belong to someone, and stay.
        options: Any = {"versions": self.old or [0], "error_if_tagged_old_versions": False}
        with stage("removing old versions"):
            cleanup = fragments.changed(self.dataset, lambda dataset: getattr(dataset, name)(**options))
        cleanup = cleanup.stats if self.dry_run else cleanup
        self.told |= {"versions_removed": cleanup.old_versions, "bytes_removed": cleanup.bytes_removed}

    @property
    def same_rows(self) -> bool:
        """Whether the rows are the same as before: without locks, Lance may add a change to that of another run."""
        count = self.told["fragments"]["before"] - self.told["merged"] + self._added
        return bool(len(fragments.numbers(self.dataset)) == count and self.dataset.count_rows() == self._rows)

    def _index(self) -> tuple[int, bool]:
        """The number of parts of the index (0: no index), and whether some rows are in none of them."""
        indices = patiently(self.dataset.uri, self.dataset.describe_indices)
        parts = [part for index in indices if index.name == INDEX for part in index.segments]
        indexed = {number for part in parts for number in part.fragment_ids}
        return len(parts), not indexed.issuperset(fragments.numbers(self.dataset))


def without_index(dataset: Any) -> None:
    """Drop a table's index, if it has one."""
    if any(index.name == INDEX for index in dataset.describe_indices()):
        dataset.drop_index(INDEX)
