"""Who is who, by TF_CONFIG; and that what is told arrives. Whole trainings on two hosts are in tests/hosts."""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from soundlake.model.errors import InputError, TryLaterError
from soundlake.model.training import hosts

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import sys
from soundlake.model.training import hosts
here = hosts.from_environment()
here.join()
import numpy as np
import tensorflow as tf
told = [b"", b"a", bytes(range(256)) * 1000]
assert here.gathered(told[here.index]) == told[: here.count]
assert here.from_chief(told[2 - here.index]) == told[2]
assert here.gathered(b"") == [b""] * here.count
rng = np.random.default_rng(here.index)
variables = [tf.Variable(rng.normal(size=(3, 5))), tf.Variable(rng.integers(0, 9, 7)), tf.Variable(np.float32(-0.0))]
here.share(variables)
rng = np.random.default_rng(0)
np.testing.assert_array_equal(variables[0], rng.normal(size=(3, 5)))
np.testing.assert_array_equal(variables[1], rng.integers(0, 9, 7))
assert np.signbit(variables[2].numpy())
here.agree({"settings": {"a": 1}, "data": 1})
for mine in ({"settings": {"a": here.index}, "data": 1}, {"settings": {"a": 1}, "data": here.index}):
    try:
        here.agree(mine)
    except Exception as error:
        print(type(error).__name__)
"""


def configs(count: int) -> list[str]:
    """A TF_CONFIG for each of some processes, that meet at free ports of loopback."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        cluster = {"worker": [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]}
    return [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": number}}) for number in range(count)]


def config(cluster: object, kind: str = "worker", index: object = 0) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


def test_what_is_told_arrives() -> None:
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            cwd=ROOT,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_CONFIG": one},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for one in configs(2)
    ]
    for process in running:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        assert out.split() == ["InputError", "TryLaterError"]


def of_configs(count: int, monkeypatch: pytest.MonkeyPatch) -> list[hosts.Hosts]:
    found = []
    for one in configs(count):
        monkeypatch.setenv("TF_CONFIG", one)
        found.append(hosts.from_environment())
    return found


def test_hosts_that_come_one_after_the_other_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each leaves its address when it has seen all; later TensorFlow listens there, here a server."""
    ended = []

    def meet(here: hosts.Hosts) -> socket.socket:
        here._meet()
        ended.append(here.index)
        return socket.create_server(("127.0.0.1", int(here.addresses[here.index].split(":")[1])))

    with ThreadPoolExecutor() as pool:
        first, second, third = of_configs(3, monkeypatch)
        running = [pool.submit(meet, one) for one in (third, first)]
        time.sleep(1)
        assert ended == []
        running.append(pool.submit(meet, second))
        # None closes before all have met: the last may look again at an address that TensorFlow would keep, too.
        for listening in [one.result(60) for one in running]:
            listening.close()
    assert sorted(ended) == [0, 1, 2]


def test_a_host_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "JOINING", 0)
    here, other = of_configs(2, monkeypatch)
    with pytest.raises(TryLaterError, match=rf"host 1 of 2 \({other.addresses[1]}\) did not join within 0 s"):
        here._meet()


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    here, _ = of_configs(2, monkeypatch)
    port = int(here.addresses[0].split(":")[1])
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(TryLaterError, match=f"cannot listen at 127.0.0.1:{port}: Address already in use"),
    ):
        here._meet()


@pytest.mark.parametrize(
    ("text", "tasks", "index"),
    [
        (None, ["worker/0"], 0),
        (config({"worker": ["a:1"]}), ["worker/0"], 0),
        (config({"worker": ["a:1", "b:1"]}, index=1), ["worker/0", "worker/1"], 1),
        (config({"worker": ["a:1", "b:1"], "chief": ["c:1"]}, index="1"), ["chief/0", "worker/0", "worker/1"], 2),
        (config({"worker": ["a:1"], "chief": ["c:1"]}, kind="chief"), ["chief/0", "worker/0"], 0),
    ],
)
def test_who_is_who(monkeypatch: pytest.MonkeyPatch, text: str | None, tasks: list[str], index: int) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if text is not None:
        monkeypatch.setenv("TF_CONFIG", text)
    here = hosts.from_environment()
    assert (list(here.tasks), here.index, here.is_chief, here.count) == (tasks, index, index == 0, len(tasks))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not of the form"),
        ("{", "not of the form"),
        ("3", "not of the form"),
        ('{"cluster": {"worker": ["a:1"]}}', "not of the form"),
        (config(["a:1"]), "not of the form"),
        (config({"worker": ["a:1"]}, index="x"), "not of the form"),
        (config({"worker": ["a:1"], "ps": ["b:1"]}), "names 'ps'"),
        (config({"worker": ["a:1"]}, kind="evaluator"), "names 'evaluator'"),
        (config({"chief": ["a:1", "b:1"]}, kind="chief"), "more than one chief"),
        (config({"worker": ["a:1", "b:1"]}, index=2), "this is worker 2"),
        (config({"worker": ["a:1"]}, index=-1), "this is worker -1"),
        (config({"worker": ["a:1"]}, kind="chief"), "this is chief 0"),
        (config({"worker": ["a", "b:1"]}), "'a' is not HOST:PORT"),
        (config({"worker": ["a:65536", "b:1"]}), "'a:65536' is not HOST:PORT"),
        (config({"worker": ["a:1", "a:1"]}), "twice"),
    ],
)
def test_a_wrong_config_is_named(monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError, match=said):
        hosts.from_environment()
