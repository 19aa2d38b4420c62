"""Who is called of a run that failed or is late, and what they are told: real POSTs to a server on loopback."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowTaskTimeout
from soundlake_airflow import alert
from soundlake_airflow.alert import AlertError

from tests.dags.bags import SETTINGS
from tests.dags.hook import Hook, listening

RUN = "manual__2026-11-30T03:00:00+00:00"
PAGE = "http://airflow.example.org/dags/extract_features/runs/manual__2026-11-30T03%3A00%3A00%2B00%3A00"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "soundlake.toml"
    monkeypatch.setenv("SOUNDLAKE_SETTINGS", str(file))
    return file


@pytest.fixture
def hook(settings: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    monkeypatch.setattr(alert, "PAUSES_S", (0.01, 0.01))
    with listening() as found:
        settings.write_text(SETTINGS.replace("http://127.0.0.1:9/hook", found.url))
        yield found


def test_a_message_is_logged_and_posted(hook: Hook, caplog: pytest.LogCaptureFixture) -> None:
    alert.send('soundlake: "a b" & ü\nfailed')
    assert hook.texts == ['soundlake: "a b" & ü\nfailed']
    assert [(one.levelno, one.getMessage()) for one in caplog.records] == [(logging.ERROR, hook.texts[0])]


def test_without_an_address_it_is_logged_alone(settings: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings.write_text(SETTINGS.replace('"http://127.0.0.1:9/hook"', '""'))
    alert.send("soundlake: something failed")
    assert caplog.messages == ["soundlake: something failed"]


def test_an_address_that_takes_nothing_is_told(hook: Hook, caplog: pytest.LogCaptureFixture) -> None:
    hook.status = 503
    with pytest.raises(
        AlertError, match=r"^no alert was delivered: 127\.0\.0\.1 did not accept the message: .*503"
    ) as error:
        alert.send("soundlake: something failed")
    assert (hook.requests, hook.texts) == (3, [])
    # Who may read a log is not who may post.
    assert "/hook" not in str(error.value) + caplog.text
    assert caplog.messages == ["soundlake: something failed"]


def test_nobody_listens(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alert, "PAUSES_S", (0.01,))
    with listening() as gone:
        pass
    settings.write_text(SETTINGS.replace("http://127.0.0.1:9/hook", gone.url))
    with pytest.raises(AlertError, match="Connection refused"):
        alert.send("soundlake: something failed")


def test_a_server_that_comes_back_is_told_once(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    hook.status = 503
    monkeypatch.setattr(alert.time, "sleep", lambda seconds: setattr(hook, "status", 200))
    alert.send("soundlake: something failed")
    assert (hook.requests, hook.texts) == (2, ["soundlake: something failed"])


def test_all_tries_end_before_airflow_ends_them() -> None:
    # [dag_processor] dag_file_processor_timeout.
    from airflow.configuration import conf

    longest = alert.TIMEOUT_S * (len(alert.PAUSES_S) + 1) + sum(alert.PAUSES_S)
    assert longest + 10 < conf.getfloat("dag_processor", "dag_file_processor_timeout")


# --- late ------------------------------------------------------------------------------------------------------------


def test_late(hook: Hook) -> None:
    run = {"dag_id": "train_vae", "dag_run_id": "manual & 1"}
    alert.late({"dag_run": run | {"state": "running"}})
    assert hook.texts == ["soundlake: train_vae is late, run manual & 1: it has not ended yet"]
    # Airflow calls for runs that failed long ago, too: of these all is told.
    for state in ("failed", "success"):
        alert.late({"dag_run": run | {"state": state}})
    assert hook.requests == 1


# --- failed ----------------------------------------------------------------------------------------------------------


class Instance(SimpleNamespace):
    """What a callback asks a task instance for."""

    def __init__(self, task_id: str, **more: Any) -> None:
        more = {"states": {}, "kept": {}, "rendered_map_index": None, "try_number": 1, "map_index": -1} | more
        super().__init__(task_id=task_id, run_id=RUN, **more)
        mapped = f"/mapped/{self.map_index}" if self.map_index >= 0 else ""
        self.log_url = f"{PAGE}/tasks/{task_id}{mapped}?try_number={self.try_number}"
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def get_task_states(self, dag_id: str, run_ids: list[str]) -> dict[str, Any]:
        assert (dag_id, run_ids) == ("extract_features", [RUN])
        return {RUN: self.states}

    def xcom_pull(self, task_ids: str, key: str, map_indexes: int) -> Any:
        assert key == alert.ERROR
        return self.kept.get((task_ids, map_indexes))


def context(ti: Instance | None) -> dict[str, Any]:
    tasks = [SimpleNamespace(task_id=name, is_mapped=name == "extract") for name in ("works", "extract", "complete")]
    found = {"dag": SimpleNamespace(dag_id="extract_features", tasks=tasks), "run_id": RUN, "reason": "task_failure"}
    return found | ({} if ti is None else {"ti": ti})


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (AirflowFailException("exit code 2, not tried again: no folder"), "exit code 2, not tried again: no folder"),
        (AirflowTaskTimeout("Timeout, PID: 7"), "AirflowTaskTimeout: Timeout, PID: 7"),
        (KeyError("specs"), "KeyError: 'specs'"),
        (ValueError(), "ValueError: no message"),
        (RuntimeError("a\n\n  b"), "RuntimeError: a b"),
        (RuntimeError("x" * 5000), "RuntimeError: " + "x" * 986),
    ],
)  # fmt: skip
def test_what_is_kept_of_an_error(error: BaseException, line: str) -> None:
    ti = Instance("extract", map_index=3, rendered_map_index="birds/-x", try_number=4)
    alert.keep_error({"ti": ti, "exception": error})
    log = f"{PAGE}/tasks/extract/mapped/3?try_number=4"
    assert ti.pushed == {"error": {"title": "birds/-x", "try": 4, "error": line, "log": log}}


def test_a_task_that_was_killed_keeps_nothing() -> None:
    ti = Instance("train")
    alert.keep_error({"ti": ti})
    assert ti.pushed == {}


def kept(task_id: str, index: int, title: str | None) -> dict[str, Any]:
    return {"title": title, "try": 2, "error": f"exit code 2: {title or task_id}", "log": f"{PAGE}/{task_id}/{index}"}


def test_one_message_has_all_tasks_that_failed(hook: Hook) -> None:
    states = {"works": "success", "extract_0": "success", "extract_1": "failed", "extract_2": "failed"}
    states |= {"complete": "upstream_failed"}
    # What was kept of a task that was cleared, and did not run again, is of the past.
    errors = {("extract", 0): kept("extract", 0, "birds/a"), ("extract", 2): kept("extract", 2, "city")}
    alert.failed(context(Instance("extract", map_index=2, states=states, kept=errors)))
    (text,) = hook.texts
    assert text.splitlines() == [
        f"soundlake: extract_features failed, run {RUN}",
        PAGE,
        "extract 1: it was killed or lost before it could report an error; see its log",
        f"  {PAGE}/tasks/extract/mapped/1",
        "extract city, try 2: exit code 2: city",
        f"  {PAGE}/extract/2",
    ]


def test_many_tasks_are_counted(hook: Hook) -> None:
    states = {f"extract_{i}": "failed" for i in range(100)} | {"complete": "upstream_failed"}
    errors = {("extract", i): kept("extract", i, f"birds/{i}") for i in range(100)}
    alert.failed(context(Instance("extract", map_index=7, states=states, kept=errors)))
    (text,) = hook.texts
    assert text.count("exit code 2: ") == 5
    assert text.endswith("\nand 95 more tasks")


@pytest.mark.parametrize(
    ("ti", "said"),
    [
        # A mapped task that could not be expanded.
        (Instance("extract", states={"extract": "failed"}), "extract: it was killed or lost before "),
        (Instance("complete", states={"complete": "failed"}, kept={("complete", -1): kept("complete", -1, None)}),
         "complete, try 2: exit code 2: complete\n"),
        # The whole run came to an end: no task of its own failed.
        (Instance("works", states={"works": "skipped"}), "task_failure"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_task(hook: Hook, ti: Instance, said: str) -> None:
    alert.failed(context(ti))
    (text,) = hook.texts
    assert text.startswith(f"soundlake: extract_features failed, run {RUN}\n{PAGE}\n{said}")


def test_somebody_is_called_whatever_cannot_be_read(hook: Hook) -> None:
    alert.failed(context(None))
    # Its states have not this run.
    alert.failed(context(Instance("works", get_task_states=lambda **_: {})))
    assert hook.texts == [
        f"soundlake: extract_features failed, run {RUN}: task_failure",
        f"soundlake: extract_features failed, run {RUN}\n{PAGE}\nworks: its error could not be read (KeyError)\n"
        f"  {PAGE}/tasks/works?try_number=1",
    ]


# --- a test message --------------------------------------------------------------------------------------------------


def tried() -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "soundlake_airflow.alert"], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


def test_a_test_message(hook: Hook) -> None:
    assert tried()[0] == 0
    assert hook.texts == ["soundlake: this is a test message; runs that fail or are late are reported here"]
    hook.status = 404
    code, said = tried()
    assert code == 1
    assert said.splitlines()[-1].startswith("no alert was delivered: 127.0.0.1 did not accept the message: ")


def test_a_test_message_without_a_url(settings: Path) -> None:
    settings.write_text(SETTINGS.replace('"http://127.0.0.1:9/hook"', '""'))
    assert tried() == (2, "no URL is set: see `alert` in the settings\n")
    settings.unlink()
    code, said = tried()
    assert code == 1
    assert said.startswith("cannot read the settings ")
