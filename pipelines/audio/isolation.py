"""A process of its own for the decoders: a crash, a hang or a hunger for memory costs one recording and no other.

Decoders are C libraries, and files come from strangers. What touches a file's content runs in a `Sandbox`: a child
that the kernel stops by itself when it gives no sign of life (`alive`) or asks for too much memory, whatever the parent
is doing. A call whose process dies is tried once more in a fresh one, so that a recording is not blamed for what the
one before it broke.
"""

import contextlib
import gc
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from soundlake.model.errors import TryLaterError, of_system
from soundlake.pipelines.audio.recording import Rejected

# Without a sign of life for so long the decoder hangs: it gives one with every block, each some milliseconds' work.
SECONDS = 60.0
# On top of what the process holds at its start. An honest recording needs about 100 MB, whatever its length.
MEMORY_BYTES = 1 << 30
# Asked of a runner that chooses machines, for one of two cores: where two decoders at once take all they may.
RAM = "5GB"

# Loaded once, in the server that the children are forked from: a child then starts in some milliseconds.
PRELOADED = ["soundlake.pipelines.extract.windows", "soundfile", "soxr", "av", "typer"]
PRELOADED += ["scipy.fft", "scipy.signal", "librosa.filters"]

# Signals by which somebody else stops a process: they say nothing about the recording.
_STOPPED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_SERVER_LOST = 255

# Python looks after all children whenever it starts one. An exit code can be read once: of two threads that ask for it
# at the same time, the second would be told that the server is lost.
_exit_codes = threading.Lock()

# In a child: seconds of the call at hand, 0 between calls and in any other process; and the process that calls.
_seconds = 0.0
_parent: Any = None


def alive() -> None:
    """Tell that a long call goes on. Does nothing outside a sandbox."""
    if _seconds:
        signal.setitimer(signal.ITIMER_REAL, _seconds)
        # Not `getppid`: that is the server, which lives as long as this.
        if not _parent.is_alive():
            # Killed: nobody waits for this any more.
            os._exit(1)


def _limit_memory(extra: int) -> None:
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + extra, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _serve(calls: Any, seconds: float, memory: int) -> None:
    """The child: answer calls until the parent hangs up."""
    global _seconds, _parent
    _parent = multiprocessing.parent_process()
    # A garbage collection would touch, and so copy, every page that this process shares with the one it came from.
    gc.freeze()
    # Ctrl-C is for the parent. The alarm has no handler: the kernel ends this process even in the middle of C code.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # libmpg123 and FFmpeg talk to stderr; what matters comes home as an exception.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    _limit_memory(memory)
    calls.send("ready")
    while True:
        try:
            function, arguments = calls.recv()
        except EOFError:
            return
        _seconds = seconds
        alive()
        answer: Any
        try:
            answer = True, function(*arguments)
        except BaseException as error:
            answer = False, error
        _seconds = 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)
        try:
            calls.send(answer)
        except BrokenPipeError:
            return
        except Exception as error:  # an exception that cannot travel
            calls.send((False, RuntimeError(f"{type(answer[1]).__name__}: {answer[1]} ({error})")))


def _start_server() -> None:
    """Start what children are forked from, unless it runs, deaf to Ctrl-C: Python makes it so after its preloading."""
    # First, for it lets SIGINT in again.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Sandbox:
    """A child process that calls functions; started at the first call, again after each death.

    Parameters
    ----------
    seconds : float
        A call that is silent for longer is ended.
    memory : int
        Bytes that the child may ask for on top of what it starts with.
    """

    def __init__(self, *, seconds: float = SECONDS, memory: int = MEMORY_BYTES) -> None:
        self._seconds, self._memory = seconds, memory
        self._process: Any = None
        self._calls: Any = None

    def _start(self) -> None:
        # Their threads would wait for each other in a child.
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(name, "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._calls, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self._seconds, self._memory), daemon=True)
        with theirs:
            try:
                with _exit_codes:
                    _start_server()
                    process.start()
            except (OSError, EOFError) as error:
                if isinstance(clear := of_system(error, "decoder processes"), TryLaterError):
                    raise clear from error
                raise TryLaterError(
                    f"the system could not start a decoder process ({error}): run the same command again"
                ) from error
        self._process = process
        self._calls.recv()

    def _buried(self) -> int:
        """The exit code of a child that died; `TryLaterError` if somebody stopped it."""
        multiprocessing.connection.wait([self._process.sentinel])
        with _exit_codes:
            self._process.join()
        code = int(self._process.exitcode)
        self._process = None
        if -code in _STOPPED or code == _SERVER_LOST:
            raise TryLaterError("a decoding process was killed by another process: run the same command again")
        return code

    def stop(self) -> None:
        """End the child in the middle of a call; from any thread."""
        process = self._process
        if process is not None:
            process.terminate()

    def close(self) -> None:
        """End the child."""
        if self._process is not None:
            self._calls.close()
            self._process.join(1)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            self._process = None

    def call(self, function: Callable[..., Any], *arguments: Any, stage: str) -> Any:
        """``function(*arguments)`` in the child.

        Parameters
        ----------
        function : callable
            Of a module, so that the child can import it; it should call `alive` now and then.
        arguments
            Small, and fit for pickle.
        stage : str
            Of the rejection, if the process dies.

        Raises
        ------
        Rejected
            With reason ``'decoder-crashed'``, ``'decoder-hangs'`` or ``'too-much-memory'`` if the process died, twice.
        TryLaterError
            If somebody stopped the process, or the system starts none.
        RuntimeError
            If the process dies before it can be called.
        Exception
            Whatever the function raised.
        """
        for attempt in (1, 2):
            ready = False
            try:
                if self._process is None:
                    self._start()
                ready = True
                self._calls.send((function, arguments))
                good, answer = self._calls.recv()
            except (EOFError, ConnectionError) as error:
                code = self._buried()
                if attempt == 2 and not ready:
                    raise RuntimeError(f"a decoding process could not start: exit code {code}") from error
                if attempt == 2:
                    raise _rejection(code, stage, self._seconds) from error
                continue
            except BaseException:
                # Interrupted in the middle of an answer: the next call would take it for its own.
                if self._process is not None:
                    self._process.kill()
                    self._process = None
                raise
            if good:
                return answer
            if not isinstance(answer, MemoryError):
                raise answer
            # Not the next call's to pay for: the process may hold what it took, for this call or for one before.
            self.close()
            if attempt == 2:
                raise Rejected(stage, "too-much-memory", detail=f"more than {self._memory >> 20} MB") from answer
        raise AssertionError("unreachable")


def _rejection(code: int, stage: str, seconds: float) -> Rejected:
    """What the death of a process says about the recording."""
    if -code == signal.SIGALRM:
        return Rejected(stage, "decoder-hangs", detail=f"no sign of life for {seconds:g} s")
    if -code == signal.SIGKILL:
        return Rejected(
            stage, "too-much-memory", detail="the system killed the decoder, as it does when memory runs out"
        )
    with contextlib.suppress(ValueError):
        return Rejected(stage, "decoder-crashed", detail=signal.Signals(-code).name)
    return Rejected(stage, "decoder-crashed", detail=f"exit code {code}")


_idle: list[Sandbox] = []
_busy: list[Sandbox] = []
_lock = threading.Lock()


@contextlib.contextmanager
def sandbox() -> Iterator[Sandbox]:
    """An idle sandbox of this process, or a new one; it goes back when the block ends."""
    with _lock:
        found = _idle.pop() if _idle else Sandbox()
        _busy.append(found)
    try:
        yield found
    finally:
        with _lock:
            _busy.remove(found)
            _idle.append(found)


def stop() -> None:
    """End what the sandboxes of this process are doing: calls that wait for them raise `TryLaterError`."""
    with _lock:
        for found in _busy:
            found.stop()
