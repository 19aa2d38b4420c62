"""Runs of the DAGs with the real commands on a small corpus: what each task comes to, and what is in the lake after."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.dags.bags import REPOSITORY, bag_with
from tests.dags.hook import Hook, listening

PROGRAM = REPOSITORY / ".venv/bin/soundlake"
pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason="needs .venv/bin/soundlake: make .venv/ready")

# Two kinds of sound a folder, by names that a shell, a template and an option parser would each take for their own.
FOLDERS = {"-x": ("beeper", "drum"), "a {{ b }} 'c'": ("bell", "bird")}
# What has no folders: a corpus of its own.
CITY = ("engine", "rain", "voice", "wind")


@dataclass(frozen=True)
class Run:
    """A run of a DAG that has ended.

    Attributes
    ----------
    state : str
    tasks : dict
        State by task, or by task and title of a mapped one.
    found, errors : dict
        What each task gave, by the same; and what each that failed kept of its error.
    events : list
        Names of assets, and what their events carry, in order.
    calls : list
        What the address in the settings was told.
    """

    state: str
    tasks: dict[Any, str]
    found: dict[Any, Any]
    errors: dict[Any, Any]
    events: list[tuple[str, dict[str, Any]]]
    calls: list[str]


class World:
    """A corpus in two, a lake, and an Airflow whose DAGs know them."""

    def __init__(self, root: Path, hook: Hook) -> None:
        self.root, self.lake, self.hook = root, root / "the lake", hook
        self.command("synth", str(root / "made"), "--recordings", "24")
        self.birds, self.city = root / "birds", root / "city"
        places = {kind: f"{folder}/{kind}" for folder, kinds in FOLDERS.items() for kind in kinds}
        for kind in (*places, *CITY):
            target = self.birds / places[kind] if kind in places else self.city / kind
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(root / "made" / kind, target)
        with (root / "made" / "labels.csv").open(newline="") as file:
            labels = list(csv.DictReader(file))
        os.remove(root / "made" / "labels.csv")
        for kinds, path in ((places, self.birds / "labels.csv"), ({kind: kind for kind in CITY}, root / "city.csv")):
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, labels[0])
                writer.writeheader()
                for row in labels:
                    if row["label"] in kinds:
                        writer.writerow(row | {"uri": f"{kinds[row['label']]}/{Path(row['uri']).name}"})
        # Two files that are no use, beside the folders.
        for file in (root / "made").iterdir():
            shutil.move(file, self.birds / file.name)

    def command(self, *arguments: str) -> str:
        """A command by hand; its stdout."""
        done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.command("status", "--lake", str(self.lake), "--json")))

    def spec(self) -> dict[str, Any]:
        (spec,) = self.status()["specs"].values()
        return dict(spec)

    def run(self, dag_id: str, conf: dict[str, Any] | None = None, *, by_folder: bool = True, limits: str = "") -> Run:
        """Run a DAG to its end, in this process."""
        from airflow.models.asset import AssetEvent, AssetModel
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session
        from sqlalchemy import select

        text = "\n".join(
            (
                f'lake = "{self.lake}"',
                f'command = ["{PROGRAM}"]',
                f'alert = "{self.hook.url}"',
                f'[corpora.birds]\naudio = "{self.birds}"\nby_folder = {str(by_folder).lower()}',
                f'[corpora.city]\naudio = "{self.city}"\nlabels = "{self.root}/city.csv"',
                # dag.test would wait for the time of another try.
                f"[limits]\nretries = 0\n{limits}",
            )
        )
        bag = bag_with(self.root, text)
        assert bag.import_errors == {}
        dag = bag.dags[dag_id]
        # Airflow 3.3.2: DagRun.update_state fails on the deadlines of a DAG in dag.test ("dict has no attribute hex").
        dag.deadline = None
        before = len(self.hook.texts)
        with pytest.MonkeyPatch.context() as patch:
            # dag.test reads all DAGs once more.
            patch.setenv("SOUNDLAKE_SETTINGS", str(self.root / "soundlake.toml"))
            run = dag.test(run_conf=conf)
        tasks, found, errors, names = {}, {}, {}, {}
        for one in run.get_task_instances():
            # A mapped task that came to nothing has one instance, and no title.
            name = (one.task_id, one.rendered_map_index) if one.rendered_map_index else one.task_id
            tasks[name], names[one.task_id, one.map_index] = str(one.state), name
        with create_session() as session:
            for key, values in (("return_value", found), ("error", errors)):
                for row in session.scalars(XComModel.get_many(run_id=run.run_id, dag_ids=dag_id, key=key)):
                    values[names[row.task_id, row.map_index]] = XComModel.deserialize_value(row)
            query = select(AssetModel.name, AssetEvent.extra).join(AssetModel, AssetModel.id == AssetEvent.asset_id)
            query = query.where(AssetEvent.source_run_id == run.run_id, AssetEvent.source_dag_id == dag_id)
            events = [(name, extra) for name, extra in session.execute(query.order_by(AssetEvent.id))]
        # PostgreSQL's JSON has no NaN.
        json.dumps([list(found.values()), events], allow_nan=False)
        return Run(str(run.state), tasks, found, errors, events, self.hook.texts[before:])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    program = [sys.executable, "-m", "airflow"]
    for command in (["db", "migrate"], ["pools", "import", str(REPOSITORY / "infra/airflow/pools.json")]):
        done = subprocess.run([*program, *command], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    with listening() as hook:
        yield World(tmp_path_factory.mktemp("world"), hook)


PARTS = [f"birds/{name}" for name in ("-x", ".", "a {{ b }} 'c'")]
EXTRACTED = {("extract", part): "success" for part in (*PARTS, "city")}


@pytest.fixture(scope="module")
def extracted(world: World) -> Run:
    return world.run("extract_features")


@pytest.fixture(scope="module")
def without_model(world: World, extracted: Run) -> Run:
    return world.run("encode_corpus")


@pytest.fixture(scope="module")
def trained(world: World, without_model: Run) -> Run:
    return world.run("train_vae", {"steps": 60})


@pytest.fixture(scope="module")
def model_id(trained: Run) -> str:
    return str(trained.found["candidate"])


@pytest.fixture(scope="module")
def promoted(world: World, model_id: str) -> Run:
    return world.run("evaluate_and_promote", {"model_id": model_id})


@pytest.fixture(scope="module")
def encoded(world: World, promoted: Run) -> Run:
    return world.run("encode_corpus")


def test_extract_features(world: World, extracted: Run) -> None:
    expected = {("partitions", "birds"): "success", "works": "success", "features": "success", "complete": "success"}
    assert extracted.tasks == expected | EXTRACTED
    assert extracted.state == "success"
    listed = {part: found["listed"] for (task, part), found in named(extracted, "extract").items()}
    assert listed == {"birds/-x": 6, "birds/.": 2, "birds/a {{ b }} 'c'": 6, "city": 12}
    assert all(found["manifest"]["command"] == "extract" for found in named(extracted, "extract").values())
    # The corpus has 24 recordings, and two files that are no use.
    spec = world.spec()
    assert (spec["done"], spec["rejected"]) == (24, 2)
    ((name, extra),) = extracted.events
    ((spec_id, told),) = extra["specs"].items()
    assert name == "soundlake features"
    assert spec_id == extracted.found["extract", "city"]["spec_id"]
    assert told == {name: spec[name] for name in told if name != "rejects"} | {"rejects": told["rejects"]}
    assert told["rejects"] == {reason: one["count"] for reason, one in spec["rejects"].items()}
    assert sum(told["rejects"].values()) == 2
    assert told["windows"] >= 24
    # Each corpus has its labels, and none that no file has.
    assert all(found["labels_without_file"] == 0 for found in named(extracted, "extract").values())


def named(run: Run, task: str) -> dict[tuple[str, str], Any]:
    return {name: found for name, found in run.found.items() if isinstance(name, tuple) and name[0] == task}


def files(root: Path) -> dict[str, tuple[str, int]]:
    """Digest and time of each file."""
    return {
        str(path.relative_to(root)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_extract_features_again_changes_nothing(world: World, extracted: Run) -> None:
    before, version = files(world.lake / "features"), world.spec()["ledger_version"]
    assert any("/shards/" in name for name in before)
    again = world.run("extract_features")
    assert (again.state, again.tasks) == ("success", extracted.tasks)
    assert [found["done"] for found in named(again, "extract").values()] == [0] * 4
    assert files(world.lake / "features") == before
    assert world.spec()["ledger_version"] == version
    assert again.events == extracted.events


def test_a_partition_that_fails(world: World, extracted: Run, capfd: pytest.CaptureFixture[str]) -> None:
    away = world.root / "away"
    os.rename(world.birds / "-x", away)
    try:
        run = world.run("extract_features")
    finally:
        os.rename(away, world.birds / "-x")
    expected = extracted.tasks | {("extract", "birds/-x"): "failed", "complete": "upstream_failed"}
    assert (run.state, run.tasks) == ("failed", expected)
    # One call for the run, of the task that failed. What it was is with the task: dag.test has nobody to ask for it.
    (text,) = run.calls
    assert text.startswith("soundlake: extract_features failed, run manual__")
    assert "\nextract: its error could not be read (" in text
    (kept,) = run.errors.values()
    assert kept["title"] == "birds/-x"
    assert kept["error"].startswith("exit code 2, not tried again: ")
    assert kept["log"] in text
    # What the others did is told all the same.
    assert run.events == extracted.events
    # The log ends with what the command said.
    errors = [line for line in capfd.readouterr().out.splitlines() if line.startswith("airflow.sdk.exceptions.")]
    assert errors
    for line in errors:
        assert line.startswith("airflow.sdk.exceptions.AirflowFailException: exit code 2, not tried again: ")
        assert "--allow-empty" in line


def test_encode_corpus_waits_for_a_model(without_model: Run) -> None:
    assert without_model.tasks == {
        "status": "success",
        "model": "success",
        # A mapped task that never ran has its number for a title, if there is one.
        **dict.fromkeys((("partitions", "0"), "works", "encode", "table"), "skipped"),
    }
    assert (without_model.state, without_model.events) == ("success", [])


def test_train_vae(world: World, trained: Run, model_id: str) -> None:
    assert trained.tasks == dict.fromkeys(("arguments", "train", "due", "candidate"), "success")
    assert trained.state == "success"
    result = trained.found["train"]
    assert (result["trained"], result["promoted"], result["judged"]) == (True, True, False)
    assert result["manifest"]["settings"]["max_steps"] == 60
    windows = world.spec()["windows"]
    assert (result["windows"], result["seen"]) == (windows, 0)
    ((name, extra),) = trained.events
    assert (name, extra["model_id"], extra["trained"]) == ("soundlake candidates", model_id, True)
    assert sum(extra["windows"].values()) == windows
    assert extra["manifest"]["settings"]["max_steps"] == 60


def test_train_vae_again_is_not_due(world: World, trained: Run, model_id: str) -> None:
    again = world.run("train_vae", {"steps": 60})
    assert again.tasks == trained.tasks | {"candidate": "skipped"}
    assert (again.state, again.events) == ("success", [])
    assert again.found["train"]["trained"] is False
    assert list(world.status()["models"]) == [model_id]


def test_evaluate_and_promote(promoted: Run, model_id: str, world: World) -> None:
    names = ("candidate", "evaluation", "evaluate", "promotion", "promote", "verdict", "promoted")
    assert promoted.tasks == dict.fromkeys(names, "success") | {"held": "skipped"}
    assert promoted.state == "success"
    ((name, extra),) = promoted.events
    assert (name, extra["model_id"], extra["instead_of"]) == ("soundlake models", model_id, model_id)
    assert promoted.found["evaluate"]["model_id"] == model_id
    assert (world.lake / "models" / model_id / "metrics.json").exists()


def test_encode_corpus(world: World, encoded: Run, model_id: str) -> None:
    expected = dict.fromkeys(("status", "model", ("partitions", "birds"), "works", "table"), "success")
    assert encoded.tasks == expected | {("encode", part): "success" for part in PARTS}
    assert encoded.state == "success"
    windows = world.spec()["windows"]
    rows = [encoded.found["encode", part]["encoded"] for part in PARTS]
    # Of the files beside the folders none was of use; what has no folders comes last.
    assert rows[1] == 0 < min(rows[0], rows[2])
    assert sum(rows) + encoded.found["table"]["encoded"] == encoded.found["table"]["rows"] == windows
    ((name, extra),) = encoded.events
    assert (name, extra["model_id"], extra["rows"]) == ("soundlake tables", model_id, windows)
    assert (extra["manifest"]["command"], extra["manifest"]["result"]) == ("encode", "done")
    table = world.status()["tables"][model_id]
    assert (table["rows"], table["up_to_date"]) == (windows, True)


def test_without_folders_nothing_is_mapped(world: World, encoded: Run) -> None:
    run = world.run("extract_features", by_folder=False)
    expected = {"partitions": "skipped", "works": "success", "features": "success", "complete": "success"}
    assert run.tasks == expected | {("extract", name): "success" for name in ("birds", "city")}
    again = world.run("encode_corpus", by_folder=False)
    expected = {"status": "success", "model": "success", "partitions": "skipped", "works": "success"}
    assert again.tasks == expected | {"encode": "skipped", "table": "success"}
    assert again.state == run.state == "success"
    assert again.found["table"]["encoded"] == 0


def test_a_worse_candidate_is_held(world: World, encoded: Run, model_id: str) -> None:
    lake = ("--lake", str(world.lake), "--json")
    worse = json.loads(world.command("train", *lake, "--preset", "seed", "--steps", "2", "--batch-size", "8"))
    assert worse["promoted"] is False
    run = world.run("evaluate_and_promote", {"model_id": worse["model_id"]})
    names = ("candidate", "evaluation", "evaluate", "promotion", "promote", "verdict", "held")
    assert run.tasks == dict.fromkeys(names, "success") | {"promoted": "skipped"}
    assert run.state == "success"
    said = f"model {worse['model_id']} is worse than {model_id}, which stays in use: "
    assert run.found["held"].startswith(said)
    assert run.found["promote"]["held"] == run.found["held"]
    ((name, extra),) = run.events
    assert (name, extra["model_id"], extra["instead_of"]) == ("soundlake held", worse["model_id"], model_id)
    assert extra["worse"]
    assert set(extra["worse"]) <= set(extra["measures"])
    in_use = {name: one["promoted"] for name, one in world.status()["models"].items()}
    assert in_use == {model_id: True, worse["model_id"]: False}


def test_a_model_in_use_that_cannot_be_read_is_not_green(world: World, encoded: Run, model_id: str) -> None:
    """A run that has nothing to read does not end well: neither the gate, which holds its candidate, nor encode."""
    (candidate,) = set(world.status()["models"]) - {model_id}
    path = world.lake / "models" / model_id / "model.json"
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | {"format_version": 999}))
    try:
        judged = world.run("evaluate_and_promote", {"model_id": candidate})
        encoding = world.run("encode_corpus")
    finally:
        path.write_text(whole)
    assert judged.state == encoding.state == "failed"
    ended = {"verdict": "failed", "held": "upstream_failed", "promoted": "upstream_failed"}
    assert judged.tasks.items() >= ({"promote": "success"} | ended).items()
    assert judged.errors["verdict"]["error"].startswith(f"model {candidate} cannot be compared with {model_id}: ")
    assert judged.events == encoding.events == []
    assert {name: encoding.tasks[name] for name in encoding.errors} == {("encode", part): "failed" for part in PARTS}
    assert all(one["error"].startswith("exit code 2, not tried again: ") for one in encoding.errors.values())
    assert encoding.tasks["table"] == "upstream_failed"
    # Three partitions, one call.
    assert [len(run.calls) for run in (judged, encoding)] == [1, 1]


def test_maintain_table(world: World, encoded: Run) -> None:
    before = world.spec()
    run = world.run("maintain_table")
    assert (run.state, run.tasks) == ("success", {"maintain": "success"})
    assert run.found["maintain"]["dry_run"] is False
    assert run.found["maintain"]["manifest"]["settings"]["recall_floor"] == 0.9
    after = world.spec()
    assert {**after, "ledger_version": 0} == {**before, "ledger_version": 0}
