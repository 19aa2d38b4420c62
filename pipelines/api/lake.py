"""A lake as an object: each method is a command."""

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import FeatureSpec
from soundlake.pipelines.api.hits import Hits
from soundlake.pipelines.api.results import (
    Encoding,
    Erasure,
    Evaluation,
    Export,
    Extraction,
    Ledger,
    Maintenance,
    Promotion,
    Status,
    Training,
)
from soundlake.pipelines.lake.lake import Lake as Place
from soundlake.pipelines.query.search import Hit

Path = str | os.PathLike[str]
By = Literal["recordings", "windows"]


class Lake:
    """A lake: a folder or a prefix of a bucket that holds features, models and tables.

    Nothing is read or written before a method is called, and no method prints.

    Parameters
    ----------
    root : str or os.PathLike
        Folder, or URI such as ``s3://bucket/lake``. `extract` makes a lake where there is none.

    Raises
    ------
    InputError
        If `root` is empty, not UTF-8, or a URI with a password.

    Examples
    --------
    >>> lake = soundlake.Lake(folder / "lake")
    >>> lake.extract(folder / "audio").done
    16
    """

    def __init__(self, root: Path) -> None:
        self._place = Place.at(os.fspath(root))

    @property
    def root(self) -> str:
        """The absolute path or URI of the lake."""
        return self._place.root

    def __repr__(self) -> str:
        return f"Lake({self.root!r})"

    def extract(
        self,
        audio: Path,
        *,
        spec: "str | FeatureSpec" = "general",
        labels: Path | None = None,
        partition: str | None = None,
        workers: int = 0,
        beam: Sequence[str] = (),
        allow_empty: bool = False,
        retry_rejected: str | None = None,
        include_forgotten: bool = False,
        recheck: bool = False,
        repair: bool = False,
    ) -> Extraction:
        """Turn new and changed files of a corpus into shards of log-mel windows, and account for every file.

        Parameters
        ----------
        audio : str or os.PathLike
            Folder or bucket prefix of audio files.
        spec : str or FeatureSpec
            A preset, a JSON file, or a spec.
        labels : str or os.PathLike, optional
            Label file; by default ``labels.csv`` or ``labels.parquet`` in the corpus.
        partition : str, optional
            The one folder of the corpus to bring up to date.
        workers : int
            Processes on this machine; 0 = one per core.
        beam : sequence of str
            Options of Beam, such as ``["--runner=SparkRunner"]``.
        allow_empty : bool
            Allow the ledger to become empty if the corpus is empty.
        retry_rejected : str, optional
            A reason whose rejected files are decoded again; ``"all"`` for every reason.
        include_forgotten : bool
            Take in files that `forget` removed.
        recheck : bool
            Decode again what an older version of soundlake read.
        repair : bool
            Verify all shards afterwards, and rebuild damaged ones.

        Raises
        ------
        InputError
            If the corpus, the label file or an option is wrong.
        TryLaterError
            If storage fails, or other runs keep changing the lake.

        Examples
        --------
        >>> result = lake.extract(folder / "audio")
        >>> result.unchanged, result.done, result.rejected
        (18, 0, 0)
        >>> result.ledger.recordings
        16
        """
        from soundlake.pipelines import commands
        from soundlake.pipelines.lake import ledger, lookup

        resolved = spec if isinstance(spec, FeatureSpec) else lookup.parse_spec(spec)
        result = commands.extract(
            self._place,
            os.fspath(audio),
            spec=resolved,
            labels=None if labels is None else os.fspath(labels),
            partition=partition,
            workers=workers,
            beam=beam,
            allow_empty=allow_empty,
            retry=retry_rejected,
            repair=repair,
            include_forgotten=include_forgotten,
            recheck=recheck,
        )
        known = ledger.open_ledger(self._place, resolved.spec_id) if result["ledger_version"] else None
        summary = None if known is None else Ledger.of(ledger.summary(known))
        return Extraction.of({**result, "ledger": summary})

    def train(
        self,
        *,
        spec: str | None = None,
        if_missing: bool = False,
        if_grown: float | None = None,
        **settings: Any,
    ) -> Training:
        """Train a VAE on the lake's windows; the first model of a spec is promoted.

        Parameters
        ----------
        spec : str, optional
            Which features, if the lake has several: a preset, JSON file or spec_id.
        if_missing : bool
            Do nothing if the spec has a promoted model.
        if_grown : float, optional
            Do nothing unless the lake has grown by this fraction since the last training.
        **settings
            As `soundlake train` has them, such as ``max_steps``, ``seed`` and ``preset``; see
            `soundlake.model.training.trainer.TrainSettings`.

        Raises
        ------
        InputError
            If there are no features, or a setting is wrong.

        Examples
        --------
        >>> training = lake.train(max_steps=2, batch_size=8)
        >>> training.promoted
        True
        """
        from soundlake.pipelines.learning.training import train

        result = train(self._place, spec=spec, settings=settings, if_missing=if_missing, if_grown=if_grown)
        return Training.of(result)

    def encode(
        self,
        *,
        spec: str | None = None,
        model: str | None = None,
        corpus: Path | None = None,
        partition: str | None = None,
        workers: int = 0,
        beam: Sequence[str] = (),
        accelerator: str | None = None,
    ) -> Encoding:
        """Encode every window that the model's table lacks, and remove rows of deleted files.

        Parameters
        ----------
        spec, model : str, optional
            Which model: by default the promoted one.
        corpus, partition : optional
            Encode one partition of one corpus alone, and leave the index as it is.
        workers, beam
            As in `extract`.
        accelerator : str, optional
            Asked of the runner for the step that encodes, such as ``"type:nvidia-tesla-t4;count:1"``.

        Raises
        ------
        InputError
            If there is no model or no features, or a shard is damaged.
        TryLaterError
            If storage fails, or other runs keep changing the table.

        Examples
        --------
        >>> encoding = lake.encode()
        >>> encoding.encoded == encoding.rows
        True
        """
        from soundlake.pipelines import commands

        result = commands.encode(
            self._place,
            spec=spec,
            model_id=model,
            audio=None if corpus is None else os.fspath(corpus),
            partition=partition,
            accelerator=accelerator,
            beam=beam,
            workers=workers,
        )
        # Totals that an older version kept beside a table may have other keys.
        return Encoding.of({name: value for name, value in result.items() if name in Encoding.__dataclass_fields__})

    def evaluate(self, *, spec: str | None = None, model: str | None = None, folds: Path | None = None) -> Evaluation:
        """Judge a model against baselines, and write its report anew.

        Parameters
        ----------
        spec, model : str, optional
            Which model: by default the promoted one.
        folds : str or os.PathLike, optional
            CSV or Parquet file with the columns ``uri`` and ``fold``.

        Raises
        ------
        InputError
            If the model has no table, or cannot be judged.

        Examples
        --------
        >>> evaluation = lake.evaluate()
        >>> sorted(evaluation.mse)
        ['PCA', 'model']
        """
        from soundlake.pipelines.learning.judging import evaluate

        path = None if folds is None else os.fspath(folds)
        return Evaluation.of(evaluate(self._place, spec=spec, model_id=model, folds=path))

    def promote(self, model: str, *, force: bool = False, folds: Path | None = None) -> Promotion:
        """Make a model the one that its spec's commands use, if it is not worse than the one in use.

        Parameters
        ----------
        model : str
            model_id.
        force : bool
            Promote it even if it is worse.
        folds : str or os.PathLike, optional
            As in `evaluate`.

        Raises
        ------
        HeldError
            If it is worse, or cannot be compared; ``error.found`` holds the figures.

        Examples
        --------
        >>> lake.promote(training.model_id).instead_of == training.model_id
        True
        """
        from soundlake.pipelines.learning.judging import promote

        path = None if folds is None else os.fspath(folds)
        return Promotion.of(promote(self._place, model, force=force, folds=path))

    def search(
        self,
        query: Path | None = None,
        *,
        start: float | None = None,
        end: float | None = None,
        k: int = 10,
        where: str | None = None,
        by: By = "recordings",
        spec: str | None = None,
        model: str | None = None,
    ) -> Hits:
        """Find what sounds like a recording, or list what passes a filter.

        The very same sound comes first, at its exact place; then the nearest, by squared L2 distance of embeddings.

        Parameters
        ----------
        query : str or os.PathLike, optional
            A file, or the recording_id of a recording in the table, which is left out of its own hits. Without it,
            `where` alone selects.
        start, end : float, optional
            Seconds of the file to search for; by default all of it.
        k : int
            Maximum number of hits.
        where : str, optional
            SQL filter on the table's columns, such as ``"label = 'bird'"``.
        by : {"recordings", "windows"}
            One hit per recording, or per window.
        spec, model : str, optional
            Which model's table: by default that of the promoted model.

        Raises
        ------
        InputError
            If the query cannot be read, the filter is wrong, or there is no table.

        Examples
        --------
        >>> hits = lake.search(folder / "audio/bell/bell-000.flac", start=1, end=3, k=3)
        >>> hits[0].same_sound, round(hits[0].start_s, 2), round(hits[0].end_s, 2)
        (True, 1.0, 3.0)
        >>> hits.to_pandas()["label"][0]
        'bell'
        >>> [hit.label for hit in lake.search(where="label = 'rain'", k=1)]
        ['rain']
        """
        from soundlake.pipelines import commands

        if query is None and (start is not None or end is not None):
            raise InputError("start and end need a query: name a file")
        asked = None if query is None else os.fspath(query)
        if asked is not None and (start is not None or end is not None):
            asked = f"{asked}@{0.0 if start is None else start}-{'' if end is None else end}"
        result = commands.search(
            self._place, [] if asked is None else [asked], k=k, where=where, by=by, spec=spec, model_id=model
        )
        (answer,) = result["results"]
        return Hits(result["model_id"], asked, tuple(answer["hits"]), tuple(result["notes"]), self.audio)

    def audio(self, hit: Hit, *, sample_rate: int | None = None) -> tuple[npt.NDArray[np.float32], int]:
        """Decode the sound of a hit.

        Parameters
        ----------
        hit : Hit
            From `search`.
        sample_rate : int, optional
            Hz; by default the recording's own.

        Returns
        -------
        samples : ndarray of float32, shape (n_samples,)
            Mono, full scale ±1; shorter where the recording ends.
        sample_rate : int

        Raises
        ------
        InputError
            If the file is missing, or has changed since it was extracted.
        Rejected
            If it cannot be decoded.

        Examples
        --------
        >>> samples, rate = lake.audio(hits[0])
        >>> len(samples) == round(2.0 * rate)
        True
        """
        from soundlake.pipelines.query.query import recorded_sound

        span = {"start": hit.start_s, "end": hit.end_s}
        return recorded_sound(hit.uri, **span, recording_id=hit.recording_id, sample_rate=sample_rate)

    def embed(
        self,
        samples: npt.NDArray[np.float32],
        sample_rate: int,
        *,
        spec: str | None = None,
        model: str | None = None,
    ) -> npt.NDArray[np.float32]:
        """Compute embeddings of a sound that is in memory, one per window.

        Parameters
        ----------
        samples : ndarray, shape (n_samples,) or (n_samples, n_channels)
            Full scale ±1; channels are averaged.
        sample_rate : int
            Hz.
        spec, model : str, optional
            Which model: by default the promoted one.

        Returns
        -------
        ndarray of float32, shape (n_windows, embedding_dim)
            Their mean is the clip embedding (format 5).

        Raises
        ------
        InputError
            If there is no model, or the samples are empty or not finite.

        Examples
        --------
        >>> lake.embed(samples, rate).shape[1]
        128
        """
        from soundlake.model.features.log_mel import log_mel, windows
        from soundlake.pipelines.lake.lookup import find_model

        loaded = find_model(self._place, model, spec)
        sound = np.asarray(samples, np.float32)
        sound = sound.mean(axis=1) if sound.ndim == 2 else sound
        if sound.ndim != 1 or not len(sound) or not np.isfinite(sound).all():
            raise InputError(f"cannot embed samples of shape {np.shape(samples)}: need finite numbers, (n,) or (n, c)")
        if sample_rate != loaded.spec.sample_rate:
            import soxr

            sound = soxr.resample(sound, sample_rate, loaded.spec.sample_rate, quality="HQ")
        encoder, batch = loaded.encoder(), windows(log_mel(sound, loaded.spec), loaded.spec)
        parts = [encoder.encode(batch[first : first + 64]).embedding for first in range(0, len(batch), 64)]
        return np.concatenate(parts)

    def table(self, *, spec: str | None = None, model: str | None = None, version: int | None = None) -> Any:
        """Open a model's table as a Lance dataset, for SQL, filters and DuckDB.

        Parameters
        ----------
        spec, model : str, optional
            Which model: by default the promoted one.
        version : int, optional
            A version of the table; by default the newest.

        Returns
        -------
        lance.LanceDataset
            Columns: docs/table.md.

        Raises
        ------
        InputError
            If there is no table.

        Examples
        --------
        >>> lake.table().count_rows("label = 'bell'") > 0
        True
        """
        from soundlake.pipelines.lake import table
        from soundlake.pipelines.lake.lookup import find_table

        model_id, newest = find_table(self._place, model, spec)
        return newest if version is None else table.open_table(self._place, model_id, version)

    def export(
        self,
        target: Path,
        *,
        where: str | None = None,
        by: Literal["windows", "recordings"] = "windows",
        spec: str | None = None,
        model: str | None = None,
    ) -> Export:
        """Write a model's table to a Parquet, CSV or NPZ file.

        Parameters
        ----------
        target : str or os.PathLike
            Its ending says which: ``.parquet``, ``.csv`` or ``.npz``.
        where : str, optional
            SQL filter on the table's columns.
        by : {"windows", "recordings"}
            One row per window of each file, or per file with its clip embedding.
        spec, model : str, optional
            Which model: by default the promoted one.

        Raises
        ------
        InputError
            If the ending is unknown, the filter wrong, or no row passes it.

        Examples
        --------
        >>> lake.export(folder / "clips.csv", by="recordings").rows
        16
        """
        from soundlake.pipelines import commands

        result = commands.export(self._place, os.fspath(target), where=where, by=by, spec=spec, model_id=model)
        return Export.of(result)

    def status(self, *, spec: str | None = None) -> Status:
        """Return the lake at a glance: specs with their ledgers, models, tables.

        Parameters
        ----------
        spec : str, optional
            This spec alone: a preset, JSON file or spec_id.

        Raises
        ------
        InputError
            If there is no lake.

        Examples
        --------
        >>> [one["promoted"] for one in lake.status().models.values()]
        [True]
        """
        from soundlake.pipelines.lake.status import status

        return Status.of(status(self._place, spec=spec))

    def maintain(self, *, grace: float = 48.0, recall_floor: float = 0.9, dry_run: bool = False) -> Maintenance:
        """Clean up after killed runs, compact ledgers and tables, check the index.

        Parameters
        ----------
        grace : float
            Hours; newer files and versions are kept, since a run may still use them.
        recall_floor : float
            Least share of the true nearest windows that an index has to find.
        dry_run : bool
            Change nothing, and return what would be removed.

        Raises
        ------
        HeldError
            If an index finds less than `recall_floor` even after a rebuild.

        Examples
        --------
        >>> lake.maintain(dry_run=True).run_id is None
        True
        """
        from soundlake.pipelines.upkeep.maintain import maintain

        return Maintenance.of(maintain(self._place, grace=grace, recall_floor=recall_floor, dry_run=dry_run))

    def forget(self, files: Sequence[Path] = (), *, recordings: Sequence[str] = ()) -> Erasure:
        """Erase recordings from all that the lake keeps; the next `extract` leaves them out.

        Parameters
        ----------
        files : sequence of str or os.PathLike
            Files as `extract` has seen them; they may be gone.
        recordings : sequence of str
            recording_ids, each with all its names.

        Raises
        ------
        InputError
            If the lake does not know one of them: nothing is forgotten then.

        Examples
        --------
        >>> lake.forget([folder / "audio/rain/rain-000.wav"]).recordings
        1
        """
        from soundlake.pipelines.upkeep.forget import forget

        return Erasure.of(forget(self._place, [os.fspath(file) for file in files], recordings=recordings))
