"""The DAGs on a real scheduler, PostgreSQL and API: `make test-airflow-live`. Each test goes on from the last."""

import csv
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.dags.hook import Hook, listening
from tests.live.rest import Api

REPOSITORY = Path(__file__).resolve().parents[2]
SOUNDLAKE = REPOSITORY / ".venv" / "bin" / "soundlake"
ESC10 = REPOSITORY.parent / "shared" / "corpora" / "esc10"
DAGS = {"extract_features", "train_vae", "evaluate_and_promote", "encode_corpus", "maintain_table"}
# Of each of three kinds of sound, for the first run; the fourth kind comes later.
FIRST, KINDS = 10, 4


def _local() -> Any:
    where = REPOSITORY / "infra" / "airflow" / "local.py"
    found = importlib.util.spec_from_file_location("local", where)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


local = _local()


@dataclass
class World:
    """An Airflow, its API, who it calls, its settings, a lake, and a corpus to change."""

    airflow: Any
    api: Api
    hook: Hook
    settings: Path
    audio: Path
    store: dict[str, list[Path]]
    lake: Path

    def soundlake(self, *arguments: str) -> Any:
        """A command, by hand."""
        line = [str(SOUNDLAKE), *arguments, "--lake", str(self.lake), "--json"]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    def add(self, kind: str, first: int, count: int) -> None:
        """Put files of a kind into its folder of the corpus."""
        (self.audio / kind).mkdir(parents=True, exist_ok=True)
        for path in self.store[kind][first : first + count]:
            shutil.copy(path, self.audio / kind / path.name)

    def fails(self, dag_id: str, run_id: str) -> str:
        """Wait for a run to fail, and for the one message that tells so; return what follows its first two lines."""
        assert self.api.ended(dag_id, run_id) == "failed"
        first = f"soundlake: {dag_id} failed, run {run_id}"
        until = time.monotonic() + 120
        while not (texts := [text for text in self.hook.texts if text.startswith(first)]):
            assert time.monotonic() < until, f"nobody was called: {self.hook.texts}"
            time.sleep(0.5)
        (text,) = texts
        name, address, rest = text.split("\n", 2)
        assert (name, address) == (first, f"{self.api.url}/dags/{dag_id}/runs/{urllib.parse.quote(run_id)}")
        return rest

    def judgement(self, candidate: str, known: set[str]) -> str:
        """Wait for a judgement of a candidate that is none of those known; return its name."""
        known = set(known)
        while True:
            run = self.api.next_run("evaluate_and_promote", known)
            self.api.ended("evaluate_and_promote", run)
            if self.api.xcom("evaluate_and_promote", run, "candidate") == candidate:
                return run
            # New features, too, have a model judged: the one that is in use.
            known.add(run)

    def shards(self) -> dict[str, int]:
        """Shards, and when each was written."""
        return {path.name: path.stat().st_mtime_ns for path in self.lake.glob("features/*/shards/*.tfrecord")}


def _store(folder: Path) -> dict[str, list[Path]]:
    """Files by kind: real sounds where they are at hand, else the demo corpus."""
    root, kinds = ESC10, {}
    if not ESC10.is_dir():
        root = folder / "store"
        subprocess.run([SOUNDLAKE, "synth", root, "--recordings", "96"], check=True, capture_output=True)
    with open(root / "labels.csv", newline="") as file:
        for row in csv.DictReader(file):
            kinds.setdefault(row["label"].replace(" ", "_"), []).append(root / row["uri"])
    return {kind: sorted(kinds[kind]) for kind in sorted(kinds)[:KINDS]}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("live")
    settings = folder / "soundlake.toml"
    store = _store(folder)
    with listening() as hook:
        settings.write_text(f"""
lake = "{folder}/lake"
command = ["{SOUNDLAKE}"]
alert = "{hook.url}"
[corpora.sounds]
audio = "{folder}/audio"
by_folder = true
[schedule]
extract = "0 3 * * *"
train = ""
maintain = ""
[training]
steps = 100
grown = 0.5
[limits]
retries = 2
retry_minutes = 0.05
late_hours = 0.001
""")
        airflow = local.LocalAirflow(folder / "airflow", settings)
        try:
            airflow.start()
            api = Api(airflow.url, local.USER, airflow.password)
            found = World(airflow, api, hook, settings, folder / "audio", store, folder / "lake")
            found.audio.mkdir()
            yield found
        finally:
            airflow.stop()
            # Its logs stay, to be read.
            airflow.remove_database()


def names(states: dict[str, Any], task: str) -> dict[str, Any]:
    return {name.removeprefix(f"{task} "): state for name, state in states.items() if name.startswith(f"{task} ")}


def test_dags_are_there(world: World) -> None:
    until = time.monotonic() + 120
    while world.api.dags().keys() != DAGS and time.monotonic() < until:
        time.sleep(1)
    assert world.api.dags().keys() == DAGS
    assert world.api.call("GET", "/api/v2/importErrors")["total_entries"] == 0
    for dag_id in DAGS:
        # What its page shows.
        assert len(world.api.call("GET", f"/api/v2/dags/{dag_id}/details")["doc_md"]) > 200
        world.api.pause(dag_id, paused=False)
    # A DAG that is switched on runs once at once: here on a corpus of nothing yet, as one is that is not mounted.
    run = world.api.next_run("extract_features", set())
    text = world.fails("extract_features", run)
    assert text.startswith("complete, try 1: no files in the corpus sounds: is it mounted, ")
    world.api.quiet()
    assert not world.lake.exists()


def test_a_call_that_is_wrong_is_refused(world: World) -> None:
    for params in ({"steps": -1}, {"preset": "big"}, {"seed": "x"}):
        with pytest.raises(RuntimeError, match=r"^400 "):
            world.api.trigger("train_vae", **params)
    with pytest.raises(RuntimeError, match=r"^400 "):
        world.api.trigger("evaluate_and_promote", model_id="../../etc")
    assert world.api.runs("train_vae") == []


def test_one_trigger_makes_a_promoted_model_and_a_table(world: World) -> None:
    """extract → train → evaluate and promote → encode, each started by the asset of the one before."""
    api, kinds = world.api, list(world.store)[:3]
    for kind in kinds:
        world.add(kind, 0, FIRST)
    run = api.trigger("extract_features")
    assert api.ended("extract_features", run) == "success"
    assert names(api.states("extract_features", run), "extract") == {f"sounds/{k}": "success" for k in kinds}
    (event,) = api.events("soundlake features")
    (spec,) = event["extra"]["specs"].values()
    assert (spec["done"], spec["rejected"], spec["rejects"]) == (3 * FIRST, 0, {})
    trained = api.next_run("train_vae", set())
    assert api.ended("train_vae", trained) == "success"
    judged = api.next_run("evaluate_and_promote", set())
    assert api.ended("evaluate_and_promote", judged) == "success"
    assert api.states("evaluate_and_promote", judged)["promoted"] == "success"
    api.quiet()
    # One for the features, before there was a model, and one for the model.
    encodings = api.runs("encode_corpus")
    assert [one["state"] for one in encodings] == ["success"] * len(encodings)
    status = world.soundlake("status")
    (model_id,) = [name for name, one in status["models"].items() if one["promoted"]]
    assert status["tables"][model_id]["up_to_date"]
    assert api.events("soundlake tables")[-1]["extra"]["rows"] == status["tables"][model_id]["rows"] == spec["windows"]
    query = world.store[kinds[0]][0]
    (hits,) = world.soundlake("search", str(query))["results"]
    assert Path(hits["hits"][0]["uri"]).name == query.name
    manifest = api.xcom("train_vae", trained, "train")["manifest"]
    assert (manifest["command"], manifest["result"]) == ("train", "done")


def test_new_files_alone_are_processed(world: World) -> None:
    api, kinds = world.api, list(world.store)
    before, encodings = world.shards(), {one["dag_run_id"] for one in api.runs("encode_corpus")}
    windows = world.soundlake("status")["specs"]
    world.add(kinds[0], FIRST, 2)
    world.add(kinds[3], 0, 3)
    run = api.trigger("extract_features")
    assert api.ended("extract_features", run) == "success"
    found = {}
    for one in api.tasks("extract_features", run):
        if one["task_id"] == "extract":
            found[one["rendered_map_index"]] = api.xcom("extract_features", run, "extract", one["map_index"])
    told = {name: (one["new"], one["done"], one["unchanged"]) for name, one in found.items()}
    unchanged = {f"sounds/{kind}": (0, 0, FIRST) for kind in kinds[1:3]}
    assert told == {f"sounds/{kinds[0]}": (2, 2, FIRST), f"sounds/{kinds[3]}": (3, 3, 0)} | unchanged
    assert before.items() <= world.shards().items()
    encoding = api.next_run("encode_corpus", encodings)
    assert api.ended("encode_corpus", encoding) == "success"
    (old,), (new,) = windows.values(), world.soundlake("status")["specs"].values()
    encoded = {}
    for one in api.tasks("encode_corpus", encoding):
        if one["task_id"] == "encode":
            encoded[one["rendered_map_index"]] = api.xcom("encode_corpus", encoding, "encode", one["map_index"])
    assert sum(one["encoded"] for one in encoded.values()) == new["windows"] - old["windows"]
    assert [encoded[f"sounds/{kind}"]["encoded"] for kind in kinds[1:3]] == [0, 0]
    assert api.xcom("encode_corpus", encoding, "table")["encoded"] == 0
    api.quiet()
    # Less than half as much again: no new model is due.
    assert api.states("train_vae", api.runs("train_vae")[-1]["dag_run_id"])["candidate"] == "skipped"


def test_a_task_that_failed_is_cleared_and_goes_on(world: World) -> None:
    api, kind = world.api, list(world.store)[1]
    away = world.audio.parent / "away"
    shutil.move(world.audio / kind, away)
    (world.audio / kind).mkdir()
    run = api.trigger("extract_features")
    assert api.ended("extract_features", run) == "failed"
    states = api.states("extract_features", run)
    assert {n for n, s in names(states, "extract").items() if s == "failed"} == {f"sounds/{kind}"}
    assert (states["features"], states["complete"]) == ("success", "upstream_failed")
    (one,) = [t for t in api.tasks("extract_features", run) if t["task_id"] == "extract" and t["state"] == "failed"]
    # The same call would give the same answer: it was not tried again, though there are retries.
    assert one["try_number"] == 1
    # Somebody is told which task it was, why it failed, and where its log is.
    first, address = world.fails("extract_features", run).split("\n")
    assert first.startswith(f"extract sounds/{kind}, try 1: exit code 2, not tried again: the corpus ")
    assert "is empty, but the ledger has" in first
    path = f"dags/extract_features/runs/{urllib.parse.quote(run)}/tasks/extract/mapped/{one['map_index']}"
    assert address == f"  {api.url}/{path}?try_number=1"
    log = api.log("extract_features", run, "extract", map_index=one["map_index"])
    assert "is empty, but the ledger has" in log
    assert "--allow-empty" in log
    # Nothing of it has left the lake.
    (spec,) = world.soundlake("status")["specs"].values()
    assert spec["done"] == 3 * FIRST + 5
    (world.audio / kind).rmdir()
    shutil.move(away, world.audio / kind)
    before = world.shards()
    api.clear("extract_features", run, "extract", only_failed=True)
    assert api.ended("extract_features", run) == "success"
    again = {
        t["rendered_map_index"]: t["try_number"] for t in api.tasks("extract_features", run) if t["map_index"] >= 0
    }
    assert again[f"sounds/{kind}"] == 2
    assert world.shards() == before
    api.quiet()


def test_clearing_what_is_done_changes_nothing(world: World) -> None:
    api = world.api
    before, status = world.shards(), world.soundlake("status")
    for dag_id, task in (
        ("extract_features", "extract"),
        ("encode_corpus", "table"),
        ("evaluate_and_promote", "promote"),
    ):
        run = api.runs(dag_id)[-1]["dag_run_id"]
        api.clear(dag_id, run, task)
        assert api.ended(dag_id, run) == "success"
        api.quiet()
    assert world.shards() == before
    now = world.soundlake("status")
    assert now["tables"] == status["tables"]
    assert [one["ledger_version"] for one in now["specs"].values()] == [
        one["ledger_version"] for one in status["specs"].values()
    ]


def test_a_worse_model_is_held_and_the_run_says_why(world: World) -> None:
    api = world.api
    before, judgements = world.soundlake("status"), {one["dag_run_id"] for one in api.runs("evaluate_and_promote")}
    run = api.trigger("train_vae", preset="seed", steps=2, grown=0)
    assert api.ended("train_vae", run) == "success"
    worse = api.xcom("train_vae", run, "train")["model_id"]
    judged = world.judgement(worse, judgements)
    assert api.ended("evaluate_and_promote", judged) == "success"
    states = api.states("evaluate_and_promote", judged)
    assert (states["held"], states["promoted"]) == ("success", "skipped")
    reason = api.xcom("evaluate_and_promote", judged, "held")
    assert f"model {worse} is worse than" in reason
    assert "mean square error" in reason
    assert reason in api.log("evaluate_and_promote", judged, "held")
    extra = api.events("soundlake held")[-1]["extra"]
    assert extra["model_id"] == worse
    assert extra["measures"]["error"]["worse"]
    assert extra["manifest"]["command"] == "promote"
    in_use = {name for name, one in world.soundlake("status")["models"].items() if one["promoted"]}
    assert in_use == {name for name, one in before["models"].items() if one["promoted"]}
    api.quiet()


def test_the_scheduler_is_killed_and_the_run_goes_on(world: World) -> None:
    """The whole of a training is not lost: the next try goes on from its checkpoint."""
    api, airflow = world.api, world.airflow
    before = set(world.lake.glob("models/*/checkpoints/*"))
    run = api.trigger("train_vae", seed=1, steps=400, grown=0)
    until = time.monotonic() + 240
    checkpoints: set[Path] = set()
    while not checkpoints and time.monotonic() < until:
        time.sleep(1)
        checkpoints = set(world.lake.glob("models/*/checkpoints/*")) - before
    assert checkpoints
    killed = airflow.running.pop("scheduler")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    airflow.start_process("scheduler")
    airflow.wait_healthy()
    assert api.ended("train_vae", run) == "success"
    (train,) = [one for one in api.tasks("train_vae", run) if one["task_id"] == "train"]
    assert train["try_number"] >= 2
    metrics = api.xcom("train_vae", run, "train")["metrics"]
    assert metrics["steps"] == 400
    # Longer than the trainings before: who is called of failures is called of this.
    assert world.hook.texts.count(f"soundlake: train_vae is late, run {run}: it has not ended yet") == 1
    api.quiet()


def test_a_task_that_is_killed_calls(world: World) -> None:
    """Nothing of the task itself can tell: its worker is gone."""
    api = world.api
    run = api.trigger("train_vae", seed=2, steps=400, grown=0)
    until = time.monotonic() + 240
    while api.states("train_vae", run).get("train") != "running" and time.monotonic() < until:
        time.sleep(1)
    api.fail("train_vae", run, "train")
    said, address = world.fails("train_vae", run).split("\n")
    assert said == "train: it was killed or lost before it could report an error; see its log"
    assert address == f"  {api.url}/dags/train_vae/runs/{urllib.parse.quote(run)}/tasks/train"
    api.quiet()


def test_more_rejects_than_allowed_call(world: World) -> None:
    api, kind = world.api, next(iter(world.store))
    before = world.settings.read_text()
    junk = world.audio / kind / "junk.wav"
    junk.write_bytes(b"no sound")
    world.settings.write_text(f"{before}max_rejects = 0\n")
    try:
        run = api.trigger("extract_features")
        text = world.fails("extract_features", run)
    finally:
        world.settings.write_text(before)
        junk.unlink()
    said = "exit code 4, not tried again: 1 rejects exceed --max-rejects 0"
    assert f"extract sounds/{kind}, try 1: {said}\n" in text
    # However many partitions say so.
    failed = [state for state in names(api.states("extract_features", run), "extract").values() if state == "failed"]
    assert text.count(said) == len(failed)
    again = api.trigger("extract_features")
    assert api.ended("extract_features", again) == "success"
    api.quiet()


def test_a_model_in_use_that_cannot_be_read_is_not_green(world: World) -> None:
    """The candidate is held since nobody can compare it, and encode has no model that it can read: both call.

    As after a soundlake of an older version is installed again. A training then would put its own model in use.
    """
    api = world.api
    (model_id,) = [name for name, one in world.soundlake("status")["models"].items() if one["promoted"]]
    candidate = api.events("soundlake held")[-1]["extra"]["model_id"]
    path = world.lake / "models" / model_id / "model.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | {"format_version": 999}))
    try:
        judged = api.trigger("evaluate_and_promote", model_id=candidate)
        text = world.fails("evaluate_and_promote", judged)
        assert text.startswith(f"verdict, try 1: model {candidate} cannot be compared with {model_id}: ")
        states = api.states("evaluate_and_promote", judged)
        assert (states["promote"], states["verdict"]) == ("success", "failed")
        assert states["held"] == states["promoted"] == "upstream_failed"
        encoding = api.trigger("encode_corpus")
        text = world.fails("encode_corpus", encoding)
        # Each partition says so, in one message.
        assert text.count(", try 1: exit code 2, not tried again: ") == len(world.store)
        assert all(f"encode sounds/{kind}, try 1: " in text for kind in world.store)
        assert model_id in text
    finally:
        path.write_text(whole)
    # Mended, and cleared as the page of the DAG says: judged, and found worse.
    api.clear("evaluate_and_promote", judged, "promote")
    assert api.ended("evaluate_and_promote", judged) == "success"
    assert api.states("evaluate_and_promote", judged)["held"] == "success"
    api.clear("encode_corpus", encoding, "encode", only_failed=True)
    assert api.ended("encode_corpus", encoding) == "success"
    api.quiet()


def logged(folder: Path, said: str, seconds: float = 600.0) -> str:
    """Wait for a line in the logs of a folder; return all of them."""
    until = time.monotonic() + seconds
    while said not in (text := "".join(path.read_text() for path in folder.rglob("*") if path.is_file())):
        assert time.monotonic() < until, f"not in {folder}: {said}"
        time.sleep(1)
    return text


def test_a_message_that_nobody_takes_is_in_the_log(world: World) -> None:
    api, hook, logs = world.api, world.hook, world.airflow.home / "logs"
    before, hook.status = hook.requests, 503
    run = api.trigger("evaluate_and_promote")
    assert api.ended("evaluate_and_promote", run) == "failed"
    said = "no alert was delivered: 127.0.0.1 did not accept the message: HTTP Error 503"
    text = logged(logs / "dag_processor", said)
    # What was to be told stands there, too.
    assert f"soundlake: evaluate_and_promote failed, run {run}" in text
    assert "no candidate: give a model_id" in text
    assert hook.requests == before + 3
    hook.status = 200
    # Airflow keeps the deadline of a run that failed, and calls when it has passed: nobody is told another thing then.
    logged(
        logs / "executor_callbacks" / "evaluate_and_promote" / run, f"evaluate_and_promote has ended, run {run}: failed"
    )
    assert not any(run in text for text in hook.texts)
    api.quiet()


def test_backfill(world: World) -> None:
    """Runs for days that were missed: each does what is to be done, which is nothing."""
    api = world.api
    before, known = world.shards(), {one["dag_run_id"] for one in api.runs("extract_features")}
    days = ["--from-date", "2026-02-01", "--to-date", "2026-02-03"]
    world.airflow.airflow("backfill", "create", "--dag-id", "extract_features", *days, "--max-active-runs", "1")
    api.next_run("extract_features", known)
    api.quiet()
    filled = [one for one in api.runs("extract_features") if one["dag_run_id"] not in known]
    assert [(one["run_type"], one["state"]) for one in filled] == [("backfill", "success")] * 2
    assert world.shards() == before


def test_maintain(world: World) -> None:
    api = world.api
    status = world.soundlake("status")
    run = api.trigger("maintain_table")
    assert api.ended("maintain_table", run) == "success"
    found = api.xcom("maintain_table", run, "maintain")
    assert found["manifest"]["result"] == "done"
    now = world.soundlake("status")
    assert {name: (one["rows"], one["up_to_date"]) for name, one in now["tables"].items()} == {
        name: (one["rows"], one["up_to_date"]) for name, one in status["tables"].items()
    }


def test_each_run_was_told_once(world: World) -> None:
    failed = [text.split("\n")[0].split()[-1] for text in world.hook.texts if " failed, run " in text]
    assert len(set(failed)) == len(failed) >= 6
    late = [text for text in world.hook.texts if text.endswith(": it has not ended yet")]
    assert len(set(late)) == len(late)
    assert len(failed) + len(late) == len(world.hook.texts)
