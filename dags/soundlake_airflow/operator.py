"""An operator that runs one `soundlake` command in a process group of its own, and interprets its exit code."""

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from airflow.sdk import BaseOperator, XComArg
from airflow.sdk.exceptions import AirflowException, AirflowFailException

# Exit codes of the command line.
DONE, WRONG_CALL, HELD, TOO_MANY_REJECTS, TRY_LATER = 0, 2, 3, 4, 75
# Environment variables that any process needs; Airflow's own settings and secrets are not among them.
PLAIN = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
# Airflow kills a task five seconds after it has asked the task to end.
GRACE_S = 3.0
# How long to read on after the command has ended: a grandchild may hold a pipe open for ever.
AFTER_EXIT_S = 2.0
LONGEST_LINE = 16 << 10
MOST_OUTPUT = 16 << 20


class _Lines:
    """Splits the chunks of a pipe into lines, each cut at `LONGEST_LINE`."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell, self.rest, self.cut = tell, b"", 0

    def feed(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        if len(self.rest) > LONGEST_LINE:
            self.cut += len(self.rest) - LONGEST_LINE
            self.rest = self.rest[:LONGEST_LINE]

    def _line(self, line: bytes) -> None:
        cut, self.cut = self.cut + max(0, len(line) - LONGEST_LINE), 0
        text = line[:LONGEST_LINE].decode(errors="replace").rstrip("\r")
        self.tell(f"{text} … {cut} bytes cut" if cut else text)

    def end(self) -> None:
        if self.rest:
            self._line(self.rest)
            self.rest = b""


class NoTemplates:
    """Fills in results of tasks, but renders no texts of an operator: a folder may be called ``{{ x }}``."""

    def render_template(self, content: Any, context: Any, jinja_env: Any = None, seen_oids: Any = None) -> Any:
        """The value of a field when the task runs."""
        return content.resolve(context) if isinstance(content, XComArg) else content


class SoundlakeOperator(NoTemplates, BaseOperator):
    """Run one command, and pass on its output.

    Its XCom is the JSON object that the command printed on stdout, with the manifest of its run. If a gate refused, the
    object also has ``held``, the reason.

    Parameters
    ----------
    arguments : sequence of str
        Arguments after the program.
    title : str
        Name of a mapped task in the UI.
    program : sequence of str
    environment : mapping of str to str
        Variables in addition to `PLAIN`.
    inherit : sequence of str
        Names of the worker's own variables that the command also gets.
    gate : bool
        Whether the task succeeds if a gate refused (exit code 3); otherwise it fails.
    asset_extra : callable or None
        Makes the extra of the outlets' events from the result; by default there is none.

    Notes
    -----
    Exit code 0 succeeds. 2 and 4 fail and are not tried again, and so does 3 without `gate`: the same call gives the
    same answer. 75 and all others fail and are tried again.
    """

    template_fields: Sequence[str] = ("arguments", "title")
    ui_color = "#d7ecef"

    def __init__(
        self,
        *,
        arguments: Sequence[str],
        title: str = "",
        program: Sequence[str] = ("soundlake",),
        environment: Mapping[str, str] | None = None,
        inherit: Sequence[str] = (),
        gate: bool = False,
        asset_extra: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self.arguments, self.title, self.program = arguments, title, program
        self.environment, self.inherit = environment, inherit
        self.gate, self.asset_extra = gate, asset_extra
        self._child: subprocess.Popen[bytes] | None = None
        self._killed = False

    def execute(self, context: Any) -> dict[str, Any]:
        """Run the command to its end; return its result."""
        result = outcome(*self._run(), gate=self.gate)
        tell_assets(context, self.outlets, result, self.asset_extra)
        return result

    def _run(self) -> tuple[int, bytes, str]:
        """Run the command; return its exit code, stdout, and the last line of stderr."""
        line = [*self.program, *self.arguments]
        self.log.info("running: %s", " ".join(line))
        names = (*PLAIN, *self.inherit)
        environment = {name: os.environ[name] for name in names if name in os.environ} | dict(self.environment or {})
        if shutil.which(line[0], path=environment.get("PATH")) is None:
            raise AirflowFailException(
                f"cannot start {line[0]}: there is no such program; see `command` in the settings"
            )
        # If this process is killed, the command is killed, too: two tries of a task must not overlap.
        setpriv = shutil.which("setpriv")
        try:
            self._child = subprocess.Popen(
                [setpriv, "--pdeathsig", "KILL", *line] if setpriv else line,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise AirflowFailException(
                f"cannot start {line[0]}: {error.strerror}; see `command` in the settings"
            ) from error
        try:
            if self._killed:
                raise AirflowException("stopped before it began")
            return self._followed(self._child)
        finally:
            self._stop()

    def _followed(self, child: subprocess.Popen[bytes]) -> tuple[int, bytes, str]:
        """Log stderr and collect stdout as they come, in one loop: neither fills up while the other is read."""
        out, stdout_bytes, last = bytearray(), 0, ""

        def tell(text: str) -> None:
            nonlocal last
            last = text.strip() or last
            self.log.info("%s", text)

        errors = _Lines(tell)
        with selectors.DefaultSelector() as selector:
            for stream in (child.stdout, child.stderr):
                assert stream is not None
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ)
            deadline = float("inf")
            while selector.get_map() and time.monotonic() < deadline and not self._killed:
                for key, _ in selector.select(timeout=0.2):
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is child.stderr:
                        errors.feed(data)
                    else:
                        stdout_bytes += len(data)
                        out += data[: max(0, MOST_OUTPUT - len(out))]
                if child.poll() is not None and deadline == float("inf"):
                    deadline = time.monotonic() + AFTER_EXIT_S
        errors.end()
        if stdout_bytes > len(out):
            self.log.warning("%d bytes of stdout were left out after the first %d", stdout_bytes - len(out), len(out))
        # `wait` would hold a lock that `on_kill` needs, which may be called meanwhile.
        while (code := child.poll()) is None:
            time.sleep(0.1)
        return code, bytes(out), last

    def on_kill(self) -> None:
        """Stop the command and its children; Airflow calls this on a timeout, and when a task is cleared."""
        self._killed = True
        self._stop()

    def _stop(self) -> None:
        """End the process group: by SIGTERM first, then by SIGKILL."""
        child = self._child
        if child is None:
            return
        if child.poll() is None:
            self.log.warning("stopping the command, process group %d", child.pid)
            _signal_group(child.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_S)
        # Also kill processes that outlived a child that ended by itself.
        _signal_group(child.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()
        self._child = None


def _signal_group(leader: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def _json_object(out: bytes) -> dict[str, Any]:
    """The JSON object on the last line of stdout that holds one; empty if there is none."""
    for line in reversed(out.splitlines()):
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                return value
    return {}


def outcome(code: int, out: bytes, last: str, *, gate: bool) -> dict[str, Any]:
    """The result of a command that has ended.

    Parameters
    ----------
    code : int
        Its exit code; negative for the signal that ended it.
    out : bytes
        Its stdout.
    last : str
        The last line of its stderr: for an error, that error in one line.
    gate : bool
        As for `SoundlakeOperator`.

    Raises
    ------
    AirflowFailException
        If another try would give the same result.
    AirflowException
        If another try may give another result.
    """
    message = last.removeprefix("soundlake: ") or "it said nothing"
    result = _json_object(out)
    if code == DONE or (code == HELD and gate):
        if not result and code == DONE:
            raise AirflowFailException("the command ended well, and printed no JSON object: was --json given?")
        return result | ({"held": message} if code == HELD else {})
    if code in (WRONG_CALL, HELD, TOO_MANY_REJECTS):
        raise AirflowFailException(f"exit code {code}, not tried again: {message}")
    ending = f"signal {-code}" if code < 0 else f"exit code {code}"
    raise AirflowException(f"{ending}, another try may help: {message}")


def tell_assets(
    context: Any,
    outlets: Sequence[Any],
    result: dict[str, Any],
    asset_extra: Callable[[dict[str, Any]], dict[str, Any]] | None,
) -> None:
    """Attach the extra made from a command's result to the events of a task's outlets."""
    for outlet in outlets:
        if asset_extra is not None:
            context["outlet_events"][outlet].extra = asset_extra(result)
