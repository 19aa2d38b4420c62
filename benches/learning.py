"""Evaluation of models on labelled sets: trained on each set without its labels, and compared with baselines.

`python -m benches.learning --corpora FOLDER` · as long as the trainings take, on two cores

Each folder with a ``labels.csv`` is a set. It is extracted, trained with the default preset (``make bench-learning``
uses bfloat16), and evaluated with its own folds if the file has any, or else with folds that never split a group. Then
search looks for its events in a background (`benches.background`). Lakes and models stay in ``build/learning``, and
existing ones are reused. The table also contains BirdNET if ``make bench-birdnet`` was run. BirdNET was trained on
labelled sound, so it is not a baseline.
"""

import argparse
import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benches import background, birdnet
from benches.harness import RESULTS, pin

LAKES = RESULTS.parent / "learning"
# The project's promises: error relative to principal components, with a weaker promise for two sets that these describe
# well; means over all sets; lead of the means over the best baseline, in points.
MOST_ERROR, MOST_ERROR_OF = 0.8, {"esc10": 0.85, "digits": 0.85}
LEAST_MEAN = {"linear": 0.82, "knn": 0.76, "map": 0.5}
LEAST_AHEAD = {"linear": 3.0, "knn": 5.0, "map": 5.0, "search": 5.0}
BACKGROUND_MEASURES = {"first": "own window first", "map": "mAP of the label"}


@dataclass(frozen=True)
class Row:
    """A set, and its measurements.

    Attributes
    ----------
    found : dict
        The value of `pipelines.learning.evaluation.Judged.found`.
    birdnet : dict of str to float
        BirdNET's means by measure; empty if BirdNET was not run.
    background : dict of str to dict
        Means by embedding, and by measure and decibels; for the model's embedding also its lead over each baseline,
        with an interval.
    """

    name: str
    seconds: float
    steps: int
    found: dict[str, Any]
    birdnet: dict[str, float] = field(default_factory=dict)
    background: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Mean square error, divided by that of as many principal components."""
        return float(self.found["mse"]["model"] / self.found["mse"]["PCA"])

    def mean(self, name: str, measure: str) -> float:
        """Mean of a measure for an embedding."""
        return float(self.found["probes"][name][measure]["value"])


def own_folds(labels: Path) -> str | None:
    """The path of the label file if it contains folds, or else None."""
    with open(labels, newline="") as file:
        return str(labels) if any(row.get("fold") for row in csv.DictReader(file)) else None


def parse_settings(given: list[str]) -> dict[str, Any]:
    """Settings from NAME=VALUE; a value is JSON, or else plain text."""
    settings = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            settings[name] = json.loads(value)
        except ValueError:
            settings[name] = value
    return settings


def trained(corpus: Path, lakes: Path, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Extract a set and train on it; return its lake and the output of the training."""
    from soundlake.pipelines import commands
    from soundlake.pipelines.lake import lookup
    from soundlake.pipelines.lake.lake import Lake

    lake = Lake.at(str(lakes / corpus.name))
    lakes.mkdir(parents=True, exist_ok=True)
    commands.extract(lake, str(corpus), spec=lookup.parse_spec("general"))
    return lake, commands.train(lake, settings=settings)


def learned(corpus: Path, settings: dict[str, Any]) -> Row:
    """Train on a set, and evaluate the model."""
    from soundlake.model.judging import evaluate
    from soundlake.pipelines.corpus.labels import read_folds
    from soundlake.pipelines.lake.lookup import find_model
    from soundlake.pipelines.learning.evaluation import evaluation, folds_of

    lake, training = trained(corpus, LAKES, settings)
    model = find_model(lake, training["model_id"], None)
    fold_file = own_folds(corpus / "labels.csv")
    folds = None if fold_file is None else read_folds(fold_file)
    judged = evaluation(lake, model, folds=folds)
    birdnet_means: dict[str, float] = {}
    if vectors := birdnet.read(corpus):
        places, labels, _, fold, _ = folds_of(judged.clips, folds)
        hits = evaluate.hits(np.stack([vectors[judged.clips[i].uri] for i in places]), labels, fold=fold)
        birdnet_means = {measure: float(np.nanmean(values)) for measure, values in hits.items()}
    seconds, steps = training["metrics"]["seconds"], training["metrics"]["steps"]
    return Row(corpus.name, seconds, steps, judged.found, birdnet_means, in_background(corpus, model))


def in_background(corpus: Path, model: Any) -> dict[str, dict[str, Any]]:
    """Search results of the model's embedding and the baselines in a background: see `Row.background`."""
    from soundlake.model.judging import evaluate

    encoder = model.encoder(threads=0)
    embedders: dict[str, background.Embed] = {
        "embedding": lambda windows: encoder.encode(windows).embedding,
        "log-mel, 3 statistics": lambda windows: np.stack([evaluate.log_mel_statistics(frames) for frames in windows]),
        "MFCC": lambda windows: np.stack([evaluate.mfcc_statistics(frames) for frames in windows]),
    }
    events = background.events_of(corpus, model.spec)
    pieces = background.pieces_of(corpus.parent, corpus.name, model.spec)
    groups = [event.group for event in events]
    scores: dict[str, dict[str, Any]] = {name: {} for name in embedders}
    for decibels in background.DECIBELS:
        gallery = background.gallery_of(events, pieces, model.spec, decibels=decibels)
        by_embedder = {
            name: background.judged(events, gallery, embed, plain=name != "embedding")
            for name, embed in embedders.items()
        }
        for measure in BACKGROUND_MEASURES:
            for name, values in by_embedder.items():
                scores[name][f"{measure} {decibels}"] = float(np.nanmean(values[measure]))
            scores["embedding"][f"ahead {measure} {decibels}"] = {
                name: vars(evaluate.interval(by_embedder["embedding"][measure] - values[measure], groups))
                for name, values in by_embedder.items()
                if name != "embedding"
            }
    return scores


def show(rows: list[Row]) -> None:
    """Print the tables, and a comparison with the promises."""
    from rich.console import Console

    from soundlake.model.judging.evaluate import MEASURES, PARTS, baselines

    console = Console(width=200)
    errors = _table("Reconstruction of held-out recordings", "minutes", "steps", "error", "PCA", "ratio")
    for row in rows:
        mse = row.found["mse"]
        numbers = (f"{mse['model']:.4f}", f"{mse['PCA']:.4f}", f"{row.error:.3f}")
        errors.add_row(row.name, f"{row.seconds / 60:.1f}", str(row.steps), *numbers)
    console.print(errors)
    names = list(rows[0].found["probes"])
    plain = baselines(names)
    probes = _table("Probes: " + " / ".join(MEASURES.values()), *[row.name for row in rows], "mean")
    means = {name: {key: np.mean([row.mean(name, key) for row in rows]) for key in MEASURES} for name in names}
    for name in sorted(names, key=lambda name: (name != "embedding", name in PARTS)):
        entries = [{key: row.mean(name, key) for key in MEASURES} for row in rows]
        probes.add_row(f"({name})" if name in PARTS else name, *map(_numbers, entries), _numbers(means[name]))
    if all(row.birdnet for row in rows):
        mean = {key: np.mean([row.birdnet[key] for row in rows]) for key in MEASURES}
        probes.add_row("(BirdNET 2.4)", *(_numbers(row.birdnet) for row in rows), _numbers(mean))
    console.print(probes)
    for decibels in background.DECIBELS:
        title = f"In a background, {decibels} dB: " + " / ".join(BACKGROUND_MEASURES.values())
        table = _table(title, *[row.name for row in rows], "mean")
        for name in rows[0].background:
            entries = [{key: row.background[name][f"{key} {decibels}"] for key in BACKGROUND_MEASURES} for row in rows]
            mean = {key: np.mean([entry[key] for entry in entries]) for key in BACKGROUND_MEASURES}
            table.add_row(name, *map(_numbers, entries), _numbers(mean))
        console.print(table)
    for line in bars(rows, means, plain):
        console.print(line, highlight=False)


def bars(rows: list[Row], means: Mapping[str, Mapping[str, Any]], plain: list[str]) -> list[str]:
    """One line per promise: the promise, the figure, and whether it is met."""
    from soundlake.model.judging.evaluate import MEASURES

    verdict = {True: "met", False: "SHORT"}
    lines = []
    for row in rows:
        most = MOST_ERROR_OF.get(row.name, MOST_ERROR)
        lines.append(f"{row.name}: error ≤ {most} of PCA's: {row.error:.3f}, {verdict[row.error <= most]}")
        for key, title in MEASURES.items():
            ahead = row.found["ahead_of"][key]
            if ahead["value"] < 0:
                points = _points(ahead)
                lines.append(
                    f"{row.name}: {title}, points ahead of {ahead['baseline']}: {points}, "
                    f"{'within the interval' if ahead['high'] >= 0 else 'BEHIND'}"
                )
        for key, scores in row.background.get("embedding", {}).items():
            for name, score in scores.items() if isinstance(scores, dict) else ():
                if score["value"] < 0:
                    points = _points(score)
                    lines.append(f"{row.name}: in a background, {key} dB, points ahead of {name}: {points}")
    for key, title in MEASURES.items():
        model_mean, best = means["embedding"][key], max(plain, key=lambda name: means[name][key])
        ahead = 100 * (model_mean - means[best][key])
        line = f"{title}: mean {model_mean:.3f}"
        if key in LEAST_MEAN:
            line += f", promised {LEAST_MEAN[key]}, {verdict[model_mean >= LEAST_MEAN[key]]}"
        least = LEAST_AHEAD[key]
        lines.append(f"{line}; {ahead:+.1f} points of {best}, promised {least:+}, {verdict[ahead >= least]}")
    return lines


def _table(title: str, *headings: str) -> Any:
    from rich.table import Table

    table = Table("", title=title)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _points(score: Mapping[str, float]) -> str:
    """A difference and its interval, in points."""
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * score[name] for name in ("value", "low", "high")))


def _numbers(values: Mapping[str, Any]) -> str:
    return " ".join(f"{value:.3f}" for value in values.values())


def main() -> None:
    """Measure every set."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="Settings other than the default.")
    call = parser.parse_args()
    pin(2)
    sets = sorted(path.parent for path in call.corpora.glob("*/labels.csv"))
    rows = []
    for corpus in sets:
        if not call.sets or corpus.name in call.sets:
            rows.append(learned(corpus, {"seed": call.seed} | parse_settings(call.set)))
            show(rows[-1:])
    if not rows:
        raise SystemExit(f"no set in {call.corpora}: a set is a folder with a labels.csv")
    show(rows)
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = [
        {
            "set": row.name,
            "seconds": row.seconds,
            "steps": row.steps,
            "birdnet": row.birdnet,
            "background": row.background,
            **row.found,
        }
        for row in rows
    ]
    (RESULTS / "learning.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
