"""A training step: one device and two, plain gradient descent so that scales show; precision, XLA, clipping."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from soundlake.model.errors import InputError
from soundlake.model.training.dataset import Normalisation
from soundlake.model.training.trainer import Trainer, TrainSettings
from tests.model.conftest import SPEC
from tests.model.test_hosts import configs

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = {"batch_size": 8, "latent_dim": 6, "likeness_dim": 3, "free_bits": 0.05, "kl_warm_up": 3, "seed": 5}
EVERYTHING |= {"contrastive": 100.0, "masking": 0.15, "denoising": 0.3, "pitch": 2}

# A step of plain gradient descent, which no adaptive optimizer hides the scale of; and the noise of each replica.
SCRIPT = """
import json, sys
import numpy as np
call = json.loads(sys.argv[1])
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * call["devices"])
import keras
from soundlake.model.training import hosts
from tests.model.test_trainer import batch, trainer
here = hosts.from_environment()
here.join()
it = trainer(strategy=here.strategy, **call["settings"])
with it.strategy.scope():
    it.optimizer = keras.optimizers.SGD(1e-4)
    it.optimizer.build(it.model.trainable_variables)
before = it.model.get_weights()
mine = {name: tf.split(x, here.count)[here.index] for name, x in batch().items()}
data = next(it.distributed(tf.data.Dataset.from_tensors(mine)))
told = [it.train_step(data).numpy().tolist() for _ in range(call["steps"])]
moved = np.concatenate([(a - b).ravel() for a, b in zip(it.model.get_weights(), before)])
noise = tf.random.stateless_normal((8, 6), (1, 2))
mine = it.strategy.experimental_local_results(it.strategy.run(lambda: it._my_part(noise)))
np.savez(call["to"], moved=moved, told=told, noise=np.stack([part.numpy() for part in mine]), whole=noise.numpy())
"""


def batch(seed: int = 0) -> dict[str, Any]:
    """Four pairs of windows, and masks."""
    rng = np.random.default_rng(seed)
    features = rng.normal(-6, 2, (4, 2, 16, 16)).astype(np.float32)
    return {"features": tf.constant(features), "keep": tf.constant(rng.random((4, 2, 16, 16)) < 0.9)}


def trainer(*, strategy: Any = None, **settings: Any) -> Trainer:
    normal = Normalisation(np.full(16, -6, np.float32), np.full(16, 2, np.float32))
    return Trainer(SPEC, TrainSettings(**(EVERYTHING | settings)), normal, strategy=strategy)


def test_the_callers_random_numbers_stay_his() -> None:
    """Keras takes its seeds from Python's own generator: it is put back, and the same seed gives the same weights."""
    random.seed(7)
    before = random.getstate()
    weights = [trainer().model.get_weights() for _ in range(2)]
    assert random.getstate() == before
    assert all(np.array_equal(one, other) for one, other in zip(*weights, strict=True))


def stepped(
    folder: Path, devices: int, *, hosts: int = 1, steps: int = 1, **settings: Any
) -> list[dict[str, np.ndarray]]:
    """What each host found."""
    running = []
    for number, config in enumerate(configs(hosts) if hosts > 1 else [None]):
        call = {"devices": devices, "settings": settings, "steps": steps, "to": f"{folder}/{number}.npz"}
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"} | ({"TF_CONFIG": config} if config else {})
        line = [sys.executable, "-c", SCRIPT, json.dumps(call)]
        running.append(subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
    return [dict(np.load(f"{folder}/{number}.npz")) for number in range(hosts)]


@pytest.mark.parametrize("clip_norm", [0.0, 5.0])
def test_two_replicas_take_the_step_of_one(tmp_path: Path, clip_norm: float) -> None:
    """Keras adds gradients up: a mean over a replica's part would give a step twice as long, in silence.

    With everything on: pairs on one replica are told from those on the other, free bits count the mean over both, the
    norm that is clipped is that of both together.
    """
    (one,), (two,) = (stepped(tmp_path, devices, steps=3, clip_norm=clip_norm) for devices in (1, 2))
    np.testing.assert_allclose(two["told"], one["told"], rtol=2e-5)
    assert np.linalg.norm(one["moved"]) > 5e-4
    if clip_norm:
        # Clipped it is, in each of the three steps.
        assert np.linalg.norm(one["moved"]) < 3.001 * clip_norm * 1e-4
    assert np.linalg.norm(two["moved"] - one["moved"]) < 1e-3 * np.linalg.norm(one["moved"])


def test_two_hosts_take_the_step_of_one(tmp_path: Path) -> None:
    """Two processes that meet over loopback; every one has the same weights after it, bit for bit."""
    (one,) = stepped(tmp_path, 1, steps=3)
    first, second = stepped(tmp_path, 1, hosts=2, steps=3)
    np.testing.assert_array_equal(first["moved"], second["moved"])
    np.testing.assert_array_equal(first["told"], second["told"])
    np.testing.assert_allclose(first["told"], one["told"], rtol=2e-5)
    assert np.linalg.norm(one["moved"]) > 5e-4
    assert np.linalg.norm(first["moved"] - one["moved"]) < 1e-3 * np.linalg.norm(one["moved"])
    np.testing.assert_array_equal(np.concatenate([first["noise"][0], second["noise"][0]]), one["whole"])


def test_replicas_draw_different_noise(tmp_path: Path) -> None:
    """Keras' own random layers give every replica the same: here each has its part of one draw."""
    (found,) = stepped(tmp_path, 2)
    assert not np.array_equal(found["noise"][0], found["noise"][1])
    np.testing.assert_array_equal(np.concatenate(found["noise"]), found["whole"])


def test_clipping_keeps_the_direction() -> None:
    """Of all gradients together."""
    free, held = trainer(clip_norm=0.0), trainer(clip_norm=1.0)
    given = [tf.constant([3.0, 4.0]), tf.constant([[12.0]])]
    clipped = held._clipped(given)
    np.testing.assert_allclose(clipped[0], [3 / 13, 4 / 13], rtol=1e-6)
    np.testing.assert_allclose(clipped[1], [[12 / 13]], rtol=1e-6)
    assert free._clipped(given) is given
    short = [tf.constant([0.3])]
    np.testing.assert_allclose(held._clipped(short)[0], [0.3], rtol=1e-6)


def test_bfloat16_is_near_and_weights_stay_float32() -> None:
    data = {name: tf.constant(value) for name, value in batch().items()}
    plain, mixed = trainer(), trainer(precision="bfloat16")
    assert {str(w.dtype) for w in mixed.model.weights} == {"float32"}
    # What the layers in bfloat16 give counts for nothing at first: they are added to what the network starts from.
    for _ in range(3):
        a, b = plain.train_step(data).numpy(), mixed.train_step(data).numpy()
        np.testing.assert_allclose(a, b, rtol=0.02)
    assert not np.array_equal(a, b)
    assert mixed.model(np.zeros((1, 16, 16), np.float32)).dtype == tf.float32


def test_xla_computes_the_same() -> None:
    data = {name: tf.constant(value) for name, value in batch().items()}
    plain, compiled = trainer(), trainer(xla=True)
    for _ in range(2):
        a, b = plain.train_step(data).numpy(), compiled.train_step(data).numpy()
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_what_is_rebuilt_is_clean_and_what_is_seen_is_not() -> None:
    x = tf.reshape(batch()["features"], (8, 16, 16))
    keep = tf.reshape(batch()["keep"], (8, 16, 16))
    it = trainer(level=0.0, pitch=0, contrastive=0)
    clean, seen = it.strategy.run(it._changed, args=(x, keep))
    np.testing.assert_allclose(clean, (x + 6) / 2, rtol=1e-5, atol=1e-5)
    noise = np.where(keep, seen - clean, seen)
    # Of each window its own deviation, from 0 to `denoising`; where masked there is noise alone.
    assert 0 < noise.std(axis=(1, 2)).min() < noise.std(axis=(1, 2)).max() < 0.33
    assert np.abs(noise).max() < 1.5
    quiet = trainer(level=0.0, pitch=0, denoising=0.0, contrastive=0)
    clean, seen = quiet.strategy.run(quiet._changed, args=(x, keep))
    np.testing.assert_allclose(seen, np.where(keep, clean, 0), rtol=1e-6)


def test_the_first_of_a_pair_is_seen_whole() -> None:
    it = trainer()
    x = tf.reshape(batch()["features"], (8, 16, 16))
    clean, seen = it.strategy.run(it._changed, args=(x, tf.reshape(batch()["keep"], (8, 16, 16))))
    np.testing.assert_array_equal(seen[::2], clean[::2])
    assert (seen[1::2] != clean[1::2]).numpy().mean() > 0.9


def test_a_preset_decides_what_is_not_given() -> None:
    seed, default = TrainSettings(preset="seed"), TrainSettings()
    assert (seed.likeness_dim, seed.pitch, seed.level, seed.clip_norm) == (0, 0, 0, 0)
    assert (default.likeness_dim, default.latent_dim, seed.latent_dim) == (128, 64, 64)
    assert TrainSettings(pitch=3).pitch == 3
    assert default.network["contrastive"] is False
    assert TrainSettings(contrastive=10).network["contrastive"] is True


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"likeness_dim": 0, "contrastive": 1}, "a likeness_dim above 0"),
        ({"preset": "seed", "likeness_dim": 3}, "need the preset default"),
        ({"preset": "seed", "contrastive": 1}, "need the preset default"),
        ({"mixing": 0.5}, "mixing needs contrastive"),
        ({"batch_size": 7, "contrastive": 1}, "an even batch_size"),
        ({"batch_size": 2, "contrastive": 1}, "at least 4"),
        ({"masking": 1.0}, "less than 1"),
        ({"precision": "float16"}, "float32"),
        ({"temperature": 0}, "greater than 0"),
    ],
)
def test_settings_refuse(bad: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainSettings(**bad)


def test_windows_stay_in_sight() -> None:
    with pytest.raises(InputError, match=r"--pitch 16 .* 16 mel bands"):
        trainer(pitch=16)
    with pytest.raises(ValidationError, match="finite"):
        TrainSettings(contrastive=float("inf"))
