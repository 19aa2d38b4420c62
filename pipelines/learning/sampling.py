"""The sample that models are judged by: recordings of a lake, which of them are held out, and which are near copies."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from soundlake.model.features import copies, splits
from soundlake.model.features.log_mel import FeatureSpec, dequantise
from soundlake.model.saved.artifact import Model
from soundlake.pipelines.encode.encoder import read_shard
from soundlake.pipelines.lake import ledger, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.stages import stage

# A sample takes recordings until it has this many windows; of one recording at most this many, evenly spread.
WINDOWS, WINDOWS_EACH = 8192, 64
BATCH_WINDOWS = 64
# Up to this many nats above digital silence count as silence in the search for near copies; pairs named in a warning.
SILENT_NATS, NAMED = 1.0, 3

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Clip:
    """A recording of the sample.

    Attributes
    ----------
    recording_id, uri, group : str
        If several files hold the recording, those of the first by uri.
    label : str or None
        None unless all of its files that have a label agree on it.
    windows : ndarray of int64, shape (n,)
        Numbers of the windows in the recording.
    values : ndarray of uint16, shape (n, window_frames, n_mels)
    valid : ndarray of int64, shape (n,)
        Frames of each window that hold sound.
    copies : tuple of str
        The uris of its other files.
    """

    recording_id: str
    uri: str
    group: str
    label: str | None
    windows: npt.NDArray[np.int64]
    values: npt.NDArray[np.uint16]
    valid: npt.NDArray[np.int64]
    copies: tuple[str, ...] = ()

    def frames(self, spec: FeatureSpec) -> Array:
        """Frames of all windows, (frames, n_mels), nats; frames that two windows share appear once."""
        parts = []
        for i, window in enumerate(self.windows):
            follows = i > 0 and self.windows[i - 1] == window - 1
            parts.append(self.values[i, spec.window_frames - spec.window_step if follows else 0 : self.valid[i]])
        return dequantise(np.concatenate(parts), spec)


def sample(lake: Lake, spec: FeatureSpec, known: Any, groups: Mapping[str, str]) -> list[Clip]:
    """Recordings in the order of their digests, which is as good as random, until there are enough windows.

    Parameters
    ----------
    lake, spec : Lake, FeatureSpec
    known : lance.LanceDataset
        The ledger.
    groups : mapping of str to str
        From `pipelines.lake.ledger.training_input`.

    Raises
    ------
    InputError
        If a shard is missing or damaged.
    """
    counts = known.to_table(columns=["recording_id", "windows"], filter=f"status = '{ledger.DONE}' AND windows > 0")
    counts = counts.group_by("recording_id").aggregate([("windows", "max")]).sort_by("recording_id")
    total = np.cumsum(np.minimum(counts["windows_max"].to_numpy(), WINDOWS_EACH))
    names = counts["recording_id"].slice(0, int(np.searchsorted(total, WINDOWS)) + 1).to_pylist()
    files: dict[str, list[ledger.Row]] = {}
    columns = ["recording_id", "status", "uri", "label", "windows", "bundles"]
    for batch in table.rows_of(known, "recording_id", names, columns):
        for row in batch.to_pylist():
            if row["status"] == ledger.DONE:
                files.setdefault(row["recording_id"], []).append(row)
    chosen = {recording_id: ledger.merged(rows) for recording_id, rows in files.items()}
    ambiguous = sum(chosen[name]["label"] is None and any(row["label"] for row in rows) for name, rows in files.items())
    if ambiguous:
        log.warning(
            "%d recordings of the sample are files of the same content with different labels, and count as without one",
            ambiguous,
        )
    sampled: dict[str, dict[int, tuple[npt.NDArray[np.uint16], int]]] = {name: {} for name in names}
    for bundle in sorted({bundle for row in chosen.values() for bundle in row["bundles"]}):
        for record, _ in read_shard(lake, spec, bundle):
            row = chosen.get(record.recording_id)
            if row is not None and bundle in row["bundles"]:
                stride = -(-row["windows"] // WINDOWS_EACH)
                if record.window % stride == 0:
                    sampled[record.recording_id][record.window] = record.values.copy(), record.valid_frames
    clips = []
    for recording_id, windows in sampled.items():
        if windows:
            numbers = sorted(windows)
            row = chosen[recording_id]
            values = np.stack([windows[n][0] for n in numbers])
            valid = np.array([windows[n][1] for n in numbers])
            group = groups[recording_id] or recording_id
            copies_of = tuple(sorted({other["uri"] for other in files[recording_id]} - {row["uri"]}))
            clip = Clip(recording_id, row["uri"], group, row["label"], np.array(numbers), values, valid, copies_of)
            clips.append(clip)
    return clips


def held_out_of(clips: Sequence[Clip], groups: Mapping[str, str], *models: Model) -> npt.NDArray[np.bool_]:
    """Which clips are held out and new to all of the models; warns if the models were trained on held-out ones."""
    held_out = splits.held_out(groups, *(model.trained() for model in models))
    split = splits.assign(groups)
    trained_on = sum(split[clip.recording_id] != splits.TRAIN and clip.recording_id not in held_out for clip in clips)
    if trained_on:
        log.warning(
            "groups have changed since the training: of the recordings held out now, %d were trained on, or share a "
            "group with one that was, and are left out",
            trained_on,
        )
    return np.array([clip.recording_id in held_out for clip in clips])


def batches(clips: Sequence[Clip], spec: FeatureSpec) -> Iterator[Array]:
    """Log-mel of all windows, batch by batch; short recordings share a batch."""
    waiting: list[npt.NDArray[np.uint16]] = []
    for clip in clips:
        for values in clip.values:
            waiting.append(values)
            if len(waiting) == BATCH_WINDOWS:
                yield dequantise(np.stack(waiting), spec)
                waiting = []
    if waiting:
        yield dequantise(np.stack(waiting), spec)


def by_clip(clips: Sequence[Clip], rows: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Rows of all windows, recording by recording."""
    return np.split(rows, np.cumsum([len(clip.values) for clip in clips])[:-1])


def near_copies(clips: list[Clip], model: Model) -> list[tuple[int, int]]:
    """Indices of clips of different groups that are near copies of each other: `model.features.copies.pairs`."""
    spec = model.spec
    numbers = np.repeat(np.arange(len(clips)), [len(clip.values) for clip in clips])
    begins = np.searchsorted(numbers, np.arange(len(clips)))

    def window(number: int) -> Array:
        clip = clips[numbers[number]]
        place = number - begins[numbers[number]]
        return model.normalise(dequantise(clip.values[place, : clip.valid[place]], spec))

    _, group = np.unique([clip.group for clip in clips], return_inverse=True)
    signatures = [copies.statistics(dequantise(clip.values, spec), clip.valid) for clip in clips]
    floor = model.normalise(np.full(spec.n_mels, spec.floor + SILENT_NATS, np.float32))
    with stage("looking for near copies") as report:
        return copies.pairs(
            window, np.concatenate(signatures), clip=numbers, group=group[numbers], floor=floor, report=report
        )


def apart(clips: list[Clip], near: list[tuple[int, int]], held_out: list[int]) -> tuple[list[Clip], set[int]]:
    """The clips with near copies in one group; and the indices of held-out clips with a near copy in the training.

    Logs a warning about them.
    """
    if not near:
        return clips, set()
    held = set(held_out)
    leaks = sorted({(i, j) if i in held else (j, i) for i, j in near if (i in held) != (j in held)})
    groups = [clip.group for clip in clips]
    _, numbers = np.unique(groups, return_inverse=True)
    together = copies.joined(len(set(groups)), [(int(numbers[i]), int(numbers[j])) for i, j in near])[numbers]
    # A joined group takes the first of its names.
    name: dict[int, str] = {}
    for group, number in sorted(zip(groups, together, strict=True)):
        name.setdefault(int(number), group)
    examples = [f"{clips[i].uri} and {clips[j].uri}" for i, j in (leaks or near)[:NAMED]]
    log.warning(
        "%d recordings of the sample sound nearly the same as another one (trimmed or re-encoded copies do), such as "
        "%s. They count as one group. Held-out recordings left out of the figures, because the model was trained on "
        "one that sounds nearly the same: %d",
        len({i for pair in near for i in pair}),
        "; ".join(examples),
        len({i for i, _ in leaks}),
    )
    return [replace(clip, group=name[int(n)]) for clip, n in zip(clips, together, strict=True)], {i for i, _ in leaks}
