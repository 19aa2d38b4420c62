"""Encoding on a worker: a model turns windows into rows of the table, which are stored as soon as they are made."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from apache_beam.ml.inference.base import ModelHandler

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import FeatureSpec, dequantise
from soundlake.model.features.records import DamagedShardError, Record, decode, read_framed
from soundlake.model.saved import artifact
from soundlake.pipelines.lake import fragments, models, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.progress import Progress

BATCH_WINDOWS = 64
# Requested from a runner that chooses machines, for a machine of two cores.
RAM = "4GB"


@dataclass(frozen=True)
class Name:
    """The values of a file in the table that do not depend on its content."""

    uri: str
    label: str | None
    group: str | None


@dataclass(frozen=True)
class Recording:
    """A recording whose rows are to be written.

    Attributes
    ----------
    names : tuple of Name
        The files that hold it, sorted by uri.
    fragments : tuple of int
        Fragments of the table that hold the rows of its first file; empty if the recording is to be encoded.
    """

    names: tuple[Name, ...]
    fragments: tuple[int, ...] = ()


@dataclass(frozen=True)
class Window:
    """A record of a shard, and the other values that its rows need."""

    record: Record
    names: tuple[Name, ...]
    bundle: str
    offset: int


# A piece of work: a bundle, and its recordings by recording_id.
Piece = tuple[str, dict[str, Recording]]


def piece_id(piece: Piece) -> str:
    """The name of a piece: a digest of its contents."""
    bundle, recordings = piece
    text = json.dumps([bundle, sorted((name, astuple(recording)) for name, recording in recordings.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _named(rows: pa.RecordBatch, names: Sequence[tuple[Name, ...]]) -> pa.RecordBatch:
    """Rows of windows, one for each file, with ids, uris, labels and groups filled in.

    Parameters
    ----------
    rows : pyarrow.RecordBatch
        One row for each window.
    names : sequence of tuple of Name
        The files of each row.
    """
    repeated = rows.take(pa.array([i for i, files in enumerate(names) for _ in files], pa.int64()))
    each_name = [(name, i > 0) for files in names for i, name in enumerate(files)]
    places = zip(repeated["recording_id"].to_pylist(), repeated["window"].to_pylist(), each_name, strict=True)
    arrays = {name: repeated[name] for name in repeated.schema.names}
    arrays["id"] = [
        table.row_id(recording_id, window, copy=name.uri if is_copy else None)
        for recording_id, window, (name, is_copy) in places
    ]
    for column in ("uri", "label", "group"):
        arrays[column] = [getattr(name, column) for name, _ in each_name]
    return pa.RecordBatch.from_arrays(
        [pa.array(arrays[field.name], field.type) for field in rows.schema], schema=rows.schema
    )


def _fixed(vectors: npt.NDArray[np.float32]) -> pa.Array:
    """Vectors of shape (n, size) as a column of lists of fixed size."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


class LoadedModel:
    """A model that turns windows into rows of the table."""

    def __init__(self, directory: str, *, gpu: bool = False) -> None:
        self.model = artifact.load(directory)
        self.encoder, self.decoder = self.model.encoder(gpu=gpu), self.model.decoder(gpu=gpu)
        self.columns = table.schema_of(self.model)
        # Repeated for each frame: arithmetic of equal shapes takes half the time of a broadcast over short rows.
        self._mean, self._std = (
            np.tile(values, (self.model.spec.window_frames, 1)) for values in (self.model.mean, self.model.std)
        )

    def _error(self, features: npt.NDArray[np.float32], decoded: npt.NDArray[np.float32]) -> float:
        """Mean square error of a window's valid frames, standardised; one window at a time fits the cache."""
        difference = features - self._mean[: len(features)]
        difference /= self._std[: len(features)]
        difference -= decoded
        return float(np.vdot(difference, difference)) / difference.size

    def rows(self, batch: Sequence[Window]) -> pa.RecordBatch:
        """Rows of a batch of windows, of any size: for each window, one row for each of its files."""
        spec = self.model.spec
        features = dequantise(np.stack([window.record.values for window in batch]), spec)
        encoded = self.encoder.encode(features)
        decoded = self.decoder.decode(encoded.mean)
        valid = np.array([window.record.valid_frames for window in batch])
        errors = [self._error(x[:n], y[:n]) for x, y, n in zip(features, decoded, valid, strict=True)]
        start = np.array([window.record.window for window in batch]) * spec.step_seconds
        arrays = {
            "id": [""] * len(batch),
            "recording_id": [window.record.recording_id for window in batch],
            "window": [window.record.window for window in batch],
            "uri": [""] * len(batch),
            "label": [None] * len(batch),
            "group": [None] * len(batch),
            "start_s": start,
            "end_s": start + valid * spec.hop_length / spec.sample_rate,
            "embedding": _fixed(encoded.embedding),
            "latent": _fixed(encoded.mean),
            "posterior_std": np.exp(encoded.log_variance / 2).mean(axis=1),
            "reconstruction_error": np.array(errors, np.float32),
            "bundle": [window.bundle for window in batch],
            "record_offset": [window.offset for window in batch],
        }
        window_rows = pa.RecordBatch.from_arrays(
            [pa.array(arrays[field.name], field.type) for field in self.columns], schema=self.columns
        )
        return _named(window_rows, [window.names for window in batch])


def read_shard(lake: Lake, spec: FeatureSpec, bundle: str) -> Iterator[tuple[Record, int]]:
    """Records of a shard, each with the byte at which it begins.

    Raises
    ------
    InputError
        If the shard is missing or damaged; the error names it.
    """
    name = Lake.shard(spec.spec_id, bundle)
    try:
        with lake.open(name) as file:
            offset = 0
            for data in read_framed(file):
                yield decode(data, window_frames=spec.window_frames, n_mels=spec.n_mels), offset
                offset += len(data) + 16
    except (DamagedShardError, FileNotFoundError) as error:
        raise unreadable(lake, name, error) from error


def unreadable(lake: Lake, name: str, error: DamagedShardError | FileNotFoundError) -> InputError:
    """The error for a shard that is missing or damaged, with the remedy."""
    reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
    return InputError(
        f"the shard {lake.uri(name)} cannot be read: {reason}; to rebuild it run: "
        f"{lake.command('extract AUDIO --repair')}, then the same command again"
    )


class EncoderHandler(ModelHandler[Piece, str, Any]):
    """Model handler for Beam's RunInference: write the rows of a piece, and return the name of the file listing them.

    The model runs in ONNX Runtime, so that an encoding worker needs no TensorFlow. An element is a piece and not a
    window, since the rows of a piece are stored together as soon as they are made.

    Parameters
    ----------
    lake, model_id : Lake, str
        Each worker loads the model from the lake.
    version : int
        Version of the table that the run was planned from.
    progress : Progress
    threads : int
        Number of pieces that are encoded side by side.
    accelerator : str or None
        The accelerator to request, in the runner's own syntax; the model then runs on a GPU, or not at all.
    """

    def __init__(
        self, lake: Lake, model_id: str, version: int, progress: Progress, threads: int, accelerator: str | None = None
    ) -> None:
        super().__init__()
        self.lake, self.model_id, self.version = lake, model_id, version
        self.progress, self.threads, self.accelerator = progress, threads, accelerator

    def load_model(self) -> LoadedModel:
        directory = models.load(self.lake, self.model_id).directory
        return LoadedModel(str(directory), gpu=self.accelerator is not None)

    def get_resource_hints(self) -> dict[str, Any]:
        return {"min_ram": RAM} | ({} if self.accelerator is None else {"accelerator": self.accelerator})

    def batch_elements_kwargs(self) -> Mapping[str, Any]:
        return {"min_batch_size": 1, "max_batch_size": 16 * self.threads}

    def get_num_bytes(self, batch: Sequence[Piece]) -> int:
        return sum(
            len(name.uri) for _, recordings in batch for recording in recordings.values() for name in recording.names
        )

    def get_metrics_namespace(self) -> str:
        return "soundlake"

    def run_inference(
        self, batch: Sequence[Piece], model: LoadedModel, inference_args: dict[str, Any] | None = None
    ) -> list[str]:
        pool = ThreadPoolExecutor(self.threads)
        try:
            return list(pool.map(lambda piece: self.keep(piece, model), batch))
        finally:
            pool.shutdown(cancel_futures=True)

    def keep(self, piece: Piece, model: LoadedModel) -> str:
        """Write a piece's rows unless they exist already; return the name in the lake of the file that lists them."""
        model_id = model.model.model_id
        name = Lake.staged(model_id, self.version, piece_id(piece))
        record = self._kept(name, model_id)
        if record is None:
            encoded, renamed = [*self._encoded(piece, model)], [*self._renamed(piece, model)]
            record = {"encoded": _windows(encoded), "renamed": _windows(renamed), "fragments": []}
            if encoded or renamed:
                rows = pa.Table.from_batches([*encoded, *renamed]).sort_by("id")
                record["fragments"] = fragments.write(self.lake.table_uri(model_id), rows)
            self.lake.write(name, json.dumps(record).encode())
        self.progress.tell(piece_id(piece), {"work": len(piece[1]), "windows": record["encoded"] + record["renamed"]})
        return name

    def _kept(self, name: str, model_id: str) -> dict[str, Any] | None:
        try:
            record: dict[str, Any] = json.loads(self.lake.read(name))
        except (FileNotFoundError, ValueError):
            return None
        files = [file.path for text in record["fragments"] for file in fragments.checked(text).files]
        return record if all(self.lake.exists(f"{Lake.table(model_id)}/data/{path}") for path in files) else None

    def _encoded(self, piece: Piece, model: LoadedModel) -> Iterator[pa.RecordBatch]:
        bundle, recordings = piece
        wanted = {
            recording_id: recording.names for recording_id, recording in recordings.items() if not recording.fragments
        }
        if not wanted:
            return
        windows = (
            Window(record, wanted[record.recording_id], bundle, offset)
            for record, offset in read_shard(self.lake, model.model.spec, bundle)
            if record.recording_id in wanted
        )
        while batch := [window for _, window in zip(range(BATCH_WINDOWS), windows, strict=False)]:
            yield model.rows(batch)

    def _renamed(self, piece: Piece, model: LoadedModel) -> Iterator[pa.RecordBatch]:
        """Rows of windows that the table holds, with the current names."""
        bundle, recordings = piece
        uri, columns = self.lake.table_uri(model.model.model_id), model.columns.names
        for recording_id, recording in sorted(recordings.items()):
            for number in recording.fragments:
                fragment = fragments.of(uri, self.version, number)
                where = [fragments.in_list("bundle", [bundle]), fragments.in_list("recording_id", [recording_id])]
                for batch in fragment.to_batches(columns=columns, filter=" AND ".join(where)):
                    window_rows = _once(batch).select(columns).cast(model.columns)
                    yield _named(window_rows, [recording.names] * len(window_rows))


def _once(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The row of each window that stands for the recording."""
    places = zip(*(rows[name].to_pylist() for name in ("id", "recording_id", "window")), strict=True)
    return rows.filter(
        pa.array([row_id == table.row_id(recording_id, window) for row_id, recording_id, window in places])
    )


def _windows(parts: Sequence[pa.RecordBatch]) -> int:
    """The number of windows that some rows belong to, each counted once."""
    return sum(len(_once(part)) for part in parts)
