"""The work of the commands: the steps of the main job, each with its manifest, for the command line and for tests."""

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
    """The uri of a corpus, after checking that it and the lake do not contain each other."""
    from soundlake.pipelines.corpus import files

    root = files.corpus_root(audio, may_be_gone=may_be_gone)
    corpus_place, lake_place = (os.path.realpath(uri) if "://" not in uri else uri for uri in (root, lake.root))
    if f"{corpus_place}/".startswith(f"{lake_place}/"):
        raise InputError(f"the corpus {audio} is inside the lake {lake.root}: keep them apart")
    if f"{lake_place}/".startswith(f"{corpus_place}/"):
        raise InputError(
            f"the lake {lake.root} is inside the corpus {audio}, and its files would be taken for recordings: choose "
            "another place with --lake"
        )
    return root


def _gone(lake: Lake, root: str, spec_id: str) -> None:
    """Raise `InputError` if a corpus does not exist and the ledger lists no file of it either."""
    if "://" in root or os.path.isdir(root) or ledger.partitions(ledger.open_ledger(lake, spec_id), root):
        return
    raise InputError(f"cannot read the corpus {root}: no such folder, and no file of it in the ledger")


def _retried(reason: str | None) -> frozenset[str]:
    """The reasons whose rejects are tried again: the transient ones, and the given one, or all for ``"all"``."""
    from soundlake.pipelines.audio.reading import REASONS
    from soundlake.pipelines.audio.recording import TRANSIENT

    if reason not in (None, "all", *REASONS):
        raise InputError(
            f"unknown reason {reason!r} for --retry-rejected: choose one of {', '.join(sorted(REASONS))}, or all"
        )
    return TRANSIENT | (frozenset(REASONS) if reason == "all" else {reason} if reason else frozenset())


def _partition_of(lake: Lake, root: str, partition: str | None, spec_id: str) -> None:
    """Raise `InputError` if a corpus has no such partition and the ledger lists none of that name either."""
    if partition is None:
        return
    from soundlake.pipelines.corpus import files

    present = files.partitions(root)
    if partition not in (*present, *ledger.partitions(ledger.open_ledger(lake, spec_id), root)):
        examples = ", ".join(present[:10]) + (", …" if len(present) > 10 else "")
        raise InputError(f"the corpus {root} has no partition {partition!r}; it has: {examples or 'none'}")


def partitions(lake: Lake, audio: str, *, spec: FeatureSpec) -> dict[str, Any]:
    """The parts of a corpus that extract and encode can process one at a time: its folders, and the files beside them.

    Returns
    -------
    dict
        ``corpus``, ``spec_id``, names of the ``partitions``, and of those that are ``gone``: the ledger lists files of
        them, but the corpus has them no more.
    """
    from soundlake.pipelines.corpus import files

    root = _root_of(lake, audio)
    present = set(files.partitions(root))
    in_ledger = ledger.partitions(ledger.open_ledger(lake, spec.spec_id), root) if lake.exists("lake.json") else set()
    result = {"corpus": root, "spec_id": spec.spec_id}
    return result | {"partitions": sorted(present | in_ledger), "gone": sorted(in_ledger - present)}


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
    """Bring the features of a corpus up to date; see `pipelines.extract.pipeline.extract` for the result.

    Parameters
    ----------
    partition : str or None
        One of `partitions`, to bring up to date alone; by default the whole corpus.
    retry : str or None
        A reason whose rejects are tried again; ``"all"`` for every one.
    repair : bool
        Afterwards check every shard of the spec, and rebuild damaged ones; adds ``repair``
        (`pipelines.upkeep.repair.repair`).
    include_forgotten : bool
        Include files that the lake has forgotten; they no longer count as forgotten.
    recheck : bool
        Afterwards decode files again that an older decoder read; adds ``recheck`` (`pipelines.upkeep.recheck.recheck`).
    begin : callable
        Called after the arguments have been checked, before the work begins.
    """
    for name, requested in (("repair", repair), ("recheck", recheck)):
        if requested:
            refuse_template(beam, f"extract --{name}")
    root = _root_of(lake, audio, may_be_gone=allow_empty)
    _gone(lake, root, spec.spec_id)
    retried = _retried(retry)
    from soundlake.pipelines.corpus.labels import find_labels
    from soundlake.pipelines.engine.runners import beam_options
    from soundlake.pipelines.extract import cost, finish
    from soundlake.pipelines.upkeep import erasure

    engine = beam_options(beam, workers=workers)
    label_file = find_labels(root, labels)
    lake.initialise()
    _partition_of(lake, root, partition, spec.spec_id)
    from soundlake.pipelines.extract.pipeline import extract as extract_features

    settings = {"audio": root, "labels": label_file, "spec_id": spec.spec_id, "retry": retry, "beam": list(beam)}
    settings["partition"] = partition
    rates = cost.rates(lake, spec.spec_id)
    begin()
    with run_manifest(lake, "extract", settings) as run:
        with watching(Progress(lake, run.folder), verb="extracting") as watch:
            totals = extract_features(
                lake,
                spec,
                root,
                labels=label_file,
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
    """Estimate what `extract` would do to a corpus, and what it would cost; at most a few samples are decoded.

    Parameters
    ----------
    prices : dict or None
        ``cpu``, of an hour of one core, and ``storage``, of a gigabyte for a month; each may be None.

    Returns
    -------
    dict
        As `pipelines.extract.estimate.survey_corpus`, and ``estimate``: ``cpu_s``, ``bytes`` of shards, ``source`` of
        the rates in words, ``cores``, ``money`` by purpose; ``window_s``, seconds of a window; ``suggested_spec``, a
        preset that fits the durations better, or None.
    """
    refuse_template(beam, "plan")
    root = _root_of(lake, audio)
    from soundlake.pipelines.corpus.labels import find_labels
    from soundlake.pipelines.engine.runners import beam_options
    from soundlake.pipelines.extract import cost, estimate
    from soundlake.pipelines.extract.plan import suggested_spec

    engine = beam_options(beam, workers=workers)
    label_file = find_labels(root, labels)
    settings = {"audio": root, "labels": label_file, "spec_id": spec.spec_id, "retry": retry, "beam": list(beam)}
    # A dry run creates no lake; in an existing lake it writes a manifest.
    has_lake = lake.exists("lake.json")
    if has_lake:
        lake.check()
    elif not engine.local:
        raise InputError(
            f"there is no lake at {lake.root}: remote workers need one for their results; make it with: "
            f"{lake.command('extract AUDIO')}"
        )
    with run_manifest(lake, "plan", settings) if has_lake else contextlib.nullcontext() as run:
        survey = estimate.survey_corpus(
            lake, spec, root, labels=label_file, run=run, engine=engine, retried=_retried(retry)
        )
        known_rates = cost.rates(lake, spec.spec_id)
        lacking = sorted(set(survey["planned_s"]) - set(known_rates))
        measured_rates = estimate.measured(survey.pop("samples"), spec, without=known_rates) if lacking else {}
        rates = known_rates | measured_rates
        cpu_s = cost.cpu_seconds(survey["planned_s"], rates)
        size = survey["planned_windows"] * estimate.record_bytes(spec)
        money = {}
        if prices and prices.get("cpu") is not None and cpu_s is not None:
            money["cpu"] = cpu_s / 3600 * float(prices["cpu"] or 0)
        if prices and prices.get("storage") is not None:
            money["storage"] = size / 1e9 * float(prices["storage"] or 0)
        sources = [f"of earlier runs for {', '.join(sorted(known_rates))}"] if known_rates else []
        sources += [f"measured now for {', '.join(sorted(measured_rates))}"] if measured_rates else []
        cores = engine.threads if engine.local else 1
        survey["estimate"] = {
            "cpu_s": cpu_s,
            "bytes": size,
            "source": " and ".join(sources),
            "money": money,
            "cores": cores,
        }
        survey |= {"rates": measured_rates, "spec_id": spec.spec_id, "window_s": spec.window_seconds}
        survey["suggested_spec"] = suggested_spec(survey["short_recordings"], survey["recordings"], spec)
        if run is not None:
            run.manifest["counts"] = {name: value for name, value in survey.items() if name != "unmatched_labels"}
    return survey


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
    """Bring a model's table and its index up to the ledger; see `pipelines.encode.pipeline.encode` for the result.

    Parameters
    ----------
    audio, partition : str or None
        A corpus, and one of its `partitions`: only recordings of it are encoded, rows of deleted files stay, and the
        index is not updated. By default everything that the table lacks is encoded.
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
    ledger_dataset = ledger.open_ledger(lake, model.spec.spec_id)
    dataset = table.open_table(lake, model.model_id)
    last_state = {name: value for name, value in table.said(lake, model.model_id).items() if name != table.RANDOM_PAIRS}
    # A template needs a job even if it finds nothing to do: a service cannot start a template without one.
    if dataset is not None and ledger_dataset is not None and not is_template(beam):
        state = {"ledger_version": int(ledger_dataset.version), "table_version": int(dataset.version)}
        state["row_format"] = table.ROW_FORMAT
        if {name: last_state.get(name) for name in state} == state:
            return last_state | {"encoded": 0, "renamed": 0, "stale_recordings": 0, "run_id": None}
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
        Called with the name of each step before it begins.
    ready : callable
        Called with the command line of a search as soon as the table can be searched, if more work follows.

    Returns
    -------
    dict
        ``extract``, ``train`` (None if the spec had a model), ``held`` (why the new model is not in use, or None),
        ``encode``, ``evaluation`` (None if the model had one), ``ledger`` (its summary), ``report``.
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
    dataset = ledger.open_ledger(lake, spec.spec_id)
    if dataset is None or not dataset.count_rows(f"status = '{ledger.DONE}'"):
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
        # The model in use cannot be used; the message explains how to promote the new one.
        raise HeldError(held) from error
    model = models.told(lake, encoded["model_id"])
    judged, candidate = None, trained["model_id"] if trained else model.model_id
    # A run that was killed before this point left a model without metrics, too.
    if not lake.exists(f"models/{candidate}/{artifact.METRICS}"):
        examples = dataset.to_table(columns=["uri"], filter=f"status = '{ledger.DONE}' AND windows > 0", limit=1)
        if encoded["rows"]:
            ready(lake.command(f"search {shlex.quote(examples['uri'][0].as_py())}"))
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
        "ledger": ledger.summary(dataset),
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
        ``results``: for each query its text and ``hits`` (`pipelines.query.search.Hit`); ``notes`` for the user on the
        results.
    """
    from soundlake.pipelines.query.query import load_query
    from soundlake.pipelines.query.search import Searcher

    if not queries and where is None:
        raise InputError("nothing to search for: give a file, a recording_id, or a filter with --where")
    used_model_id, dataset = find_table(lake, model_id, spec)
    by_id = {
        query
        for query in queries
        if re.fullmatch(r"[0-9a-f]{64}", query) and dataset.count_rows(fragments.in_list("recording_id", [query]))
    }
    # Without a sound to encode, no model is needed.
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
    return {"model_id": used_model_id, "results": results, "notes": searcher.notes}


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

    used_model_id, dataset = find_table(lake, model_id, spec)
    rows = write(dataset, target, where=where, by=by)
    return {"model_id": used_model_id, "rows": rows, "by": by, "file": target}
