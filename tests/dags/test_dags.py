"""The DAGs as Airflow loads them: no errors, nothing heavy, the graphs, the defaults, and where their commands run."""

import ast
import copy
import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import AssetOrTimeSchedule
from airflow.sdk.definitions.asset import AssetAll, AssetAny
from airflow.sdk.exceptions import AirflowFailException
from airflow.serialization.serialized_objects import DagSerialization
from soundlake_airflow import alert, command_lines
from soundlake_airflow.operator import SoundlakeOperator
from soundlake_airflow.settings import Settings, parse

from tests.dags.bags import DAGS, REPOSITORY, SETTINGS, bag_of, bag_with

FILES = sorted(DAGS.glob("*.py"))
PACKAGE = sorted((DAGS / "soundlake_airflow").glob("*.py"))

LAKE, TRAINING, NONE = "soundlake_lake", "soundlake_training", "default_pool"
COMMAND, PYTHON = "SoundlakeOperator", "_PythonDecoratedOperator"
BRANCH, SHORT = "_BranchPythonDecoratedOperator", "_ShortCircuitDecoratedOperator"
# Of each task: its operator, how many of a mapped one at once (None: not mapped), pool, trigger rule, what follows.
GRAPHS: dict[str, dict[str, tuple[str, int | None, str, str, set[str]]]] = {
    "extract_features": {
        "partitions": (COMMAND, 4, LAKE, "all_success", {"works"}),
        "works": (PYTHON, None, NONE, "none_failed", {"extract", "complete"}),
        "extract": (COMMAND, 5, LAKE, "all_success", {"features", "complete"}),
        "features": (COMMAND, None, LAKE, "all_done_min_one_success", set()),
        "complete": (PYTHON, None, NONE, "none_failed", set()),
    },
    "train_vae": {
        "arguments": (PYTHON, None, NONE, "all_success", {"train"}),
        "train": (COMMAND, None, TRAINING, "all_success", {"due", "candidate"}),
        "due": (SHORT, None, NONE, "all_success", {"candidate"}),
        "candidate": (PYTHON, None, NONE, "all_success", set()),
    },
    "evaluate_and_promote": {
        "candidate": (PYTHON, None, NONE, "all_success", {"evaluation", "promotion"}),
        "evaluation": (PYTHON, None, NONE, "all_success", {"evaluate"}),
        "promotion": (PYTHON, None, NONE, "all_success", {"promote"}),
        "evaluate": (COMMAND, None, TRAINING, "all_success", {"promote"}),
        "promote": (COMMAND, None, TRAINING, "all_success", {"verdict", "promoted", "held"}),
        "verdict": (BRANCH, None, NONE, "all_success", {"promoted", "held"}),
        "promoted": (PYTHON, None, NONE, "all_success", set()),
        "held": (PYTHON, None, NONE, "all_success", set()),
    },
    "encode_corpus": {
        "status": (COMMAND, None, LAKE, "all_success", {"model"}),
        "model": (SHORT, None, NONE, "all_success", {"partitions"}),
        "partitions": (COMMAND, 4, LAKE, "all_success", {"works"}),
        "works": (PYTHON, None, NONE, "none_failed", {"encode"}),
        "encode": (COMMAND, 1, LAKE, "all_success", {"table"}),
        "table": (COMMAND, None, LAKE, "none_failed", set()),
    },
    "maintain_table": {"maintain": (COMMAND, None, LAKE, "all_success", set())},
}
OUTLETS = {
    ("extract_features", "features"): "soundlake features",
    ("train_vae", "candidate"): "soundlake candidates",
    ("evaluate_and_promote", "promoted"): "soundlake models",
    ("evaluate_and_promote", "held"): "soundlake held",
    ("encode_corpus", "table"): "soundlake tables",
}
# What the settings of these tests have beside `where`, in Beam's words.
BEAM = {
    "local": [],
    "dataflow": [
        "--",
        "--runner=DataflowRunner",
        "--project=p",
        "--region=europe-west3",
        "--temp_location=gs://bucket/tmp",
    ],
    "spark": ["--", "--runner=SparkRunner", "--spark_master_url=spark://127.0.0.1:7077"],
    "flink": ["--", "--runner=FlinkRunner", "--flink_master=127.0.0.1:8081", "--parallelism=8"],
    "kubernetes": [],
}


@pytest.fixture(scope="session")
def settings() -> Settings:
    return parse(SETTINGS, "these tests")


@pytest.fixture(scope="session")
def dags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    bag = bag_with(tmp_path_factory.mktemp("dags"), SETTINGS)
    assert bag.import_errors == {}
    return bag.dags


def dag_named(name: str, folder: Path, text: str) -> Any:
    bag = bag_with(folder, text)
    assert bag.import_errors == {}
    return bag.dags[name]


def at(place: str) -> str:
    return f'where = "{place}"\n{SETTINGS}'


# --- imports ---------------------------------------------------------------------------------------------------------


def roots(path: Path) -> set[str]:
    """The packages that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relative to itself"
            found.add(str(node.module).split(".")[0])
    return found - sys.stdlib_module_names


@pytest.mark.parametrize("path", [*FILES, *PACKAGE], ids=lambda path: path.name)
def test_what_a_file_imports(path: Path) -> None:
    allowed = {"settings.py": set(), "command_lines.py": set(), "pod.py": {"airflow", "kubernetes"}}
    assert roots(path) <= allowed.get(path.name, {"airflow"}) | {"soundlake_airflow"}


def test_only_the_package_is_left_out() -> None:
    assert (DAGS / ".airflowignore").read_text().split() == ["soundlake_airflow/"]
    assert [path.stem for path in FILES] == sorted(GRAPHS)


# A process of its own, since a module warns when it is imported, which is once.
LOADING = """
import json, runpy, sys, warnings
import airflow.sdk
before = {name.partition(".")[0] for name in sys.modules}
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for file in sys.argv[1:]:
        runpy.run_path(file)
kinds = [[kind.__name__ for kind in one.category.__mro__] for one in told]
ours = {"DeprecatedImportWarning", "RemovedInAirflow4Warning", "AirflowProviderDeprecationWarning"}
deprecated = [str(one.message) for one, names in zip(told, kinds) if ours & {*names}]
print(json.dumps([sorted({name.partition(".")[0] for name in sys.modules} - before), deprecated]))
"""


@pytest.mark.parametrize("place", ["local", "kubernetes"])
def test_loads_nothing_heavy_and_nothing_deprecated(place: str, tmp_path: Path) -> None:
    file = tmp_path / "soundlake.toml"
    file.write_text(at(place))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOUNDLAKE_SETTINGS", str(file))
        command = [sys.executable, "-c", LOADING, *map(str, FILES)]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded, deprecated = json.loads(found.stdout.splitlines()[-1])
    assert "soundlake_airflow" in loaded
    heavy = {"numpy", "pandas", "pyarrow", "tensorflow", "keras", "apache_beam", "librosa", "lance", "requests"}
    heavy |= {"kubernetes", "kubernetes_asyncio", "model", "pipelines"}
    # The provider's client of Kubernetes comes with its operator, and needs `requests`.
    expected = {"kubernetes", "kubernetes_asyncio", "requests"} if place == "kubernetes" else set()
    assert heavy & set(loaded) == expected
    assert deprecated == []


# --- graphs ----------------------------------------------------------------------------------------------------------


def facts(task: Any) -> tuple[str, int | None, str, str, set[str]]:
    kind = task.operator_class if task.is_mapped else type(task)
    at_once = task.max_active_tis_per_dagrun
    return kind.__name__, at_once, task.pool, task.trigger_rule, set(task.downstream_task_ids)


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_graph(dags: dict[str, Any], name: str) -> None:
    assert sorted(dags) == sorted(GRAPHS)
    assert {task.task_id: facts(task) for task in dags[name].tasks} == GRAPHS[name]
    mapped = {task.task_id for task in dags[name].tasks if task.is_mapped}
    assert mapped == {task_id for task_id, one in GRAPHS[name].items() if one[1] is not None}


def test_pools_are_those_that_infra_makes() -> None:
    made = json.loads((REPOSITORY / "infra/airflow/pools.json").read_text())
    used = {one[2] for graph in GRAPHS.values() for one in graph.values()} - {NONE}
    assert set(made) == used
    assert made[TRAINING]["slots"] == 1


def test_outlets(dags: dict[str, Any]) -> None:
    found = {}
    for name, dag in dags.items():
        for task in dag.tasks:
            for asset in task.outlets:
                found[name, task.task_id] = asset.name
                # A space of the lake's path is no part of a URI.
                assert asset.uri == f"file:///srv/my%20lake/{asset.name.removeprefix('soundlake ')}"
    assert found == OUTLETS


def test_a_lake_in_a_bucket_has_assets_there(tmp_path: Path) -> None:
    text = SETTINGS.replace('"/srv/my lake"', '"gs://bucket/lake/"')
    (asset,) = dag_named("extract_features", tmp_path, text).task_dict["features"].outlets
    assert asset.uri == "gs://bucket/lake/features"


def names(condition: Any) -> list[str]:
    return [asset.name for asset in condition.objects]


def test_schedules(dags: dict[str, Any]) -> None:
    for name, cron in {"extract_features": "15 3 * * *", "maintain_table": "45 5 * * 2"}.items():
        timetable = dags[name].timetable
        assert (type(timetable).__name__, timetable.expression) == ("CronTriggerTimetable", cron)
        assert str(timetable.timezone.name) == "UTC"
    either = dags["train_vae"].timetable
    assert isinstance(either, AssetOrTimeSchedule)
    assert names(either.asset_condition) == ["soundlake features"]
    assert (either.timetable.expression, str(either.timetable.timezone)) == ("30 4 * * 1", "UTC")
    judged = dags["evaluate_and_promote"].timetable.asset_condition
    assert isinstance(judged, AssetAll)
    assert names(judged) == ["soundlake candidates"]
    encoded = dags["encode_corpus"].timetable.asset_condition
    assert isinstance(encoded, AssetAny)
    assert names(encoded) == ["soundlake features", "soundlake models"]


def test_no_schedule_means_by_hand_or_by_assets(tmp_path: Path) -> None:
    text = SETTINGS
    for cron in ("15 3 * * *", "30 4 * * 1", "45 5 * * 2"):
        text = text.replace(cron, "")
    dags = bag_with(tmp_path, text).dags
    kinds = {name: type(dags[name].timetable).__name__ for name in ("extract_features", "maintain_table", "train_vae")}
    assert kinds == {
        "extract_features": "NullTimetable",
        "maintain_table": "NullTimetable",
        "train_vae": "AssetTriggeredTimetable",
    }


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_defaults(dags: dict[str, Any], name: str) -> None:
    dag = dags[name]
    docstring = ast.get_docstring(ast.parse((DAGS / f"{name}.py").read_text()), clean=False)
    assert dag.doc_md
    assert dag.doc_md.strip() == str(docstring).strip()
    # What the words have in bold are its tasks.
    assert set(re.findall(r"\*\*(\w+)\*\*", dag.doc_md)) <= set(GRAPHS[name])
    assert dag.description
    assert (dag.max_active_runs, dag.catchup, dag.tags) == (1, False, {"soundlake"})
    # With a date in the past a DAG runs when it is switched on: train and maintain would find no lake yet.
    assert (dag.start_date is not None) == (name == "extract_features")
    for task in dag.tasks:
        kept = task.partial_kwargs if task.is_mapped else vars(task)
        assert kept["retries"] == 4
        assert kept["retry_delay"] == timedelta(minutes=2)
        assert kept["retry_exponential_backoff"] == 2.0
        assert kept["max_retry_delay"] == timedelta(minutes=30)
        assert kept["execution_timeout"] == timedelta(hours=6)
        assert kept["on_failure_callback"] in (alert.keep_error, [alert.keep_error])
    (deadline,) = dag.deadline
    assert deadline.interval == timedelta(hours=8)
    assert type(deadline.reference).__name__ == "AverageRuntimeDeadline"
    # By its path: the process that calls it imports it anew.
    assert deadline.callback.path == "soundlake_airflow.alert.late"
    # Whom it calls it takes from the settings: what stands here is kept in Airflow's database, and logged.
    assert deadline.callback.kwargs == {}
    assert dag.on_failure_callback is alert.failed


@pytest.mark.parametrize("place", sorted(BEAM))
def test_serialised_and_read_again(place: str, tmp_path: Path) -> None:
    dags = bag_with(tmp_path, at(place)).dags
    assert sorted(dags) == sorted(GRAPHS)
    for name, dag in dags.items():
        there = json.loads(json.dumps(DagSerialization.to_dict(dag), allow_nan=False))
        back = DagSerialization.from_dict(there)
        assert (back.dag_id, back.max_active_runs, back.doc_md) == (name, 1, dag.doc_md)
        assert len(back.deadline) == 1
        # All that the scheduler knows of it: the DAG processor has the function.
        assert back.has_on_failure_callback
        assert type(back.timetable).__name__ == type(dag.timetable).__name__
        for task_id, (_, at_once, pool, rule, after) in GRAPHS[name].items():
            task = back.get_task(task_id)
            assert (task.pool, task.trigger_rule, set(task.downstream_task_ids)) == (pool, rule, after)
            assert (task.is_mapped, task.retries) == (at_once is not None, 4)
            assert task.execution_timeout == timedelta(hours=6)
            assert [asset.name for asset in task.outlets] == ([OUTLETS[name, task_id]] if task.outlets else [])


# --- commands --------------------------------------------------------------------------------------------------------

FOUND = [{"partitions": [".", "a b"]}, {"partitions": ["-x"]}]


def test_command_lines_that_stand_in_the_graph(dags: dict[str, Any], settings: Settings) -> None:
    expected = {
        ("extract_features", "features"): command_lines.status(settings),
        ("encode_corpus", "status"): command_lines.status(settings),
        ("encode_corpus", "table"): command_lines.encode(settings),
        ("maintain_table", "maintain"): command_lines.maintain(settings),
    }
    # Those of the others are the result of a task.
    made = {
        ("train_vae", "train"): "arguments",
        ("evaluate_and_promote", "evaluate"): "evaluation",
        ("evaluate_and_promote", "promote"): "promotion",
        ("extract_features", "extract"): "works",
        ("encode_corpus", "encode"): "works",
    }
    found: dict[tuple[str, str], Any] = {}
    source: dict[tuple[str, str], str] = {}
    for name, dag in dags.items():
        for task in dag.tasks:
            if task.is_mapped and task.task_id == "partitions":
                corpora = [settings.corpora[corpus] for corpus in ("attic", "birds")]
                each = [command_lines.partitions(settings, corpus) for corpus in corpora]
                given = task.expand_input.value
                assert given == [
                    {"arguments": line, "title": title} for line, title in zip(each, ("attic", "birds"), strict=True)
                ]
            elif task.is_mapped:
                source[name, task.task_id] = task.expand_input.value.operator.task_id
            elif isinstance(task, SoundlakeOperator):
                if isinstance(task.arguments, list):
                    found[name, task.task_id] = task.arguments
                else:
                    source[name, task.task_id] = task.arguments.operator.task_id
    assert found == expected
    assert source == made


def test_what_every_command_is_run_with(dags: dict[str, Any]) -> None:
    count = 0
    for dag in dags.values():
        for task in dag.tasks:
            kept = task.partial_kwargs if task.is_mapped else vars(task)
            if "program" in kept:
                count += 1
                assert tuple(kept["program"]) == ("/opt/soundlake/bin/soundlake",)
                assert kept["environment"] == {"TF_NUM_INTRAOP_THREADS": "2"}
                assert tuple(kept["inherit"]) == ("SSL_CERT_FILE",)
    assert count == sum(one[0] == COMMAND for graph in GRAPHS.values() for one in graph.values())
    gates = [task.task_id for dag in dags.values() for task in dag.tasks if getattr(task, "gate", False)]
    assert gates == ["promote"]


def called(dags: dict[str, Any], dag_id: str, task_id: str, *args: Any, **more: Any) -> Any:
    """What the function of a task gives."""
    return dags[dag_id].task_dict[task_id].python_callable(*args, **more)


def test_command_lines_that_a_task_makes(dags: dict[str, Any], settings: Settings) -> None:
    for dag_id, command in (("extract_features", "extract"), ("encode_corpus", "encode")):
        made = command_lines.works(settings, FOUND, command=command)
        assert called(dags, dag_id, "works", found=FOUND) == made
    told = {"preset": "default", "steps": 60, "seed": 7, "grown": 0}
    assert called(dags, "train_vae", "arguments", params=told) == command_lines.train(settings, told)
    assert called(dags, "train_vae", "arguments") == command_lines.train(settings, {})
    assert called(dags, "evaluate_and_promote", "evaluation", "0a") == command_lines.evaluate(settings, "0a")
    assert called(dags, "evaluate_and_promote", "promotion", "0a") == command_lines.promote(settings, "0a")


def test_works_of_each_corpus() -> None:
    settings = parse(SETTINGS, "these tests")
    extract = command_lines.works(settings, FOUND, command="extract")
    assert [one["title"] for one in extract] == ["attic/.", "attic/a b", "birds/-x", "city"]
    assert [one["arguments"][1] for one in extract] == ["gs://bucket/attic"] * 2 + ["/srv/birds", "/srv/city"]
    parts = [[word for word in one["arguments"] if word.startswith("--partition")] for one in extract]
    assert parts == [["--partition=."], ["--partition=a b"], ["--partition=-x"], []]
    # Encode takes what lies in corpora without partitions at its end, with all else that is left.
    encode = command_lines.works(settings, FOUND, command="encode")
    assert [one["title"] for one in encode] == ["attic/.", "attic/a b", "birds/-x"]
    # A corpus whose partitions nobody told would be left out without a word.
    with pytest.raises(ValueError, match="shorter"):
        command_lines.works(settings, FOUND[:1], command="extract")


@pytest.mark.parametrize("place", sorted(BEAM))
def test_one_line_moves_the_commands(place: str, tmp_path: Path) -> None:
    dags = bag_with(tmp_path, at(place)).dags
    expected = "SoundlakePodOperator" if place == "kubernetes" else COMMAND
    for name, graph in GRAPHS.items():
        for task_id, one in graph.items():
            assert facts(dags[name].task_dict[task_id])[0] == (expected if one[0] == COMMAND else one[0])
    lines = [dags["encode_corpus"].task_dict["table"].arguments]
    for dag_id in ("extract_features", "encode_corpus"):
        lines += [one["arguments"] for one in called(dags, dag_id, "works", found=FOUND)]
    for line in lines:
        assert line[line.index("--") :] == BEAM[place] if BEAM[place] else "--" not in line
    for dag_id, task_id in (("extract_features", "features"), ("maintain_table", "maintain")):
        assert "--" not in dags[dag_id].task_dict[task_id].arguments
    assert "--" not in called(dags, "train_vae", "arguments")


# --- what tasks decide -----------------------------------------------------------------------------------------------


def test_fields_of_the_form(dags: dict[str, Any]) -> None:
    train, judge = dags["train_vae"], dags["evaluate_and_promote"]
    fields = {"preset": None, "steps": None, "seed": 0, "grown": None}
    assert {name: train.params[name] for name in train.params} == fields
    assert {name: judge.params[name] for name in judge.params} == {"model_id": None}
    for dag, right, wrong in (
        (train, {"preset": "seed", "steps": 60, "seed": 3, "grown": 0.5}, {"preset": "best"}),
        (train, {"steps": None, "grown": 0}, {"steps": 0}),
        (train, {"seed": 2**31 - 1}, {"seed": 2**31}),
        (train, {}, {"grown": -0.1}),
        (judge, {"model_id": "0123456789abcdef"}, {"model_id": "0123456789abcdef --force"}),
        (judge, {}, {"model_id": "../0123456789ab"}),
    ):
        assert resolved(dag, right).items() >= right.items()
        with pytest.raises(ValueError, match=next(iter(wrong))):
            resolved(dag, wrong)


def resolved(dag: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Values of a DAG's parameters, checked as for a run."""
    params = copy.deepcopy(dag.params)
    params.update(given)
    return dict(params.validate())


def test_a_model_is_due(dags: dict[str, Any]) -> None:
    def due(*, trained: bool, promoted: bool, judged: bool) -> bool:
        result = {"trained": trained, "promoted": promoted, "judged": judged, "seen": 1, "windows": 2}
        return bool(called(dags, "train_vae", "due", result))

    assert due(trained=True, promoted=True, judged=False)
    # Of a run whose `candidate` was lost.
    assert due(trained=False, promoted=False, judged=False)
    assert not due(trained=False, promoted=True, judged=False)
    assert not due(trained=False, promoted=False, judged=True)


def test_the_candidate_is_the_one_named_or_the_newest(dags: dict[str, Any]) -> None:
    def event(day: int, model_id: str) -> SimpleNamespace:
        return SimpleNamespace(timestamp=datetime(2026, 1, day, tzinfo=UTC), extra={"model_id": model_id})

    def candidate(**more: Any) -> str:
        return str(called(dags, "evaluate_and_promote", "candidate", **more))

    events = {"candidates": [event(2, "b"), event(3, "c"), event(1, "a")]}
    assert candidate(params={"model_id": None}, triggering_asset_events=events) == "c"
    assert candidate(params={"model_id": "d"}, triggering_asset_events=events) == "d"
    # Another try would find none either.
    with pytest.raises(AirflowFailException, match="give a model_id"):
        candidate(params={"model_id": None}, triggering_asset_events={})


def test_the_verdict(dags: dict[str, Any]) -> None:
    def verdict(**result: Any) -> str:
        return str(called(dags, "evaluate_and_promote", "verdict", {"model_id": "a"} | result))

    assert verdict(worse=[]) == "promoted"
    assert verdict(worse=["error"], held="a is worse than b") == "held"
    # Nobody has judged it: that is no verdict.
    for nothing in ({"worse": []}, {}):
        with pytest.raises(AirflowFailException, match=r"^a cannot be compared with b$"):
            verdict(held="a cannot be compared with b", **nothing)


def test_whether_a_model_is_in_use(dags: dict[str, Any]) -> None:
    def model(promoted: str | None, *models: dict[str, Any]) -> bool:
        status = {"specs": {"wildlife": {"promoted": promoted}}, "models": dict(enumerate(models))}
        return bool(called(dags, "encode_corpus", "model", status))

    assert not model(None)
    assert not model(None, {"promoted": False}, {"unreadable": "a file is missing"})
    assert model("1", {"promoted": False}, {"promoted": True})
    # The commands say what is wrong with it: no run ends well because nothing can be read.
    assert model("1", {"unreadable": "a file is missing"})
    assert model("1")


def test_whether_anything_came_of_a_night(dags: dict[str, Any]) -> None:
    def result(listed: int, new: int = 0, changed: int = 0, done: int = 0, **more: int) -> dict[str, int]:
        return {"listed": listed, "new": new, "changed": changed, "done": done, "rejected": 0} | more

    def complete(birds: list[dict[str, int]], attic: list[dict[str, int]], city: dict[str, int]) -> None:
        titles = [*(f"birds/{i}" for i in range(len(birds))), *(f"attic/{i}" for i in range(len(attic))), "city"]
        made = [{"title": title, "arguments": []} for title in titles]
        called(dags, "extract_features", "complete", made, [*birds, *attic, city])

    some = [result(3)]
    complete(some, some, result(4))
    complete(some, some, result(4, new=2, done=1, rejected=1))
    complete([result(0), result(3)], some, result(4, changed=1, done=1))
    # All of what is new was left out on purpose, and what is there is known.
    complete(some, some, result(4, new=4, forgotten=4))
    with pytest.raises(AirflowFailException, match=r"^no files in the corpus city: is it mounted"):
        complete(some, some, result(0))
    with pytest.raises(AirflowFailException, match=r"^no files in the corpus birds, attic: is it mounted"):
        complete([], [result(0)], result(4))
    for city in (result(4, new=2, rejected=2), result(4, changed=1, rejected=1)):
        with pytest.raises(AirflowFailException, match=r"^none of the \d new or changed files could be used; "):
            complete(some, some, city)
    # A file that is tried again each night, such as one that may not be read, was told when it was new.
    complete(some, some, result(4, rejected=1))
    with pytest.raises(AirflowFailException, match=r"^no files in the corpus birds, attic, city: "):
        called(dags, "extract_features", "complete")


# --- settings that are wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "setting"),
    [
        ('colour = "red"\n' + SETTINGS, "'colour'"),
        (SETTINGS.replace("retries = 4", 'retries = "4"'), "settings.limits.retries"),
        (at("moon"), "where"),
        (SETTINGS + "[", "(at "),
    ],
    ids=["unknown", "type", "place", "syntax"],
)
def test_wrong_settings_are_one_error_a_file(tmp_path: Path, wrong: str, setting: str) -> None:
    bag = bag_with(tmp_path, wrong)
    assert not bag.dags
    assert sorted(Path(name).name for name in bag.import_errors) == [path.name for path in FILES]
    for error in bag.import_errors.values():
        last = error.strip().splitlines()[-1]
        assert "SettingsError" in last
        assert str(tmp_path / "soundlake.toml") in last
        assert setting in last


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    bag = bag_of(tmp_path / "none.toml")
    assert len(bag.import_errors) == len(FILES)
    for error in bag.import_errors.values():
        assert f"cannot read the settings {tmp_path}/none.toml: No such file or directory" in error.strip()


EXAMPLES = sorted((REPOSITORY / "infra/airflow").rglob("soundlake*.toml"))


@pytest.mark.skipif(not EXAMPLES, reason="there is no example of the settings in infra/airflow")
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_example_loads(example: Path) -> None:
    bag = bag_of(example)
    assert bag.import_errors == {}
    assert sorted(bag.dags) == sorted(GRAPHS)
