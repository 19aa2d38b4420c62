"""Survey: which files of a corpus are new, changed, known under another name, or gone; no sample is decoded yet.

list ▶ compare with the ledger ▶ probe ▶ recognise known content ▶ cut the rest into segments

The first half of `pipelines.extract.pipeline`, and all that a dry run needs. Only names and numbers cross a shuffle.
"""

import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import AsSingleton, TaggedOutput

from soundlake.model.errors import OF_THE_MACHINE
from soundlake.model.features.log_mel import FeatureSpec
from soundlake.pipelines.audio import isolation
from soundlake.pipelines.audio.isolation import sandbox
from soundlake.pipelines.audio.reading import Probe, Rejected, probe
from soundlake.pipelines.audio.recording import TRANSIENT
from soundlake.pipelines.corpus.files import Entry, at_hand, in_partition, listing, partition_of, partitions
from soundlake.pipelines.corpus.labels import NAMED, read_labels
from soundlake.pipelines.engine.joins import joined
from soundlake.pipelines.engine.runners import Concurrently
from soundlake.pipelines.extract import account, plan
from soundlake.pipelines.extract.account import Candidate, Work, packed
from soundlake.pipelines.extract.bundle import read_outcomes
from soundlake.pipelines.lake import fragments, ledger
from soundlake.pipelines.lake.forgotten import Memory
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.progress import LISTED, PROBED, Progress, Tally


class _Split(beam.DoFn):
    """Listed files by uri; those left out by name are counted."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress

    def start_bundle(self) -> None:
        self.tally = Tally(self.progress, LISTED)

    def finish_bundle(self) -> None:
        self.tally.tell()

    def process(self, found: tuple[str, Entry] | None) -> Iterator[Any]:
        self.tally.add()
        if found is None:
            yield TaggedOutput("counts", ("left out", 1))
        else:
            uri, entry = found
            yield uri, packed([entry.size, entry.mtime_ns])


class _ReadLabels(beam.DoFn):
    """(uri, [number of its row, label, group]) of each file in a label file; the file's oddities as ``notes``."""

    def __init__(self, corpus: str) -> None:
        self.corpus = corpus

    def process(self, labels: str) -> Iterator[Any]:
        contents = read_labels(labels, self.corpus)
        for note in contents.notes:
            yield TaggedOutput("notes", note)
        for uri, (number, values) in contents.lines.items():
            yield uri, packed([number, *values])


class _ReadLedger(beam.DoFn):
    """Rows of one ledger fragment, at a pinned version: (first column, number of the fragment and all columns)."""

    def __init__(self, uri: str, version: int, columns: list[str]) -> None:
        self.uri, self.version, self.columns = uri, version, columns

    def process(self, fragment: int, wanted: int = 1) -> Iterator[tuple[str, bytes]]:
        if not wanted:
            return
        for row in ledger.read(fragments.of(self.uri, self.version, fragment), self.columns):
            if row[self.columns[0]] is not None:
                yield row[self.columns[0]], packed([fragment, *row.values()])


class _Leftovers(beam.DoFn):
    """Names of finished bundles that the ledger does not name: those of killed runs, or of files that are gone."""

    def __init__(self, lake: Lake, spec_id: str, version: int) -> None:
        self.lake, self.spec_id, self.version = lake, spec_id, version

    def process(self, _: Any) -> Iterator[str]:
        names = {name.removesuffix(".parquet") for name in self.lake.names(f"{Lake.spec(self.spec_id)}/outcomes")}
        if names and self.version:
            known = ledger.open_ledger(self.lake, self.spec_id, self.version)
            for batch in known.to_batches(columns=["bundles"]):
                names -= set(batch.column("bundles").flatten().to_pylist())
        yield from sorted(names)


def _read_left(bundle: str, lake: Lake, spec_id: str) -> Iterator[Any]:
    """Contents of a leftover bundle: for each file the result of its probe, for each segment its outcome."""
    rows = read_outcomes(lake, spec_id, bundle) or ()
    memory = Memory.of(lake)
    if any(memory.holds(uri=row["uri"], recording_id=row["recording_id"]) for row in rows):
        return  # the ledger must not name a shard with a forgotten recording in it
    for row in rows:
        if ledger.is_older(row):
            continue  # it is decoded again
        if row["first"] == 0:
            file = [row["size"], row["mtime_ns"], row["recording_id"], json.loads(row["probe"])]
            yield TaggedOutput("files", (row["uri"], packed(file)))
        yield row["recording_id"], packed(row)  # type: ignore[arg-type]


class _Compare(beam.DoFn):
    """Decide what a file is by the ledger: known, identified without being read, to be probed, gone, or forgotten.

    Parameters
    ----------
    corpus, partition, retried, recheck
        As for `survey`.
    lake : Lake or None
        The lake whose memory of forgotten files counts; by default nothing is forgotten.
    include_forgotten : bool
    others : frozenset of str
        The other partitions of the corpus. A label that belongs to no partition has no file, whichever partition is
        looked at.
    """

    def __init__(
        self,
        corpus: str,
        partition: str | None,
        retried: frozenset[str],
        lake: Lake | None = None,
        *,
        include_forgotten: bool = False,
        recheck: bool = False,
        others: frozenset[str] = frozenset(),
    ) -> None:
        self.corpus, self.partition, self.retried, self.others = corpus, partition, retried, others
        self.recheck = recheck
        self.lake, self.include_forgotten = lake, include_forgotten
        self.memory: Memory | None = None

    def setup(self) -> None:
        self.memory = None if self.lake is None else Memory.of(self.lake)

    def process(self, element: tuple[str, Mapping[str, list[bytes]]]) -> Iterator[Any]:
        uri, joined = element
        if not in_partition(uri, self.corpus, self.partition) and (
            not joined["labels"] or joined["known"] or partition_of(uri, self.corpus) in self.others
        ):
            return
        listed, known, labels = (
            next((json.loads(data) for data in joined[name]), None) for name in ("listed", "known", "labels")
        )
        row = None if known is None else dict(zip(account.KNOWN, known[2:], strict=True))
        replaces = None if known is None else known[0]
        if listed is None:
            if row is not None and row["corpus"] == self.corpus:
                yield TaggedOutput("gone", (replaces, uri))
                yield TaggedOutput("counts", ("gone", 1))
            elif row is None and labels is not None and not (self.memory and self.memory.is_former(uri)):
                yield TaggedOutput("counts", ("labels without a file", 1))
                if self.memory is None or not self.memory.holds(uri=uri):
                    yield TaggedOutput("unmatched", (labels[0], uri))
            return
        yield TaggedOutput("counts", ("listed", 1))
        size, mtime_ns = listed
        forgotten = set() if self.memory is None else self.memory.known(uri, size, mtime_ns)
        if forgotten and not self.include_forgotten:
            yield from _left_out(uri, replaces)
            return
        for digest in sorted(forgotten):
            yield TaggedOutput("forgotten", digest)
        _, label, group = labels or (None, None, None)
        file = Candidate(uri, size, mtime_ns, label, group, replaces=replaces)
        # If a finished bundle that no ledger names yet holds the file, it need not be read again.
        left = min((entry[2:] for entry in map(json.loads, joined["left"]) if entry[:2] == listed), default=None)
        if row is None:
            yield TaggedOutput("counts", ("new", 1))
        else:
            same_name = (row["corpus"], row["label"], row["group"]) == (self.corpus, label, group)
            unchanged = (row["size"], row["mtime_ns"]) == (size, mtime_ns)
            if plan.is_known(size, mtime_ns, row, retried=self.retried, recheck=self.recheck):
                if same_name:
                    yield TaggedOutput("counts", ("unchanged", 1))
                    yield TaggedOutput("counts", ("older decoder", int(ledger.is_older(row))))
                    return
                if row["recording_id"] is not None:
                    yield TaggedOutput("counts", ("relabelled", 1))
                    yield TaggedOutput("identified", (row["recording_id"], packed(file.values())))
                    return
            yield TaggedOutput("counts", ("tried again" if unchanged else "changed", 1))
            if same_name and unchanged and not (self.recheck and ledger.is_older(row)):
                # The reason for its rejection: if it is rejected for the same reason again, it counts as unchanged.
                file = replace(file, before=row["reason"])
        if left is not None:
            recording_id, header = left
            values = [*file.values()[:-1], header]
            yield TaggedOutput("identified", (recording_id, packed(values)))
        else:
            yield file


class _Probed(beam.DoFn):
    """Pass on probed files as they are, and count them for the display of progress."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress

    def start_bundle(self) -> None:
        self.tally = Tally(self.progress, PROBED)

    def finish_bundle(self) -> None:
        self.tally.tell()

    def process(self, found: Any) -> Iterator[Any]:
        self.tally.add()
        yield found


def probe_file(candidate: Candidate, corpus: str) -> Iterator[Any]:
    """Read a file's header and digest: (recording_id, packed candidate), or a ledger row that rejects it."""
    try:
        with at_hand(candidate.uri) as path:
            # The probe comes first: it refuses anything but a regular file, and reading a pipe would wait for ever.
            with sandbox() as box:
                header: Probe = box.call(probe, path, stage="probe")
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
    except Rejected as error:
        stage, reason, detail = error.stage, error.reason, error.detail
    except OSError as error:
        if error.errno in OF_THE_MACHINE:
            raise
        stage, reason, detail = "probe", "unreadable", error.strerror or type(error).__name__
    else:
        yield digest, packed(replace(candidate, before=None, probe=header).values())
        return
    if candidate.before == reason:
        yield TaggedOutput("counts", ("unchanged", 1))
    else:
        yield TaggedOutput("rows", candidate.rejection(corpus, stage=stage, reason=reason, detail=detail))


def _left_out(uri: str, replaces: int | None) -> Iterator[Any]:
    """Leave out a file that the lake has forgotten: count it, and let its row leave the ledger if it has one."""
    yield TaggedOutput("counts", ("forgotten", 1))
    if replaces is not None:
        yield TaggedOutput("gone", (replaces, uri))
        yield TaggedOutput("counts", ("gone", 1))


class _LeaveOut(beam.DoFn):
    """Identified files, without those whose content the lake has forgotten.

    The digests of the files that are left out are output, so that the next run need not read them. If such files are
    included, the digests of their content are output instead, which is then no longer forgotten.
    """

    def __init__(self, lake: Lake, *, include_forgotten: bool) -> None:
        self.lake, self.include_forgotten = lake, include_forgotten

    def setup(self) -> None:
        self.memory = Memory.of(self.lake)

    def process(self, element: tuple[str, bytes]) -> Iterator[Any]:
        recording_id, data = element
        if not self.memory.holds(recording_id=recording_id):
            yield element
        elif self.include_forgotten:
            yield TaggedOutput("forgotten", self.memory.recording(recording_id))
            yield element
        else:
            file = Candidate.of(json.loads(data))
            yield TaggedOutput("forgotten", self.memory.file(file.uri, file.size, file.mtime_ns))
            yield from _left_out(file.uri, file.replaces)


class _Recognise(beam.DoFn):
    """Give known content under a new name its row, without decoding; cut new content into segments."""

    def __init__(self, spec: FeatureSpec, corpus: str, retried: frozenset[str]) -> None:
        self.spec, self.corpus, self.retried = spec, corpus, retried

    def process(self, element: tuple[str, Mapping[str, list[bytes]]]) -> Iterator[Any]:
        recording_id, joined = element
        candidates = sorted((Candidate.of(json.loads(data)) for data in joined["found"]), key=lambda file: file.uri)
        if not candidates:
            return
        names = [*account.CONTENT, "uri"]
        known = [dict(zip(names, json.loads(data)[1:], strict=True)) for data in joined["known"]]
        rows = account.recognise(candidates, known, self.corpus, retried=self.retried)
        for row in rows:
            yield TaggedOutput("rows", row)
        if rows:
            return
        works = account.cut(recording_id, candidates, [json.loads(data) for data in joined["left"]], self.spec)
        if len(works) > 1:
            yield TaggedOutput("long", (recording_id, packed([file.values() for file in candidates])))
        container = works[0].probe.container
        yield TaggedOutput("counts", ("recordings", 1))
        if plan.is_short(works[0].probe, works[0].files[0].size):
            yield TaggedOutput("counts", ("short recordings", 1))
        for work in works:
            if work.outcome is None:
                yield TaggedOutput("counts", (f"planned_s {container}", _believed_seconds(work, self.spec)))
                yield TaggedOutput("counts", ("planned windows", work.segment.windows))
            yield work.packed()


def _believed_seconds(work: Work, spec: FeatureSpec) -> float:
    """Seconds of sound in a segment, by the header or the size of its file."""
    segment = work.segment
    to_the_end = plan.believed_seconds(work.probe, work.files[0].size) - segment.first * spec.step_seconds
    return to_the_end if segment.count is None else min(to_the_end, segment.windows * spec.step_seconds)


class Survey(NamedTuple):
    """The work of a run, as PCollections.

    Attributes
    ----------
    works : of packed `Work`
        The segments of new recordings.
    long : of (recording_id, packed candidates)
        Recordings of more than one segment.
    rows : tuple, of ledger rows
        Of files that need no decoding.
    gone : tuple, of (fragment of the ledger, uri)
        Rows that leave the ledger.
    forgotten : tuple, of digests
        Of `pipelines.lake.forgotten.Memory`: of files whose content is forgotten; with `include_forgotten`, of files
        and recordings that are no longer forgotten.
    counts : tuple, of (name, number)
    unmatched : of (number of a row, uri)
        The first labels without a file.
    label_notes : of str
        Oddities of the label file.
    """

    works: Any
    long: Any
    rows: tuple[Any, ...]
    gone: tuple[Any, ...]
    forgotten: tuple[Any, ...]
    counts: tuple[Any, ...]
    unmatched: Any
    label_notes: Any


def survey(
    pipeline: beam.Pipeline,
    lake: Lake,
    spec: FeatureSpec,
    corpus: str,
    *,
    before: Any,
    labels: str | None,
    partition: str | None = None,
    threads: int = 1,
    retried: frozenset[str] = TRANSIENT,
    progress: Progress | None = None,
    include_forgotten: bool = False,
    recheck: bool = False,
) -> Survey:
    """Apply the transforms from the listing of the corpus to the segments to extract.

    Parameters
    ----------
    pipeline, lake, spec, corpus, labels, partition, threads, retried, include_forgotten, recheck
        As for `pipelines.extract.pipeline.extract`. The lake need not exist yet; nothing is written to it.
    before : lance.LanceDataset or None
        The ledger to compare with; workers read it at its version.
    progress : Progress or None
        Counts the files that are listed and probed.
    """
    version = 0 if before is None else int(before.version)
    ledger_uri = lake.ledger_uri(spec.spec_id)

    listed = (
        pipeline
        | "corpus" >> beam.Create([corpus])
        | "list" >> beam.FlatMap(listing, partition)
        | "left out or listed" >> beam.ParDo(_Split(progress)).with_outputs("counts", main="listed")
    )
    in_ledger = pipeline | "ledger fragments" >> beam.Create(fragments.numbers(before))
    known = in_ledger | "read ledger" >> beam.ParDo(_ReadLedger(ledger_uri, version, ["uri", *account.KNOWN]))
    named = (
        pipeline
        | "label file" >> beam.Create([] if labels is None else [labels])
        | "read labels" >> beam.ParDo(_ReadLabels(corpus)).with_outputs("notes", main="lines")
    )
    others = frozenset() if partition is None else frozenset(partitions(corpus)) - {partition}
    left = (
        pipeline
        | "once" >> beam.Create([None])
        | "leftovers" >> beam.ParDo(_Leftovers(lake, spec.spec_id, version))
        | "spread leftovers" >> beam.Reshuffle()
        | "read leftovers" >> beam.FlatMap(_read_left, lake, spec.spec_id).with_outputs("files", main="outcomes")
    )
    compared = joined(
        "by uri", {"listed": listed.listed, "known": known, "labels": named.lines, "left": left.files}
    ) | "compare" >> beam.ParDo(
        _Compare(corpus, partition, retried, lake, include_forgotten=include_forgotten, recheck=recheck, others=others)
    ).with_outputs("gone", "counts", "identified", "forgotten", "unmatched", main="candidates")
    probed = compared.candidates | "probe" >> beam.ParDo(
        Concurrently(functools.partial(probe_file, corpus=corpus), threads)
    ).with_outputs("rows", "counts", main="found").with_resource_hints(min_ram=isolation.RAM)
    counted = probed.found | "count the probed" >> beam.ParDo(_Probed(progress))
    identified = (
        (counted, compared.identified)
        | "identified" >> beam.Flatten()
        | "leave out forgotten"
        >> beam.ParDo(_LeaveOut(lake, include_forgotten=include_forgotten)).with_outputs(
            "gone", "counts", "forgotten", main="found"
        )
    )
    files = identified.found
    # Where nothing is new, the ledger's contents need not be read.
    wanted = AsSingleton(files | "how many" >> beam.combiners.Count.Globally())
    contents = in_ledger | "read contents" >> beam.ParDo(
        _ReadLedger(ledger_uri, version, [*account.CONTENT, "uri"]), wanted
    )
    recognised = joined(
        "by content", {"found": files, "known": contents, "left": left.outcomes}
    ) | "recognise" >> beam.ParDo(_Recognise(spec, corpus, retried)).with_outputs(
        "rows", "long", "counts", main="works"
    )
    return Survey(
        recognised.works,
        recognised.long,
        (probed.rows, recognised.rows),
        (compared.gone, identified.gone),
        (compared.forgotten, identified.forgotten),
        (listed.counts, compared.counts, probed.counts, identified.counts, recognised.counts),
        compared.unmatched
        | "first without a file" >> beam.combiners.Top.Smallest(NAMED)
        | "each without a file" >> beam.FlatMap(list),
        named.notes,
    )


def weight(data: bytes) -> int:
    """Number of windows of a packed work."""
    return Work.segment_of(data).windows


def bundles(works: Any, total: Any) -> Any:
    """Pack works into bundles: a PCollection of tuples of `Work`.

    Parameters
    ----------
    works : PCollection of packed `Work`
    total : AsSingleton of int
        Number of windows of all works.
    """
    return (
        works
        | "bucket" >> beam.Map(lambda data, total: (plan.bucket_of(Work.segment_of(data), total), data), total)
        | "gather buckets" >> beam.GroupByKey()
        | "pack" >> beam.FlatMap(_pack, total)
    )


def _pack(element: tuple[int, Iterable[bytes]], total: int) -> Iterator[tuple[Work, ...]]:
    works = {work.segment: work for work in map(Work.unpacked, element[1])}
    for bundle in plan.pack(works, total):
        yield tuple(works[segment] for segment in bundle)
