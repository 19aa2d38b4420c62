"""What the similarity vector is worth, and each part of it: in closed form, clean and in a background; no training.

`python -m benches.similarity --corpora FOLDER` · ten minutes a seed, on one core

Every variant changes one thing of the default. Labels serve to judge only: clean recordings by the probes of `evaluate`
on development folds (`benches.experiments`), on all folds with ``--all-folds``. Another preset or file as ``--spec``
shows what other windows are worth.

Background: the loudest window of each of 300 recordings at most, mixed with a window of ESC-10's rain, sea, fire or
helicopter at 20, 10 and 5 dB (mel powers are added, the level is that of the whole window), is to be found by the
window as it was. Counted: whether it comes first, and the mean average precision of windows of other groups with the
same label. Of ESC-10 itself those four kinds are no queries, though its map has seen them. The lakes are those of
``make bench-learning``, and are made if they are not there.
"""

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt

from benches.background import DECIBELS, MOST, NOISE_SET, NOISES, SEED, precision
from benches.experiments import development_folds
from benches.harness import RESULTS, pin
from benches.learning import LAKES, own_folds
from soundlake.model.features import splits
from soundlake.model.features.log_mel import FeatureSpec, dequantise
from soundlake.model.judging import evaluate
from soundlake.model.network import augment, changes, texture
from soundlake.model.training import dataset
from soundlake.model.training.trainer import TrainSettings

# Size of the similarity vector.
SIZE = 128

Array = npt.NDArray[np.float32]
# Windows in nats → vectors.
Embed = Callable[[Array], Array]
# Changed attributes of `model.network.changes`, parts of the statistics that are used, least number of bands, and size
# of the vector.
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "64 numbers": {"size": 64},
    "without background": {"changes": {"BACKGROUND": 0.0}},
    "background in half": {"changes": {"BACKGROUND": 0.5}},
    "without tempo": {"changes": {"TEMPO": 0.0}},
    "without rooms": {"changes": {"ROOM_SHARE": 0.0}},
    "pitch, level and noise alone": {"changes": {"BACKGROUND": 0.0, "TEMPO": 0.0, "ROOM_SHARE": 0.0}},
    "without what follows what": {"parts": "absolute relative"},
    "without texture relative to the loudest": {"parts": "absolute order"},
    "relative to the loudest alone": {"parts": "relative order"},
    "texture as it is alone": {"parts": "absolute"},
    "every band by itself": {"bands": 128},
}


@dataclass(frozen=True, eq=False)
class Set:
    """A labelled set.

    Attributes
    ----------
    name : str
    spec : FeatureSpec
    nats : ndarray of float32, shape (windows, window_frames, n_mels)
    clip : ndarray of int64, shape (windows,)
        Index of the recording of each window.
    frames : list of ndarray
        Log-mel of each recording, nats.
    training : ndarray of bool, shape (clips,)
    judged : list of int
        Recordings that probes use, with their labels, groups and folds.
    labels, groups : list of str
    fold : ndarray of int64
    """

    name: str
    spec: FeatureSpec
    nats: Array
    clip: npt.NDArray[np.int64]
    frames: list[Array]
    training: npt.NDArray[np.bool_]
    judged: list[int]
    labels: list[str]
    groups: list[str]
    fold: npt.NDArray[np.int64]

    def normalisation(self) -> tuple[Array, Array]:
        """Mean and deviation of each band over the training split."""
        rows = np.concatenate([frames for frames, used in zip(self.frames, self.training, strict=True) if used])
        std = rows.std(axis=0, dtype=np.float64)
        least = max(dataset.MIN_STD, dataset.MIN_STD_SHARE * float(np.median(std)))
        return rows.mean(axis=0, dtype=np.float64).astype(np.float32), np.maximum(std, least).astype(np.float32)

    def pooled(self, vectors: Array) -> Array:
        """Clip embeddings of the recordings in `judged`."""
        return np.stack([vectors[self.clip == place].mean(axis=0) for place in self.judged])


def read(corpus: Path, *, all_folds: bool, preset: str = "general") -> Set:
    """Read a set from its lake: for `general` that of ``make bench-learning``, otherwise a lake of its own per spec."""
    from soundlake.pipelines import commands
    from soundlake.pipelines.corpus.labels import read_folds
    from soundlake.pipelines.lake import ledger, lookup
    from soundlake.pipelines.lake.lake import Lake
    from soundlake.pipelines.learning.evaluation import folds_of
    from soundlake.pipelines.learning.sampling import sample

    spec = lookup.parse_spec(preset)
    lakes = LAKES if preset == "general" else LAKES.with_name("similarity") / spec.spec_id
    lakes.mkdir(parents=True, exist_ok=True)
    lake = Lake.at(str(lakes / corpus.name))
    commands.extract(lake, str(corpus), spec=spec)
    rows = ledger.open_ledger(lake, spec.spec_id)
    _, groups = ledger.training_input(rows)
    split = splits.assign(groups)
    clips = sample(lake, spec, rows, groups)
    fold_file = (
        own_folds(corpus / "labels.csv") if all_folds else development_folds(corpus, LAKES / f"{corpus.name}.csv")
    )
    judged, labels, names, fold, _ = folds_of(clips, None if fold_file is None else read_folds(fold_file))
    return Set(
        corpus.name,
        spec,
        dequantise(np.concatenate([clip.values for clip in clips]), spec),
        np.repeat(np.arange(len(clips)), [len(clip.values) for clip in clips]),
        [clip.frames(spec) for clip in clips],
        np.array([split[clip.recording_id] == splits.TRAIN for clip in clips]),
        judged,
        labels,
        names,
        fold,
    )


@contextlib.contextmanager
def varied(given: Mapping[str, Any]) -> Iterator[None]:
    """Apply the changes and statistics settings of a variant inside the block."""
    with contextlib.ExitStack() as stack:
        for name, value in given.get("changes", {}).items():
            stack.enter_context(mock.patch.object(changes, name, value))
        stack.enter_context(mock.patch.object(texture, "BANDS", given.get("bands", texture.BANDS)))
        yield


def statistics(nats: Array, normalisation: tuple[Array, Array]) -> list[Array]:
    """All parts of the statistics of windows in nats."""
    mean, std = normalisation
    batches: list[list[Array]] = []
    for first in range(0, len(nats), 256):
        part = nats[first : first + 256]
        batches.append(texture.statistics_of((part - mean) / std, part))
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def only(kept: str, parts: Sequence[Array]) -> list[Array]:
    """The parts of the statistics that a variant uses."""
    size = (len(parts) - texture.ORDERS) // 2
    named = {"absolute": parts[:size], "relative": parts[size : 2 * size], "order": parts[2 * size :]}
    return [part for name in kept.split() for part in named[name]]


def changed(one: Set, normalisation: tuple[Array, Array], *, seed: int) -> tuple[list[Array], list[Array]]:
    """Statistics of training windows with training's changes of pitch, and of the same windows after `changes`."""
    mean, std = normalisation
    pitch = TrainSettings().pitch
    nats, drawn = one.nats[one.training[one.clip]], np.random.default_rng(seed)
    nats = nats[:: -(-len(nats) // dataset.COMPONENT_WINDOWS)]
    before, after = [], []
    for copy in range(min(dataset.MOST_COPIES, max(1, dataset.COMPONENT_WINDOWS // len(nats)))):
        moved = nats
        if copy:
            bands = drawn.integers(-pitch, pitch + 1, len(nats), dtype=np.int32)
            moved = np.asarray(augment.transposed(nats, bands))
        altered = changes.speckled((changes.changed(moved, one.spec, drawn) - mean) / std, drawn) * std + mean
        before.append(statistics(moved, normalisation))
        after.append(statistics(altered, normalisation))
    joined = [[np.concatenate(part) for part in zip(*side, strict=True)] for side in (before, after)]
    return joined[0], joined[1]


def tried(one: Set, noise: Set, names: Sequence[str], *, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the scores of the similarity vectors of each variant; the variants share their statistics."""
    with varied(VARIANTS[names[0]]):
        normalisation = one.normalisation()
        before, after = changed(one, normalisation, seed=seed)
        for name in names:
            kept = VARIANTS[name].get("parts", "absolute relative order")
            size = VARIANTS[name].get("size", SIZE)
            kernel, bias = texture.projection(only(kept, before), only(kept, after), size)

            def embed(windows: Array, kept: str = kept, kernel: Array = kernel, bias: Array = bias) -> Array:
                return np.concatenate(only(kept, statistics(windows, normalisation)), axis=1) @ kernel + bias

            scores = judged(one, noise, one.pooled(embed(one.nats)), embed)
            yield {"variant": name, "set": one.name, "seed": seed, **scores}


def in_background(one: Set, noise: Set, embed: Embed) -> dict[str, float]:
    """Scores by level: own window first, and mean average precision of same-label windows of other groups."""
    drawn = np.random.default_rng(SEED)
    asked = [i for i, label in enumerate(one.labels) if one.name != NOISE_SET or label not in NOISES]
    asked = sorted(drawn.permutation(asked)[:MOST].tolist())
    offset = np.float32(one.spec.log_offset)

    def power(nats: Array) -> Array:
        return np.maximum(np.exp(nats) - offset, 0)

    def loudest(place: int) -> Array:
        windows = one.nats[one.clip == place]
        return np.asarray(windows[power(windows).mean(axis=(1, 2)).argmax()])

    clean = np.stack([loudest(one.judged[i]) for i in asked])
    noisy = {noise.judged[i] for i, label in enumerate(noise.labels) if label in NOISES}
    noises = power(noise.nats[drawn.choice(np.flatnonzero(np.isin(noise.clip, list(noisy))), len(asked))])
    labels, groups = (np.array(values)[asked] for values in (one.labels, one.groups))
    queries, scores = embed(clean), {}
    for decibels in DECIBELS:
        gain = power(clean).mean(axis=(1, 2)) / np.maximum(noises.mean(axis=(1, 2)), 1e-20) * 10 ** (-decibels / 10)
        gallery = embed(np.log(power(clean) + noises * gain[:, None, None].astype(np.float32) + offset))
        distances = np.square(queries).sum(axis=1)[:, None] + np.square(gallery).sum(axis=1) - 2 * queries @ gallery.T
        scores[f"first at {decibels} dB"] = float((distances.argmin(axis=1) == np.arange(len(asked))).mean())
        order = np.argsort(distances, axis=1, kind="stable")
        ranked = [labels[row[groups[row] != groups[i]]] == labels[i] for i, row in enumerate(order)]
        scores[f"mAP at {decibels} dB"] = float(np.nanmean([precision(right) for right in ranked]))
    return scores


def judged(one: Set, noise: Set, clips: Array, embed: Embed) -> dict[str, float]:
    """Scores of probes of clip embeddings, and of windows in a background."""
    clean = evaluate.hits(clips, one.labels, fold=one.fold)
    return {name: float(np.nanmean(values)) for name, values in clean.items()} | in_background(one, noise, embed)


def show(rows: list[dict[str, Any]]) -> None:
    """Print one line per variant and set, and the mean over sets."""
    from rich.console import Console
    from rich.table import Table

    keys = [key for key in rows[0] if key not in ("variant", "set", "seed")]
    lines = Table("variant", "set", *keys, title="Similarity vectors in closed form, and what people would use instead")
    for variant in dict.fromkeys(row["variant"] for row in rows):
        of_variant = [row for row in rows if row["variant"] == variant]
        for name in dict.fromkeys(row["set"] for row in of_variant):
            of_set = [row for row in of_variant if row["set"] == name]
            lines.add_row(variant, name, *(f"{np.mean([row[key] for row in of_set]):.3f}" for key in keys))
        lines.add_row(
            variant, "mean", *(f"{np.mean([row[key] for row in of_variant]):.3f}" for key in keys), style="bold"
        )
    Console(width=180).print(lines)


def main() -> None:
    """Evaluate baselines and variants; print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=["esc10", "instruments", "drums", "digits", "berklee"])
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--spec", default="general", help="a preset, or a JSON file")
    parser.add_argument("--all-folds", action="store_true", help="not the development folds alone")
    call = parser.parse_args()
    pin(1)
    noise = read(call.corpora / NOISE_SET, all_folds=True, preset=call.spec)
    sets = [read(call.corpora / name, all_folds=call.all_folds, preset=call.spec) for name in call.sets]
    rows: list[dict[str, Any]] = []
    plain = {"log-mel statistics": evaluate.log_mel_statistics, "MFCC statistics": evaluate.mfcc_statistics}
    for name, of_frames in plain.items():
        for one_set in sets:
            clips = np.stack([of_frames(one_set.frames[place]) for place in one_set.judged])
            scores = judged(
                one_set, noise, clips, lambda windows, how=of_frames: np.stack([how(window) for window in windows])
            )
            rows.append({"variant": name, "set": one_set.name, "seed": None, **scores})
    sharing: dict[str, list[str]] = {}
    for variant in call.variants:
        sharing.setdefault(repr([VARIANTS[variant].get(key) for key in ("changes", "bands")]), []).append(variant)
    for one_set in sets:
        for names in sharing.values():
            rows += [row for seed in call.seeds for row in tried(one_set, noise, names, seed=seed)]
        show([row for row in rows if row["set"] == one_set.name])
    show(rows)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "similarity.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
