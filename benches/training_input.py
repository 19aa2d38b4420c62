"""Reading shards for training against training itself, on both cores: the model must never wait for its input.

`python -m benches.training_input` · about two minutes

Reading is the training split's batches as `soundlake train` gets them, from shards that the system has in memory, after
the shuffle was filled. Training is the default preset's step on one batch that lies ready.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benches.harness import faster, figure, interleaved, pin, report

HOURS, ROUNDS = 2, 7
BATCHES, STEPS = 300, 12


def sides(lake: str) -> tuple[dict[str, Callable[[], Any]], int]:
    """Reading `BATCHES` batches, training `STEPS` steps; and the windows of a batch."""
    import tensorflow as tf

    from model import dataset, splits
    from model.trainer import Trainer, TrainSettings
    from pipelines import ledger, lookup
    from pipelines.lake import Lake

    where = Lake.at(lake)
    spec = lookup.spec_of_lake(where, None)
    bundles, groups = ledger.training_input(ledger.open_ledger(where, spec.spec_id))
    shards = {where.uri(Lake.shard(spec.spec_id, bundle)): recordings for bundle, recordings in bundles.items()}
    split_of = splits.assign(groups)
    settings = TrainSettings()
    statistics = dataset.statistics(shards, spec, split_of)
    trainer = Trainer(spec, settings, statistics.normalisation)
    batches = iter(
        dataset.training_batches(shards, spec, split_of=split_of, batch_size=settings.batch_size, seed=settings.seed)
    )
    ready = next(trainer.distributed(tf.data.Dataset.from_tensors(next(batches))))

    def read() -> None:
        for _ in range(BATCHES):
            next(batches)

    def train() -> None:
        for _ in range(STEPS):
            trainer.train_step(ready).numpy()

    return {"read": read, "train": train}, settings.batch_size


def main() -> None:
    """Measure both in turn; print and write the table."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    pin(2)
    from benches import lakes

    with tempfile.TemporaryDirectory() as name:
        both, size = sides(str(lakes.extracted(Path(name), hours=HOURS)))
        took = interleaved(both, rounds=ROUNDS)
    a_step = [seconds / STEPS for seconds in took["train"]]
    a_batch = [seconds / BATCHES for seconds in took["read"]]
    figures = [
        faster("reading, times training", a_step, a_batch, least=20, note="default preset"),
        figure("reading, windows a second", [size / seconds for seconds in a_batch]),
        figure("training, windows a second", [size / seconds for seconds in a_step]),
    ]
    report("training_input", f"Reading shards in training, two cores, batches of {size}, warm cache", figures)


if __name__ == "__main__":
    main()
