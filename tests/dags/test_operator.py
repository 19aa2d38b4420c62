"""The operator with real processes: what comes back, what is logged, what it means, and that all of it ends."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowTaskTimeout
from airflow.sdk.execution_time.context import OutletEventAccessors
from soundlake_airflow import operator
from soundlake_airflow.operator import SoundlakeOperator

SH = ("/bin/sh", "-c")
PYTHON = (sys.executable, "-c")


@pytest.fixture(autouse=True)
def _watchdog() -> Iterator[None]:
    """A test that hangs ends here."""

    def bark(number: int, frame: Any) -> None:
        raise TimeoutError("the operator hangs")

    before = signal.signal(signal.SIGALRM, bark)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def an_operator(program: tuple[str, ...], *arguments: str, **more: Any) -> SoundlakeOperator:
    return SoundlakeOperator(task_id="one", program=program, arguments=list(arguments), **more)


def run(program: tuple[str, ...], *arguments: str, **more: Any) -> dict[str, Any]:
    return an_operator(program, *arguments, **more).execute({"outlet_events": OutletEventAccessors()})


def logged(program: tuple[str, ...], *arguments: str) -> tuple[dict[str, Any], list[str]]:
    """The result, and what a command wrote to stderr as it stands in the log."""
    with structlog.testing.capture_logs() as entries:
        result = run(program, *arguments)
    lines = [entry["event"] for entry in entries if entry["log_level"] == "info"]
    assert lines[0].startswith("running: ")
    return result, lines[1:]


def gone(pid: int) -> bool:
    """Whether a process has ended, or does so soon: a signal takes its time."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state in "ZX":
            return True
        time.sleep(0.02)
    return False


def pids(file: Path) -> list[int]:
    return [int(word) for word in file.read_text().split()]


# --- what comes back -------------------------------------------------------------------------------------------------


def test_the_json_object_is_the_result() -> None:
    result, lines = logged(SH, """echo first >&2; echo '{"rows": 3, "of": ["a b"]}'; echo last >&2""")
    assert result == {"rows": 3, "of": ["a b"]}
    assert lines == ["first", "last"]


def test_the_last_object_counts() -> None:
    assert run(SH, """echo '{"a": 1}'; echo words; echo '{"b": 2}'; echo '[3]'; echo 4""") == {"b": 2}


@pytest.mark.parametrize("printed", ["", "done", "[1]", "{"])
def test_no_object_is_a_fault_that_stays(printed: str) -> None:
    with pytest.raises(AirflowFailException, match="was --json given"):
        run(SH, f"echo '{printed}'")


def test_arguments_arrive_as_they_are() -> None:
    given = ["extract", "--partition=a b", "-x", "$HOME", "*", '"', "", "é\n"]
    code = "import json, sys; print(json.dumps({'given': sys.argv[1:]}))"
    assert run((*PYTHON, code), *given) == {"given": given}


def test_a_command_has_nothing_to_read() -> None:
    ours, kept = os.pipe(), os.dup(0)
    os.dup2(ours[0], 0)
    try:
        # The worker's own stdin would be waited for.
        assert run(SH, "cat; echo '{\"a\": 1}'") == {"a": 1}
    finally:
        os.dup2(kept, 0)
        for one in (*ours, kept):
            os.close(one)


def test_texts_are_no_templates() -> None:
    # Folders of a corpus, which anyone may have named.
    given = ["--partition={{ conn.lake.password }}", "{% raise %}", "spec.json"]
    one = an_operator(SH, *given, title="birds/{{ x }}")
    one.render_template_fields({})
    assert (one.arguments, one.title) == (given, "birds/{{ x }}")


def test_events_carry_what_was_found() -> None:
    asset, other = Asset(name="rows", uri="file:///lake/rows"), Asset(name="x", uri="file:///lake/x")
    events = OutletEventAccessors()
    one = an_operator(
        SH, "echo '{\"rows\": 3}'", outlets=[asset, other], asset_extra=lambda found: {"n": found["rows"]}
    )
    one.execute({"outlet_events": events})
    assert [events[each].extra for each in (asset, other)] == [{"n": 3}, {"n": 3}]
    silent = OutletEventAccessors()
    an_operator(SH, "echo '{\"rows\": 3}'", outlets=[asset]).execute({"outlet_events": silent})
    assert silent[asset].extra == {}


# --- streams ---------------------------------------------------------------------------------------------------------


def test_both_streams_full_at_once() -> None:
    code = """
import sys, threading
def flood(stream):
    for number in range(20_000):
        stream.write(f"line {number}\\n")
    stream.flush()
threads = [threading.Thread(target=flood, args=(stream,)) for stream in (sys.stdout, sys.stderr)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print('{"ok": true}')
"""
    result, lines = logged(PYTHON, code)
    assert result == {"ok": True}
    assert lines == [f"line {number}" for number in range(20_000)]


def test_a_long_line_is_cut_and_ends_where_it_ends() -> None:
    code = """
import sys
sys.stderr.write("a" * 3_000_000 + "\\nshort\\n" + "b" * 16_385)
print("c" * 3_000_000)
print('{"text": "' + "d" * 3_000_000 + '"}', end="")
"""
    result, lines = logged(PYTHON, code)
    assert len(result["text"]) == 3_000_000
    longest = 16_384
    assert lines == [
        f"{'a' * longest} … {3_000_000 - longest} bytes cut",
        "short",
        f"{'b' * longest} … 1 bytes cut",
    ]


def test_bytes_that_are_no_text_and_no_line_end() -> None:
    result, lines = logged(SH, r"""printf 'caf\351\r\n\n\377 end' >&2; printf '\377\n{"a": 1}'""")
    assert result == {"a": 1}
    assert lines == ["caf�", "", "� end"]


def test_what_is_too_much_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "MOST_OUTPUT", 100)
    with structlog.testing.capture_logs() as entries:
        assert run(SH, "echo '{\"a\": 1}'; head -c 5000 /dev/zero") == {"a": 1}
    cut = 5000 + len('{"a": 1}\n') - 100
    (warning,) = [entry["event"] for entry in entries if entry["event"].endswith("after the first 100")]
    assert warning == f"{cut} bytes of stdout were left out after the first 100"


def test_a_grandchild_that_holds_the_pipes_does_not_hang_it(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    assert run(SH, f"sleep 1000 & echo $! > {file}; echo '{{\"a\": 1}}'") == {"a": 1}
    (grandchild,) = pids(file)
    assert gone(grandchild)


# --- environment -----------------------------------------------------------------------------------------------------


def test_the_environment_is_what_is_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    plain = {"PATH": "/usr/bin:/bin", "HOME": "/home/x", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    plain["TMPDIR"] = "/var/tmp"
    secret = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": "a", "AIRFLOW_HOME": "b", "AWS_SECRET_ACCESS_KEY": "c"}
    secret |= {"PYTHONPATH": "d", "PYTHONHOME": "e", "VIRTUAL_ENV": "f", "SOUNDLAKE_SETTINGS": "g", "MINE": "h"}
    for name, value in (plain | secret | {"SSL_CERT_FILE": "/certs", "OWN": "theirs"}).items():
        monkeypatch.setenv(name, value)
    code = "import json, os; print(json.dumps(dict(os.environ)))"
    own = {"OWN": "ours", "NEW": "=1 2"}
    found = run((*PYTHON, code), environment=own, inherit=["SSL_CERT_FILE", "NOT_SET"])
    assert found == plain | own | {"SSL_CERT_FILE": "/certs"}
    # What is not set stays so.
    monkeypatch.delenv("TZ")
    assert "TZ" not in run((*PYTHON, code))


# --- exit codes ------------------------------------------------------------------------------------------------------

SAID = "echo 'soundlake: a line before' >&2; echo 'soundlake: the lake is away' >&2; echo >&2; "
AGAIN, FINAL = AirflowException, AirflowFailException


@pytest.mark.parametrize(
    ("script", "gate", "kind", "message"),
    [
        ("exit 1", False, AGAIN, "exit code 1, another try may help: the lake is away"),
        ("exit 1", True, AGAIN, "exit code 1, another try may help: the lake is away"),
        ("exit 2", False, FINAL, "exit code 2, not tried again: the lake is away"),
        ("exit 2", True, FINAL, "exit code 2, not tried again: the lake is away"),
        ("echo '{\"a\": 1}'; exit 3", False, FINAL, "exit code 3, not tried again: the lake is away"),
        ("exit 4", True, FINAL, "exit code 4, not tried again: the lake is away"),
        ("echo '{\"a\": 1}'; exit 75", True, AGAIN, "exit code 75, another try may help: the lake is away"),
        ("exit 130", False, AGAIN, "exit code 130, another try may help: the lake is away"),
        ("kill -9 $$", False, AGAIN, "signal 9, another try may help: the lake is away"),
        ("kill -15 $$", True, AGAIN, "signal 15, another try may help: the lake is away"),
    ],
)
def test_what_an_exit_code_means(script: str, gate: bool, kind: type[Exception], message: str) -> None:
    with pytest.raises(AirflowException) as error:
        run(SH, SAID + script, gate=gate)
    assert (type(error.value), str(error.value)) == (kind, message)


def test_a_gate_that_says_no_has_its_reason_in_the_result() -> None:
    result = run(SH, SAID + 'echo \'{"worse": ["elbo"]}\'; exit 3', gate=True)
    assert result == {"worse": ["elbo"], "held": "the lake is away"}
    assert run(SH, SAID + "echo '{\"worse\": []}'", gate=True) == {"worse": []}


def test_a_command_that_says_nothing() -> None:
    with pytest.raises(AirflowException, match=r"^exit code 1, another try may help: it said nothing$"):
        run(SH, "exit 1")


@pytest.mark.parametrize("path", ["/usr/bin:/bin", ""], ids=["with setpriv", "without setpriv"])
def test_a_program_that_is_missing_is_not_tried_again(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", path)
    (tmp_path / "plain").write_text("no program")
    for program in ("soundlake-of-nowhere", str(tmp_path / "none"), str(tmp_path / "plain")):
        with pytest.raises(AirflowFailException, match=f"^cannot start {program}: .*`command` in the settings"):
            run((program,), "status")


def test_a_program_is_found_on_the_path_that_it_gets(tmp_path: Path) -> None:
    program = tmp_path / "soundlake-of-here"
    program.write_text("#!/bin/sh\necho '{\"a\": 1}'\n")
    program.chmod(0o755)
    assert run((program.name,), environment={"PATH": f"{tmp_path}:/usr/bin:/bin"}) == {"a": 1}


# --- stopping --------------------------------------------------------------------------------------------------------

# A child that does not end when asked, and a grandchild; both tell who they are, and the parent again and again that
# all is ready.
STUBBORN = "{first} trap '' TERM; sleep 1000 & echo $$ $! > {file}; while kill -{signal} $PPID; do sleep 0.1; done"


@contextlib.contextmanager
def killed_at(number: int, one: SoundlakeOperator) -> Iterator[None]:
    """Within it a signal has the operator killed as Airflow's handler of SIGTERM does it: in the main thread, which is
    within `execute`."""

    def handle(number: int, frame: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        child = one._child
        one.on_kill()
        # It comes back when it is over: Airflow allows it five seconds in all.
        assert child is None or child.returncode is not None

    before = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, before)


# With its streams closed early nothing is left to read, and the operator waits for the end alone.
@pytest.mark.parametrize("first", ["", "exec > /dev/null 2>&1; sleep 0.5;"], ids=["streams open", "streams closed"])
def test_on_kill_ends_the_whole_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    monkeypatch.setattr(operator, "GRACE_S", 0.3)
    file = tmp_path / "pids"
    one = an_operator(SH, STUBBORN.format(first=first, file=file, signal="USR1"))
    with killed_at(signal.SIGUSR1, one), pytest.raises(AirflowException, match=r"^(signal 9,|stopped before it began)"):
        one.execute({})
    assert [gone(pid) for pid in pids(file)] == [True, True]
    # Nothing is left to stop.
    one.on_kill()


def test_a_command_is_asked_first(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    one = an_operator(SH, f"trap 'echo yes > {asked}; exit 7' TERM; sleep 1000 & kill -USR1 $PPID; wait")
    with killed_at(signal.SIGUSR1, one), pytest.raises(AirflowException, match=r"^(exit code 7,|stopped before it)"):
        one.execute({})
    assert asked.read_text() == "yes\n"


def test_a_kill_before_the_command_runs_is_not_lost() -> None:
    one = an_operator(SH, "sleep 1000")
    one.on_kill()
    with pytest.raises(AirflowException, match=r"^stopped before it began$"):
        one.execute({})


def test_a_timeout_leaves_no_survivor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "GRACE_S", 0.3)
    file = tmp_path / "pids"
    one = an_operator(SH, STUBBORN.format(first="", file=file, signal="ALRM"))

    def over(number: int, frame: Any) -> None:
        if one._child is not None:
            signal.signal(number, signal.SIG_IGN)
            raise AirflowTaskTimeout("execution_timeout")

    # The watchdog puts back what was there.
    signal.signal(signal.SIGALRM, over)
    with pytest.raises(AirflowTaskTimeout, match=r"^execution_timeout$"):
        one.execute({})
    assert [gone(pid) for pid in pids(file)] == [True, True]


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv, of util-linux")
def test_a_killed_worker_takes_its_command_with_it(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    script = f"echo $$ > {file}.part; mv {file}.part {file}; exec sleep 1000"
    worker = (
        "from soundlake_airflow.operator import SoundlakeOperator\n"
        f"SoundlakeOperator(task_id='one', program={SH!r}, arguments=[{script!r}]).execute({{}})"
    )
    with subprocess.Popen([*PYTHON, worker], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as parent:
        while not file.exists():
            assert parent.poll() is None
            time.sleep(0.02)
        (child,) = pids(file)
        try:
            assert os.getpgid(child) == child
            parent.kill()
            parent.wait()
            assert gone(child)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
