"""What a model is worth on labelled sets: trained on each without its labels, beside baselines that cost nothing.

`python -m benches.learning --corpora FOLDER` · as long as the trainings take, on two cores

Each folder with a ``labels.csv`` is a set: extracted, trained with the default preset (by ``make bench-learning`` in
bfloat16), judged by its own folds if the file has any, else by folds that no group straddles. Lakes and models stay in
``build/learning``: what is there already is not made again.
"""

import argparse
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benches.harness import RESULTS, pin

LAKES = RESULTS.parent / "learning"
# What the project promises: error against principal components; points ahead of the best baseline, over all sets.
MOST_ERROR, LEAST_AHEAD = 0.8, 3.0


@dataclass(frozen=True)
class Row:
    """A set, and what was found on it."""

    name: str
    seconds: float
    steps: int
    found: dict[str, Any]

    @property
    def error(self) -> float:
        """Mean square error, times that of as many principal components."""
        return float(self.found["mse"]["model"] / self.found["mse"]["PCA"])

    def of(self, measure: str) -> tuple[float, float, str]:
        """The embedding's, the best baseline's, and its name."""
        from model.evaluate import baselines

        probes = self.found["probes"]
        rest = {name: probes[name][measure]["value"] for name in baselines(probes)}
        best = max(rest, key=lambda name: rest[name])
        return probes["embedding"][measure]["value"], rest[best], best


def own_folds(labels: Path) -> str | None:
    """The file itself, if it gives folds."""
    with open(labels, newline="") as file:
        return str(labels) if any(row.get("fold") for row in csv.DictReader(file)) else None


def parse_settings(given: list[str]) -> dict[str, Any]:
    """NAME=VALUE, a value as JSON or else as it stands."""
    found = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def trained(corpus: Path, lakes: Path, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The lake of a set, and what training on it told."""
    from pipelines import commands, lookup
    from pipelines.lake import Lake

    lake = Lake.at(str(lakes / corpus.name))
    lakes.mkdir(parents=True, exist_ok=True)
    commands.extract(lake, str(corpus), spec=lookup.parse_spec("general"))
    return lake, commands.train(lake, settings=settings)


def learned(corpus: Path, settings: dict[str, Any]) -> Row:
    """Train on a set, and judge."""
    from pipelines import judging

    lake, told = trained(corpus, LAKES, settings)
    found = judging.evaluate(lake, model_id=told["model_id"], folds=own_folds(corpus / "labels.csv"))
    return Row(corpus.name, told["metrics"]["seconds"], told["metrics"]["steps"], found)


def show(rows: list[Row]) -> None:
    """Print the table, and against what was promised."""
    from rich.console import Console
    from rich.table import Table

    from model.evaluate import MEASURES

    table = Table(title="Learning, two cores: embedding, and the best of the baselines")
    for heading in ("set", "minutes", "steps", "error", "PCA", "ratio", *MEASURES.values()):
        table.add_column(heading, justify="left" if heading == "set" else "right")
    for row in rows:
        cells = [f"{row.of(key)[0]:.3f} ({row.of(key)[1]:.3f} {row.of(key)[2]})" for key in MEASURES]
        error = row.found["mse"]
        table.add_row(
            row.name,
            f"{row.seconds / 60:.1f}",
            str(row.steps),
            f"{error['model']:.4f}",
            f"{error['PCA']:.4f}",
            f"{row.error:.3f}",
            *cells,
        )
    console = Console(width=180)
    console.print(table)
    verdict = {True: "met", False: "SHORT"}
    for row in rows:
        console.print(f"{row.name}: error ≤ {MOST_ERROR} of PCA's: {row.error:.3f}, {verdict[row.error <= MOST_ERROR]}")
    for key, title in MEASURES.items():
        ahead = 100 * sum(row.of(key)[0] - row.of(key)[1] for row in rows) / len(rows)
        console.print(f"{title}: {ahead:+.1f} points over all sets, {verdict[ahead >= LEAST_AHEAD]}")


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
    told = [{"set": row.name, "seconds": row.seconds, "steps": row.steps, **row.found} for row in rows]
    (RESULTS / "learning.json").write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
