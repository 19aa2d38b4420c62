"""Extract and encode on a real Flink: `make test-flink`. What comes out is what the local engine makes, bit for bit."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from soundlake.pipelines.engine import job_server
from soundlake.pipelines.engine.runners import beam_options
from tests.cluster.conftest import Local, Timings
from tests.cluster.flink import HOME, SLOTS, Session
from tests.cluster.processes import harnesses, wait_for, writers
from tests.system.lakes import Command, half_made, ledger_rows, outcomes, shards, table_rows

# A machine with much else to do takes minutes for what a quiet one does in seconds.
SECONDS = 300.0
EMBEDDED = ("--", "--runner=FlinkRunner")


@pytest.fixture(scope="module")
def flink(tmp_path_factory: pytest.TempPathFactory, timings: Timings) -> Iterator[Session]:
    assert HOME.is_dir(), f"there is no Flink at {HOME}: make flink-jars"
    with timings.of("Flink: start of a JobManager and two TaskManagers"):
        session = Session(tmp_path_factory.mktemp("flink"))
        try:
            session.add_taskmanagers(2)
        except BaseException:
            session.stop()
            raise
    yield session
    session.stop()


def beam(session: Session) -> tuple[str, ...]:
    """What a user types."""
    return (*EMBEDDED, f"--flink-master={session.master}")


def told(command: Command, timings: Timings, what: str) -> None:
    """Take from what a command said how long its job server needed."""
    (seconds,) = re.findall(r"ready at localhost:\d+ after ([\d.]+) s", command.err)
    timings.add(f"{what}, its job server's start", float(seconds))


def accounted(command: Command) -> None:
    """All files of the corpus came out, and one is a reject."""
    found = json.loads(command.out)
    assert (found["done"], found["rejected"]) == (found["listed"] - 1, 1)


def extracted(local: Local, lake: Path, timings: Timings, what: str, *options: str) -> None:
    """Extract into a new lake; give it the model of the local one."""
    with timings.of(f"{what}: extract"):
        command = Command("extract", local.audio, "--lake", lake, "--json", *options)
        assert command.end() == 0, command.err
    told(command, timings, f"{what}: extract")
    accounted(command)
    assert command.is_gone(30)
    shutil.copytree(local.lake / "models", lake / "models")


def same(lake: Path, local: Local) -> None:
    """Every shard, and every row of ledger and table, are those of the local run."""
    assert len(shards(local.lake)) > 1
    assert shards(lake) == shards(local.lake)
    assert ledger_rows(lake) == ledger_rows(local.lake)
    assert len(table_rows(lake)) > 1
    assert table_rows(lake) == table_rows(local.lake)
    assert not [*half_made(lake)]


def test_the_embedded_cluster(local: Local, timings: Timings, tmp_path: Path) -> None:
    """Nothing but the runner is named; and a job server that others have started is found."""
    lake, what = tmp_path / "lake", "Flink, embedded"
    extracted(local, lake, timings, what, *EMBEDDED)
    cluster = job_server.CLUSTERS["FlinkRunner"]
    with timings.of(f"{what}: start of a job server"):
        server = job_server.JobServer(cluster, beam_options(EMBEDDED[1:]).options)
    try:
        with timings.of(f"{what}: encode"):
            command = Command("encode", "--lake", lake, *EMBEDDED, f"--job_endpoint={server.endpoint}")
            assert command.end() == 0, command.err
        assert "job server" not in command.err
    finally:
        server.stop()
    same(lake, local)


@pytest.fixture(scope="module")
def lake(flink: Session, local: Local, timings: Timings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake that the session cluster has made: shards and table, with the local one's model."""
    made, what = tmp_path_factory.mktemp("lake") / "lake", "Flink, session"
    extracted(local, made, timings, what, *beam(flink))
    with timings.of(f"{what}: encode"):
        command = Command("encode", "--lake", made, *beam(flink))
        assert command.end() == 0, command.err
    told(command, timings, f"{what}: encode")
    return made


def test_a_session_cluster(lake: Path, local: Local, flink: Session) -> None:
    same(lake, local)
    job = flink.newest()
    assert job["state"] == "FINISHED"
    assert not flink.failures(job)
    # All slots of both TaskManagers had a part in it.
    (subtasks,) = [one["subtasks"] for one in flink.steps(job, "encode")]
    assert {one["taskmanager-id"] for one in subtasks} == flink.taskmanagers()
    assert len(subtasks) == 2 * SLOTS
    assert len(flink.taskmanagers()) == 2


def test_a_taskmanager_killed_at_work_costs_nothing(
    flink: Session, local: Local, timings: Timings, tmp_path: Path
) -> None:
    lake = tmp_path / "lake"
    command = Command("extract", local.audio, "--lake", lake, "--json", *beam(flink))

    def at_work() -> str | None:
        """Who holds a bundle that is half written, with some done and most of them not."""
        for folder in lake.glob("features/*/shards"):
            if 0 < len(outcomes(lake)) < len(shards(local.lake)) / 2:
                return next(filter(None, map(flink.holder, writers(folder))), None)
        assert command.process.poll() is None, command.err
        return None

    with timings.of("Flink, session: extract, a TaskManager killed"):
        killed = wait_for(at_work, seconds=SECONDS, every=0)
        flink.kill(killed)
        finished = len(outcomes(lake))
        assert command.end() == 0, command.err
    assert finished < len(shards(local.lake))

    job = flink.newest()
    assert job["state"] == "FINISHED"
    assert f"TaskManager with id {killed} is no longer reachable" in json.dumps(flink.failures(job))
    (subtasks,) = [one["subtasks"] for one in flink.steps(job, "write bundles")]
    again = [one for one in subtasks if one["attempt"] > 0]
    assert again
    assert {one["status"] for one in again} == {"FINISHED"}
    assert {one["taskmanager-id"] for one in again} == flink.taskmanagers()

    accounted(command)
    assert shards(lake) == shards(local.lake)
    assert ledger_rows(lake) == ledger_rows(local.lake)
    assert not [*half_made(lake)]
    # What it had started ends by itself: nobody else would end it.
    assert wait_for(lambda: all(map(flink.holder, harnesses(flink.mark))), seconds=30)
    flink.add_taskmanagers(1)


def test_what_a_worker_finds_wrong_is_one_line(lake: Path, flink: Session, tmp_path: Path) -> None:
    """The cluster tries it again, as it does with everything; then it is told as if it had happened here."""
    damaged = tmp_path / "lake"
    shutil.copytree(lake, damaged, ignore=shutil.ignore_patterns("tables"))
    shard = next(damaged.glob("features/*/shards/*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[:-100])
    command = Command("encode", "--lake", damaged, *beam(flink))
    assert command.end() == 2, command.err
    own = r"soundlake: (job server of Flink|encoding:) .*"
    (line,) = [line for line in command.err.splitlines() if not re.fullmatch(own, line)]
    assert re.fullmatch(rf"soundlake: the shard .*{shard.name} cannot be read: .*--repair --lake .*", line)
    assert flink.newest()["state"] == "FAILED"


def test_no_cluster_there(local: Local, tmp_path: Path) -> None:
    command = Command("extract", local.audio, "--lake", tmp_path / "lake", *EMBEDDED, "--flink-master=localhost:1")
    assert command.end() == 75
    assert re.fullmatch(r"soundlake: no Flink answers at localhost:1 .*\n", command.err)
