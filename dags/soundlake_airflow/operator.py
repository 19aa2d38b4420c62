"""An operator of our own: one `soundlake` command, a process group of its own, its exit code understood."""

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
# What a process needs of its surroundings; Airflow's own settings and secrets are none of it.
PLAIN = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
# Airflow kills a task five seconds after it told it to end.
GRACE_S = 3.0
# A grandchild may hold a pipe open for ever.
AFTER_EXIT_S = 2.0
LONGEST_LINE = 16 << 10
MOST_OUTPUT = 16 << 20


class _Lines:
    """Lines out of a pipe's chunks, each cut at `LONGEST_LINE`."""

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
    """Texts of an operator stand as they are: a folder may be called ``{{ x }}``. Results of tasks are filled in."""

    def render_template(self, content: Any, context: Any, jinja_env: Any = None, seen_oids: Any = None) -> Any:
        """What a field's value comes to when the task runs."""
        return content.resolve(context) if isinstance(content, XComArg) else content


class SoundlakeOperator(NoTemplates, BaseOperator):
    """Run one command, and hand on what it printed.

    Its XCom is the JSON object that the command printed on stdout, with the manifest of its run; where a gate said no,
    that and ``held``: why.

    Parameters
    ----------
    arguments : sequence of str
        What follows the program.
    title : str
        What a mapped task is called in the UI.
    program : sequence of str
    environment : mapping of str to str
        Beside `PLAIN`.
    inherit : sequence of str
        Names of the worker's own variables that the command gets, too.
    gate : bool
        Whether to go on where a gate said no (exit code 3); else the task fails.
    asset_extra : callable or None
        From the result, what the events of the outlets carry; by default nothing.

    Notes
    -----
    0 succeeds. 2 and 4 fail, and so does 3 without `gate`: the same call gives the same answer, it is not tried again.
    75 and all else fail and are tried again.
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
        """Run the command to its end."""
        result = outcome(*self._run(), gate=self.gate)
        tell_assets(context, self.outlets, result, self.asset_extra)
        return result

    def _run(self) -> tuple[int, bytes, str]:
        """Exit code, stdout, and the last line of stderr."""
        line = [*self.program, *self.arguments]
        self.log.info("running: %s", " ".join(line))
        names = (*PLAIN, *self.inherit)
        environment = {name: os.environ[name] for name in names if name in os.environ} | dict(self.environment or {})
        if shutil.which(line[0], path=environment.get("PATH")) is None:
            raise AirflowFailException(
                f"cannot start {line[0]}: there is no such program; see `command` in the settings"
            )
        # If this process is killed, so is the command: two tries of a task do not meet.
        bound = shutil.which("setpriv")
        try:
            self._child = subprocess.Popen(
                [bound, "--pdeathsig", "KILL", *line] if bound else line,
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
        """Both streams into the log as they come, in one loop: neither fills up while the other is read."""
        out, said, last = bytearray(), 0, ""

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
            until = float("inf")
            while selector.get_map() and time.monotonic() < until and not self._killed:
                for key, _ in selector.select(timeout=0.2):
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is child.stderr:
                        errors.feed(data)
                    else:
                        said += len(data)
                        out += data[: max(0, MOST_OUTPUT - len(out))]
                if child.poll() is not None and until == float("inf"):
                    until = time.monotonic() + AFTER_EXIT_S
        errors.end()
        if said > len(out):
            self.log.warning("%d bytes of stdout were left out after the first %d", said - len(out), len(out))
        # `wait` would hold a lock that `on_kill` needs, which may come in between.
        while (code := child.poll()) is None:
            time.sleep(0.1)
        return code, bytes(out), last

    def on_kill(self) -> None:
        """Stop the command and all that it started; Airflow calls this on a timeout, and where a task is cleared."""
        self._killed = True
        self._stop()

    def _stop(self) -> None:
        """End the process group: asked first, then killed."""
        child = self._child
        if child is None:
            return
        if child.poll() is None:
            self.log.warning("stopping the command, process group %d", child.pid)
            _signal_group(child.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(GRACE_S)
        # Also what outlived a child that ended by itself.
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
    """The object on the last line of stdout that holds one; empty if there is none."""
    for line in reversed(out.splitlines()):
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    return {}


def outcome(code: int, out: bytes, last: str, *, gate: bool) -> dict[str, Any]:
    """What a command that has ended comes to.

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
        Where another try would come to the same.
    AirflowException
        Where it would not.
    """
    said = last.removeprefix("soundlake: ") or "it said nothing"
    result = _json_object(out)
    if code == DONE or (code == HELD and gate):
        if not result and code == DONE:
            raise AirflowFailException("the command ended well, and printed no JSON object: was --json given?")
        return result | ({"held": said} if code == HELD else {})
    if code in (WRONG_CALL, HELD, TOO_MANY_REJECTS):
        raise AirflowFailException(f"exit code {code}, not tried again: {said}")
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    raise AirflowException(f"{how}, another try may help: {said}")


def tell_assets(
    context: Any,
    outlets: Sequence[Any],
    result: dict[str, Any],
    asset_extra: Callable[[dict[str, Any]], dict[str, Any]] | None,
) -> None:
    """Give the events of a task's outlets what the command found."""
    for outlet in outlets:
        if asset_extra is not None:
            context["outlet_events"][outlet].extra = asset_extra(result)
