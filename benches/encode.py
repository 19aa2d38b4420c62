"""Encode compared with the bare model on ready batches, and the similarity vector compared with log-mel, on one core.

`python -m benches.encode` · about three minutes

A table contains each window's reconstruction error, so the bare model is encoder and decoder: the same calls of ONNX
Runtime on float32 batches in memory. The command's time includes everything else, from the ledger to the index: reading
shards, rows, fragments, commit. Both sides import everything before the clock starts. The model is the default preset
after three steps, since the weights do not affect the speed.

The time of the similarity vector is that of the part of the encoder's graph that leads to it, for the windows of a
minute of sound in one batch. The time of log-mel is for the same minute.
"""

import math
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benches.harness import Figure, faster, figure, interleaved, on_processor, pin, report
from benches.sides import Side, in_turn
from benches.sounds import sound

HOURS, ROUNDS = 5, 3
# Rounds for encoder and log-mel.
SHORT_ROUNDS = 100


def command(lake: str) -> Callable[[], Callable[[], None]]:
    """The job of a side: encode a lake whose table was removed."""
    from soundlake.pipelines import commands
    from soundlake.pipelines.lake.lake import Lake

    def clear() -> None:
        shutil.rmtree(Path(lake, "tables"))

    def job() -> Callable[[], None]:
        result = commands.encode(Lake.at(lake), workers=1)
        assert result["encoded"] == result["rows"] > 0, result
        return clear

    job()()
    return job


def model(lake: str, parts: str) -> Callable[[], None]:
    """The job of a side: run all windows of a lake through the model, in ready batches."""
    import numpy as np

    from soundlake.model.features.log_mel import dequantise
    from soundlake.pipelines.encode.encoder import BATCH_WINDOWS, read_shard
    from soundlake.pipelines.lake import lookup
    from soundlake.pipelines.lake.lake import Lake

    where = Lake.at(lake)
    loaded = lookup.find_model(where, None)
    shards = (name.removesuffix(".tfrecord") for name in where.names(f"{Lake.spec(loaded.spec.spec_id)}/shards"))
    values = [record.values for shard in shards for record, _ in read_shard(where, loaded.spec, shard)]
    batches = [
        dequantise(np.stack(values[first : first + BATCH_WINDOWS]), loaded.spec)
        for first in range(0, len(values), BATCH_WINDOWS)
    ]
    encoder, decoder = loaded.encoder(), loaded.decoder()

    def job() -> None:
        for batch in batches:
            mean = encoder.encode(batch).mean
            if parts == "both":
                decoder.decode(mean)

    job()
    return job


def similarity(lake: str) -> list[Figure]:
    """Times of the parts of a lake's encoder, relative to the time of log-mel for the same sound."""
    import numpy as np
    import onnx
    from onnx.utils import Extractor

    from soundlake.model.features.log_mel import LogMel, windows
    from soundlake.model.saved import artifact
    from soundlake.pipelines.encode.encoder import BATCH_WINDOWS
    from soundlake.pipelines.lake import lookup
    from soundlake.pipelines.lake.lake import Lake

    loaded = lookup.find_model(Lake.at(lake), None)
    spec = loaded.spec
    graph = onnx.load(loaded.directory / artifact.ENCODER)
    inputs, results = ([value.name for value in values] for values in (graph.graph.input, graph.graph.output))
    parts = {}
    for name, outputs in {"similarity vector": results[2:], "rest of the encoder": results[:2]}.items():
        path = Path(lake, f"{name}.onnx")
        onnx.save(Extractor(graph).extract_model(inputs, outputs), path)
        parts[name] = artifact.Encoder(path, 1)
    frames = (BATCH_WINDOWS - 1) * spec.window_step + spec.window_frames
    seconds = 10 * math.ceil(frames * spec.hop_length / spec.sample_rate / 10)
    samples = np.concatenate(list(sound(rate=spec.sample_rate, seconds=seconds, channels=1)))[:, 0]
    samples = samples[: (frames - 1) * spec.hop_length].copy()
    log_mel = LogMel(spec)
    batch = windows(log_mel(samples), spec)
    assert len(batch) == BATCH_WINDOWS
    sides: dict[str, Callable[[], object]] = {"log-mel": lambda: log_mel(samples)}
    sides |= {name: partial(encoder.run, batch) for name, encoder in parts.items()}
    took = interleaved({name: on_processor(side) for name, side in sides.items()}, rounds=SHORT_ROUNDS)
    mel = took["log-mel"]
    shares = {name: [a / b for a, b in zip(took[name], mel, strict=True)] for name in parts}
    return [
        figure("similarity vector, part of log-mel's time", shares["similarity vector"], most=0.1),
        figure("rest of the encoder, part of log-mel's time", shares["rest of the encoder"]),
        figure("log-mel, ms a window", [1000 * seconds / BATCH_WINDOWS for seconds in mel]),
    ]


def main() -> None:
    """Measure all sides in turn; print and write the table."""
    from benches import lakes
    from soundlake.pipelines.lake.lake import Lake
    from soundlake.pipelines.lake.status import status

    cores = pin(1)
    with tempfile.TemporaryDirectory() as name:
        lake = str(lakes.extracted(Path(name), hours=HOURS))
        lakes.soundlake("train", "--lake", lake, "--steps", "3")
        spec = next(iter(status(Lake.at(lake))["specs"].values()))
        windows = spec["windows"]
        sides = {
            "command": [Side("benches.encode:command", lake, cores=cores)],
            "both": [Side("benches.encode:model", lake, "both", cores=cores)],
            "encoder": [Side("benches.encode:model", lake, "encoder", cores=cores)],
        }
        wall, processor = in_turn(sides, rounds=ROUNDS)
        for (side,) in sides.values():
            side.close()
        beside_log_mel = similarity(lake)
    figures = [
        faster("encode, part of the bare model's rate", wall["both"], wall["command"], least=0.85),
        faster("    by time of processors", processor["both"], processor["command"], note="whatever else runs beside"),
        faster("encode, part of the bare encoder's rate", wall["encoder"], wall["command"], note="no decoder"),
        figure("encode, windows a second", [windows / seconds for seconds in wall["command"]]),
        figure("encode, seconds a run", wall["command"]),
        *beside_log_mel,
    ]
    report("encode", f"Encode, {windows:,} windows, default preset, one core", figures)


if __name__ == "__main__":
    main()
