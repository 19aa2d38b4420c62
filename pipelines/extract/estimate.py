"""Plan: what extract would do to a corpus, and at what cost; only a few samples are decoded.

The rate of each container comes from earlier runs of the lake. If there is none, the first recordings of the container
are decoded, and the windows are thrown away.
"""

import functools
import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsSingleton

from soundlake.model.features.log_mel import FeatureSpec
from soundlake.model.features.records import Record, encode
from soundlake.pipelines.audio.isolation import sandbox
from soundlake.pipelines.audio.reading import Rejected
from soundlake.pipelines.audio.recording import TRANSIENT
from soundlake.pipelines.corpus.files import at_hand
from soundlake.pipelines.corpus.labels import without_file
from soundlake.pipelines.engine.runners import Engine, run_pipeline
from soundlake.pipelines.extract.account import Work
from soundlake.pipelines.extract.cost import rates_of
from soundlake.pipelines.extract.finish import totalled
from soundlake.pipelines.extract.pipeline import summarise
from soundlake.pipelines.extract.survey import bundles, survey, weight
from soundlake.pipelines.extract.windows import write_segment
from soundlake.pipelines.lake import ledger
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.ledger import REJECTED, Row
from soundlake.pipelines.lake.progress import Progress, watching
from soundlake.pipelines.lake.runs import Run
from soundlake.pipelines.lake.stages import stage

# Recordings that are decoded of each container without a rate, and seconds that all this decoding may take.
SAMPLES, BUDGET_S = 3, 20.0


def _tallied(row: Row) -> Iterator[tuple[str, int]]:
    yield ("rejected " + row["reason"] if row["status"] == REJECTED else "known"), 1


def build(
    pipeline: beam.Pipeline,
    lake: Lake,
    spec: FeatureSpec,
    corpus: str,
    *,
    labels: str | None,
    scratch: Lake,
    name: str,
    threads: int,
    retried: frozenset[str],
    progress: Progress,
) -> None:
    """Apply a dry run to a pipeline; its result is a JSON file, `name` in `scratch`."""
    before = ledger.open_ledger(lake, spec.spec_id)
    surveyed = survey(
        pipeline,
        lake,
        spec,
        corpus,
        before=before,
        labels=labels,
        threads=threads,
        retried=retried,
        progress=progress,
    )
    total = AsSingleton(surveyed.works | "weigh" >> beam.Map(weight) | "total" >> beam.CombineGlobally(sum))
    shards = bundles(surveyed.works, total) | "a shard each" >> beam.Map(lambda _: ("shards", 1))
    rows = surveyed.rows | "rows" >> beam.Flatten() | "tally" >> beam.FlatMap(_tallied)
    samples = (
        surveyed.works
        | "by container" >> beam.Map(lambda data: (Work.unpacked(data).probe.container, data))
        | "samples" >> beam.combiners.Top.SmallestPerKey(SAMPLES)
        | "as text" >> beam.FlatMap(lambda found: [data.decode() for data in found[1]])
    )
    lists = {"samples": samples, "unmatched": surveyed.unmatched, "label_notes": surveyed.label_notes}
    summarise(pipeline, [*surveyed.counts, shards, rows], lake=scratch, name=name, **lists)


def survey_corpus(
    lake: Lake,
    spec: FeatureSpec,
    corpus: str,
    *,
    labels: str | None,
    run: Run | None,
    engine: Engine,
    retried: frozenset[str] = TRANSIENT,
) -> dict[str, Any]:
    """Survey a corpus as extract would, and return the totals.

    Parameters
    ----------
    run : Run or None
        None where there is no lake yet; then only a temporary file is written.

    Returns
    -------
    dict
        As `pipelines.extract.finish.totalled`, with ``known``, ``rejects`` by reason, ``shards`` and ``samples``.
    """
    with tempfile.TemporaryDirectory(prefix="soundlake-") as folder:
        scratch, name = (Lake(folder), "plan.json") if run is None else (lake, f"{run.folder}/plan.json")
        progress = Progress(scratch, "run" if run is None else run.folder)
        pipeline = functools.partial(
            build,
            lake=lake,
            spec=spec,
            corpus=corpus,
            labels=labels,
            scratch=scratch,
            name=name,
            threads=engine.threads,
            retried=retried,
            progress=progress,
        )
        with watching(progress, verb="planning"):
            run_pipeline(pipeline, engine)
        summary = json.loads(scratch.read(name))
    counts = summary["counts"]
    rejects = {
        key.removeprefix("rejected "): count for key, count in sorted(counts.items()) if key.startswith("rejected ")
    }
    totals = totalled(summary) | {
        "known": counts.get("known", 0),
        "rejects": rejects,
        "shards": counts.get("shards", 0),
    }
    totals["unmatched_labels"] = without_file(summary["unmatched"], corpus)
    return totals | {"samples": summary["samples"]}


def measured(samples: Iterable[str], spec: FeatureSpec, *, without: Iterable[str] = ()) -> dict[str, float]:
    """Rates as of `pipelines.extract.cost.rates`, from decoding some works now; not for containers in `without`."""
    cpu_s: dict[str, float] = {}
    audio_s: dict[str, float] = {}
    began = time.monotonic()
    works = [Work.unpacked(text.encode()) for text in samples]
    with tempfile.NamedTemporaryFile(prefix="soundlake-") as part, stage("decoding samples"), sandbox() as box:
        for work in sorted(works, key=lambda work: work.segment.windows):
            container = work.probe.container
            if container in without or (container in audio_s and time.monotonic() - began > BUDGET_S):
                continue
            try:
                with at_hand(work.files[0].uri) as path:
                    call = part.name, 0, path, work.probe, spec, work.segment
                    outcome, _ = box.call(write_segment, *call, stage="decode")
            except (Rejected, OSError):
                continue
            cpu_s[container] = cpu_s.get(container, 0.0) + outcome["cpu_s"]
            seconds = outcome["samples"] / spec.sample_rate - work.segment.first * spec.step_seconds
            audio_s[container] = audio_s.get(container, 0.0) + seconds
    # A few one-shots are less than a second of sound, but still show the rate of others.
    return rates_of(cpu_s, audio_s, least_s=0.0)


def record_bytes(spec: FeatureSpec) -> int:
    """Size of a window in a shard, in bytes."""
    empty = np.zeros((spec.window_frames, spec.n_mels), np.uint16)
    return len(encode(Record("0" * 64, 0, spec.window_frames, empty))) + 16
