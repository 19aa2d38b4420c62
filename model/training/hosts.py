"""Several hosts that train one model together: who they are, what they tell each other, and when one of them is lost.

Each runs the same command on the same lake; TF_CONFIG says who is who, as TensorFlow has it. The chief alone writes:
what only it knows (statistics, checkpoints) it tells the others over the network, bit for bit.
"""

import errno
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from soundlake.model.errors import InputError, TryLaterError

# Seconds that hosts wait for the last of them to come, and for a sign of life of each.
JOINING, SILENCE = 600, 30


@dataclass
class Hosts:
    """All hosts of a training, seen from one of them; one alone is the usual case.

    Attributes
    ----------
    tasks : sequence of str
        What TensorFlow calls each (``worker/1``), the chief first.
    addresses : sequence of str
        Host and port of each.
    index : int
        Which of them this process is.
    strategy : tf.distribute.Strategy or None
        Over all devices of all hosts, once they have joined; None if there is one host.
    kept_step : int
        Step of the newest checkpoint.
    """

    tasks: Sequence[str] = ("worker/0",)
    addresses: Sequence[str] = ("",)
    index: int = 0
    strategy: Any = field(default=None, compare=False)
    kept_step: int = 0

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.tasks)

    @property
    def is_chief(self) -> bool:
        """Whether this one writes what comes of it."""
        return self.index == 0

    def join(self) -> None:
        """Meet the others; must come before TensorFlow computes anything.

        Raises
        ------
        TryLaterError
            If they do not all come within `JOINING` seconds, or the port is taken.
        """
        if self.count == 1:
            return
        self._meet()
        import tensorflow as tf
        from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
        from tensorflow.python.eager import context

        jobs = [task.split("/")[0] for task in self.tasks]
        # As the strategy itself would set it, but for the times: no public call does, and it would wait for an hour.
        context.context().configure_coordination_service(
            service_type="standalone",
            service_leader=f"/job:{jobs[0]}/replica:0/task:0",
            coordinated_jobs=[CoordinatedJob(name=job, num_tasks=jobs.count(job)) for job in dict.fromkeys(jobs)],
            cluster_register_timeout_in_ms=JOINING * 1000,
            heartbeat_timeout_in_ms=SILENCE * 1000,
        )
        try:
            self.strategy = tf.distribute.MultiWorkerMirroredStrategy()
        except tf.errors.OpError as error:
            raise TryLaterError(
                f"the {self.count} hosts of TF_CONFIG could not join: start the same command on all of them ({error})"
            ) from error

    def _meet(self) -> None:
        """Wait until something answers at every address: TensorFlow would wait for a missing host without end."""
        own = self.addresses[self.index]
        port, both = int(own.rsplit(":", 1)[1]), socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        deadline = time.monotonic() + JOINING
        try:
            listening = socket.create_server(("", port), family=family, dualstack_ipv6=both)
        except OSError as error:
            todo = "stop the program that uses the port" if error.errno == errno.EADDRINUSE else "see TF_CONFIG"
            raise TryLaterError(f"cannot listen at {own}: {error.strerror}; {todo}") from error
        # Whoever comes later than this closes finds TensorFlow listening here.
        with listening:
            for number, address in enumerate(self.addresses):
                name, port_there = address.rsplit(":", 1)
                while number != self.index:
                    try:
                        socket.create_connection((name.strip("[]"), int(port_there)), timeout=5).close()
                        break
                    except OSError as error:
                        if time.monotonic() > deadline:
                            raise TryLaterError(
                                f"host {number} of {self.count} ({address}) did not join within {JOINING} s: start the "
                                "same command on all hosts"
                            ) from error
                        time.sleep(1)

    @contextmanager
    def none_lost(self) -> Iterator[None]:
        """A block that all hosts go through together.

        Raises
        ------
        TryLaterError
            If one of them is lost on the way.
        """
        if self.count == 1:
            yield
            return
        import tensorflow as tf

        lost = (
            tf.errors.UnavailableError,
            tf.errors.AbortedError,
            tf.errors.CancelledError,
            tf.errors.DeadlineExceededError,
            tf.errors.FailedPreconditionError,
            tf.errors.InternalError,
        )
        try:
            yield
        except lost as error:
            after = f"step {self.kept_step}" if self.kept_step else "the beginning"
            raise TryLaterError(
                f"{self._named_in(str(error))} was lost: start the same command on all hosts again, and it goes on "
                f"from {after}"
            ) from error

    def _named_in(self, message: str) -> str:
        """Which other host an error of TensorFlow's is about."""
        for job, task in re.findall(r"/job:(\w+)(?:/replica:0)?/task:(\d+)", message):
            number = self.tasks.index(f"{job}/{task}") if f"{job}/{task}" in self.tasks else self.index
            if number != self.index:
                return f"host {number} of {self.count} ({self.addresses[number]})"
        return f"one of the {self.count} hosts"

    def gathered(self, mine: bytes) -> list[bytes]:
        """What each host has to tell, in their order."""
        if self.count == 1:
            return [mine]
        sizes = np.zeros(self.count, np.int64)
        sizes[self.index] = len(mine)
        sizes = self._sum(sizes)
        # In whole words, since numbers are summed, all but one of them 0; at least one word: none kills the process.
        words = sizes // 8 + 1
        begins = np.concatenate([[0], np.cumsum(words)])
        told = np.zeros(begins[-1], np.int64)
        padded = mine + bytes(8 - len(mine) % 8)
        told[begins[self.index] : begins[self.index + 1]] = np.frombuffer(padded, np.int64)
        told = self._sum(told)
        return [told[begins[i] : begins[i + 1]].tobytes()[: sizes[i]] for i in range(self.count)]

    def from_chief(self, mine: bytes) -> bytes:
        """What the chief has to tell; what others give is not asked for."""
        return self.gathered(mine if self.is_chief else b"")[0]

    def _sum(self, numbers: Any) -> Any:
        import tensorflow as tf

        # Without `identity` the constant may lie on a device that collectives do not know: that kills the process.
        return self.strategy.reduce("SUM", tf.identity(tf.constant(numbers)), axis=None).numpy()

    def agree(self, made_from: Mapping[str, Any]) -> None:
        """Make sure that all are about to train the same model.

        Raises
        ------
        InputError
            If their settings differ.
        TryLaterError
            If they see other data: the lake has changed between the first and the last that came.
        """
        for number, other in enumerate(self.gathered(json.dumps(made_from, sort_keys=True).encode())):
            theirs = json.loads(other)
            if theirs["settings"] != json.loads(json.dumps(made_from))["settings"]:
                raise InputError(
                    f"host {number} trains with other settings than host {self.index}: give all hosts the same"
                )
            if theirs != json.loads(json.dumps(made_from)):
                raise TryLaterError(
                    f"host {number} sees another lake than host {self.index}, or has another soundlake: if the lake "
                    "has just changed, start the same command on all hosts again"
                )

    def share(self, variables: Sequence[Any]) -> None:
        """Give variables the values that they have on the chief."""
        if self.count == 1:
            return
        values = [np.asarray(variable.numpy()) for variable in variables]
        told = self.from_chief(b"".join(value.tobytes() for value in values))
        if self.is_chief:
            return
        begin = 0
        for variable, value in zip(variables, values, strict=True):
            new = np.frombuffer(told, value.dtype, value.size, begin).reshape(value.shape)
            variable.assign(new)
            begin += value.nbytes


def from_environment() -> Hosts:
    """The hosts that TF_CONFIG names; one alone without it.

    Raises
    ------
    InputError
        If TF_CONFIG is not what TensorFlow wants, or names other parts than a chief and workers.
    """
    text = os.environ.get("TF_CONFIG")
    # TensorFlow itself takes an empty one for a damaged one.
    if text is None:
        return Hosts()
    try:
        config = json.loads(text)
        cluster = {job: [str(address) for address in found] for job, found in config["cluster"].items()}
        kind, index = str(config["task"]["type"]), int(config["task"]["index"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            'TF_CONFIG is not of the form {"cluster": {"worker": ["HOST:PORT", …]}, "task": {"type": "worker", '
            f'"index": 0}}: {type(error).__name__}: {error}'
        ) from error
    strange = sorted({*cluster, kind} - {"chief", "worker"})
    if strange:
        raise InputError(f"TF_CONFIG names {strange[0]!r}: a training has a chief (or none) and workers, nothing else")
    if len(cluster.get("chief", [])) > 1:
        raise InputError("TF_CONFIG names more than one chief")
    tasks = [f"{job}/{i}" for job in ("chief", "worker") for i in range(len(cluster.get(job, [])))]
    addresses = [address for job in ("chief", "worker") for address in cluster.get(job, [])]
    if f"{kind}/{index}" not in tasks:
        raise InputError(f"TF_CONFIG says that this is {kind} {index}, and its cluster has none")
    ports = {address: re.fullmatch(r".+:(\d{1,5})", address) for address in addresses}
    wrong = [address for address, port in ports.items() if port is None or not 0 < int(port[1]) < 1 << 16]
    if wrong or len(set(addresses)) < len(addresses):
        raise InputError(f"TF_CONFIG: {(wrong or addresses)[0]!r} is not HOST:PORT, or an address is there twice")
    return Hosts(tasks, addresses, tasks.index(f"{kind}/{index}"))
