"""Encode: shards + model → table, as one Beam pipeline.

ledger and table, recording by recording ▶ missing, gone or renamed ▶ pieces, a shard each ▶ RunInference ▶ one commit

Rows are stored as soon as they are made: the rows of a shard are written where no reader sees them, and a small file
lists them. A run that was killed and started again takes them from there.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import RunInference
from apache_beam.pvalue import AsList, AsSingleton, TaggedOutput

from soundlake.model.errors import InputError
from soundlake.pipelines.corpus.files import in_partition
from soundlake.pipelines.encode import finish
from soundlake.pipelines.encode.encoder import EncoderHandler, Name, Piece, Recording
from soundlake.pipelines.engine.joins import joined
from soundlake.pipelines.engine.machine import keep_freed_memory
from soundlake.pipelines.engine.runners import Engine, run_pipeline
from soundlake.pipelines.extract.account import packed
from soundlake.pipelines.lake import fragments, ledger, table, traces
from soundlake.pipelines.lake.forgotten import Memory
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.progress import Progress
from soundlake.pipelines.lake.runs import Run, last_step, others

# A run plans again if another run commits to the same table meanwhile; more often than this is no coincidence.
ATTEMPTS = 3


class _LedgerNames(beam.DoFn):
    """(recording_id, [uri, label, group, bundles]) of files that are done, from one fragment of the ledger."""

    def __init__(self, uri: str, version: int) -> None:
        self.uri, self.version = uri, version

    def process(self, fragment: int) -> Iterator[tuple[str, bytes]]:
        part = fragments.of(self.uri, self.version, fragment)
        columns = ["recording_id", "uri", "label", "group", "bundles"]
        for batch in part.to_batches(columns=columns, filter=f"status = '{ledger.DONE}'"):
            for row in batch.to_pylist():
                yield row["recording_id"], packed([row[name] for name in columns[1:]])


class _TableNames(beam.DoFn):
    """(recording_id, [uri, label, group, bundles, fragment]) of encoded files, from one fragment of the table."""

    def __init__(self, uri: str, version: int) -> None:
        self.uri, self.version = uri, version

    def process(self, fragment: int) -> Iterator[tuple[str, bytes]]:
        part = fragments.of(self.uri, self.version, fragment)
        columns = ["recording_id", "uri", "label", "group", "bundle"]
        seen: dict[tuple[Any, ...], set[str]] = {}
        for batch in part.to_batches(columns=columns):
            for *name, bundle in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                seen.setdefault(tuple(name), set()).add(bundle)
        for (recording_id, *name), bundles in seen.items():
            yield recording_id, packed([*name, sorted(bundles), fragment])


class _Compare(beam.DoFn):
    """Decide what to encode or rename of a recording, bundle by bundle, and which rows leave the table.

    All rows of a recording are written together, since the rows that stand for it may change with its files.

    Parameters
    ----------
    under : (str, str) or None
        A corpus and a partition. Recordings without a file in the partition are not looked at. No file outside the
        partition comes into the table.
    """

    def __init__(self, under: tuple[str, str] | None) -> None:
        self.under = under

    def process(self, element: tuple[str, Mapping[str, Iterable[bytes]]]) -> Iterator[Any]:
        recording_id, joined = element
        wanted = {uri: (label, group, bundles) for uri, label, group, bundles in map(json.loads, joined["wanted"])}
        have = [json.loads(data) for data in joined["have"]]
        bundles = ledger.one_place(bundles for _, _, bundles in wanted.values())
        if self.under is not None:
            # Files elsewhere that the table has stay, with their current names.
            inside = {uri for uri in wanted if in_partition(uri, *self.under)}
            if not inside:
                return
            present = {uri for uri, *_ in have}
            wanted = {uri: name for uri, name in wanted.items() if uri in inside or uri in present}
        names = sorted((uri, label, group) for uri, (label, group, _) in wanted.items())
        encoded: dict[tuple[Any, ...], set[str]] = {}
        for *name, held_by, _ in have:
            encoded.setdefault(tuple(name), set()).update(held_by)
        if encoded.keys() == set(names) and all(sorted(held_by) == bundles for held_by in encoded.values()):
            return
        for fragment in sorted({fragment for *_, fragment in have}):
            yield TaggedOutput("dropped", (fragment, recording_id))
        # The rows of the first file stand for the recording: if they are complete, nothing has to be encoded.
        first = min((uri for uri, *_ in have), default=None)
        rows_of_first = [name for name in have if name[0] == first]
        same = bool(bundles) and sorted({bundle for name in rows_of_first for bundle in name[3]}) == bundles
        fragments = sorted({name[4] for name in rows_of_first}) if same else []
        for bundle in bundles if names else []:
            yield bundle, packed([recording_id, names, fragments])


class _Gather(beam.DoFn):
    """A piece of work: the recordings of a bundle that are to be encoded or renamed."""

    def process(self, element: tuple[str, Iterable[bytes]]) -> Iterator[Piece]:
        bundle, parts = element
        recordings = {}
        for data in parts:
            recording_id, names, fragments = json.loads(data)
            recordings[recording_id] = Recording(tuple(Name(*name) for name in names), tuple(fragments))
        yield bundle, recordings


def _summarise(
    _: Any, pieces: Iterable[str], dropped: Iterable[tuple[int, str | None]], stale: int, lake: Lake, name: str
) -> None:
    summary = {"pieces": sorted(pieces), "dropped": sorted(dropped), "stale": stale}
    lake.write(name, json.dumps(summary).encode())


def build(
    pipeline: beam.Pipeline,
    lake: Lake,
    model: Any,
    known: Any,
    dataset: Any,
    *,
    under: tuple[str, str] | None,
    run: Run,
    threads: int = 1,
    accelerator: str | None = None,
    last: Callable[[], Any] | None = None,
) -> None:
    """Apply all steps of encode to a pipeline; its result is ``summary.json`` in the run's folder.

    Parameters
    ----------
    model : model.saved.artifact.Model
    known, dataset : lance.LanceDataset
        The ledger and the table at the versions that the run works from.
    last : callable or None
        Called on a worker when all else is done; by default the driver goes on from the summary.
    """
    progress = Progress(lake, run.folder)
    ledger_uri, table_uri = lake.ledger_uri(model.spec.spec_id), lake.table_uri(model.model_id)
    wanted = (
        pipeline
        | "ledger fragments" >> beam.Create(fragments.numbers(known))
        | "read ledger" >> beam.ParDo(_LedgerNames(ledger_uri, int(known.version)))
    )
    have = (
        pipeline
        | "table fragments" >> beam.Create(fragments.numbers(dataset))
        | "read table" >> beam.ParDo(_TableNames(table_uri, int(dataset.version)))
    )
    compared = joined("by recording", {"wanted": wanted, "have": have}) | "compare" >> beam.ParDo(
        _Compare(under)
    ).with_outputs("dropped", main="new")
    expected = AsSingleton(
        compared.new | "how much" >> beam.combiners.Count.Globally() | "tell the total" >> beam.Map(progress.expect)
    )
    pieces = (
        compared.new
        | "by bundle" >> beam.GroupByKey()
        | "gather" >> beam.ParDo(_Gather())
        | "spread pieces" >> beam.Reshuffle()
        | "after the total" >> beam.Map(lambda piece, _: piece, expected)
        | "encode"
        >> RunInference(EncoderHandler(lake, model.model_id, int(dataset.version), progress, threads, accelerator))
    )
    dropped = (
        compared.dropped
        | "by fragment" >> beam.GroupByKey()
        | "drop" >> beam.Map(fragments.drop, table_uri, int(dataset.version), "recording_id")
    )
    stale = AsSingleton(
        compared.dropped
        | "recordings" >> beam.Values()
        | "once each" >> beam.Distinct()
        | "how many" >> beam.combiners.Count.Globally()
    )
    summary = (
        pipeline
        | "end" >> beam.Create([None])
        | "summarise"
        >> beam.Map(_summarise, AsList(pieces), AsList(dropped), stale, lake=lake, name=f"{run.folder}/summary.json")
    )
    if last is not None:
        summary | "finish" >> beam.Map(lambda _, last: last(), last)


def encode(
    lake: Lake,
    model: Any,
    *,
    under: tuple[str, str] | None = None,
    run: Run,
    engine: Engine,
    accelerator: str | None = None,
    note: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Bring a model's table up to the ledger: add new windows and remove rows of files that are gone, in one commit.

    Parameters
    ----------
    lake : Lake
    model : model.saved.artifact.Model
        Its spec selects the features.
    under : (str, str) or None
        A corpus and one of its partitions: no file elsewhere comes into the table, and rows leave only if newer ones of
        the same recording replace them.
    run : Run
    engine : Engine
        From `pipelines.engine.runners.beam_options`.
    accelerator : str or None
        The accelerator to request for the step that encodes, in the runner's own syntax; windows are then encoded on a
        GPU, or not at all.
    note : callable
        Called with the totals on the worker that made the commit, if the pipeline runs without this process.

    Returns
    -------
    dict
        ``encoded`` windows that went through the model, ``renamed`` windows that did not have to,
        ``stale_recordings`` whose old rows left, ``rows`` in the table, ``ledger_version``, ``table_version``.

    Raises
    ------
    InputError
        If nothing was extracted for the model's spec, or a shard is missing or damaged.
    TryLaterError
        If other runs commit to the same table again and again.
    HandedOver
        If the pipeline runs later, without this process; its last step then makes the commit.
    """
    spec = model.spec
    known = ledger.open_ledger(lake, spec.spec_id)
    if known is None:
        raise InputError(
            f"the lake {lake.root} has no features of spec {spec.spec_id}; run: {lake.command('extract AUDIO')}"
        )
    keep_freed_memory(True)
    for attempt in range(ATTEMPTS):
        if attempt and (memory := Memory.of(lake)):
            # Remove forgotten rows that this run has written but could not commit.
            traces.cleaned(lake, Lake.table(model.model_id), memory, moment=0.0, versions=False)
        # Opened again each time: files forgotten meanwhile must not come back from an old version.
        known = ledger.open_ledger(lake, spec.spec_id)
        dataset = table.create(lake, model.model_id, table.schema_of(model))
        versions = {"version": int(dataset.version), "ledger_version": int(known.version)}
        commit = functools.partial(finish.encode, run, model.model_id, **versions)
        pipeline = functools.partial(
            build,
            lake=lake,
            model=model,
            known=known,
            dataset=dataset,
            under=under,
            run=run,
            threads=engine.threads,
            accelerator=accelerator,
            last=functools.partial(last_step, run, commit, note) if engine.template else None,
        )
        run_pipeline(pipeline, engine)
        totals = commit()
        if totals is not None:
            return totals
    raise others(lake)
