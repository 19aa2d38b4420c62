"""Extract and encode on a real Spark: `make test-spark`. What comes out is what the local engine makes, bit for bit."""

import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from soundlake.pipelines.engine import job_server
from soundlake.pipelines.engine.runners import beam_options
from tests.cluster.conftest import Local, Timings
from tests.cluster.processes import harnesses, wait_for, writers
from tests.cluster.spark import HOME, SHORT, Standalone
from tests.system.lakes import Command, half_made, ledger_rows, outcomes, shards, table_rows

# A machine with much else to do takes minutes for what a quiet one does in seconds.
SECONDS = 300.0


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory, timings: Timings) -> Iterator[Standalone]:
    assert HOME.is_dir(), f"there is no Spark at {HOME}: make spark-jars"
    with timings.of("Spark: start of a master and two workers"):
        cluster = Standalone(tmp_path_factory.mktemp("spark"))
        try:
            cluster.add_workers(2)
        except BaseException:
            cluster.stop()
            raise
    yield cluster
    cluster.stop()


def beam(cluster: Standalone) -> list[str]:
    """What a user types, and that Spark keeps its log of events."""
    events = f"-Dspark.eventLog.enabled=true -Dspark.eventLog.dir=file:{cluster.events} -Dspark.ui.port=0"
    properties = [*SHORT.split(), *events.split(), f"-Dspark.executor.extraJavaOptions={SHORT}"]
    given = [f"--job_server_jvm_properties={one}" for one in properties]
    return ["--", "--runner=SparkRunner", f"--spark-master={cluster.url}", *given]


def told(command: Command, timings: Timings, what: str) -> None:
    """Take from what a command said how long its job server needed."""
    (seconds,) = re.findall(r"ready at localhost:\d+ after ([\d.]+) s", command.err)
    timings.add(f"Spark: {what}, its job server's start", float(seconds))


def accounted(command: Command) -> tuple[int, int, int]:
    """Files listed, done and rejected."""
    found = json.loads(command.out)
    return found["listed"], found["done"], found["rejected"]


@pytest.fixture(scope="module")
def lake(spark: Standalone, local: Local, timings: Timings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake that Spark has made: shards and table, with the local one's model."""
    made = tmp_path_factory.mktemp("lake") / "lake"
    with timings.of("Spark: extract"):
        command = Command("extract", local.audio, "--lake", made, "--json", *beam(spark))
        assert command.end() == 0, command.err
    told(command, timings, "extract")
    listed, good, rejected = accounted(command)
    assert (good, rejected) == (listed - 1, 1)
    assert command.is_gone(30)
    shutil.copytree(local.lake / "models", made / "models")
    with timings.of("Spark: encode"):
        command = Command("encode", "--lake", made, *beam(spark))
        assert command.end() == 0, command.err
    told(command, timings, "encode")
    return made


def test_every_shard_and_row_is_the_local_runs(lake: Path, local: Local, spark: Standalone) -> None:
    assert len(shards(local.lake)) > 1
    assert shards(lake) == shards(local.lake)
    assert ledger_rows(lake) == ledger_rows(local.lake)
    assert len(table_rows(lake)) > 1
    assert table_rows(lake) == table_rows(local.lake)
    # Both workers had a part in it.
    assert {event["Executor ID"] for event in spark.told() if event["Event"] == "SparkListenerExecutorAdded"} == {
        "0",
        "1",
    }
    assert wait_for(lambda: not harnesses(spark.mark), seconds=30)


def test_a_worker_killed_at_work_costs_nothing(
    spark: Standalone, local: Local, timings: Timings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lake = tmp_path_factory.mktemp("killed") / "lake"
    command = Command("extract", local.audio, "--lake", lake, "--json", *beam(spark))

    def at_work() -> tuple[int, int, int] | None:
        """Who holds a bundle that is half written, with some done and most of them not."""
        for folder in lake.glob("features/*/shards"):
            if len(outcomes(lake)) < len(shards(local.lake)) / 2:
                return next(filter(None, map(spark.holders, writers(folder))), None)
        assert command.process.poll() is None, command.err
        return None

    with timings.of("Spark: extract, a worker killed"):
        worker, executor, harness = wait_for(at_work, seconds=SECONDS, every=0.01)
        finished = len(outcomes(lake))
        for pid in (worker, executor, harness):
            os.kill(pid, signal.SIGKILL)
        assert command.end() == 0, command.err
    assert finished < len(shards(local.lake))

    ended = [event for event in spark.told() if event["Event"] == "SparkListenerTaskEnd"]
    lost = {
        (event["Stage ID"], event["Task Info"]["Index"])
        for event in ended
        if event["Task End Reason"]["Reason"] == "ExecutorLostFailure"
    }
    again = {(e["Stage ID"], e["Task Info"]["Index"]) for e in ended if e["Task End Reason"]["Reason"] == "Success"}
    assert lost
    assert lost <= again

    listed, good, rejected = accounted(command)
    assert (good, rejected) == (listed - 1, 1)
    assert shards(lake) == shards(local.lake)
    assert ledger_rows(lake) == ledger_rows(local.lake)
    assert not [*half_made(lake)]
    # What it had started ends by itself: nobody else would end it.
    assert wait_for(lambda: not harnesses(spark.mark), seconds=30)
    spark.add_workers(1)


def test_what_a_worker_says_about_its_input_comes_back(lake: Path, spark: Standalone, tmp_path: Path) -> None:
    """Through a job server that others have started."""
    copy = tmp_path / "lake"
    shutil.copytree(lake, copy, ignore=shutil.ignore_patterns("tables"))
    damaged = min((copy / "features").glob("*/shards/*.tfrecord"))
    damaged.write_bytes(damaged.read_bytes()[:-7])
    engine = beam_options(beam(spark)[1:])
    assert engine.cluster is not None
    server = job_server.JobServer(engine.cluster, engine.options)
    try:
        given = ["--runner=SparkRunner", f"--job_endpoint={server.endpoint}"]
        command = Command("encode", "--lake", copy, "--", *given)
        assert command.end() == 2, command.err
        assert server.died() is None
    finally:
        server.stop()
    (said,) = [line for line in command.err.splitlines() if "shard" in line]
    assert said.startswith(f"soundlake: the shard {damaged} cannot be read")
    assert "Exception" not in command.err
    assert not (copy / "tables").exists() or not table_rows(copy)


def test_an_interrupt_ends_all_of_it(local: Local, spark: Standalone, tmp_path: Path) -> None:
    # Whoever calls these tests may have told them to ignore it, and that is inherited.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    command = Command("extract", local.audio, "--lake", tmp_path / "lake", *beam(spark))
    signal.signal(signal.SIGINT, before)
    wait_for(lambda: harnesses(spark.mark) or command.process.poll(), seconds=SECONDS)
    # As a terminal does, to all that the command has started.
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.end() == 130, command.err
    assert command.err.splitlines()[-1].startswith("soundlake: interrupted; finished work is kept")
    assert command.is_gone(30)
    assert wait_for(lambda: not harnesses(spark.mark) and not spark.state()["activeapps"], seconds=60)
