"""Training: complete, resumable to the bit, the same on one device and two, loud when it fails."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from soundlake.model.errors import InputError
from soundlake.model.network.vae import VaeConfig, build
from soundlake.model.saved import artifact
from soundlake.model.training.train import TrainSettings, identity, train
from tests.model.conftest import SPEC, Tiny

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"batch_size": 8, "max_steps": 24, "evaluate_every": 6, "latent_dim": 6, "patience": 100}
# With all that draws.
SETTINGS |= {"likeness_dim": 6, "contrastive": 100.0, "masking": 0.15, "denoising": 0.3}

# Trains on shards and groups given as JSON, on one or two logical CPUs, and prints what came out.
SCRIPT = """
import json, sys
from pathlib import Path
call = json.loads(sys.argv[1])
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * call["devices"])
from soundlake.model.training.train import TrainSettings, train
from tests.model.conftest import SPEC
result = train(call["shards"], SPEC, groups=call["groups"], models_dir=Path(call["models"]),
               settings=TrainSettings(**call["settings"]), origin={})
print(json.dumps({"directory": str(result.directory), "metrics": result.metrics}))
"""


def start(tiny: Tiny, models: Path, *, devices: int = 1, **changes: object) -> subprocess.Popen:
    call = {"devices": devices, "shards": tiny.shards, "groups": tiny.groups, "models": str(models)}
    call["settings"] = SETTINGS | changes
    models.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(call)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


def finish(process: subprocess.Popen) -> dict:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def weights(directory: str | Path) -> list[np.ndarray]:
    import h5py

    found: list[np.ndarray] = []
    with h5py.File(Path(directory) / artifact.WEIGHTS) as file:
        file.visititems(lambda name, item: found.append(np.array(item)) if isinstance(item, h5py.Dataset) else None)
    return found


@pytest.fixture(scope="module")
def whole(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """An undisturbed run on one device."""
    return finish(start(tiny, tmp_path_factory.mktemp("whole") / "models"))


def test_the_model_directory_is_complete(whole: dict) -> None:
    directory = Path(whole["directory"])
    model = artifact.load(directory)
    assert model.spec == SPEC
    assert model.settings["max_steps"] == 24
    assert len(model.manifest["data_digest"]) == 64
    assert "test < 0.1" in model.manifest["split_rule"]
    assert list(directory.glob("logs/events.out.tfevents.*"))
    metrics = model.metrics
    assert metrics["steps"] == 24
    assert len(metrics["kl_per_dim"]) == 6
    assert metrics["windows"]["train"] + metrics["windows"]["validation"] + metrics["windows"]["test"] == 60
    found = metrics["validation"]
    assert found["negative_elbo"] == pytest.approx(found["nll"] + found["kl"])
    # The finished model's likelihood is calibrated on what was held out, and its best step was chosen so.
    assert metrics["observation_variance"] == pytest.approx(found["mse"], rel=1e-4)
    assert found["negative_elbo"] == pytest.approx(
        min(row["validation_negative_elbo"] for row in model.manifest["history"]), rel=1e-4
    )


@pytest.mark.parametrize("killer", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_killed_and_taken_up_again_ends_with_the_same_weights(
    tiny: Tiny, tmp_path: Path, whole: dict, killer: signal.Signals
) -> None:
    models = tmp_path / "models"
    process = start(tiny, models)
    deadline = time.monotonic() + 120
    # After the first checkpoint, in the middle of what follows.
    while not list(models.glob("*/checkpoints/checkpoint")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(killer)
    process.communicate(timeout=60)
    # A fast machine may have come to the end; then there is nothing to take up, and nothing shown.
    if process.returncode == 0:
        pytest.skip("the run ended before it could be killed")
    assert not list(models.glob("*/model.json"))
    again = finish(start(tiny, models))
    for a, b in zip(weights(whole["directory"]), weights(again["directory"]), strict=True):
        np.testing.assert_array_equal(a, b)
    wanted, found = dict(whole["metrics"]), dict(again["metrics"])
    for metrics in (wanted, found):
        metrics.pop("seconds")
    assert found == wanted


@pytest.mark.slow
def test_two_devices_compute_what_one_does(tiny: Tiny, tmp_path: Path) -> None:
    """Same global batch, same noise: only the order of float32 sums differs. SGD-like small step count, Adam amplifies.

    Adam divides by the root of the second moment, so a rounding difference in a tiny gradient may become a visible one
    in a weight; losses agree closely, weights to a part of a step's length.
    """
    few = {"max_steps": 6, "evaluate_every": 6}
    one = start(tiny, tmp_path / "one", **few)
    two = start(tiny, tmp_path / "two", devices=2, **few)
    first, second = finish(one), finish(two)
    assert (first["metrics"]["replicas"], second["metrics"]["replicas"]) == (1, 2)
    for name in ("nll", "kl", "mse"):
        assert second["metrics"]["validation"][name] == pytest.approx(first["metrics"]["validation"][name], rel=1e-4)
    a, b = (np.concatenate([w.ravel() for w in weights(run["directory"])]) for run in (first, second))
    # Six steps of at most 1e-3 each: agreement to 2 % of that path in the mean.
    assert np.abs(a - b).mean() < 0.02 * 6e-3


def test_the_same_call_finds_the_model(tiny: Tiny, whole: dict) -> None:
    directory = Path(whole["directory"])
    before = (directory / "model.json").stat().st_mtime_ns
    result = train(
        tiny.shards,
        SPEC,
        groups=tiny.groups,
        models_dir=directory.parent,
        settings=TrainSettings(**SETTINGS),
        origin={},
    )
    assert (result.trained, result.directory) == (False, directory)
    assert (directory / "model.json").stat().st_mtime_ns == before


def test_it_learns_and_another_seed_is_another_model(tiny: Tiny, tmp_path: Path) -> None:
    settings = SETTINGS | {"max_steps": 400, "evaluate_every": 100, "seed": 1, "learning_rate": 3e-3, "latent_dim": 12}
    result = train(
        tiny.shards, SPEC, groups=tiny.groups, models_dir=tmp_path, settings=TrainSettings(**settings), origin={"a": 1}
    )
    # Unit variance before training: an error well below it is learned.
    assert result.metrics["validation"]["mse"] < 0.5
    assert artifact.load(result.directory).manifest["origin"] == {"a": 1}
    other = artifact.model_id({"settings": {"seed": 2}})
    assert result.model_id != other


def test_it_stops_early_and_shouts_on_collapse(tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A learning rate near nothing: the ELBO does not move enough to matter, and no dimension becomes active."""
    settings = SETTINGS | {
        "learning_rate": 1e-12,
        "max_steps": 50,
        "evaluate_every": 2,
        "patience": 2,
        "preset": "seed",
        "likeness_dim": 0,
        "contrastive": 0,
    }
    with caplog.at_level(logging.WARNING):
        result = train(
            tiny.shards, SPEC, groups=tiny.groups, models_dir=tmp_path, settings=TrainSettings(**settings), origin={}
        )
    assert result.metrics["steps"] < 50
    assert result.metrics["stopped"] == "no better validation ELBO"
    if result.metrics["collapsed"]:
        assert "POSTERIOR COLLAPSE" in caplog.text


def test_collapse_is_recorded_loudly(tmp_path: Path, tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    """The figures of a run whose KL is nothing in every dimension."""
    from soundlake.model.training import train as module

    class Loop:
        trainer = type(
            "T",
            (),
            {
                "settings": TrainSettings(latent_dim=4),
                "spec": SPEC,
                "strategy": type("S", (), {})(),
                "model": build(VaeConfig(n_frames=16, n_mels=16, latent_dim=4)),
            },
        )()
        history, best_step, reason = [{"step": 3}], 3, "step budget"

    Loop.trainer.strategy.num_replicas_in_sync = 1
    statistics = type("X", (), {"windows": {"train": 1}})()
    with caplog.at_level(logging.WARNING):
        found = module._metrics(Loop, {"kl_per_dim": [0.001, 0.0, 0.002, 0.0], "nll": 1.0}, statistics, "validation")
    assert found["collapsed"]
    assert "POSTERIOR COLLAPSE: 0 of 4" in caplog.text
    assert "0.002 0.001 0.000 0.000" in caplog.text


def test_one_recording_validates_on_itself_and_says_so(
    tmp_path: Path, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    only = dict(list(tiny.groups.items())[:1])
    settings = TrainSettings(**SETTINGS | {"max_steps": 2, "evaluate_every": 2})
    with caplog.at_level(logging.WARNING):
        result = train(tiny.shards, SPEC, groups=only, models_dir=tmp_path, settings=settings, origin={})
    assert result.metrics["validation_is_training"]
    assert "too few recordings" in caplog.text


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to train on"):
        train({}, SPEC, groups={}, models_dir=tmp_path, settings=TrainSettings(), origin={})
    assert not list(tmp_path.iterdir())


def test_a_batch_that_devices_cannot_share(tiny: Tiny, tmp_path: Path) -> None:
    process = start(tiny, tmp_path / "models", devices=2, batch_size=6)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "--batch-size 6 cannot be shared evenly in pairs among 2 devices" in err


@pytest.mark.parametrize("elsewhere", ["ABSOLUTE", "../../../mine/note"])
@pytest.mark.parametrize("folder", ["checkpoints", "checkpoints/best"])
def test_checkpoints_elsewhere_are_neither_read_nor_deleted(
    tiny: Tiny, tmp_path: Path, folder: str, elsewhere: str
) -> None:
    """TensorFlow lists checkpoints in a text file, reads the newest, and deletes the oldest, wherever they are."""
    settings = TrainSettings(batch_size=8, max_steps=2, evaluate_every=1, latent_dim=2)
    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("note.index", "note.data-00000-of-00001"):
        (mine / name).write_text("mine")
    named = elsewhere.replace("ABSOLUTE", str(mine / "note"))
    planted = tmp_path / "models" / artifact.model_id(identity(tiny.shards, SPEC, tiny.groups, settings)) / folder
    planted.mkdir(parents=True)
    lines = [f'model_checkpoint_path: "{named}"', f'all_model_checkpoint_paths: "{named}"']
    lines += ["all_model_checkpoint_timestamps: 1.0", "last_preserved_timestamp: 1.0"]
    (planted / "checkpoint").write_text("\n".join(lines))
    with pytest.raises(InputError, match="names a checkpoint outside its folder"):
        train(tiny.shards, SPEC, groups=tiny.groups, models_dir=tmp_path / "models", settings=settings, origin={})
    assert {path.read_text() for path in mine.iterdir()} == {"mine"}
    assert len(list(mine.iterdir())) == 2


def test_divergence_stops_and_says_where_the_last_good_weights_are(tiny: Tiny, tmp_path: Path) -> None:
    """A learning rate that no network bears."""
    settings = SETTINGS | {"learning_rate": 1.0, "clip_norm": 0, "max_steps": 200, "evaluate_every": 1}
    with pytest.raises(InputError, match="the training diverged") as caught:
        train(tiny.shards, SPEC, groups=tiny.groups, models_dir=tmp_path, settings=TrainSettings(**settings), origin={})
    said = str(caught.value)
    assert "lower --learning-rate" in said
    (model,) = tmp_path.iterdir()
    assert str(model / "checkpoints" / "best") in said
    assert list((model / "checkpoints" / "best").glob("best-*.index"))
    assert not artifact.is_finished(model)


def test_a_loss_that_is_not_a_number_is_never_kept(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the seventh step on: the checkpoint of the sixth stays, and the same call fails again in the same way."""
    from soundlake.model.training.trainer import Trainer

    real = Trainer._losses

    def broken(self: Trainer, *arguments: object) -> object:
        gradients, told = real(self, *arguments)
        late = tf.cast(self.optimizer.iterations >= 6, tf.float32)
        return gradients, told / (1 - late)

    import tensorflow as tf

    monkeypatch.setattr(Trainer, "_losses", broken)
    for _ in range(2):
        with pytest.raises(InputError, match=r"step 7 gave nll .*last good weights, of step 6"):
            train(
                tiny.shards,
                SPEC,
                groups=tiny.groups,
                models_dir=tmp_path,
                settings=TrainSettings(**SETTINGS),
                origin={},
            )
    assert [path.stem for path in tmp_path.glob("*/checkpoints/step-*.index")] == ["step-6"]
