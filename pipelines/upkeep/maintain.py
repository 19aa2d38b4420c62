"""Maintain: sweep leftovers of killed runs, keep ledgers and tables in few files, and check the index.

leftovers of runs ▶ ledgers, and bundles that no ledger names ▶ tables, leftovers of encode beside them, and indices

Other commands may be at work. Those that show it (`pipelines.upkeep.leftovers.at_work`) are not disturbed. Those that
do not show it yet are safe all the same: ledger and table change under the lock of their commits, and a new version
makes every run that was planned from the version before plan again.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from soundlake.model.errors import HeldError, InputError, TryLaterError, storage_errors
from soundlake.model.paths import is_id, no_links
from soundlake.pipelines.lake import fragments, ledger, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.lookup import find_model
from soundlake.pipelines.lake.runs import run_manifest
from soundlake.pipelines.lake.stages import stage
from soundlake.pipelines.upkeep import leftovers
from soundlake.pipelines.upkeep.leftovers import Left, Sweep
from soundlake.pipelines.upkeep.tidying import Tidying

# Hours for which a run may write nothing and still be safe; share of the true nearest that an index must find.
GRACE_H, RECALL_FLOOR = 48.0, 0.9


@dataclass(frozen=True)
class _Job:
    """The values that all steps need.

    Attributes
    ----------
    since : float
        Anything in use after this moment stays; in seconds of the epoch.
    busy : set of str
        Commands that may be at work.
    moved : dict
        spec_id → version of the ledger before, and the version after, which has the same rows.
    """

    lake: Lake
    sweep: Sweep
    since: float
    busy: set[str]
    floor: float
    dry_run: bool
    moved: dict[str, tuple[int, int]] = field(default_factory=dict)

    @contextlib.contextmanager
    def changing(self, name: str, uri: str) -> Iterator[None]:
        """Hold a lock, except in a dry run; a bucket has no locks, but Lance reports conflicts with other runs."""
        try:
            with contextlib.nullcontext() if self.dry_run else self.lake.locked(name), storage_errors(uri):
                yield
        except (TryLaterError, ValueError) as error:
            if "commit conflict" in str(error) or ".manifest was not found" in str(error):
                raise TryLaterError(f"another run changed {uri} meanwhile: run maintain again") from error
            raise


def maintain(
    lake: Lake,
    *,
    grace: float = GRACE_H,
    recall_floor: float = RECALL_FLOOR,
    dry_run: bool = False,
    now: float | None = None,
) -> dict[str, Any]:
    """Keep a lake in order; readers of ledgers and tables see no change but that of their versions.

    Parameters
    ----------
    grace : float
        Hours. Anything that was written or current within this time before `now` stays. A run that takes longer is safe
        as long as it shows that it is at work.
    recall_floor : float
        Share of the true nearest that an index must find.
    dry_run : bool
        Change nothing, and report what would be removed.
    now : float or None
        The moment that ages are counted from, in seconds of the epoch; by default this one.

    Returns
    -------
    dict
        ``swept``: ``count`` and ``bytes`` for each of `pipelines.upkeep.leftovers.KINDS`. ``ledgers`` by spec_id and
        ``tables`` by model_id: as `pipelines.upkeep.tidying.Tidying.told`, ``left_alone`` (a reason, or None), and a
        table's ``index``. ``dry_run``, ``run_id``.

    Raises
    ------
    HeldError
        If an index finds less than the floor even after a rebuild; all else is done, and the error holds the result.
    InputError
        If there is a link in the lake.
    TryLaterError
        If another run committed to the same ledger or table meanwhile, or storage fails.
    """
    lake.check()
    if lake.is_local:
        # Old folders are removed with their contents: no link may make files from outside appear there.
        for folder in leftovers.FOLDERS:
            no_links(lake.path(folder))
    moment = (time.time() if now is None else now) - grace * 3600
    settings = {"grace": grace, "recall_floor": recall_floor}
    recorded = contextlib.nullcontext() if dry_run else run_manifest(lake, "maintain", settings)
    # A second call waits here, and finds nothing to do.
    with recorded as run, contextlib.nullcontext() if dry_run else lake.locked("runs/maintain"):
        sweep = Sweep(lake, dry_run=dry_run)
        report: dict[str, Any] = {"swept": sweep.told, "ledgers": {}, "tables": {}, "dry_run": dry_run}
        report["run_id"] = None if run is None else run.run_id
        if run is not None:
            run.manifest["counts"] = report
        busy, since = leftovers.at_work(lake, moment)
        with stage("looking for what killed runs left"):
            sweep(leftovers.PARTS, leftovers.parts(lake, since))
            sweep(leftovers.RUNS, leftovers.dead_runs(lake, moment))
        job = _Job(lake, sweep, since, busy, recall_floor, dry_run)
        for spec_id in filter(is_id, lake.names("features")):
            report["ledgers"][spec_id] = _ledger(job, spec_id)
        names = [name for name in lake.names("tables") if name.endswith((".lance", ".staged"))]
        for model_id in filter(is_id, sorted({name.rpartition(".")[0] for name in names})):
            report["tables"][model_id] = _table(job, model_id)
        low = [
            f"table {model_id} {state['index']['recall']:.3f}"
            for model_id, state in report["tables"].items()
            if state["left_alone"] is None and state["index"].get("recall", 1.0) < recall_floor
        ]
        if low and not dry_run:
            raise HeldError(
                f"the index of {lake.root} still has low recall after a rebuild: {', '.join(low)}, the floor is "
                f"{recall_floor:g}; to accept it, lower --recall-floor",
                report,
            )
    return report


def _ledger(job: _Job, spec_id: str) -> dict[str, Any]:
    """Sweep the bundles that a ledger does not name, and tidy the ledger."""
    lake, uri = job.lake, job.lake.ledger_uri(spec_id)
    with stage(f"tidying the ledger {spec_id}"), job.changing(f"{Lake.spec(spec_id)}/ledger", uri):
        dataset = ledger.open_ledger(lake, spec_id)
        version = fragments.version_of(dataset)
        tidying = Tidying(dataset, since=job.since, dry_run=job.dry_run)
        report = tidying.told
        report["left_alone"] = _why_to_leave(job, spec_id, dataset)
        job.moved[spec_id] = version, version
        if report["left_alone"] is not None:
            return report
        left = _unnamed(job, spec_id, tidying)
        job.sweep(leftovers.OUTCOMES, _of_kind(leftovers.OUTCOMES, left))
        if left and not job.dry_run:
            # An extract that has just read one of those outcomes would name its bundle. After this step it cannot
            # commit, and plans again; only then the shards go. If this call is killed before the step, the shards of
            # bundles that an extract has named by then still exist.
            tidying.step()
        job.sweep(leftovers.SHARDS, _of_kind(leftovers.SHARDS, left))
        tidying.compact()
        tidying.clean()
        if tidying.same_rows:
            job.moved[spec_id] = version, report["version"]["after"]
        return report


def _why_to_leave(job: _Job, spec_id: str, dataset: Any) -> str | None:
    """The reason to leave a ledger and its bundles alone; None if there is none."""
    if "extract" in job.busy:
        # It may be about to name bundles that no ledger names yet; and a new version would make it begin again.
        return "an extract is at work, or was killed within the grace"
    if dataset is None:
        # They are of a first extract that was killed, for the next one. Without a version of the ledger, the next one
        # could not notice that they were removed.
        count = len(leftovers.bundles(job.lake, spec_id, float("inf")))
        return f"no extract has come to its end yet, {count} bundles wait for the next one"
    return None


def _unnamed(job: _Job, spec_id: str, tidying: Tidying) -> list[dict[str, Left]]:
    """Bundles that nobody needs: old, and named by no version of the ledger that a run may be reading."""
    unnamed = leftovers.bundles(job.lake, spec_id, job.since)
    for version in tidying.current if unnamed else []:
        for batch in ledger.open_ledger(job.lake, spec_id, version).to_batches(columns=["bundles"]):
            for bundle in batch.column("bundles").flatten().to_pylist():
                unnamed.pop(bundle, None)
    return [unnamed[bundle] for bundle in sorted(unnamed)]


def _of_kind(kind: str, bundles: list[dict[str, Left]]) -> list[Left]:
    return [files[kind] for files in bundles if kind in files]


def _table(job: _Job, model_id: str) -> dict[str, Any]:
    """Sweep rows that encode staged for an older version, or long ago; tidy a table, and keep its index up to date."""
    lake, uri = job.lake, job.lake.table_uri(model_id)
    with stage(f"tidying the table {model_id}"), job.changing(f"tables/{model_id}", uri):
        dataset = table.open_table(lake, model_id)
        version, totals = fragments.version_of(dataset), table.said(lake, model_id)
        tidying = Tidying(dataset, since=job.since, dry_run=job.dry_run)
        report = tidying.told
        report |= {"index": totals.get("index"), "left_alone": None}
        if "encode" in job.busy:
            # A new version would make it begin again: unlike extract, it reuses nothing from the version before.
            report["left_alone"] = "an encode is at work, or was killed within the grace"
            return report
        staged = [folder for folder in leftovers.folders(lake, Lake.staging(model_id)) if folder.base_name.isdecimal()]
        gone = [folder for folder in staged if int(folder.base_name) < version or folder.changed < job.since]
        job.sweep(leftovers.STAGED, gone)
        if len(gone) < len(staged):
            # The next encode reuses those rows if the table has not changed; and Lance might take them for unused.
            report["left_alone"] = "what a stopped encode has made waits for the next one"
        if dataset is None or report["left_alone"] is not None:
            report["left_alone"] = report["left_alone"] or "it has no rows yet"
            return report
        if any(int(folder.base_name) == version for folder in gone) and not job.dry_run:
            # As with the bundles: an encode may just have found those pieces, and their rows may go from now on.
            tidying.step()
        tidying.fold()
        tidying.compact()
        current = totals.get("table_version") == version
        anew = current and (totals.get("index") or {}).get("anew", False)
        report["index"] = tidying.index(floor=job.floor, anew=anew)
        tidying.clean()
        if totals and not job.dry_run:
            _say(job, model_id, totals, report, current=current and tidying.same_rows)
        return report


def _say(job: _Job, model_id: str, said: dict[str, Any], told: dict[str, Any], *, current: bool) -> None:
    """Update encode's last totals of a table, so that an encode that had nothing to do still has nothing to do.

    The totals record which version of the table goes with which version of the ledger. Newer versions with the same
    rows go together, too.
    """
    updated = said | {"index": told["index"]}
    if current:
        updated["table_version"] = told["version"]["after"]
    with contextlib.suppress(InputError):
        before, after = job.moved.get(find_model(job.lake, model_id).spec.spec_id, (None, None))
        if before is not None and said.get("ledger_version") == before:
            updated["ledger_version"] = after
    if updated != said:
        table.say(job.lake, model_id, updated)
