"""Training: windows per second, waiting time for input, rate of reading alone, and one replica compared with two.

`python -m benches.training` · about four minutes

The default preset runs on both cores, with the batches of `soundlake train` (windows that begin anywhere), from shards
in the page cache, after the shuffle buffer is full. Two replicas are two logical processors in TensorFlow, which share
the same cores: the result is the cost of a second replica, not the gain of a second device.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benches.harness import faster, figure, interleaved, pin, report
from benches.sides import Side, in_turn

HOURS, ROUNDS = 2, 7
BATCHES, STEPS = 150, 12


def prepared(lake: str) -> tuple[Any, Any, int]:
    """Trainer, training batches, and windows per batch, as in `model.training.train`."""
    from soundlake.model.features import splits
    from soundlake.model.training import dataset, places
    from soundlake.model.training.trainer import Trainer, TrainSettings, training_input
    from soundlake.pipelines.lake import ledger, lookup
    from soundlake.pipelines.lake.lake import Lake

    where = Lake.at(lake)
    spec = lookup.spec_of_lake(where, None)
    bundles, groups = ledger.training_input(ledger.open_ledger(where, spec.spec_id))
    shards = {where.uri(Lake.shard(spec.spec_id, bundle)): recordings for bundle, recordings in bundles.items()}
    windows = places.find(shards, spec, splits.assign(groups))
    settings = TrainSettings()
    trainer = Trainer(spec, settings, dataset.statistics(windows).normalisation)
    return trainer, training_input(windows, settings), settings.batch_size


def steps(lake: str, devices: str) -> Callable[[], None]:
    """A side: `STEPS` steps on one ready batch, on `devices` logical processors."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(devices))
    trainer, batches, _ = prepared(lake)
    ready = next(trainer.distributed(batches.take(1)))
    trainer.train_step(ready).numpy()

    def train() -> None:
        for _ in range(STEPS):
            trainer.train_step(ready).numpy()

    return train


def waiting(trainer: Any, batches: Any) -> Callable[[], float]:
    """A side: `STEPS` steps from the real input; returns the share of the time spent waiting for batches."""
    source = trainer.distributed(batches)

    def train() -> float:
        waited, began = 0.0, time.perf_counter()
        for _ in range(STEPS):
            requested = time.perf_counter()
            batch = next(source)
            waited += time.perf_counter() - requested
            trainer.train_step(batch).numpy()
        return waited / (time.perf_counter() - began)

    return train


def main() -> None:
    """Measure all sides in turn; print and write the table."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    cores = pin(2)
    from benches import lakes

    with tempfile.TemporaryDirectory() as name:
        lake = str(lakes.extracted(Path(name), hours=HOURS))
        trainer, batches, size = prepared(lake)
        source, ready = iter(batches), next(trainer.distributed(batches.take(1)))

        def read() -> None:
            for _ in range(BATCHES):
                next(source)

        def train() -> None:
            for _ in range(STEPS):
                trainer.train_step(ready).numpy()

        took = interleaved({"read": read, "train": train, "wait": waiting(trainer, batches)}, rounds=ROUNDS)
        both = {devices: [Side("benches.training:steps", lake, devices, cores=cores)] for devices in ("1", "2")}
        try:
            wall, _ = in_turn(both, rounds=ROUNDS)
        finally:
            for sides in both.values():
                sides[0].close()
    a_step = [seconds / STEPS for seconds in took["train"]]
    a_batch = [seconds / BATCHES for seconds in took["read"]]
    figures = [
        figure("training, windows a second", [size / seconds for seconds in a_step], note="this machine's"),
        figure("share of the time that steps wait for input", took["wait"], most=0.05),
        faster("reading, times training", a_step, a_batch, least=20),
        faster("two replicas on the same cores, part of the rate of one", wall["1"], wall["2"]),
    ]
    report("training", f"Training, two cores, default preset, batches of {size}, warm cache", figures)


if __name__ == "__main__":
    main()
