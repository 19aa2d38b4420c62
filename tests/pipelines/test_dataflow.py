"""Dataflow without Dataflow: templates are what the command line is, and the launcher writes down a job that is right.

The launcher runs as Google's would run it, with a bucket on loopback to write to. What it wrote is then run, by the
local engine in place of the service: nothing here was accepted by Google.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import lance
import numpy as np
import pytest
import soundfile
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from google.cloud.dataflow import ParameterType, TemplateMetadata
from typer.main import get_command

from soundlake.model.errors import InputError, TryLaterError
from soundlake.model.features.log_mel import PRESETS
from soundlake.pipelines import commands
from soundlake.pipelines.audio import isolation
from soundlake.pipelines.cli import program
from soundlake.pipelines.cli.commands import app
from soundlake.pipelines.cli.flex_template import LEFT_OUT, RENAMED, command_line, main, parameters
from soundlake.pipelines.encode import pipeline as encoding
from soundlake.pipelines.encode.encoder import RAM
from soundlake.pipelines.engine.runners import _known_flags, _worker_error, beam_options, run_pipeline
from soundlake.pipelines.lake import fragments, ledger, table
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.lookup import find_model
from soundlake.pipelines.lake.runs import HandedOver, Run
from tests.conftest import Made
from tests.pipelines.loopback_google import Google, google, run_here

REPOSITORY = Path(__file__).resolve().parents[2]
INFRA = REPOSITORY / "infra/dataflow"
COMMANDS = ("extract", "encode")
IMAGE = "europe-west3-docker.pkg.dev/project/soundlake/worker:0.1.0"
JOB = "gs://bucket/staging/template_launches/2026-11-26_1/job_object"
# What the launcher gives beside the template's own parameters: names as in its log.
FROM_THE_LAUNCHER = [
    "--runner=DataflowRunner",
    "--project=project",
    "--region=europe-west3",
    "--job_name=a-job",
    "--service_account_email=workers@project.iam.gserviceaccount.com",
    "--temp_location=gs://bucket/tmp",
    "--staging_location=gs://bucket/staging",
    f"--template_location={JOB}",
    f"--sdk_container_image={IMAGE}",
    "--network=default",
    "--subnetwork=regions/europe-west3/subnetworks/default",
    "--machine_type=n2-standard-4",
    "--num_workers=2",
    "--max_num_workers=20",
    "--autoscaling_algorithm=THROUGHPUT_BASED",
    "--disk_size_gb=50",
    "--number_of_worker_harness_threads=2",
    "--labels=team=birds",
]


# The template's form.


def form(command: str) -> Any:
    """The metadata, by Google's own message; a field that it does not know raises."""
    return TemplateMetadata.from_json((INFRA / f"{command}.json").read_text(), ignore_unknown_fields=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_form_has_what_google_asks_of_it(command: str) -> None:
    found = form(command)
    assert found.name == f"soundlake {command}"
    assert found.description
    assert not found.streaming
    names = [one.name for one in found.parameters]
    assert len(names) == len(set(names))
    for one in found.parameters:
        assert re.fullmatch("[a-z][a-z0-9_]*", one.name)
        assert one.label
        assert one.help_text
        for regex in one.regexes:
            re.compile(regex)
            if one.default_value:
                assert re.search(regex, one.default_value), one.name


@pytest.mark.parametrize("command", COMMANDS)
def test_the_form_has_every_option_of_the_command(command: str) -> None:
    """And two more: a lake has a default on a machine and none here; workers take an image, which is Beam's option."""
    mine, theirs = parameters(command), {one.name: one for one in form(command).parameters}
    assert set(theirs) == {*mine, "sdk_container_image"}
    needed = {name for name, one in theirs.items() if not one.is_optional}
    assert needed == {"lake", "sdk_container_image"} | {name for name, one in mine.items() if one.required}
    for name, one in mine.items():
        assert (theirs[name].param_type == ParameterType.BOOLEAN) == (one.param_type_name == "option" and one.is_flag)
        if theirs[name].default_value:
            assert theirs[name].default_value == str(one.default).lower()
    presets = [choice.value for one in theirs.values() for choice in one.enum_options]
    assert presets in ([], sorted(PRESETS))


def test_what_is_left_out_is_left_out_on_purpose() -> None:
    group: Any = get_command(app)
    every = {
        max(one.opts, key=len).lstrip("-").replace("-", "_")
        for command in COMMANDS
        for one in group.commands[command].params
    }
    assert every >= LEFT_OUT
    taken = {RENAMED.get(name, name) for command in COMMANDS for name in parameters(command)}
    assert every - taken == LEFT_OUT


@pytest.mark.parametrize("command", COMMANDS)
def test_no_parameter_hides_an_option_of_beam(command: str) -> None:
    flags = _known_flags(beam_options([]).options)
    assert not {f"--{name}" for name in parameters(command)} & flags
    assert all(f"--{option}" in flags for option in RENAMED.values())
    assert "--sdk_container_image" in flags


# From parameters to the command line.

GIVEN = {
    "extract": {
        "audio": "gs://corpora/my birds",
        "lake": "gs://lake/lake",
        "spec": "wildlife",
        "label_file": "gs://corpora/birds=1.csv",
        "partition": "-x",
        "allow_empty": "true",
        "include_forgotten": "true",
        "retry_rejected": "all",
    },
    "encode": {
        "lake": "gs://lake/lake",
        "spec": "wildlife",
        "model": "0123456789abcdef",
        "corpus": "gs://corpora/birds",
        "partition": ".",
        "accelerator": "type:nvidia-tesla-t4;count:1;install-nvidia-driver",
    },
}


def taken(command: str, given: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """What the real parser makes of the launcher's call: the options, and what is Beam's."""
    line = command_line(command, [f"--{name}={value}" for name, value in given.items()] + FROM_THE_LAUNCHER)
    group: Any = get_command(app)
    context = group.commands[line[0]].make_context(line[0], line[1:])
    return context.params, context.args


@pytest.mark.parametrize("command", COMMANDS)
def test_parameters_are_taken_as_they_are_meant(command: str) -> None:
    known, given = parameters(command), GIVEN[command]
    assert set(given) == set(known)
    params, beam = taken(command, given)
    assert {name: params[known[name].name] for name in given} == {
        name: True if value == "true" else value for name, value in given.items()
    }
    assert beam == FROM_THE_LAUNCHER
    engine = beam_options(beam)
    assert engine.template
    assert not engine.local


@pytest.mark.parametrize("command", COMMANDS)
def test_blank_fields_are_defaults(command: str) -> None:
    known = parameters(command)
    blank = {name: "false" if name == "allow_empty" else "" for name in GIVEN[command]}
    params, _ = taken(command, blank | {name: "x" for name, one in known.items() if one.required})
    assert {name: params[one.name] for name, one in known.items() if not one.required} == {
        name: one.default for name, one in known.items() if not one.required
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--lake=x", "--audio=y", "--no_such_option=1"], "Beam has no option --no_such_option"),
        (["--lake=x", "--audio=y", "--workers=3"], "Beam has no option --workers"),
        (["--lake=x", "--audio=y", "stray"], "unexpected argument 'stray'"),
        (["--lake=x", "--audio=y", "--allow_empty=perhaps"], "--allow-empty"),
        (["--lake=x", "--audio=y", "--spec=birds"], "unknown spec 'birds'"),
        (["--lake=x", "--audio=y", "--retry_rejected=boredom"], "unknown reason 'boredom'"),
        (["--lake=x"], "Missing argument 'audio'"),
    ],
)
def test_a_wrong_parameter_ends_with_2(
    given: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "y").mkdir()
    assert main("extract", [*given, *FROM_THE_LAUNCHER]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", ["extract --repair", "plan", "run"])
def test_what_waits_is_no_template(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, *options = command.split()
    line = [name, str(tmp_path), "--lake", str(tmp_path / "lake"), *options, "--", *FROM_THE_LAUNCHER]
    assert program.main(line) == 2
    assert f"{command} cannot write a template" in capsys.readouterr().err
    assert not (tmp_path / "lake").exists()


# The job that a launch writes down.


@dataclass(frozen=True)
class Launched:
    """What the launcher left in the bucket."""

    job: dict[str, Any]
    pipeline: beam_runner_api_pb2.Pipeline
    stderr: str

    def hints(self, step: str) -> dict[str, bytes]:
        """What is asked for the machines of a step, by the last part of the hint's name."""
        components = self.pipeline.components
        found = [
            components.environments[one.environment_id]
            for one in components.transforms.values()
            if one.unique_name.startswith(step) and one.spec.urn == common_urns.primitives.PAR_DO.urn
        ]
        assert found, step
        hints = [{urn.split(":")[-2]: value for urn, value in one.resource_hints.items()} for one in found]
        assert all(one == hints[0] for one in hints), step
        return hints[0]

    def run(self) -> None:
        """Run the pipeline here, as the service would on its workers."""
        run_here(self.pipeline)


def called(server: Google, line: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with a token that nobody has to check, and Google at `server`."""
    key = folder / "key.json"
    told = {"client_id": "c", "client_secret": "s", "refresh_token": "r", "token": "t"}
    key.write_text(json.dumps({"type": "authorized_user", "expiry": "2999-01-01T00:00:00Z"} | told))
    there = {"STORAGE_EMULATOR_HOST": server.url, "GOOGLE_APPLICATION_CREDENTIALS": str(key)}
    server.objects.clear()
    return subprocess.run(
        [sys.executable, *line],
        env=os.environ | there | {"PYTHONPATH": str(REPOSITORY), "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def launch(server: Google, command: str, given: list[str], folder: Path) -> Launched:
    """Start the template's file as Google's launcher does."""
    done = called(server, [str(INFRA / f"{command}.py"), *given, *FROM_THE_LAUNCHER], folder)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return Launched(json.loads(server.objects[JOB.removeprefix("gs://")]), server.staged(), done.stderr)


@pytest.fixture(scope="module")
def server() -> Iterator[Google]:
    with google() as found:
        yield found


def tones(folder: Path) -> Path:
    """Five recordings, one of them no sound at all."""
    folder.mkdir()
    for i in range(4):
        time = np.arange(int((1.5 + i) * 16_000)) / 16_000
        soundfile.write(folder / f"{i}.wav", 0.3 * np.sin(2 * np.pi * 300 * (i + 1) * time), 16_000)
    (folder / "notes.wav").write_text("no sound")
    return folder


def rows(lake: Lake) -> list[dict[str, Any]]:
    found = ledger.open_ledger(lake, PRESETS["general"].spec_id)
    return sorted(found.to_table().to_pylist(), key=lambda row: row["uri"])


def manifests(lake: Lake) -> list[dict[str, Any]]:
    return [json.loads(lake.read(f"runs/{name}")) for name in lake.names("runs")]


@pytest.fixture
def extracting(server: Google, tmp_path: Path) -> tuple[Path, Lake, Launched]:
    """A corpus, a lake in which nothing has been done yet, and the job that will do it."""
    audio, lake = tones(tmp_path / "audio"), Lake.at(str(tmp_path / "lake"))
    return audio, lake, launch(server, "extract", [f"--audio={audio}", f"--lake={lake.root}"], tmp_path)


def test_a_job_of_extract(extracting: tuple[Path, Lake, Launched]) -> None:
    """Launch, job request, and the job's run: what the service gets, and that it commits without the launcher."""
    audio, lake, launched = extracting
    assert launched.stderr == "soundlake: the template is written; the run ends when a job started from it ends\n"
    spec_id = PRESETS["general"].spec_id
    assert ledger.open_ledger(lake, spec_id) is None

    job, environment = launched.job, launched.job["environment"]
    assert (job["name"], job["type"]) == ("a-job", "JOB_TYPE_BATCH")
    assert environment["serviceAccountEmail"] == "workers@project.iam.gserviceaccount.com"
    assert "use_runner_v2" in environment["experiments"]
    (pool,) = environment["workerPools"]
    assert {name: pool[name] for name in ("machineType", "numWorkers", "diskSizeGb", "numThreadsPerWorker")} == {
        "machineType": "n2-standard-4",
        "numWorkers": 2,
        "diskSizeGb": 50,
        "numThreadsPerWorker": 2,
    }
    assert pool["autoscalingSettings"] == {"algorithm": "AUTOSCALING_ALGORITHM_BASIC", "maxNumWorkers": 20}
    assert {one["containerImage"] for one in pool["sdkHarnessContainerImages"]} == {IMAGE}
    decoders = {"min_ram_bytes": str(int(isolation.RAM.removesuffix("GB")) * 10**9).encode()}
    assert launched.hints("probe") == launched.hints("write bundles") == decoders
    assert launched.hints("settle") == launched.hints("finish") == {}

    launched.run()
    (done,) = manifests(lake)
    assert (done["command"], done["result"]) == ("extract", "done")
    assert {name: done["counts"][name] for name in ("listed", "done", "rejected", "ledger_version")} == {
        "listed": 5,
        "done": 4,
        "rejected": 1,
        "ledger_version": 1,
    }
    beside = Lake.at(f"{lake.root}-beside")
    commands.extract(beside, str(audio), spec=PRESETS["general"])
    assert rows(lake) == rows(beside)
    assert lake.names(f"features/{spec_id}/shards") == beside.names(f"features/{spec_id}/shards")
    assert lake.names("runs") == [f"{done['run_id']}.json"]

    # The service calls a step again if its answer is lost: the commit is there already.
    launched.run()
    assert ledger.open_ledger(lake, spec_id).version == 1
    assert [one["result"] for one in manifests(lake)] == ["done"]
    assert commands.extract(lake, str(audio), spec=PRESETS["general"])["unchanged"] == 5


def test_a_job_that_comes_second_commits_nothing(extracting: tuple[Path, Lake, Launched]) -> None:
    """It cannot plan again, and says so; what it decoded is found by the next run."""
    audio, lake, launched = extracting
    (audio / "0.wav").rename(audio.parent / "0.wav")
    commands.extract(lake, str(audio), spec=PRESETS["general"])
    (audio.parent / "0.wav").rename(audio / "0.wav")
    with pytest.raises(TryLaterError, match="other runs keep changing the lake"):
        launched.run()
    assert len(rows(lake)) == 4
    again = commands.extract(lake, str(audio), spec=PRESETS["general"])
    assert (again["done"], again["cpu_s"]) == (1, {})


def test_a_job_of_encode(made: Made, server: Google, tmp_path: Path) -> None:
    lake = made.copy(tmp_path)
    model_id = made.result["encode"]["model_id"]
    before = table.need_table(lake, model_id).to_table().sort_by("id")
    lake.remove(f"tables/{model_id}.lance")
    lake.remove(f"tables/{model_id}.staged")
    launched = launch(server, "encode", [f"--lake={lake.root}"], tmp_path)
    asked = {"min_ram_bytes": str(int(RAM.removesuffix("GB")) * 10**9).encode()}
    assert launched.hints("encode/BeamML_RunInference") == asked
    assert table.need_table(lake, model_id).count_rows() == 0

    launched.run()
    after = table.need_table(lake, model_id)
    assert after.to_table().sort_by("id").equals(before)
    done = max(manifests(lake), key=lambda one: one["run_id"])
    assert (done["command"], done["result"]) == ("encode", "done")
    assert done["counts"]["encoded"] == before.num_rows
    # What the job said of the table is what the command compares with.
    assert commands.encode(lake)["run_id"] is None
    launched.run()
    assert table.need_table(lake, model_id).version == after.version


def test_a_job_with_nothing_to_encode_is_a_job(made: Made, tmp_path: Path) -> None:
    """A service cannot start a template without one. In this process the pipeline is run, and not written down."""
    lake, model_id = made.copy(tmp_path), made.result["encode"]["model_id"]
    before = table.need_table(lake, model_id).version
    with pytest.raises(HandedOver):
        commands.encode(lake, beam=["--template_location=gs://bucket/job"])
    assert table.need_table(lake, model_id).version == before
    done = max(manifests(lake), key=lambda one: one["run_id"])
    assert (done["command"], done["result"], done["counts"]["encoded"]) == ("encode", "done", 0)


def test_a_gpu_is_asked_for_where_it_is_used(made: Made) -> None:
    lake, model_id = made.lake, made.result["encode"]["model_id"]
    known = ledger.open_ledger(lake, PRESETS["general"].spec_id)
    asked = "type:nvidia-tesla-t4;count:1;install-nvidia-driver"
    pipeline = beam.Pipeline()
    encoding.build(
        pipeline,
        lake,
        find_model(lake, model_id),
        known,
        table.need_table(lake, model_id),
        under=None,
        run=Run.begin(lake, "encode", {}),
        accelerator=asked,
    )
    launched = Launched({}, pipeline.to_runner_api(), "")
    assert launched.hints("encode/BeamML_RunInference")["accelerator"] == asked.encode()
    assert launched.hints("compare") == launched.hints("summarise") == {}


def test_other_runners_get_no_hints() -> None:
    """A worker for each kind of machine would be one too many where nobody chooses machines."""
    built: list[beam.Pipeline] = []

    def build(pipeline: beam.Pipeline) -> None:
        built.append(pipeline)
        _ = pipeline | beam.Create([1]) | beam.Map(str).with_resource_hints(min_ram="1GB")

    engine = beam_options([])
    run_pipeline(build, engine)
    environments = built[0].to_runner_api().components.environments.values()
    assert [dict(one.resource_hints) for one in environments] == [{}]


def test_a_gpu_that_is_not_there_is_not_made_up_for(made: Made, tmp_path: Path) -> None:
    lake, model_id = made.copy(tmp_path), made.result["encode"]["model_id"]
    lake.remove(f"tables/{model_id}.lance")
    lake.remove(f"tables/{model_id}.staged")
    with pytest.raises(InputError, match="a GPU was asked for, and ONNX Runtime finds none here"):
        commands.encode(lake, accelerator="type:nvidia-tesla-t4;count:1")


def test_a_run_commits_once_however_often_it_is_called(tmp_path: Path) -> None:
    """As the last step of a job on a worker whose answer was lost."""
    lake, spec_id = Lake.at(str(tmp_path / "lake")), PRESETS["general"].spec_id
    uri = lake.ledger_uri(spec_id)
    row = ledger.row(
        uri="/a.wav", recording_id="0" * 64, status=ledger.DONE, bundles=[], corpus="/", size=1, mtime_ns=1
    )
    for before in (0, 1):
        rows = ledger.write_rows(lake, spec_id, [row | {"uri": f"/{before}.wav"}])
        made = [
            fragments.commit(uri, before, ledger.SCHEMA, rows, [], run_id=run_id) for run_id in ("one", "one", "two")
        ]
        assert made == [before + 1, before + 1, None]
    assert sorted(lance.dataset(uri).to_table(columns=["uri"])["uri"].to_pylist()) == ["/0.wav", "/1.wav"]


# The command, which waits for the job.


def by_command(
    server: Google, audio: Path, lake: Lake, folder: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    service = [one for one in FROM_THE_LAUNCHER if not one.startswith("--template_location")]
    line = ["extract", str(audio), "--lake", lake.root, *options, "--", *service, f"--dataflow_endpoint={server.url}"]
    return called(server, ["-c", "from soundlake.pipelines.cli.program import script; script()", *line], folder)


def test_the_command_waits_and_commits(server: Google, tmp_path: Path) -> None:
    audio, lake = tones(tmp_path / "audio"), Lake.at(str(tmp_path / "lake"))
    done = by_command(server, audio, lake, tmp_path, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["listed"], said["done"], said["ledger_version"]) == (5, 4, 1)
    assert server.job["currentState"] == "JOB_STATE_DONE"
    names = {one.unique_name for one in server.staged().components.transforms.values()}
    assert "summarise" in names
    assert "finish" not in names
    assert [one["result"] for one in manifests(lake)] == ["done"]


def test_what_a_worker_says_is_what_the_command_says(server: Google, tmp_path: Path) -> None:
    audio, lake = tones(tmp_path / "audio"), Lake.at(str(tmp_path / "lake"))
    (audio / "labels.csv").write_text("name,label\n0.wav,a\n")
    done = by_command(server, audio, lake, tmp_path)
    assert server.job["currentState"] == "JOB_STATE_FAILED"
    assert (done.returncode, done.stdout) == (2, "")
    said = "has no column `uri`: name the columns in its first line, such as uri,label,group"
    assert done.stderr == f"soundlake: {audio}/labels.csv {said}\n"
    assert [one["result"] for one in manifests(lake)] == ["failed"]


def test_a_cancelled_job_is_told_as_one() -> None:
    error = _worker_error(RuntimeError("Dataflow pipeline failed. State: CANCELLED, Error:\nNone"))
    assert str(error) == "Dataflow pipeline failed. State: CANCELLED: see the job's own log"


# Images.


def test_images_have_the_lock_s_beam_and_the_interpreter_of_the_pipelines() -> None:
    dockerfile, base = ((REPOSITORY / f"infra/{name}/Dockerfile").read_text() for name in ("dataflow", "containers"))
    locked = re.search(r"^apache-beam(?:\[\S+\])?==(\S+)", (REPOSITORY / "requirements.lock").read_text(), re.MULTILINE)
    assert locked
    (interpreter,) = re.findall(r"^FROM python:(\d+\.\d+)-slim$", base, re.MULTILINE)
    assert f"FROM apache/beam_python{interpreter}_sdk:{locked[1]} AS beam" in dockerfile
    assert f"/python{interpreter.replace('.', '')}-template-launcher-base:" in dockerfile
    for command in COMMANDS:
        assert re.search(rf"^FROM template AS {command}\n.*/{command}\.py$", dockerfile, re.MULTILINE)
        assert (INFRA / f"{command}.py").is_file()
