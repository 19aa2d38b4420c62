"""Several hosts that train one model together: their addresses, the exchange of data, and detection of a lost host.

Each host runs the same command on the same lake; TF_CONFIG assigns the roles, in TensorFlow's format. Only the chief
writes. It sends the data that only it has (statistics, checkpoints) to the others over the network, bit for bit.
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

# Seconds that hosts wait for all others to join, and for a heartbeat of each.
JOINING, SILENCE = 600, 30


@dataclass
class Hosts:
    """All hosts of a training, from the view of one of them; usually there is only one.

    Attributes
    ----------
    tasks : sequence of str
        TensorFlow's names of the hosts (``worker/1``), the chief first.
    addresses : sequence of str
        Host and port of each.
    index : int
        Index of this process among them.
    strategy : tf.distribute.Strategy or None
        Over all devices of all hosts, after `join`; None if there is only one host.
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
        """Number of hosts."""
        return len(self.tasks)

    @property
    def is_chief(self) -> bool:
        """Whether this host is the chief, which writes all results."""
        return self.index == 0

    def join(self) -> None:
        """Join the other hosts; must be called before TensorFlow computes anything.

        Raises
        ------
        TryLaterError
            If not all hosts join within `JOINING` seconds, or the port is taken.
        """
        if self.count == 1:
            return
        self._meet()
        import tensorflow as tf
        from tensorflow.compiler.xla.tsl.protobuf.coordination_config_pb2 import CoordinatedJob
        from tensorflow.python.eager import context

        jobs = [task.split("/")[0] for task in self.tasks]
        # The same settings as the strategy's own, except for the timeouts: no public call sets them, and the default is
        # an hour.
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
        """Wait until a process answers at every address: TensorFlow would wait endlessly for a missing host."""
        own_address = self.addresses[self.index]
        port, both = int(own_address.rsplit(":", 1)[1]), socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        deadline = time.monotonic() + JOINING
        try:
            listening = socket.create_server(("", port), family=family, dualstack_ipv6=both)
        except OSError as error:
            todo = "stop the program that uses the port" if error.errno == errno.EADDRINUSE else "see TF_CONFIG"
            raise TryLaterError(f"cannot listen at {own_address}: {error.strerror}; {todo}") from error
        # A host that connects after this socket closes reaches TensorFlow, which listens on the same port.
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
        """Context manager for a block that all hosts run together.

        Raises
        ------
        TryLaterError
            If one of the hosts is lost in the block.
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
        """The other host that a TensorFlow error names, in words."""
        for job, task in re.findall(r"/job:(\w+)(?:/replica:0)?/task:(\d+)", message):
            number = self.tasks.index(f"{job}/{task}") if f"{job}/{task}" in self.tasks else self.index
            if number != self.index:
                return f"host {number} of {self.count} ({self.addresses[number]})"
        return f"one of the {self.count} hosts"

    def gathered(self, mine: bytes) -> list[bytes]:
        """The bytes of every host, in the order of hosts."""
        if self.count == 1:
            return [mine]
        sizes = np.zeros(self.count, np.int64)
        sizes[self.index] = len(mine)
        sizes = self._sum(sizes)
        # Bytes are sent as whole words, in a sum to which all hosts but one add 0. At least one word each: an empty sum
        # crashes the process.
        words = sizes // 8 + 1
        begins = np.concatenate([[0], np.cumsum(words)])
        summed = np.zeros(begins[-1], np.int64)
        padded = mine + bytes(8 - len(mine) % 8)
        summed[begins[self.index] : begins[self.index + 1]] = np.frombuffer(padded, np.int64)
        summed = self._sum(summed)
        return [summed[begins[i] : begins[i + 1]].tobytes()[: sizes[i]] for i in range(self.count)]

    def from_chief(self, mine: bytes) -> bytes:
        """The bytes of the chief; `mine` of other hosts is ignored."""
        return self.gathered(mine if self.is_chief else b"")[0]

    def _sum(self, numbers: Any) -> Any:
        import tensorflow as tf

        # Without `identity` the constant may be on a device that collectives do not support, which crashes the process.
        return self.strategy.reduce("SUM", tf.identity(tf.constant(numbers)), axis=None).numpy()

    def agree(self, made_from: Mapping[str, Any]) -> None:
        """Check that all hosts are about to train the same model.

        Raises
        ------
        InputError
            If their settings differ.
        TryLaterError
            If their data or soundlake differs, for example since the lake has changed while the hosts joined.
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
        """Set variables to their values on the chief."""
        if self.count == 1:
            return
        values = [np.asarray(variable.numpy()) for variable in variables]
        data = self.from_chief(b"".join(value.tobytes() for value in values))
        if self.is_chief:
            return
        begin = 0
        for variable, value in zip(variables, values, strict=True):
            new = np.frombuffer(data, value.dtype, value.size, begin).reshape(value.shape)
            variable.assign(new)
            begin += value.nbytes


def from_environment() -> Hosts:
    """The hosts of TF_CONFIG; a single host without it.

    Raises
    ------
    InputError
        If TF_CONFIG is malformed, or contains other roles than chief and worker.
    """
    text = os.environ.get("TF_CONFIG")
    # An empty value is an error, as in TensorFlow.
    if text is None:
        return Hosts()
    try:
        config = json.loads(text)
        cluster = {job: [str(address) for address in members] for job, members in config["cluster"].items()}
        kind, index = str(config["task"]["type"]), int(config["task"]["index"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            'TF_CONFIG is not of the form {"cluster": {"worker": ["HOST:PORT", …]}, "task": {"type": "worker", '
            f'"index": 0}}: {type(error).__name__}: {error}'
        ) from error
    unknown = sorted({*cluster, kind} - {"chief", "worker"})
    if unknown:
        raise InputError(f"TF_CONFIG names {unknown[0]!r}: a training has a chief (or none) and workers, nothing else")
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
