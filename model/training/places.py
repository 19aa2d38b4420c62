"""Where every window of some shards lies: found in one pass, then any window is read by itself.

The order of training is drawn from places alone, so a run that is taken up skips what is done without reading it, and
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

# Local paths of shards, and the recording_ids that are to be read from each: a shard may hold more.
Shards = Mapping[str, Collection[str]]
# One window: byte of the shard at which its values begin, place in the recording, frames of sound, split (-1: not to
# be read), and a number that changes from one recording of the shard to the next.
_PLACE = np.dtype([("offset", "<i8"), ("window", "<i4"), ("valid", "<i4"), ("split", "<i1"), ("recording", "<i4")])
_SPLITS = (splits.TRAIN, splits.VALIDATION, splits.TEST)
# Shards that are open at the same time, at most.
_OPEN = 128


class BadShardError(InputError):
    """A shard is damaged or missing: whoever knows the lake says how it is rebuilt."""


@dataclass(frozen=True)
class Places:
    """Every window of some shards.

    Attributes
    ----------
    spec : FeatureSpec
    shards : tuple of str
        Local paths, sorted.
    starts : ndarray of int64, shape (n_shards + 1,)
        Number of each shard's first window, and that of all windows.
    windows : structured ndarray, shape (n_windows,)
        `offset`, `window`, `valid`, `split`, `recording` of each.
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
            How many frames later each is to begin. The window after it in the shard has the frames that it lacks then.

        Returns
        -------
        ndarray of uint16, shape (n, window_frames, n_mels)

        Raises
        ------
        DamagedShardError
            If a shard is shorter than it was.
        """
        spec = self.spec
        found = np.empty((len(numbers), spec.window_frames, spec.n_mels), "<u2")
        begins = np.zeros(len(numbers), np.int32) if frames is None else frames
        shards = np.searchsorted(self.starts, numbers, side="right") - 1
        per_frame = 2 * spec.n_mels
        for values, number, begin, shard in zip(found, numbers, begins, shards, strict=True):
            own = spec.window_frames - begin
            self._fill(values[:own], shard, self.windows["offset"][number] + begin * per_frame)
            if begin:
                missing = (spec.window_frames - spec.window_step) * per_frame
                self._fill(values[own:], shard, self.windows["offset"][number + 1] + missing)
        return found

    def _fill(self, values: npt.NDArray[np.uint16], shard: int, offset: int) -> None:
        # Held on to: what two threads open at the same time, the cache keeps one of.
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
    """Look through shards, checksums included; of several hosts each looks through its part and tells the others.

    Parameters
    ----------
    shards : mapping of str to collection of str
        `Shards`.
    spec : FeatureSpec
    split_of : mapping of str to str
        recording_id → split; windows of other recordings are not to be read.
    here : Hosts or None
    report : Report
        Told how many shards are done.

    Raises
    ------
    InputError
        If a shard is damaged.
    """
    here = here or Hosts()
    names = sorted(shards)
    mine = {}
    for number in range(here.index, len(names), here.count):
        report("reading the shards", number, len(names), f"{number} of {len(names)}")
        mine[str(number)] = _of_shard(names[number], set(shards[names[number]]), spec, split_of)
    told = io.BytesIO()
    np.savez(told, allow_pickle=False, **mine)
    each: dict[str, Any] = {}
    for other in here.gathered(told.getvalue()):
        each |= np.load(io.BytesIO(other), allow_pickle=False)
    counts = [len(each[str(number)]) for number in range(len(names))]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    windows = np.empty(starts[-1], _PLACE)
    for number in range(len(names)):
        # Each is let go as soon as it is copied: of many windows there is no room for two.
        windows[starts[number] : starts[number + 1]] = each.pop(str(number))
    return Places(spec, tuple(names), starts, windows)


def _of_shard(shard: str, wanted: set[str], spec: FeatureSpec, split_of: Mapping[str, str]) -> npt.NDArray[Any]:
    try:
        with open(regular(shard), "rb") as file:
            return np.fromiter(_walked(read_framed(file), wanted, spec, split_of), _PLACE)
    except (DamagedShardError, FileNotFoundError) as error:
        said = "it is missing" if isinstance(error, FileNotFoundError) else error
        raise BadShardError(f"the shard {shard} cannot be read: {said}") from error


def _walked(records: Iterable[bytes], wanted: set[str], spec: FeatureSpec, split_of: Mapping[str, str]) -> Any:
    position, recording, before = 0, -1, None
    for data in records:
        record: Record = decode(data, window_frames=spec.window_frames, n_mels=spec.n_mels)
        recording += record.recording_id != before
        before = record.recording_id
        split = split_of.get(before) if before in wanted else None
        # Twelve bytes of length before a record, four of its checksum behind it.
        offset = position + 12 + data.index(record.values.tobytes())
        position += 12 + len(data) + 4
        number = -1 if split is None else _SPLITS.index(split)
        yield offset, record.window, record.valid_frames, number, recording
