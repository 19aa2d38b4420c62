"""The DAGs' command lines against the real command line: each is taken as it is meant. Needs no Airflow.

The other half, that the DAGs run these and no others, is in tests/dags.
"""

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from soundlake.pipelines.cli.commands import app
from soundlake.pipelines.engine import job_server
from soundlake.pipelines.engine.runners import beam_options
from soundlake.pipelines.lake.lookup import parse_spec
from tests.dags.bags import DAGS, REPOSITORY, SETTINGS

sys.path.append(str(DAGS))
from soundlake_airflow import command_lines
from soundlake_airflow.settings import PLACES, Corpus, Settings, parse

# A folder of a corpus may have any name; one of these is an option, one a template, one a glob.
PARTITIONS = [".", "-x", "a b", "--lake", "--", "{{ x }}", "*", "é", "a=b"]
CORPORA = {
    "plain": Corpus("/srv/birds"),
    "labelled": Corpus("gs://bucket/attic", labels="gs://bucket/attic.csv", by_folder=True),
}


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A line that names no lake would be taken, and write to this one; no job server starts, but there must be one."""
    monkeypatch.setenv("SOUNDLAKE_LAKE", "/elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("spark", "flink"):
        job_server.cache(name).mkdir(parents=True)
        (job_server.cache(name) / "some.jar").touch()


@pytest.fixture(params=PLACES)
def settings(request: pytest.FixtureRequest) -> Settings:
    return parse(f'where = "{request.param}"\n{SETTINGS}', "these tests")


def taken(line: list[str]) -> tuple[str, dict[str, Any], list[str]]:
    """Command, options and what follows `--`, as the real parser takes them; nothing runs, and a wrong line raises."""
    group: Any = get_command(app)
    context = group.commands[line[0]].make_context(line[0], list(line[1:]))
    return line[0], context.params, context.args


def given(line: list[str]) -> tuple[str, dict[str, Any]]:
    """The command, and of its options those that are not as by default; with --json, and for the right lake."""
    command, params, _ = taken(line)
    group: Any = get_command(app)
    defaults = {one.name: one.default for one in group.commands[command].params}
    assert params["as_json"] is True
    assert params["lake"] == "/srv/my lake"
    told = {name: value for name, value in params.items() if value not in (None, False) and value != defaults[name]}
    return command, {name: value for name, value in told.items() if name not in ("as_json", "lake")}


@pytest.mark.parametrize("corpus", CORPORA)
@pytest.mark.parametrize("partition", [None, *PARTITIONS])
def test_extract_and_encode(settings: Settings, corpus: str, partition: str | None) -> None:
    one = CORPORA[corpus]
    part = {} if partition is None else {"partition": partition}
    labels = {} if one.labels is None else {"labels": one.labels}
    spec = {"spec": "wildlife"}
    line = command_lines.extract(settings, one, partition)
    assert given(line) == ("extract", {"audio": one.audio, "max_rejects": 40} | spec | labels | part)
    encode = command_lines.encode(settings, one, partition)
    assert given(encode) == ("encode", spec | ({"audio": one.audio} | part if part else {}))
    assert given(command_lines.encode(settings)) == ("encode", spec)
    assert given(command_lines.partitions(settings, one)) == ("partitions", {"audio": one.audio} | spec)
    # What follows `--` is what the settings have for the place, and Beam takes it.
    runners = {"dataflow": "DataflowRunner", "spark": "SparkRunner", "flink": "FlinkRunner"}
    for made in (line, encode):
        beam = taken(made)[2]
        if settings.where in runners:
            assert beam == [f"--runner={runners[settings.where]}", *settings.beam[settings.where]]
        else:
            assert beam == []
        assert beam_options(beam).local == (settings.where not in runners)


def test_the_others(settings: Settings) -> None:
    assert given(command_lines.status(settings)) == ("status", {"spec": "wildlife"})
    model_id = "0123456789abcdef"
    assert given(command_lines.evaluate(settings, model_id)) == ("evaluate", {"model": model_id})
    assert given(command_lines.promote(settings, model_id)) == ("promote", {"model_id": model_id})
    assert given(command_lines.maintain(settings)) == ("maintain", {"recall_floor": 0.8})
    lines = [command_lines.status(settings), command_lines.maintain(settings), command_lines.train(settings, {})]
    assert [taken(line)[2] for line in lines] == [[], [], []]


# Each field of the form: not filled in, and at its ends.
TOLD = {
    "preset": [None, "default", "seed"],
    "steps": [None, 1, 10_000_000],
    "seed": [0, 2**31 - 1],
    "grown": [None, 0, 1e-7, 0.2, 1e21],
}


def test_train() -> None:
    settings = parse(SETTINGS, "these tests")
    assert set(TOLD) == set(command_lines.TRAINING)
    for values in itertools.product(*TOLD.values()):
        told = dict(zip(TOLD, values, strict=True))
        # What was not filled in is the settings' own. 0 is said, too: without it any lake is enough.
        own = {"preset": "seed", "steps": 700, "grown": 0.5}
        right = {"spec": "wildlife"} | own | {name: value for name, value in told.items() if value is not None}
        right["if_grown"] = right.pop("grown")
        command, params, beam = taken(command_lines.train(settings, told))
        assert (command, beam) == ("train", [])
        assert {name: params[name] for name in right} == right
        assert {name for name, value in params.items() if value not in (None, False)} <= {*right, "lake", "as_json"}


def test_by_default_any_number_of_rejects_is_allowed() -> None:
    least = parse('lake = "/srv/my lake"\n[corpora.birds]\naudio = "/srv/birds"', "these tests")
    assert given(command_lines.extract(least, least.corpora["birds"], None)) == ("extract", {"audio": "/srv/birds"})


def test_by_default_a_training_has_its_own_steps_and_preset() -> None:
    least = parse('lake = "/srv/my lake"\n[corpora.birds]\naudio = "/srv/birds"', "these tests")
    assert given(command_lines.train(least, {})) == ("train", {"spec": "general", "if_grown": 0.2})
    assert parse_spec(least.spec).spec_id


def test_what_the_form_allows_a_training_takes() -> None:
    from soundlake.model.training.trainer import TrainSettings

    form = command_lines.TRAINING
    presets = TrainSettings.model_json_schema()["properties"]["preset"]["enum"]
    assert [one for one in form["preset"]["enum"] if one is not None] == presets
    for preset in presets:
        for steps in (form["steps"]["minimum"], form["steps"]["maximum"]):
            for seed in (form["seed"]["minimum"], form["seed"]["maximum"]):
                TrainSettings(preset=preset, max_steps=steps, seed=seed)


EXAMPLE = REPOSITORY / "infra/airflow/soundlake.toml"


@pytest.mark.parametrize("place", PLACES)
def test_the_example(place: str) -> None:
    text = EXAMPLE.read_text()
    for before, after in (
        ('where = "local"', f'where = "{place}"'),
        ('image = ""', 'image = "example.org/soundlake:1"'),
    ):
        assert text.count(f"\n{before}\n") == 1
        text = text.replace(before, after)
    found = parse(text, str(EXAMPLE))
    assert parse_spec(found.spec)
    parts = [{"partitions": ["a"]} for _ in command_lines.by_folder(found)]
    works = command_lines.works(found, parts, command="extract")
    for line in [*(one["arguments"] for one in works), command_lines.encode(found)]:
        _, params, beam = taken(line)
        assert params["lake"] == found.lake
        beam_options(beam)
