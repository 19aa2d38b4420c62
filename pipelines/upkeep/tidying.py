"""Tidying: a Lance dataset with few fragments, few versions and one index, and the same rows.

Small fragments are put together, parts of the index, too, and versions that nobody reads any more go.
"""

from itertools import pairwise
from typing import Any

from soundlake.model.errors import TryLaterError
from soundlake.pipelines.lake import fragments, table
from soundlake.pipelines.lake.stages import stage
from soundlake.pipelines.storage.patience import patiently

# Fragments with fewer rows are put together, to at most twice as many. Not Lance's million: pipelines read fragments
# side by side, and `pipelines.query.export.recordings` holds all recordings of one.
FRAGMENT_ROWS = 65_536
INDEX = "embedding_idx"


class Tidying:
    """What is done to a dataset, and said of it.

    Parameters
    ----------
    dataset : lance.LanceDataset or None
        At its newest version; None where there is none yet.
    since : float
        What was current later than this stays, in seconds of the epoch.
    dry_run : bool
        Change nothing, and tell what would be done.

    Attributes
    ----------
    current, old : list of int
        Versions that a run which began since then may read; and those that another had followed before. The age of a
        version itself says nothing: one a year old is read by a run that began a minute before the next.
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
        found = [] if dataset is None else patiently(dataset.uri, dataset.versions)
        versions = sorted(found, key=lambda one: one["version"])
        self.old = [one["version"] for one, after in pairwise(versions) if after["timestamp"].timestamp() < since]
        self.current = [one["version"] for one in versions[len(self.old) :]]

    def step(self) -> None:
        """A new version with the same rows: runs that were planned from the one before plan again."""
        uri, version = self.dataset.uri, int(self.dataset.version)
        if fragments.commit(uri, version, self.dataset.schema, [], []) is None:
            raise TryLaterError(f"commit conflict at {uri}")
        patiently(uri, self.dataset.checkout_latest)

    def compact(self) -> None:
        """Put small fragments together, and leave rows out that were taken out."""
        from lance.optimize import Compaction

        options: Any = {"target_rows_per_fragment": FRAGMENT_ROWS}
        if self.dry_run:
            self.told["merged"] = sum(len(task.fragments) for task in Compaction.plan(self.dataset, options).tasks)
        else:
            with stage("putting small fragments together"):
                done = fragments.changed(self.dataset, lambda dataset: dataset.optimize.compact_files(**options))
            self.told["merged"], self._added = done.fragments_removed, done.fragments_added

    def fold(self) -> None:
        """Bring all rows into one part of the index: each encode adds one, and fragments of two stay apart."""
        parts, incomplete = self._index()
        if not self.dry_run and (parts > 1 or (parts and incomplete)):
            with stage("merging the parts of the index"):
                fragments.changed(
                    self.dataset,
                    lambda dataset: dataset.optimize.optimize_indices(num_indices_to_merge=parts, index_names=[INDEX]),
                )

    def index(self, *, floor: float, anew: bool) -> dict[str, Any]:
        """Build an index where one is due, and measure it; build it anew, once, if it finds too little.

        Parameters
        ----------
        floor : float
            Share of the true nearest that it is to find.
        anew : bool
            Whether it was built from these very rows before: to do so again changes nothing.

        Returns
        -------
        dict
            As `pipelines.lake.table.index`; ``anew`` if it was built from these rows, now or before; in a dry run
            ``due``, whether one would be built or brought up to the rows.
        """
        parts, incomplete = self._index()
        found: dict[str, Any] = {"kind": "IVF_FLAT" if parts else "exact", "rows": self._rows}
        if parts:
            found["recall"] = patiently(self.dataset.uri, lambda: table.recall(self.dataset))
        if self.dry_run:
            return found | {"due": parts > 1 or (incomplete and (parts > 0 or self._rows >= table.INDEX_ROWS))}
        if not parts or (found["recall"] < floor and not anew):
            if parts:
                fragments.changed(self.dataset, without_index)
            found = fragments.changed(self.dataset, table.index)
            anew = "recall" in found
        return found | {"anew": True} if anew else found

    def clean(self) -> None:
        """Remove old versions, and files that are of no version.

        Of such files Lance takes what is 7 days old: younger ones may be of a commit on its way. It can be told to take
        them all (``delete_unverified``), rows of an encode or extract at work with them; so it is not.
        """
        self.told["version"]["after"] = int(self.dataset.version)
        self.told["fragments"]["after"] = len(fragments.numbers(self.dataset))
        name = "explain_cleanup_old_versions" if self.dry_run else "cleanup_old_versions"
        # No version is 0: where none is old, Lance wants one named all the same to look at those files. Versions with a
        # tag are someone's, and stay.
        options: Any = {"versions": self.old or [0], "error_if_tagged_old_versions": False}
        with stage("removing old versions"):
            found = fragments.changed(self.dataset, lambda dataset: getattr(dataset, name)(**options))
        found = found.stats if self.dry_run else found
        self.told |= {"versions_removed": found.old_versions, "bytes_removed": found.bytes_removed}

    @property
    def same_rows(self) -> bool:
        """Whether the rows are those of before: where locks do not hold, Lance may put a change after another's."""
        count = self.told["fragments"]["before"] - self.told["merged"] + self._added
        return bool(len(fragments.numbers(self.dataset)) == count and self.dataset.count_rows() == self._rows)

    def _index(self) -> tuple[int, bool]:
        """How many parts the index has (0: there is none), and whether rows are in none of them."""
        told = patiently(self.dataset.uri, self.dataset.describe_indices)
        found = [part for one in told if one.name == INDEX for part in one.segments]
        indexed = {number for part in found for number in part.fragment_ids}
        return len(found), not indexed.issuperset(fragments.numbers(self.dataset))


def without_index(dataset: Any) -> None:
    """Drop a table's index, if it has one."""
    if any(one.name == INDEX for one in dataset.describe_indices()):
        dataset.drop_index(INDEX)
