"""What the commands do: the steps of the main job, each with its manifest, for the command line and for tests."""

import contextlib
import functools
import logging
import os
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any, Literal

from soundlake.model.errors import HeldError, InputError
from soundlake.model.features.log_mel import FeatureSpec
from soundlake.pipelines.engine.template import is_template, refuse_template
from soundlake.pipelines.lake import fragments, ledger, models, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.lookup import find_model, find_table
from soundlake.pipelines.lake.progress import Progress, watching
from soundlake.pipelines.lake.runs import run_manifest
from soundlake.pipelines.lake.stages import stage
from soundlake.pipelines.learning.judging import evaluate, promote
from soundlake.pipelines.learning.training import train

log = logging.getLogger(__name__)


def _root_of(lake: Lake, audio: str, *, may_be_gone: bool = False) -> str:
    """The uri of a corpus, checked."""
    from soundlake.pipelines.corpus import files

    root = files.corpus_root(audio, may_be_gone=may_be_gone)
    corpus_place, lake_place = (os.path.realpath(one) if "://" not in one else one for one in (root, lake.root))
    if f"{corpus_place}/".startswith(f"{lake_place}/"):
        raise InputError(f"the corpus {audio} is inside the lake {lake.root}: keep them apart")
    if f"{lake_place}/".startswith(f"{corpus_place}/"):
        raise InputError(
            f"the lake {lake.root} is inside the corpus {audio}, and its files would be taken for recordings: choose "
            "another place with --lake"
        )
    return root


def _gone(lake: Lake, root: str, spec_id: str) -> None:
    """Raise `InputError` if a corpus is not there, and the ledger knows nothing of it either."""
    if "://" in root or os.path.isdir(root) or ledger.partitions(ledger.open_ledger(lake, spec_id), root):
        return
    raise InputError(f"cannot read the corpus {root}: no such folder, and no file of it in the ledger")


def _retried(reason: str | None) -> frozenset[str]:
    """The reasons whose rejects are tried again: what may pass by itself, and the one named, or ``"all"``."""
    from soundlake.pipelines.audio.reading import REASONS
    from soundlake.pipelines.audio.recording import TRANSIENT

    if reason not in (None, "all", *REASONS):
        raise InputError(
            f"unknown reason {reason!r} for --retry-rejected: choose one of {', '.join(sorted(REASONS))}, or all"
        )
    return TRANSIENT | (frozenset(REASONS) if reason == "all" else {reason} if reason else frozenset())


def _partition_of(lake: Lake, root: str, partition: str | None, spec_id: str) -> None:
    """Raise `InputError` if a corpus has no such partition, and the ledger knows of none that it had."""
    if partition is None:
        return
    from soundlake.pipelines.corpus import files

    there = files.partitions(root)
    if partition not in (*there, *ledger.partitions(ledger.open_ledger(lake, spec_id), root)):
        some = ", ".join(there[:10]) + (", …" if len(there) > 10 else "")
        raise InputError(f"the corpus {root} has no partition {partition!r}; it has: {some or 'none'}")


def partitions(lake: Lake, audio: str, *, spec: FeatureSpec) -> dict[str, Any]:
    """The parts of a corpus that extract and encode take one at a time: its folders, and what lies beside them.

    Returns
    -------
    dict
        ``corpus``, ``spec_id``, ``partitions`` by name, and those of them that have ``gone``: the ledger knows files of
        them, and they are not there now.
    """
    from soundlake.pipelines.corpus import files

    root = _root_of(lake, audio)
    there = set(files.partitions(root))
    known = ledger.partitions(ledger.open_ledger(lake, spec.spec_id), root) if lake.exists("lake.json") else set()
    told = {"corpus": root, "spec_id": spec.spec_id}
    return told | {"partitions": sorted(there | known), "gone": sorted(known - there)}


def extract(
    lake: Lake,
    audio: str,
    *,
    spec: FeatureSpec,
    labels: str | None = None,
    partition: str | None = None,
    beam: Sequence[str] = (),
    workers: int = 0,
    allow_empty: bool = False,
    retry: str | None = None,
    repair: bool = False,
    include_forgotten: bool = False,
    recheck: bool = False,
    begin: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Bring the features of a corpus up to date; see `pipelines.extract.pipeline.extract` for what comes back.

    Parameters
    ----------
    partition : str or None
        The one of `partitions` to bring up to date; by default the whole corpus.
    retry : str or None
        A reason whose rejects are tried again; ``"all"`` for every one.
    repair : bool
        Then check every shard of the spec, and make again what is damaged; adds ``repair``
        (`pipelines.upkeep.repair.repair`).
    include_forgotten : bool
        Take in files that the lake has forgotten; they are forgotten no more.
    recheck : bool
        Then, decode again what an older decoder read; adds ``recheck`` (`pipelines.upkeep.recheck.recheck`).
    begin : callable
        Called once the call is known to be right, before the work begins.
    """
    for name, given in (("repair", repair), ("recheck", recheck)):
        if given:
            refuse_template(beam, f"extract --{name}")
    root = _root_of(lake, audio, may_be_gone=allow_empty)
    _gone(lake, root, spec.spec_id)
    retried = _retried(retry)
    from soundlake.pipelines.corpus.labels import find_labels
    from soundlake.pipelines.engine.runners import beam_options
    from soundlake.pipelines.extract import cost, finish
    from soundlake.pipelines.upkeep import erasure

    engine = beam_options(beam, workers=workers)
    found = find_labels(root, labels)
    lake.initialise()
    _partition_of(lake, root, partition, spec.spec_id)
    from soundlake.pipelines.extract.pipeline import extract as extract_features

    settings = {"audio": root, "labels": found, "spec_id": spec.spec_id, "retry": retry, "beam": list(beam)}
    settings["partition"] = partition
    rates = cost.rates(lake, spec.spec_id)
    begin()
    with run_manifest(lake, "extract", settings) as run:
        with watching(Progress(lake, run.folder), verb="extracting") as watch:
            totals = extract_features(
                lake,
                spec,
                root,
                labels=found,
                partition=partition,
                run=run,
                engine=engine,
                allow_empty=allow_empty,
                retried=retried,
                include_forgotten=include_forgotten,
                recheck=recheck,
                swept=functools.partial(erasure.mark_swept, lake, spec.spec_id),
                note=functools.partial(finish.note_extract, run, spec.spec_id, rates=rates),
            )
        if not rates and watch.first is not None:
            rates = cost.rates_of(*(_by_container(watch.first, name) for name in ("cpu_s ", "audio_s ")))
        finish.note_extract(run, spec.spec_id, totals, rates=rates)
        if recheck:
            from soundlake.pipelines.upkeep.recheck import recheck as recheck_files

            lake.remove(run.folder)
            with watching(Progress(lake, run.folder), verb="rechecking"):
                totals["recheck"] = recheck_files(lake, spec, root, partition=partition, run=run, engine=engine)
        if repair:
            from soundlake.pipelines.upkeep.repair import repair as repair_shards

            lake.remove(run.folder)
            with watching(Progress(lake, run.folder), verb="checking shards"):
                totals["repair"] = repair_shards(lake, spec, run=run, engine=engine)
    if not totals["listed"]:
        log.warning("the corpus %s has no files (%d ignored by name)", audio, totals["left_out"])
    return totals


def _by_container(numbers: dict[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}


def plan(
    lake: Lake,
    audio: str,
    *,
    spec: FeatureSpec,
    labels: str | None = None,
    beam: Sequence[str] = (),
    workers: int = 0,
    retry: str | None = None,
    prices: dict[str, float | None] | None = None,
) -> dict[str, Any]:
    """What `extract` would do to a corpus, and what it would cost. Nothing is decoded but a few samples.

    Parameters
    ----------
    prices : dict or None
        ``cpu``, of an hour of one core, and ``storage``, of a gigabyte for a month; each may be None.

    Returns
    -------
    dict
        As `pipelines.extract.estimate.survey_corpus`, and ``estimate``: ``cpu_s``, ``bytes`` of shards, ``source`` of
        the rates in words, ``cores``, ``money`` by what it is for; ``window_s``, seconds of a window;
        ``suggested_spec``, a preset that fits the durations better, or None.
    """
    refuse_template(beam, "plan")
    root = _root_of(lake, audio)
    from soundlake.pipelines.corpus.labels import find_labels
    from soundlake.pipelines.engine.runners import beam_options
    from soundlake.pipelines.extract import cost, estimate
    from soundlake.pipelines.extract.plan import suggested_spec

    engine = beam_options(beam, workers=workers)
    found_labels = find_labels(root, labels)
    settings = {"audio": root, "labels": found_labels, "spec_id": spec.spec_id, "retry": retry, "beam": list(beam)}
    # A dry run makes no lake; where there is one, the plan is written down in it.
    there = lake.exists("lake.json")
    if there:
        lake.check()
    elif not engine.local:
        raise InputError(
            f"there is no lake at {lake.root}: remote workers need one for their results; make it with: "
            f"{lake.command('extract AUDIO')}"
        )
    with run_manifest(lake, "plan", settings) if there else contextlib.nullcontext() as run:
        found = estimate.survey_corpus(
            lake, spec, root, labels=found_labels, run=run, engine=engine, retried=_retried(retry)
        )
        known = cost.rates(lake, spec.spec_id)
        lacking = sorted(set(found["planned_s"]) - set(known))
        fresh = estimate.measured(found.pop("samples"), spec, without=known) if lacking else {}
        rates = known | fresh
        cpu_s = cost.cpu_seconds(found["planned_s"], rates)
        size = found["planned_windows"] * estimate.record_bytes(spec)
        money = {}
        if prices and prices.get("cpu") is not None and cpu_s is not None:
            money["cpu"] = cpu_s / 3600 * float(prices["cpu"] or 0)
        if prices and prices.get("storage") is not None:
            money["storage"] = size / 1e9 * float(prices["storage"] or 0)
        told = [f"of earlier runs for {', '.join(sorted(known))}"] if known else []
        told += [f"measured now for {', '.join(sorted(fresh))}"] if fresh else []
        cores = engine.threads if engine.local else 1
        found["estimate"] = {
            "cpu_s": cpu_s,
            "bytes": size,
            "source": " and ".join(told),
            "money": money,
            "cores": cores,
        }
        found |= {"rates": fresh, "spec_id": spec.spec_id, "window_s": spec.window_seconds}
        found["suggested_spec"] = suggested_spec(found["short_recordings"], found["recordings"], spec)
        if run is not None:
            run.manifest["counts"] = {name: value for name, value in found.items() if name != "unmatched_labels"}
    return found


def encode(
    lake: Lake,
    *,
    spec: str | None = None,
    model_id: str | None = None,
    audio: str | None = None,
    partition: str | None = None,
    accelerator: str | None = None,
    beam: Sequence[str] = (),
    workers: int = 0,
) -> dict[str, Any]:
    """Bring a model's table and its index up to the ledger; see `pipelines.encode.pipeline.encode` for what comes back.

    Parameters
    ----------
    audio, partition : str or None
        A corpus, and one of its `partitions`: only recordings of it are encoded, rows of what is gone stay, and the
        index is left as it is. By default all that the table lacks.
    accelerator : str or None
        See `pipelines.encode.pipeline.encode`.
    """
    if (audio is None) != (partition is None):
        raise InputError("--corpus and --partition belong together: give both, or neither")
    model = find_model(lake, model_id, spec)
    under = None
    if audio is not None and partition is not None:
        under = (_root_of(lake, audio), partition)
        _partition_of(lake, *under, model.spec.spec_id)
    known = ledger.open_ledger(lake, model.spec.spec_id)
    dataset = table.open_table(lake, model.model_id)
    done = {name: value for name, value in table.said(lake, model.model_id).items() if name != table.RANDOM_PAIRS}
    # A service cannot start a template without a job in it: one that finds nothing to do.
    if dataset is not None and known is not None and not is_template(beam):
        now = {"ledger_version": int(known.version), "table_version": int(dataset.version)}
        now["row_format"] = table.ROW_FORMAT
        if {name: done.get(name) for name in now} == now:
            return done | {"encoded": 0, "renamed": 0, "stale_recordings": 0, "run_id": None}
    from soundlake.pipelines.encode.finish import note_encode
    from soundlake.pipelines.encode.pipeline import encode as encode_windows
    from soundlake.pipelines.engine.runners import beam_options

    engine = beam_options(beam, workers=workers)
    settings = {"model_id": model.model_id, "under": under, "accelerator": accelerator, "beam": list(beam)}
    with run_manifest(lake, "encode", settings) as run:
        note = functools.partial(note_encode, run, model.model_id, whole=under is None)
        with watching(Progress(lake, run.folder), verb="encoding"):
            totals = encode_windows(
                lake,
                model,
                under=under,
                run=run,
                engine=engine,
                accelerator=accelerator,
                note=note,
            )
        note(totals)
    return totals


def run(
    lake: Lake,
    audio: str,
    *,
    spec: FeatureSpec,
    labels: str | None = None,
    settings: dict[str, Any],
    retrain: bool = False,
    beam: Sequence[str] = (),
    workers: int = 0,
    step: Any = lambda name: None,
    ready: Any = lambda command: None,
) -> dict[str, Any]:
    """The main job: extract, train if the spec has no model (or `retrain`), encode, index.

    Parameters
    ----------
    step : callable
        Told the name of each step before it begins.
    ready : callable
        Told the command line of a search as soon as the table can be searched, if more work follows.

    Returns
    -------
    dict
        ``extract``, ``train`` (None if a model was there), ``held`` (why its model is not the one in use, or None),
        ``encode``, ``evaluation`` (of a model that had none, else None), ``ledger`` (its summary), ``report``.
    """
    from soundlake.model.saved import artifact
    from soundlake.model.training import hosts

    if hosts.from_environment().count > 1:
        raise InputError(
            "run works on one host only: extract there, then run `soundlake train` on all hosts of TF_CONFIG"
        )
    refuse_template(beam, "run")
    extracted = extract(
        lake, audio, spec=spec, labels=labels, beam=beam, workers=workers, begin=lambda: step("extract")
    )
    known = ledger.open_ledger(lake, spec.spec_id)
    if known is None or not known.count_rows(f"status = '{ledger.DONE}'"):
        raise InputError(f"no usable recording in {audio}; for the reasons run: {lake.command('status')}")
    trained, held = None, None
    if retrain or models.usable(lake, spec.spec_id) is None:
        step("train")
        trained = train(lake, spec=spec.spec_id, settings=settings)
        if not trained["promoted"]:
            try:
                promote(lake, trained["model_id"])
            except HeldError as error:
                held = str(error)
    step("encode")
    try:
        encoded = encode(lake, spec=spec.spec_id, beam=beam, workers=workers)
    except InputError as error:
        if held is None:
            raise
        # The model in use is no use, and how to put the new one in its place is said there.
        raise HeldError(held) from error
    model = models.told(lake, encoded["model_id"])
    judged, candidate = None, trained["model_id"] if trained else model.model_id
    # Also of a run that was killed before it came here.
    if not lake.exists(f"models/{candidate}/{artifact.METRICS}"):
        some = known.to_table(columns=["uri"], filter=f"status = '{ledger.DONE}' AND windows > 0", limit=1)
        if encoded["rows"]:
            ready(lake.command(f"search {shlex.quote(some['uri'][0].as_py())}"))
        step("evaluate")
        try:
            judged = evaluate(lake, model_id=candidate)
        except InputError as error:
            log.warning("not evaluated: %s", error)
    return {
        "extract": extracted,
        "train": trained,
        "held": held,
        "evaluation": judged,
        "encode": encoded,
        "ledger": ledger.summary(known),
        "model": {"model_id": model.model_id, "metrics": model.metrics},
        "report": models.report(lake, model),
    }


def search(
    lake: Lake,
    queries: Sequence[str],
    *,
    k: int,
    where: str | None,
    by: str,
    spec: str | None = None,
    model_id: str | None = None,
) -> dict[str, Any]:
    """Search a table by sounds, recordings or a filter alone.

    Returns
    -------
    dict
        ``results``: for each query its text and ``hits`` (`pipelines.query.search.Hit`); ``notes``: what to know about
        them.
    """
    from soundlake.pipelines.query.query import load_query
    from soundlake.pipelines.query.search import Searcher

    if not queries and where is None:
        raise InputError("nothing to search for: give a file, a recording_id, or a filter with --where")
    found_id, dataset = find_table(lake, model_id, spec)
    by_id = {
        query
        for query in queries
        if re.fullmatch(r"[0-9a-f]{64}", query) and dataset.count_rows(fragments.in_list("recording_id", [query]))
    }
    # Without a sound to encode, the table will do.
    model = None if by_id.issuperset(queries) else find_model(lake, model_id, spec)
    searcher = Searcher(lake, model, dataset)
    results: list[dict[str, Any]] = []
    if not queries:
        results.append({"query": None, "hits": searcher.by_filter(str(where), k=k, by=by)})
    for number, query in enumerate(queries):
        with stage("searching") as report:
            report("searching", number, len(queries), f"query {number + 1} of {len(queries)}")
            if query in by_id:
                hits = searcher.by_recording(query, k=k, where=where, by=by)
            else:
                hits = searcher.by_sound(load_query(query, searcher.spec), k=k, where=where, by=by)
        results.append({"query": query, "hits": hits})
    return {"model_id": found_id, "results": results, "notes": searcher.notes}


def export(
    lake: Lake,
    target: str,
    *,
    where: str | None = None,
    by: Literal["windows", "recordings"] = "windows",
    spec: str | None = None,
    model_id: str | None = None,
) -> dict[str, Any]:
    """Write a model's table to a file; see `pipelines.query.export.export`."""
    from soundlake.pipelines.query.export import export as write

    found_id, dataset = find_table(lake, model_id, spec)
    rows = write(dataset, target, where=where, by=by)
    return {"model_id": found_id, "rows": rows, "by": by, "file": target}
