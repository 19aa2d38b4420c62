"""A separate process for the decoders: if one crashes, hangs or needs too much memory, only one recording is lost.

Decoders are C libraries, and files come from strangers. All code that touches a file's content runs in a `Sandbox`.
This is a child process that the kernel stops when it gives no sign of life (`alive`) or requests too much memory,
whatever the parent is doing. A call whose process dies is repeated once in a new process, so that a recording is not
blamed for damage that the recording before it caused.
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

# A decoder hangs if it gives no sign of life for this many seconds. It gives one with every block, which takes some
# milliseconds.
SECONDS = 60.0
# Allowed in addition to the memory of the process at its start. A genuine recording needs about 100 MB, whatever its
# length.
MEMORY_BYTES = 1 << 30
# Requested from a runner that chooses machines, for a machine with two cores: enough if two decoders use all the memory
# that they are allowed.
RAM = "5GB"

# Modules that are loaded once, in the server from which the children are forked: a child then starts in some
# milliseconds.
PRELOADED = ["soundlake.pipelines.extract.windows", "soundfile", "soxr", "av", "typer"]
PRELOADED += ["scipy.fft", "scipy.signal", "librosa.filters"]

# Signals by which somebody else stops a process: the recording is not their cause.
_STOPPED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_SERVER_LOST = 255

# Python polls all children whenever it starts one. An exit code can be read only once: if two threads ask for it at the
# same time, the second one gets the code of a lost server.
_exit_codes = threading.Lock()

# In a child: the time limit of the current call, in seconds (0 between calls and in any other process), and the calling
# process.
_seconds = 0.0
_parent: Any = None


def alive() -> None:
    """Give a sign of life during a long call; does nothing outside a sandbox."""
    if _seconds:
        signal.setitimer(signal.ITIMER_REAL, _seconds)
        # Not `getppid`: that is the server, which lives as long as this process.
        if not _parent.is_alive():
            # The parent was killed: nobody waits for the answer any more.
            os._exit(1)


def _limit_memory(extra: int) -> None:
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _serve(calls: Any, seconds: float, memory: int) -> None:
    """Run in the child: answer calls until the parent closes the connection."""
    global _seconds, _parent
    _parent = multiprocessing.parent_process()
    # A garbage collection would touch, and so copy, every page of memory that this process shares with the server.
    gc.freeze()
    # The parent handles Ctrl-C. The alarm has no handler, so the kernel ends this process even in the middle of C code.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # libmpg123 and FFmpeg write to stderr. Errors that matter reach the parent as exceptions.
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
        except Exception as error:  # an answer that cannot be pickled
            calls.send((False, RuntimeError(f"{type(answer[1]).__name__}: {answer[1]} ({error})")))


def _start_server() -> None:
    """Start the server from which children are forked, unless it runs, with SIGINT blocked.

    Python itself makes the server ignore SIGINT only after its preloading.
    """
    # This comes first, since it unblocks SIGINT.
    multiprocessing.resource_tracker.ensure_running()
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


class Sandbox:
    """A child process that calls functions. It is started at the first call, and again after each death.

    Parameters
    ----------
    seconds : float
        Time limit in seconds for a call without a sign of life.
    memory : int
        Bytes that the child may use in addition to its memory at the start.
    """

    def __init__(self, *, seconds: float = SECONDS, memory: int = MEMORY_BYTES) -> None:
        self._seconds, self._memory = seconds, memory
        self._process: Any = None
        self._calls: Any = None

    def _start(self) -> None:
        # The threads of these libraries would wait for each other in a child.
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ.setdefault(name, "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self._calls, child_end = context.Pipe()
        process = context.Process(target=_serve, args=(child_end, self._seconds, self._memory), daemon=True)
        with child_end:
            try:
                with _exit_codes:
                    _start_server()
                    process.start()
            except (OSError, EOFError) as error:
                if isinstance(system_error := of_system(error, "decoder processes"), TryLaterError):
                    raise system_error from error
                raise TryLaterError(
                    f"the system could not start a decoder process ({error}): run the same command again"
                ) from error
        self._process = process
        self._calls.recv()

    def _buried(self) -> int:
        """Wait for a dead child and return its exit code; raise `TryLaterError` if somebody stopped it."""
        multiprocessing.connection.wait([self._process.sentinel])
        with _exit_codes:
            self._process.join()
        code = int(self._process.exitcode)
        self._process = None
        if -code in _STOPPED or code == _SERVER_LOST:
            raise TryLaterError("a decoding process was killed by another process: run the same command again")
        return code

    def stop(self) -> None:
        """End the child in the middle of a call; may be called from any thread."""
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
        """Call ``function(*arguments)`` in the child.

        Parameters
        ----------
        function : callable
            A function of a module, so that the child can import it. It should call `alive` now and then.
        arguments
            Small, and picklable.
        stage : str
            The stage of the rejection, if the process dies.

        Returns
        -------
        object
            The result of the function.

        Raises
        ------
        Rejected
            With reason ``'decoder-crashed'``, ``'decoder-hangs'`` or ``'too-much-memory'`` if the process died twice.
        TryLaterError
            If somebody stopped the process, or if the system could not start one.
        RuntimeError
            If the process dies before it can be called, at the second attempt.
        Exception
            Any exception of the function.
        """
        for attempt in (1, 2):
            ready = False
            try:
                if self._process is None:
                    self._start()
                ready = True
                self._calls.send((function, arguments))
                succeeded, answer = self._calls.recv()
            except (EOFError, ConnectionError) as error:
                code = self._buried()
                if attempt == 2 and not ready:
                    raise RuntimeError(f"a decoding process could not start: exit code {code}") from error
                if attempt == 2:
                    raise _rejection(code, stage, self._seconds) from error
                continue
            except BaseException:
                # Interrupted in the middle of an answer, which the next call would read as its own.
                if self._process is not None:
                    self._process.kill()
                    self._process = None
                raise
            if succeeded:
                return answer
            if not isinstance(answer, MemoryError):
                raise answer
            # End the process: it may still hold memory of this or an earlier call, which the next call would lack.
            self.close()
            if attempt == 2:
                raise Rejected(stage, "too-much-memory", detail=f"more than {self._memory >> 20} MB") from answer
        raise AssertionError("unreachable")


def _rejection(code: int, stage: str, seconds: float) -> Rejected:
    """The rejection of a recording whose process died with an exit code."""
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
    """Take an idle sandbox of this process, or start a new one; it becomes idle again when the block ends."""
    with _lock:
        taken = _idle.pop() if _idle else Sandbox()
        _busy.append(taken)
    try:
        yield taken
    finally:
        with _lock:
            _busy.remove(taken)
            _idle.append(taken)


def stop() -> None:
    """Stop the busy sandboxes of this process: calls that wait for them raise `TryLaterError`."""
    with _lock:
        for busy in _busy:
            busy.stop()
