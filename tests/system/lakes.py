"""Lakes made by real commands, each in a process of its own, and what two lakes are compared by."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lance

from soundlake.model.features.records import DamagedShardError, read_framed

ROOT = Path(__file__).resolve().parents[2]

# The command line with small bundles and frequent checkpoints: little work in many pieces.
SMALL = """
from soundlake.pipelines.cli import program
program.prepare()
from soundlake.pipelines import commands
from soundlake.pipelines.extract import plan
plan.MIN_BUNDLE_WINDOWS = 8
train = commands.train
commands.train = lambda lake, *, settings, **given: train(lake, settings=settings | {"evaluate_every": 4}, **given)
program.script()
"""
WHOLE = "from soundlake.pipelines.cli.program import script; script()"

# Root loses the right to ignore permissions (capability 1) at the next execution; nobody else has it.
BOUND = "import ctypes, os, sys; ctypes.CDLL(None).prctl(24, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"

# In the environment of a command and of every process that it starts.
MARK = "SOUNDLAKE_TEST_MARK"

# By which libraries would find a way out.
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


def no_network() -> list[str]:
    """What goes before a command for a network of its own, with nobody in it; nothing where the system forbids that."""
    words = ["unshare", "--map-root-user", "--net"]
    try:
        subprocess.run([*words, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return words


class Command:
    """A soundlake command in a process and a session of its own.

    Parameters
    ----------
    arguments : str or Path
        What follows ``soundlake``.
    small : bool
        Whether bundles are small and checkpoints frequent.
    bound : bool
        Whether permissions bind it even where the test runs as root.
    offline : bool
        Whether it has no network: none at all where the system lets us take it away, and dead proxies in any case.
    environment : mapping
        Variables beside those of this process.
    """

    def __init__(
        self,
        *arguments: str | Path,
        small: bool = False,
        bound: bool = False,
        offline: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._mark = uuid.uuid4().hex
        # Files, not pipes: what a killed command leaves behind may hold them open.
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115
        first = [sys.executable, "-c", BOUND] if bound else []
        first += no_network() if offline else []
        proxies = dict.fromkeys(PROXIES, "http://127.0.0.1:9") if offline else {}
        self.process = subprocess.Popen(
            [*first, sys.executable, "-c", SMALL if small else WHOLE, *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
            env={
                **os.environ,
                **proxies,
                **(environment or {}),
                MARK: self._mark,
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        )

    def end(self) -> int:
        """Wait for its end; return the exit code."""
        return self.process.wait(600)

    def ended_before(self, seconds: float) -> bool:
        """Whether it ends within some seconds."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self, *, group: bool = False) -> bool:
        """SIGKILL, to the main process alone or to its whole group; whether it came before the end."""
        if group:
            os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        return self.process.wait() == -signal.SIGKILL

    @property
    def out(self) -> str:
        """What it said on stdout."""
        self._out.seek(0)
        return self._out.read().decode()

    @property
    def err(self) -> str:
        """What it said on stderr."""
        self._err.seek(0)
        return self._err.read().decode()

    def left(self) -> list[int]:
        """Processes that it started and that still run."""
        found = []
        for environment in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"{MARK}={self._mark}".encode() in environment.read_bytes().split(b"\0"):
                    found.append(int(environment.parent.name))
            except OSError:
                continue
        return found

    def is_gone(self, seconds: float) -> bool:
        """Whether nothing of it runs any more, now or within some seconds."""
        deadline = time.monotonic() + seconds
        while self.left():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def done(*arguments: str | Path, small: bool = False) -> Command:
    """Run a command to its end, which must be a good one."""
    command = Command(*arguments, small=small)
    assert command.end() == 0, command.err
    return command


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shards(lake: Path) -> dict[str, str]:
    """Digests of a lake's shards by name."""
    return {path.name: _digest(path) for path in lake.glob("features/*/shards/*.tfrecord")}


def outcomes(lake: Path) -> set[str]:
    """Names of the bundles that are done."""
    return {path.stem for path in lake.glob("features/*/outcomes/*.parquet")}


def ledger_rows(lake: Path) -> list[dict[str, Any]]:
    """All rows of the one ledger, all columns."""
    (path,) = lake.glob("features/*/ledger.lance")
    return sorted(lance.dataset(str(path)).to_table().to_pylist(), key=lambda row: row["uri"])


def table_rows(lake: Path) -> list[dict[str, Any]]:
    """All rows of the one table, all columns."""
    (path,) = lake.glob("tables/*.lance")
    return sorted(lance.dataset(str(path)).to_table().to_pylist(), key=lambda row: row["id"])


def weights(lake: Path, model_id: str = "*") -> dict[str, bytes]:
    """Bytes of a model's arrays by name, of the one that there is unless one is named."""
    import h5py

    (path,) = lake.glob(f"models/{model_id}/weights.weights.h5")
    found: dict[str, bytes] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item[()].tobytes()}) if isinstance(item, h5py.Dataset) else None
        )
    return found


def half_made(lake: Path) -> Iterator[Path]:
    """Files that a reader of the lake would see and that are not whole, or that belong to nothing.

    A reader sees no name that begins with a dot.
    """
    for path in lake.glob("features/*/shards/*"):
        if not path.name.startswith("."):
            with open(path, "rb") as file:
                try:
                    count = sum(1 for _ in read_framed(file))
                except DamagedShardError:
                    count = 0
            if not count or path.suffix != ".tfrecord":
                yield path
    for path in lake.glob("features/*/outcomes/*"):
        if not path.name.startswith(".") and path.suffix != ".parquet":
            yield path


def temporary(lake: Path) -> list[Path]:
    """What was to become a file and did not: ours, and Lance's."""
    return [path for path in lake.rglob("*") if path.name.startswith((".part-", "part-", ".tmp")) or "#" in path.name]
