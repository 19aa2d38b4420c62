"""Effect of each training option: same data, same number of steps, several seeds, evaluated on development folds.

`python -m benches.experiments --corpora FOLDER` · hours, on two cores

Every variant changes one thing in the default preset. Labels are used only for evaluation, and only those of three
folds in five: presets are chosen here, so the other folds are not used before ``make bench-learning``. Results are
stored, one per line, in ``build/bench/experiments.jsonl``, and not measured again.
"""

import argparse
import csv
import hashlib
import json
import statistics
from pathlib import Path
from typing import Any

from benches.harness import RESULTS, pin
from benches.learning import LAKES, Row, parse_settings, trained

FOLDS, DEVELOPMENT = 5, 3
NOTES = RESULTS / "experiments.jsonl"
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "contrastive term, weight 50": {"contrastive": 50},
    "contrastive term, weight 200": {"contrastive": 200},
    "contrastive term, weight 200, masks and noise": {"contrastive": 200, "masking": 0.15, "denoising": 0.3},
    "contrastive term, weight 200, mixing 0.4": {"contrastive": 200, "mixing": 0.4},
    "masks": {"masking": 0.15},
    "noise": {"denoising": 0.3},
    "without changes of level": {"level": 0},
    "level by 3 dB": {"level": 3.0},
    "without changes of pitch": {"pitch": 0},
    "pitch by 4 bands": {"pitch": 4},
    "without KL warm-up": {"kl_warm_up": 0},
    "free bits 0.1": {"free_bits": 0.1},
    "without clipping": {"clip_norm": 0},
    "latent of 32": {"latent_dim": 32},
    "latent of 128": {"latent_dim": 128},
    "without a similarity vector": {"likeness_dim": 0},
    "batches of 128": {"batch_size": 128},
    "bfloat16": {"precision": "bfloat16"},
    "seed": {"preset": "seed"},
}


def development_folds(corpus: Path, target: Path) -> str:
    """Write the folds for choosing presets: three in five of a set's own folds, or else of its groups by digest."""
    with open(corpus / "labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    groups = sorted({row["group"] for row in rows}, key=lambda group: hashlib.sha256(group.encode()).hexdigest())
    place = {group: i % FOLDS for i, group in enumerate(groups)}
    set_folds = sorted({row["fold"] for row in rows if row.get("fold")})
    rows = [row for row in rows if row["fold"]] if set_folds else rows
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uri", "fold"])
        for row in rows:
            fold = set_folds.index(row["fold"]) * FOLDS // len(set_folds) if set_folds else place[row["group"]]
            if fold < DEVELOPMENT:
                writer.writerow([str((corpus / row["uri"]).resolve()), fold])
    return str(target)


def measured(corpus: Path, variant: str, seed: int, steps: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate one variant, or return its result from the notes."""
    from soundlake.model.judging.evaluate import baselines
    from soundlake.model.network import vae
    from soundlake.pipelines.corpus.labels import read_folds
    from soundlake.pipelines.lake import lookup
    from soundlake.pipelines.learning.evaluation import evaluation

    key = {"set": corpus.name, "variant": variant, "seed": seed, "steps": steps, "settings": settings}
    key["vae_version"] = vae.VERSION
    if NOTES.exists():
        for line in NOTES.read_text().splitlines():
            outcome = dict(json.loads(line))
            if {name: outcome.get(name) for name in key} == key:
                return outcome
    chosen = VARIANTS[variant] | settings | {"seed": seed, "max_steps": steps, "patience": 10_000}
    lake, training = trained(corpus, LAKES.parent / "experiments", chosen)
    folds = development_folds(corpus, LAKES.parent / "experiments" / f"{corpus.name}.csv")
    model = lookup.find_model(lake, training["model_id"])
    judged = evaluation(lake, model, folds=read_folds(folds))
    row = Row(corpus.name, training["metrics"]["seconds"], steps, judged.found)
    outcome = key | {"seconds": row.seconds, "ratio": row.error, "mse": row.found["mse"]["model"]}
    outcome |= {name: score["value"] for name, score in row.found["probes"]["embedding"].items()}
    plain = baselines(row.found["probes"])
    outcome["best_baseline"] = {key: max(row.mean(name, key) for name in plain) for key in ("linear", "knn", "map")}
    NOTES.parent.mkdir(parents=True, exist_ok=True)
    with open(NOTES, "a") as file:
        file.write(json.dumps(outcome) + "\n")
    return outcome


def show(rows: list[dict[str, Any]]) -> None:
    """Print means over seeds and their standard deviations, one line per set and variant."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Development folds: mean and deviation over seeds")
    for heading in ("set", "variant", "seeds", "error, times PCA's", "linear", "5 nearest", "mAP"):
        table.add_column(heading)
    for name, variant in dict.fromkeys((row["set"], row["variant"]) for row in rows):
        group = [row for row in rows if (row["set"], row["variant"]) == (name, variant)]
        cells = []
        for key in ("ratio", "linear", "knn", "map"):
            values = [row[key] for row in group]
            spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3f}{spread}")
        table.add_row(name, variant, str(len(group)), *cells)
    Console(width=140).print(table)


def main() -> None:
    """Measure the variants of the command line; print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--sets", nargs="*", default=["esc10"])
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="Settings of all variants.")
    call = parser.parse_args()
    pin(2)
    settings = parse_settings(call.set)
    rows = []
    for seed in call.seeds:
        for variant in call.variants:
            for name in call.sets:
                rows.append(measured(call.corpora / name, variant, seed, call.steps, settings))
                show(rows[-1:])
    show(rows)


if __name__ == "__main__":
    main()
