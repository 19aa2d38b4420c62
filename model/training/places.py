"""Index of the position of every window in shards: built in one pass, it gives access to single windows.

The order of training is drawn from this index alone. So a resumed run skips completed batches without reading them, and
each of several hosts reads only the windows of its own part.
"""

import io
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from soundlake.model.errors import InputError
from soundlake.model.features import splits
from soundlake.model.features.log_mel import FeatureSpec
from soundlake.model.features.records import DamagedShardError, Record, decode, read_framed
from soundlake.model.paths import regular
from soundlake.model.reports import Report, unheard
from soundlake.model.training.hosts import Hosts

# Local paths of shards, and the recording_ids to read from each: a shard may contain others, too.
Shards = Mapping[str, Collection[str]]
# One window: byte of the shard at which its values begin, number in the recording, frames with sound, split (-1: not
# read), and a number that changes from one recording of the shard to the next.
_PLACE = np.dtype([("offset", "<i8"), ("window", "<i4"), ("valid", "<i4"), ("split", "<i1"), ("recording", "<i4")])
_SPLITS = (splits.TRAIN, splits.VALIDATION, splits.TEST)
# Largest number of shards that are open at the same time.
_OPEN = 128


class BadShardError(InputError):
    """A shard is damaged or missing; the caller, which has access to the lake, adds how to rebuild it."""


@dataclass(frozen=True)
class Places:
    """Index of every window in a set of shards.

    Attributes
    ----------
    spec : FeatureSpec
    shards : tuple of str
        Local paths, sorted.
    starts : ndarray of int64, shape (n_shards + 1,)
        Number of each shard's first window, and last the total number of windows.
    windows : structured ndarray, shape (n_windows,)
        `offset`, `window`, `valid`, `split`, `recording` of each window.
    """

    spec: FeatureSpec
    shards: tuple[str, ...]
    starts: npt.NDArray[np.int64]
    windows: npt.NDArray[Any]

    def of_split(self, split: str) -> npt.NDArray[np.int64]:
        """Numbers of a split's windows, in order."""
        return np.flatnonzero(self.windows["split"] == _SPLITS.index(split))

    @cached_property
    def _open(self) -> Any:
        return lru_cache(_OPEN)(lambda shard: open(regular(self.shards[shard]), "rb", buffering=0))

    def read(
        self, numbers: npt.NDArray[np.int64], frames: npt.NDArray[np.int32] | None = None
    ) -> npt.NDArray[np.uint16]:
        """Quantised windows by their numbers.

        Parameters
        ----------
        numbers : ndarray of int64, shape (n,)
        frames : ndarray of int32, shape (n,) or None
            Number of frames by which the start of each window is delayed. Its missing frames at the end are read from
            the next window in the shard.

        Returns
        -------
        ndarray of uint16, shape (n, window_frames, n_mels)

        Raises
        ------
        DamagedShardError
            If a shard has become shorter.
        """
        spec = self.spec
        quantised = np.empty((len(numbers), spec.window_frames, spec.n_mels), "<u2")
        begins = np.zeros(len(numbers), np.int32) if frames is None else frames
        shards = np.searchsorted(self.starts, numbers, side="right") - 1
        per_frame = 2 * spec.n_mels
        for values, number, begin, shard in zip(quantised, numbers, begins, shards, strict=True):
            own_frames = spec.window_frames - begin
            self._fill(values[:own_frames], shard, self.windows["offset"][number] + begin * per_frame)
            if begin:
                missing = (spec.window_frames - spec.window_step) * per_frame
                self._fill(values[own_frames:], shard, self.windows["offset"][number + 1] + missing)
        return quantised

    def _fill(self, values: npt.NDArray[np.uint16], shard: int, offset: int) -> None:
        # This reference keeps the file open: if two threads open a shard at the same time, the cache keeps one file.
        file = self._open(int(shard))
        if os.preadv(file.fileno(), [memoryview(values.data).cast("B")], int(offset)) < values.nbytes:
            raise DamagedShardError(f"{self.shards[shard]} has become shorter")


def find(
    shards: Shards,
    spec: FeatureSpec,
    split_of: Mapping[str, str],
    *,
    here: Hosts | None = None,
    report: Report = unheard,
) -> Places:
    """Index all windows of shards and verify checksums; each of several hosts indexes a part and shares the result.

    Parameters
    ----------
    shards : mapping of str to collection of str
        `Shards`.
    spec : FeatureSpec
    split_of : mapping of str to str
        recording_id → split; windows of other recordings are indexed, but belong to no split.
    here : Hosts or None
    report : Report
        Receives how many shards are done.

    Raises
    ------
    InputError
        If a shard is damaged.
    """
    here = here or Hosts()
    names = sorted(shards)
    indexed = {}
    for number in range(here.index, len(names), here.count):
        report("reading the shards", number, len(names), f"{number} of {len(names)}")
        indexed[str(number)] = _of_shard(names[number], set(shards[names[number]]), spec, split_of)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **indexed)
    by_shard: dict[str, Any] = {}
    for data in here.gathered(buffer.getvalue()):
        by_shard |= np.load(io.BytesIO(data), allow_pickle=False)
    counts = [len(by_shard[str(number)]) for number in range(len(names))]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    windows = np.empty(starts[-1], _PLACE)
    for number in range(len(names)):
        # `pop` frees each part as soon as it is copied: there may be too many windows to store them twice.
        windows[starts[number] : starts[number + 1]] = by_shard.pop(str(number))
    return Places(spec, tuple(names), starts, windows)


def _of_shard(shard: str, wanted: set[str], spec: FeatureSpec, split_of: Mapping[str, str]) -> npt.NDArray[Any]:
    try:
        with open(regular(shard), "rb") as file:
            return np.fromiter(_walked(read_framed(file), wanted, spec, split_of), _PLACE)
    except (DamagedShardError, FileNotFoundError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else error
        raise BadShardError(f"the shard {shard} cannot be read: {reason}") from error


def _walked(records: Iterable[bytes], wanted: set[str], spec: FeatureSpec, split_of: Mapping[str, str]) -> Any:
    position, recording, before = 0, -1, None
    for data in records:
        record: Record = decode(data, window_frames=spec.window_frames, n_mels=spec.n_mels)
        recording += record.recording_id != before
        before = record.recording_id
        split = split_of.get(before) if before in wanted else None
        # Before a record: 8 bytes of length and 4 of checksum. After it: 4 bytes of checksum.
        offset = position + 12 + data.index(record.values.tobytes())
        position += 12 + len(data) + 4
        number = -1 if split is None else _SPLITS.index(split)
        yield offset, record.window, record.valid_frames, number, recording
