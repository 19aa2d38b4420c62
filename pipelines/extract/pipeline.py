"""Extract: corpus → log-mel shards and ledger, as one Beam pipeline.

survey ▶ pack segments into bundles ▶ decode, log-mel, write ▶ settle ▶ ledger rows

Only names and numbers cross a shuffle, never sound. Workers write whole files; one commit is made at the end
(`pipelines.extract.finish`).
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.pvalue import AsDict, AsList, AsSingleton, TaggedOutput

from soundlake.model.features.log_mel import FeatureSpec
from soundlake.pipelines.audio import isolation
from soundlake.pipelines.audio.recording import TRANSIENT
from soundlake.pipelines.engine.joins import joined
from soundlake.pipelines.engine.machine import keep_freed_memory
from soundlake.pipelines.engine.runners import Concurrently, Engine, run_pipeline
from soundlake.pipelines.extract import account, finish, plan
from soundlake.pipelines.extract.account import Candidate, Work, packed
from soundlake.pipelines.extract.bundle import write_bundle
from soundlake.pipelines.extract.survey import bundles, survey, weight
from soundlake.pipelines.lake import fragments, ledger
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.ledger import DONE, REJECTED, Row
from soundlake.pipelines.lake.progress import Progress
from soundlake.pipelines.lake.runs import Run, last_step, others

# Rows that a worker collects and writes as one file.
PART_ROWS = 2048
# A run plans again if another run commits to the same ledger meanwhile; more often than this is no coincidence.
ATTEMPTS = 3


def seconds_of(outcome: Row, spec: FeatureSpec) -> float:
    """Seconds of sound in a segment, by its outcome."""
    begin = outcome["first"] * spec.step_seconds
    to_the_end = outcome["samples"] / spec.sample_rate - begin
    return max(0.0, to_the_end if outcome["count"] < 0 else min(to_the_end, outcome["count"] * spec.step_seconds))


def write_works(
    works: tuple[Work, ...], lake: Lake, spec: FeatureSpec, corpus: str, progress: Progress, retried: frozenset[str]
) -> Iterator[Any]:
    """Write a bundle; yield ledger rows of its whole recordings, and outcomes of segments of longer ones."""
    totals: dict[str, float] = {}

    def spent(work: Work, outcome: Row) -> None:
        for name, value in (("cpu_s", outcome["cpu_s"]), ("audio_s", seconds_of(outcome, spec))):
            totals[f"{name} {work.probe.container}"] = totals.get(f"{name} {work.probe.container}", 0.0) + value

    outcomes = write_bundle(lake, spec, works, again=lambda row: row["reason"] in retried, spent=spent)
    progress.tell(
        plan.bundle_id(spec, [work.segment for work in works]),
        {
            "files": sum(o["first"] == 0 for o in outcomes),
            "rejected": sum(o["status"] == REJECTED for o in outcomes),
            "audio_s": sum(seconds_of(o, spec) for o in outcomes),
            "work": sum(work.segment.windows for work in works),
            **totals,
        },
    )
    for work, outcome in zip(works, outcomes, strict=True):
        if work.segment.key()[1:] == plan.WHOLE:
            for row in account.settle(work.segment.recording_id, work.files, [outcome], spec, corpus):
                yield TaggedOutput("rows", row)
        else:
            yield outcome["recording_id"], packed(outcome)  # type: ignore[arg-type]
    for item in totals.items():
        yield TaggedOutput("counts", item)


class _Settle(beam.DoFn):
    def __init__(self, spec: FeatureSpec, corpus: str) -> None:
        self.spec, self.corpus = spec, corpus

    def process(self, element: tuple[str, Mapping[str, list[bytes]]]) -> Iterator[Row]:
        recording_id, joined = element
        candidates = [Candidate.of(values) for data in joined["long"] for values in json.loads(data)]
        outcomes = [json.loads(data) for data in joined["outcomes"]]
        yield from account.settle(recording_id, candidates, outcomes, self.spec, self.corpus)


class _Tally(beam.DoFn):
    """Count rows by the outcome of their files, also with Beam's counters, for people who watch the runner."""

    def process(self, row: Row) -> Iterator[Any]:
        Metrics.counter("soundlake", f"files_{row['status']}").inc()
        if row["status"] == REJECTED:
            Metrics.counter("soundlake", f"rejected_{row['reason']}").inc()
        elif row["status"] == DONE:
            Metrics.counter("soundlake", "windows").inc(row["windows"])
            Metrics.counter("soundlake", "audio_seconds").inc(round(row["duration_s"] or 0))
        yield TaggedOutput("counts", ("rows " + row["status"], 1))
        if row[ledger.REPLACES] is not None:
            yield TaggedOutput("replaced", (row[ledger.REPLACES], row["uri"]))
        # A new dict: Beam forbids a step to change its input.
        yield {name: value for name, value in row.items() if name != ledger.REPLACES}


class Keep(beam.PTransform):
    """Rows of one branch → (fragments that hold them, rows that they replace, their counts).

    Apply it to each branch before the branches are flattened: an engine that stores flattened data then stores only
    names, not rows.
    """

    def __init__(self, lake: Lake, spec_id: str) -> None:
        super().__init__()
        self.lake, self.spec_id = lake, spec_id

    def expand(self, rows: Any) -> Any:
        tallied = rows | "tally" >> beam.ParDo(_Tally()).with_outputs("counts", "replaced", main="rows")
        parts = (
            tallied.rows
            | "batch" >> beam.BatchElements(min_batch_size=PART_ROWS, max_batch_size=PART_ROWS)
            | "write" >> beam.FlatMap(lambda rows, lake, id: ledger.write_rows(lake, id, rows), self.lake, self.spec_id)
        )
        return parts, tallied.replaced, tallied.counts


def _summarise(
    _: Any, counts: Mapping[str, float], names: Iterable[str], *lists: Iterable[Any], lake: Lake, name: str
) -> None:
    summary = {"counts": dict(counts)} | {key: sorted(values) for key, values in zip(names, lists, strict=True)}
    lake.write(name, json.dumps(summary, sort_keys=True).encode())


def summarise(pipeline: beam.Pipeline, counts: Iterable[Any], *, lake: Lake, name: str, **lists: Any) -> Any:
    """Write the sums of `counts`, and `lists` of short values, as one JSON file; give one element once it is written.

    Parameters
    ----------
    pipeline : beam.Pipeline
    counts : iterable of PCollection of (str, number)
    lake, name : Lake, str
        The lake, and the name of the file in it.
    lists : PCollection
        By the name of the list in the file.
    """
    sums = [branch | f"count {i}" >> beam.CombinePerKey(sum) for i, branch in enumerate(counts)]
    total = sums | "all counts" >> beam.Flatten() | "count" >> beam.CombinePerKey(sum)
    sides = [AsList(values) for values in lists.values()]
    return (
        pipeline
        | "end" >> beam.Create([None])
        | "summarise" >> beam.Map(_summarise, AsDict(total), list(lists), *sides, lake=lake, name=name)
    )


def build(
    pipeline: beam.Pipeline,
    lake: Lake,
    spec: FeatureSpec,
    corpus: str,
    *,
    before: Any,
    labels: str | None,
    partition: str | None,
    run: Run,
    threads: int = 1,
    retried: frozenset[str] = TRANSIENT,
    include_forgotten: bool = False,
    recheck: bool = False,
    last: Callable[[], Any] | None = None,
) -> None:
    """Apply all steps of extract to a pipeline; its result is ``summary.json`` in the run's folder.

    Parameters
    ----------
    last : callable or None
        Called on a worker when all else is done; by default the driver goes on from the summary.
    """
    progress = Progress(lake, run.folder)
    surveyed = survey(
        pipeline,
        lake,
        spec,
        corpus,
        before=before,
        labels=labels,
        partition=partition,
        threads=threads,
        retried=retried,
        progress=progress,
        include_forgotten=include_forgotten,
        recheck=recheck,
    )
    total = AsSingleton(
        surveyed.works
        | "weigh" >> beam.Map(weight)
        | "total" >> beam.CombineGlobally(sum)
        | "tell the total" >> beam.Map(progress.expect)
    )
    write = functools.partial(write_works, lake=lake, spec=spec, corpus=corpus, progress=progress, retried=retried)
    written = bundles(surveyed.works, total) | "write bundles" >> beam.ParDo(Concurrently(write, threads)).with_outputs(
        "rows", "counts", main="outcomes"
    ).with_resource_hints(min_ram=isolation.RAM)
    settled = joined("by recording", {"long": surveyed.long, "outcomes": written.outcomes}) | "settle" >> beam.ParDo(
        _Settle(spec, corpus)
    )
    kept = [
        rows | f"keep rows {i}" >> Keep(lake, spec.spec_id)
        for i, rows in enumerate((*surveyed.rows, written.rows, settled))
    ]
    written_rows, replaced, counted = zip(*kept, strict=True)
    dropped = (
        (*surveyed.gone, *replaced)
        | "all that leaves" >> beam.Flatten()
        | "by fragment" >> beam.GroupByKey()
        | "drop" >> beam.Map(fragments.drop, lake.ledger_uri(spec.spec_id), fragments.version_of(before), "uri")
    )
    new = written_rows | "all fragments" >> beam.Flatten()
    counts = [*surveyed.counts, written.counts, *counted]
    forgotten = surveyed.forgotten | "all forgotten" >> beam.Flatten()
    lists = {"fragments": new, "dropped": dropped, "forgotten": forgotten}
    lists |= {"unmatched": surveyed.unmatched, "label_notes": surveyed.label_notes}
    summary = summarise(pipeline, counts, lake=lake, name=f"{run.folder}/summary.json", **lists)
    if last is not None:
        summary | "finish" >> beam.Map(lambda _, last: last(), last)


def extract(
    lake: Lake,
    spec: FeatureSpec,
    corpus: str,
    *,
    labels: str | None,
    run: Run,
    engine: Engine,
    partition: str | None = None,
    allow_empty: bool = False,
    retried: frozenset[str] = TRANSIENT,
    include_forgotten: bool = False,
    recheck: bool = False,
    swept: Callable[..., str],
    note: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Bring the lake's features of a corpus up to date.

    Parameters
    ----------
    lake, spec : Lake, FeatureSpec
    corpus : str
        From `pipelines.corpus.files.corpus_root`.
    labels : str or None
        A label file, from `pipelines.corpus.labels.find_labels`.
    run : Run
        Its folder takes the rows until they are committed.
    engine : Engine
        From `pipelines.engine.runners.beam_options`.
    partition : str or None
        A folder of the corpus, or `pipelines.corpus.files.LOOSE`: other files are not looked at, and their rows stay.
    allow_empty : bool
        Whether a corpus that held files may be empty now; then the rows of all its files leave the ledger.
    retried : frozenset of str
        Reasons of rejections; files that were rejected for one of these are tried again.
    include_forgotten : bool
        Whether to take in files that the lake has forgotten; they are then no longer forgotten.
    recheck : bool
        Whether files that an older decoder rejected without knowing their content are tried again.
    swept : callable
        `pipelines.upkeep.erasure.mark_swept` of this lake and spec. It is called first, and removes leftovers of killed
        runs that hold forgotten recordings.
    note : callable
        Called with the totals on the worker that made the commit, if the pipeline runs without this process.

    Returns
    -------
    dict
        ``listed``, ``left_out``, ``unchanged``, ``done``, ``rejected``, ``forgotten``, ``gone``: files of this run;
        ``planned_s`` (by container) and ``planned_windows``, the sound to decode by the headers; ``cpu_s`` and
        ``audio_s``, the cost of decoding by container; and the ``ledger_version``, newer than before only if a row
        changed.

    Raises
    ------
    InputError
        If the corpus is empty now and was not before; nothing is committed then.
    RuntimeError
        If files listed and files accounted for differ; nothing is committed then.
    TryLaterError
        If other runs commit to the same ledger again and again.
    HandedOver
        If the pipeline runs later, without this process; its last step then makes the commit.
    """
    spec_name = f"{Lake.spec(spec.spec_id)}/spec.json"
    if not lake.exists(spec_name):
        lake.write(spec_name, spec.canonical_json().encode() + b"\n")
    keep_freed_memory(False)
    for attempt in range(ATTEMPTS):
        planned = None if engine.template else swept(again=attempt > 0)
        before = ledger.open_for_writing(lake, spec.spec_id)
        commit = functools.partial(
            finish.extract,
            run,
            spec.spec_id,
            corpus,
            version=fragments.version_of(before),
            partition=partition,
            allow_empty=allow_empty,
            retried=retried,
            include_forgotten=include_forgotten,
            planned=planned,
        )
        pipeline = functools.partial(
            build,
            lake=lake,
            spec=spec,
            corpus=corpus,
            before=before,
            labels=labels,
            partition=partition,
            run=run,
            threads=engine.threads,
            retried=retried,
            include_forgotten=include_forgotten,
            recheck=recheck,
            last=functools.partial(last_step, run, commit, note) if engine.template else None,
        )
        run_pipeline(pipeline, engine)
        totals = commit()
        if totals is not None:
            return totals
    raise others(lake)
