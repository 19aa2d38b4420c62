"""Tiny shards whose every value is known."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from soundlake.model.features.log_mel import FeatureSpec, dequantise
from soundlake.model.features.records import Record, encode, write_framed

SPEC = FeatureSpec(
    sample_rate=16_000,
    n_fft=512,
    win_length=512,
    hop_length=256,
    n_mels=16,
    f_max=8_000.0,
    window_frames=16,
    window_step=8,
)


@dataclass(frozen=True)
class Tiny:
    """Shards of 20 recordings with 3 windows each, the last of each half padding."""

    shards: dict[str, list[str]]
    groups: dict[str, str]
    records: list[Record]

    def features(self, names: set[str]) -> np.ndarray:
        """Log-mel of the windows of some recordings, in shard order."""
        return np.stack([dequantise(r.values, SPEC) for r in self.records if r.recording_id in names])


def make(folder: Path, recordings: int = 20) -> Tiny:
    """Write shards of four recordings each."""
    rng = np.random.default_rng(5)
    records: list[Record] = []
    shards = {}
    tilt = np.linspace(20_000, 40_000, 16)
    for first in range(0, recordings, 4):
        path = folder / f"{first:032x}.tfrecord"
        with open(path, "wb") as file:
            for i in range(first, min(first + 4, recordings)):
                for window in range(3):
                    base = tilt + 8_000 * np.sin(np.arange(16)[:, None] * (1 + i % 5) / 3 + window)
                    values = np.clip(base + rng.normal(0, 300, (16, 16)), 1, 65_535).astype(np.uint16)
                    valid = 8 if window == 2 else 16
                    values[valid:] = 0
                    records.append(Record(f"{i:064x}", window, valid, values))
                    write_framed(file, encode(records[-1]))
        shards[str(path)] = [f"{i:064x}" for i in range(first, min(first + 4, recordings))]
    return Tiny(shards, {f"{i:064x}": "" for i in range(recordings)}, records)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Shards to read."""
    return make(tmp_path_factory.mktemp("tiny"))
