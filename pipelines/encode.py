"""Encode: shards + model → table, as one Beam pipeline.

ledger and table, bundle by bundle ▶ missing, gone or renamed ▶ read shards ▶ RunInference ▶ fragments ▶ one commit
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.pvalue import AsList, TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.windowed_value import WindowedValue

from model import artifact
from model.errors import InputError
from model.features import FeatureSpec, dequantise
from model.records import DamagedShardError, Record, decode, read_framed
from pipelines import ledger, table
from pipelines.lake import Lake, Run
from pipelines.runners import run_pipeline

BATCH_WINDOWS = 64
FRAGMENT_ROWS = 65_536


@dataclass(frozen=True, order=True)
class Name:
    """What the table says about a recording that its bytes do not."""

    uri: str
    label: str | None
    group: str | None


@dataclass(frozen=True)
class Window:
    """A record of a shard, and what its row needs beside it."""

    record: Record
    name: Name
    bundle: str
    offset: int


class EncoderHandler(ModelHandler[Window, dict[str, Any], Any]):
    """Beam's RunInference on a model directory: ONNX Runtime, so that an encoding worker needs no TensorFlow.

    Parameters
    ----------
    directory : str
        The model directory, at hand on every worker.
    """

    def __init__(self, directory: str) -> None:
        super().__init__()
        self.directory = directory

    def load_model(self) -> "LoadedModel":
        return LoadedModel(self.directory)

    def run_inference(
        self, batch: Sequence[Window], model: "LoadedModel", inference_args: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        return model.rows(batch)

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        return {"min_batch_size": BATCH_WINDOWS, "max_batch_size": BATCH_WINDOWS}

    def get_num_bytes(self, batch: Sequence[Window]) -> int:
        return sum(window.record.values.nbytes for window in batch)

    def get_metrics_namespace(self) -> str:
        return "soundlake"


class LoadedModel:
    """A model that turns windows into rows of the table."""

    def __init__(self, directory: str) -> None:
        self.model = artifact.load(directory)
        self.encoder, self.decoder = self.model.encoder(), self.model.decoder()

    def rows(self, batch: Sequence[Window]) -> list[dict[str, Any]]:
        """Rows of a batch of windows, of any size."""
        spec = self.model.spec
        features = dequantise(np.stack([window.record.values for window in batch]), spec)
        mean, log_variance = self.encoder.encode(features)
        normalised = self.decoder.decode(mean)
        squares = np.square(self.model.normalise(features) - normalised).mean(axis=2)
        rows = []
        for i, window in enumerate(batch):
            record = window.record
            start = record.window * spec.window_step * spec.hop_length / spec.sample_rate
            rows.append(
                {
                    "id": f"{record.recording_id}:{record.window}",
                    "recording_id": record.recording_id,
                    "window": record.window,
                    "uri": window.name.uri,
                    "label": window.name.label,
                    "group": window.name.group,
                    "start_s": start,
                    "end_s": start + record.valid_frames * spec.hop_length / spec.sample_rate,
                    "embedding": mean[i],
                    "posterior_std": float(np.exp(log_variance[i] / 2).mean()),
                    "reconstruction_error": float(squares[i, : record.valid_frames].mean()),
                    "bundle": window.bundle,
                    "record_offset": window.offset,
                }
            )
        return rows


def read_shard(lake: Lake, spec: FeatureSpec, bundle: str) -> Iterator[tuple[Record, int]]:
    """Records of a shard, each with the byte at which it begins.

    Raises
    ------
    InputError
        If the shard is missing or damaged; it is named.
    """
    name = Lake.shard(spec.spec_id, bundle)
    try:
        with lake.open(name) as file:
            offset = 0
            for data in read_framed(file):
                yield decode(data, window_frames=spec.window_frames, n_mels=spec.n_mels), offset
                offset += len(data) + 16
    except (DamagedShardError, FileNotFoundError) as error:
        said = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(
            f"the shard {lake.uri(name)} cannot be read: {said}; delete it and its outcomes file, and extract again"
        ) from error


class _LedgerNames(beam.DoFn):
    """(bundle, (recording_id, name)) of what is done, from one fragment of the ledger."""

    def __init__(self, uri: str, version: int) -> None:
        self.uri, self.version = uri, version

    def process(self, fragment: int) -> Iterator[tuple[str, tuple[str, Name]]]:
        part = ledger.fragment_of(self.uri, self.version, fragment)
        columns = ["recording_id", "uri", "label", "group", "bundles"]
        for batch in part.to_batches(columns=columns, filter=f"status = '{ledger.DONE}'"):
            for row in batch.to_pylist():
                for bundle in row["bundles"]:
                    yield bundle, (row["recording_id"], Name(row["uri"], row["label"], row["group"]))


class _TableNames(beam.DoFn):
    """(bundle, (recording_id, name)) of what is encoded, from one fragment of the table."""

    def __init__(self, uri: str, version: int) -> None:
        self.uri, self.version = uri, version

    def process(self, fragment: int) -> Iterator[tuple[str, tuple[str, Name]]]:
        part = ledger.fragment_of(self.uri, self.version, fragment)
        seen = set()
        for batch in part.to_batches(columns=["recording_id", "uri", "label", "group", "bundle"]):
            for row in batch.to_pylist():
                found = row["bundle"], (row["recording_id"], Name(row["uri"], row["label"], row["group"]))
                if found not in seen:
                    seen.add(found)
                    yield found


class _Compare(beam.DoFn):
    """What of a bundle is to be encoded, and whose rows leave the table."""

    def process(self, element: tuple[str, Mapping[str, Iterable[tuple[str, Name]]]]) -> Iterator[Any]:
        bundle, joined = element
        wanted: dict[str, Name] = {}
        for recording_id, name in joined["wanted"]:
            # Copies of a recording: the first uri speaks for all.
            wanted[recording_id] = min(name, wanted.get(recording_id, name), key=lambda n: n.uri)
        have = dict(joined["have"])
        for recording_id in sorted(have):
            if wanted.get(recording_id) != have[recording_id]:
                yield TaggedOutput("stale", recording_id)
        new = {recording_id: name for recording_id, name in wanted.items() if have.get(recording_id) != name}
        if new:
            yield bundle, new


class _ReadWindows(beam.DoFn):
    def __init__(self, lake: Lake, spec: FeatureSpec) -> None:
        self.lake, self.spec = lake, spec

    def process(self, element: tuple[str, dict[str, Name]]) -> Iterator[Window]:
        bundle, names = element
        for record, offset in read_shard(self.lake, self.spec, bundle):
            name = names.get(record.recording_id)
            if name is not None:
                yield Window(record, name, bundle, offset)


class _WriteFragments(beam.DoFn):
    """Rows → fragments of the table, as JSON; many rows to a fragment."""

    def __init__(self, lake: Lake, model_id: str, columns: pa.Schema) -> None:
        self.lake, self.model_id, self.columns = lake, model_id, columns

    def start_bundle(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def _flush(self) -> list[str]:
        rows, self.rows = sorted(self.rows, key=lambda row: row["id"]), []
        if not rows:
            return []
        return table.write_fragments(self.lake, self.model_id, pa.Table.from_pylist(rows, schema=self.columns))

    def process(self, row: dict[str, Any]) -> Iterator[str]:
        self.rows.append(row)
        if len(self.rows) >= FRAGMENT_ROWS:
            yield from self._flush()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for text in self._flush():
            yield WindowedValue(text, GlobalWindow().max_timestamp(), (GlobalWindow(),))


def _summarise(_: Any, fragments: Iterable[str], stale: Iterable[str], lake: Lake, name: str) -> None:
    summary = {"fragments": sorted(fragments), "stale": sorted(set(stale))}
    lake.write(name, json.dumps(summary).encode())


def _fragments(dataset: Any) -> list[int]:
    return [fragment.fragment_id for fragment in dataset.get_fragments()]


def encode(lake: Lake, model: Any, *, run: Run, options: Any) -> dict[str, Any]:
    """Bring a model's table up to the ledger: new windows in, rows of what is gone out, in one commit.

    Parameters
    ----------
    lake : Lake
    model : model.artifact.Model
        Its spec says which features.
    run : Run
    options : PipelineOptions
        From `pipelines.runners.beam_options`.

    Returns
    -------
    dict
        ``encoded`` rows written, ``stale_recordings`` whose rows left, ``rows`` in the table, ``ledger_version``,
        ``table_version``.

    Raises
    ------
    InputError
        If nothing was extracted for the model's spec, or a shard is missing or damaged.
    """
    spec = model.spec
    known = ledger.open_ledger(lake, spec.spec_id)
    if known is None:
        raise InputError(f"the lake {lake.root} has no features of spec {spec.spec_id}: run extract first")
    dataset = table.create(lake, model.model_id, model.settings["latent_dim"])
    columns = table.schema(model.settings["latent_dim"])

    def build(pipeline: beam.Pipeline) -> None:
        wanted = (
            pipeline
            | "ledger fragments" >> beam.Create(_fragments(known))
            | "read ledger" >> beam.ParDo(_LedgerNames(lake.ledger_uri(spec.spec_id), int(known.version)))
        )
        have = (
            pipeline
            | "table fragments" >> beam.Create(_fragments(dataset))
            | "read table" >> beam.ParDo(_TableNames(lake.table_uri(model.model_id), int(dataset.version)))
        )
        compared = (
            {"wanted": wanted, "have": have}
            | "join by bundle" >> beam.CoGroupByKey()
            | "compare" >> beam.ParDo(_Compare()).with_outputs("stale", main="new")
        )
        fragments = (
            compared.new
            | "spread shards" >> beam.Reshuffle()
            | "read shards" >> beam.ParDo(_ReadWindows(lake, spec))
            | "encode" >> RunInference(EncoderHandler(str(model.directory)))
            | "write fragments" >> beam.ParDo(_WriteFragments(lake, model.model_id, columns))
        )
        (
            pipeline
            | "end" >> beam.Create([None])
            | "summarise"
            >> beam.Map(
                _summarise, AsList(fragments), AsList(compared.stale), lake=lake, name=f"{run.folder}/summary.json"
            )
        )

    run_pipeline(build, options)
    summary = json.loads(lake.read(f"{run.folder}/summary.json"))
    encoded = sum(json.loads(text)["physical_rows"] for text in summary["fragments"])
    version = int(dataset.version)
    if summary["fragments"] or summary["stale"]:
        version = table.commit(dataset, summary["fragments"], summary["stale"])
    rows = table.need_table(lake, model.model_id).count_rows()
    totals = {"encoded": encoded, "stale_recordings": len(summary["stale"]), "rows": rows}
    return totals | {"ledger_version": int(known.version), "table_version": version}
