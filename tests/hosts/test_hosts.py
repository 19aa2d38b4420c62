"""`soundlake train` on two hosts, here two processes that meet over loopback: undisturbed, killed, stopped."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from soundlake.pipelines.cli.synth import synthesise
from tests.model.test_hosts import configs
from tests.system.lakes import Command, done, weights

# Eight checkpoints: a kill after the first one finds the training at work.
SETTINGS = ("--steps", "32", "--batch-size", "8", "--latent-dim", "4")
# Seconds in which a host must have noticed that another is gone, and have ended.
NOTICED = 120


def start(lake: Path, *more: str) -> list[Command]:
    return [
        Command("train", *SETTINGS, *more, "--lake", lake, small=True, environment={"TF_CONFIG": config})
        for config in configs(2)
    ]


def ended(commands: list[Command]) -> list[int]:
    return [command.end() for command in commands]


def made_by(commands: list[Command]) -> None:
    assert ended(commands) == [0, 0], [command.err for command in commands]
    chief, other = commands
    assert "trained in 32 steps" in chief.out
    assert other.out.count("\n") == 1
    assert "host 1 has done its part" in other.out


def manifests(lake: Path) -> list[str]:
    found = [json.loads(path.read_text()) for path in sorted(lake.glob("runs/*-train-*.json"))]
    return [one["result"] for one in found]


def wait_for_checkpoint(lake: Path, commands: list[Command]) -> None:
    while not list(lake.glob("models/*/checkpoints/checkpoint")):
        assert not any(command.ended_before(0.01) for command in commands), [command.err for command in commands]


def wait_for_meeting(lake: Path, commands: list[Command]) -> None:
    """The folder for the logs comes when the loop begins, which is after both have met."""
    while not list(lake.glob("models/*/logs")):
        assert not any(command.ended_before(0.01) for command in commands), [command.err for command in commands]


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake without a model."""
    folder = tmp_path_factory.mktemp("features")
    synthesise(str(folder / "audio"), recordings=24)
    done("extract", folder / "audio", "--lake", folder / "lake", small=True)
    return folder / "lake"


@pytest.fixture(scope="module")
def together(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake with a model of two hosts, undisturbed."""
    lake = tmp_path_factory.mktemp("together") / "lake"
    shutil.copytree(features, lake)
    made_by(start(lake))
    return lake


def same_model(lake: Path, wanted: Path) -> None:
    assert weights(lake) == weights(wanted)
    names, expected = ({str(path.relative_to(one)) for path in one.glob("models/**/*")} for one in (lake, wanted))
    assert {name for name in names if "tfevents" not in name} == {n for n in expected if "tfevents" not in n}


def test_two_hosts_make_the_model_of_one(features: Path, together: Path, tmp_path: Path) -> None:
    """Same id, same figures up to the order of float32 sums; and the chief alone wrote, once."""
    lake = tmp_path / "lake"
    shutil.copytree(features, lake)
    done("train", *SETTINGS, "--lake", lake, small=True)
    (one,), (two,) = (list(path.glob("models/*/model.json")) for path in (lake, together))
    assert one.parent.name == two.parent.name
    first, second = (json.loads(path.read_text())["metrics"] for path in (one, two))
    assert (first["replicas"], second["replicas"]) == (1, 2)
    for name in ("nll", "kl", "mse"):
        assert second["validation"][name] == pytest.approx(first["validation"][name], rel=1e-3)
    a, b = (
        np.concatenate([np.frombuffer(weights(path)[name], np.float32) for name in sorted(weights(path))])
        for path in (lake, together)
    )
    # 32 steps of at most 1e-3 each: agreement to 2 % of that path in the mean.
    print(f"weights differ by {np.abs(a - b).mean():.1e} in the mean, by {np.abs(a - b).max():.1e} at most")
    assert np.abs(a - b).mean() < 0.02 * 32e-3
    assert manifests(together) == ["done"]
    names = ({path.name for path in at.glob("models/*/*")} for at in (lake, together))
    assert next(names) == next(names)


@pytest.mark.parametrize("victim", [1, 0], ids=["worker", "chief"])
@pytest.mark.parametrize("early", [False, True], ids=["after-a-checkpoint", "before-one"])
def test_one_is_killed(features: Path, together: Path, tmp_path: Path, victim: int, early: bool) -> None:
    """The other says so and ends in bounded time; both started again make the model of the undisturbed, to the bit."""
    lake = tmp_path / "lake"
    shutil.copytree(features, lake)
    commands = start(lake)
    (wait_for_meeting if early else wait_for_checkpoint)(lake, commands)
    assert commands[victim].kill()
    began = time.monotonic()
    left = commands[1 - victim]
    assert left.ended_before(NOTICED), left.err
    print(f"noticed and ended after {time.monotonic() - began:.1f} s: {left.err.strip()}")
    assert left.end() == 75, left.err
    assert f"host {victim} of 2 (127.0.0.1:" in left.err
    assert "start the same command on all hosts again" in left.err
    assert early or "goes on from step" in left.err
    assert left.err.count("\n") == 1
    assert not list(lake.glob("models/*/model.json"))
    made_by(start(lake))
    same_model(lake, together)


@pytest.mark.parametrize("asked", [0, 1])
def test_one_is_asked_to_stop(features: Path, together: Path, tmp_path: Path, asked: int) -> None:
    """Both stop at the same step, which is saved; the next call goes on from there."""
    lake = tmp_path / "lake"
    shutil.copytree(features, lake)
    commands = start(lake)
    wait_for_checkpoint(lake, commands)
    commands[asked].process.send_signal(signal.SIGTERM)
    assert ended(commands) == [130, 130], [command.err for command in commands]
    made_by(start(lake))
    same_model(lake, together)


def test_all_must_train_the_same(features: Path, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    shutil.copytree(features, lake)
    commands = [
        Command("train", *SETTINGS, "--seed", str(seed), "--lake", lake, small=True, environment={"TF_CONFIG": config})
        for seed, config in enumerate(configs(2))
    ]
    assert ended(commands) == [2, 2], [command.err for command in commands]
    assert all("other settings" in command.err for command in commands)


def test_a_wrong_config_is_one_line(features: Path) -> None:
    command = Command("train", "--lake", features, environment={"TF_CONFIG": '{"cluster": {}}'})
    assert command.end() == 2
    assert command.err.startswith("soundlake: TF_CONFIG is not of the form")
    assert command.err.count("\n") == 1
