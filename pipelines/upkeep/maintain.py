"""Maintain: sweep what killed runs left, keep ledgers and tables in few files, and watch over the index.

leftovers of runs ▶ ledgers, and bundles that none names ▶ tables, what encode left beside them, and indices

Other commands may be at work. What shows that it is (`pipelines.upkeep.leftovers.at_work`) is left alone. What does not
show yet is safe all the same: ledger and table change under the lock of their commits, and a new version makes every
run that was planned from the one before plan again.
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

# Hours that a run may take without a sign, and be safe whatever it does; what an index is to find of the true nearest.
GRACE_H, RECALL_FLOOR = 48.0, 0.9


@dataclass(frozen=True)
class _Job:
    """What all steps need.

    Attributes
    ----------
    since : float
        What was of use after this moment stays; seconds of the epoch.
    busy : set of str
        Commands that may be at work.
    moved : dict
        spec_id → version of the ledger before, and the one after that has the same rows.
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
        """Hold a lock, unless nothing is to change; a bucket has none, and Lance tells what another did in between."""
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
    """Keep a lake in order; of ledgers and tables nothing changes that a reader sees, but their versions.

    Parameters
    ----------
    grace : float
        Hours. What was written, or still current, later than that before `now` stays. A run that takes longer is safe
        as long as it shows that it is at work.
    recall_floor : float
        Share of the true nearest that an index is to find.
    dry_run : bool
        Change nothing, and tell what would go.
    now : float or None
        The moment that ages are counted from, in seconds of the epoch; by default this one.

    Returns
    -------
    dict
        ``swept``: of each kind (`pipelines.upkeep.leftovers.KINDS`) ``count`` and ``bytes``. ``ledgers`` by spec_id and
        ``tables`` by model_id: as `pipelines.upkeep.tidying.Tidying.told`, ``left_alone`` (why, or None), and a table's
        ``index``. ``dry_run``, ``run_id``.

    Raises
    ------
    HeldError
        If an index finds less than the floor even when built anew; all else is done, and the error has it.
    InputError
        If there is a link in the lake.
    TryLaterError
        If another run committed to the same ledger or table meanwhile, or storage fails.
    """
    lake.check()
    if lake.is_local:
        # What is old goes, with all that is below: nothing from outside may seem to be.
        for folder in leftovers.FOLDERS:
            no_links(lake.path(folder))
    moment = (time.time() if now is None else now) - grace * 3600
    settings = {"grace": grace, "recall_floor": recall_floor}
    recorded = contextlib.nullcontext() if dry_run else run_manifest(lake, "maintain", settings)
    # A second call waits here, and finds nothing to do.
    with recorded as run, contextlib.nullcontext() if dry_run else lake.locked("runs/maintain"):
        sweep = Sweep(lake, dry_run=dry_run)
        told: dict[str, Any] = {"swept": sweep.told, "ledgers": {}, "tables": {}, "dry_run": dry_run}
        told["run_id"] = None if run is None else run.run_id
        if run is not None:
            run.manifest["counts"] = told
        busy, since = leftovers.at_work(lake, moment)
        with stage("looking for what killed runs left"):
            sweep(leftovers.PARTS, leftovers.parts(lake, since))
            sweep(leftovers.RUNS, leftovers.dead_runs(lake, moment))
        job = _Job(lake, sweep, since, busy, recall_floor, dry_run)
        for spec_id in filter(is_id, lake.names("features")):
            told["ledgers"][spec_id] = _ledger(job, spec_id)
        names = [name for name in lake.names("tables") if name.endswith((".lance", ".staged"))]
        for model_id in filter(is_id, sorted({name.rpartition(".")[0] for name in names})):
            told["tables"][model_id] = _table(job, model_id)
        low = [
            f"table {model_id} {one['index']['recall']:.3f}"
            for model_id, one in told["tables"].items()
            if one["left_alone"] is None and one["index"].get("recall", 1.0) < recall_floor
        ]
        if low and not dry_run:
            raise HeldError(
                f"the index of {lake.root} still has low recall after a rebuild: {', '.join(low)}, the floor is "
                f"{recall_floor:g}; to accept it, lower --recall-floor",
                told,
            )
    return told


def _ledger(job: _Job, spec_id: str) -> dict[str, Any]:
    """Sweep the bundles that a ledger does not name, and tidy it."""
    lake, uri = job.lake, job.lake.ledger_uri(spec_id)
    with stage(f"tidying the ledger {spec_id}"), job.changing(f"{Lake.spec(spec_id)}/ledger", uri):
        dataset = ledger.open_ledger(lake, spec_id)
        version = fragments.version_of(dataset)
        tidying = Tidying(dataset, since=job.since, dry_run=job.dry_run)
        told = tidying.told
        told["left_alone"] = _why_to_leave(job, spec_id, dataset)
        job.moved[spec_id] = version, version
        if told["left_alone"] is not None:
            return told
        left = _unnamed(job, spec_id, tidying)
        job.sweep(leftovers.OUTCOMES, _of_kind(leftovers.OUTCOMES, left))
        if left and not job.dry_run:
            # An extract that has just read one of those would name its bundle: it can commit no more, and plans again.
            # Only then the shards go. Killed here, we leave whole whatever it may have named before.
            tidying.step()
        job.sweep(leftovers.SHARDS, _of_kind(leftovers.SHARDS, left))
        tidying.compact()
        tidying.clean()
        if tidying.same_rows:
            job.moved[spec_id] = version, told["version"]["after"]
        return told


def _why_to_leave(job: _Job, spec_id: str, dataset: Any) -> str | None:
    """Why a ledger is left alone, and its bundles."""
    if "extract" in job.busy:
        # It may be about to name what nobody names yet; and a new version would make it begin again.
        return "an extract is at work, or was killed within the grace"
    if dataset is None:
        # Of a first extract that was killed, for the next one. That would have no version to find out by.
        count = len(leftovers.bundles(job.lake, spec_id, float("inf")))
        return f"no extract has come to its end yet, {count} bundles wait for the next one"
    return None


def _unnamed(job: _Job, spec_id: str, tidying: Tidying) -> list[dict[str, Left]]:
    """Bundles that nobody needs: old, and named by no version of the ledger that a run may be reading."""
    found = leftovers.bundles(job.lake, spec_id, job.since)
    for version in tidying.current if found else []:
        for batch in ledger.open_ledger(job.lake, spec_id, version).to_batches(columns=["bundles"]):
            for bundle in batch.column("bundles").flatten().to_pylist():
                found.pop(bundle, None)
    return [found[bundle] for bundle in sorted(found)]


def _of_kind(kind: str, bundles: list[dict[str, Left]]) -> list[Left]:
    return [files[kind] for files in bundles if kind in files]


def _table(job: _Job, model_id: str) -> dict[str, Any]:
    """Sweep what encode had made for a version that is gone, or long ago; tidy a table, and see to its index."""
    lake, uri = job.lake, job.lake.table_uri(model_id)
    with stage(f"tidying the table {model_id}"), job.changing(f"tables/{model_id}", uri):
        dataset = table.open_table(lake, model_id)
        version, said = fragments.version_of(dataset), table.said(lake, model_id)
        tidying = Tidying(dataset, since=job.since, dry_run=job.dry_run)
        told = tidying.told
        told |= {"index": said.get("index"), "left_alone": None}
        if "encode" in job.busy:
            # A new version would make it begin again: unlike extract, it takes nothing over from the one before.
            told["left_alone"] = "an encode is at work, or was killed within the grace"
            return told
        staged = [one for one in leftovers.folders(lake, Lake.staging(model_id)) if one.base_name.isdecimal()]
        gone = [one for one in staged if int(one.base_name) < version or one.changed < job.since]
        job.sweep(leftovers.STAGED, gone)
        if len(gone) < len(staged):
            # It takes that up if the table is as it is now; and Lance might hold what is there for files of nobody.
            told["left_alone"] = "what a stopped encode has made waits for the next one"
        if dataset is None or told["left_alone"] is not None:
            told["left_alone"] = told["left_alone"] or "it has no rows yet"
            return told
        if any(int(one.base_name) == version for one in gone) and not job.dry_run:
            # As with the bundles: an encode may just have found what was there, and its rows may go from now on.
            tidying.step()
        tidying.fold()
        tidying.compact()
        current = said.get("table_version") == version
        anew = current and (said.get("index") or {}).get("anew", False)
        told["index"] = tidying.index(floor=job.floor, anew=anew)
        tidying.clean()
        if said and not job.dry_run:
            _say(job, model_id, said, told, current=current and tidying.same_rows)
        return told


def _say(job: _Job, model_id: str, said: dict[str, Any], told: dict[str, Any], *, current: bool) -> None:
    """Keep what encode said of a table true, so that where it had nothing to do it has nothing to do now.

    It said: this version of the table holds what that version of the ledger names. Others with the same rows do, too.
    """
    now = said | {"index": told["index"]}
    if current:
        now["table_version"] = told["version"]["after"]
    with contextlib.suppress(InputError):
        before, after = job.moved.get(find_model(job.lake, model_id).spec.spec_id, (None, None))
        if before is not None and said.get("ledger_version") == before:
            now["ledger_version"] = after
    if now != said:
        table.say(job.lake, model_id, now)
