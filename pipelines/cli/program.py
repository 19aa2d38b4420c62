"""The `soundlake` program around its commands: quiet libraries, exit codes, one line for each error."""

import contextlib
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import typer

from soundlake.model.errors import HeldError, InputError, TryLaterError, is_of_lance, of_system
from soundlake.pipelines.cli.commands import app
from soundlake.pipelines.cli.display import at_work
from soundlake.pipelines.cli.options import verbose
from soundlake.pipelines.cli.terminal import OURS, Answer, Told, say, say_all
from soundlake.pipelines.engine.worker_boot import WORKER, work
from soundlake.pipelines.lake.runs import MANIFEST, HandedOver, interrupted

# A second Ctrl-C within this time counts as part of the first: `timeout`, for example, always signals twice.
ONE_WISH_S = 10.0


def prepare() -> None:
    """Set up environment, streams and logging; must run before the heavy libraries are imported."""
    import logging

    # One BLAS thread per worker: Beam's workers and tf.data provide the parallelism.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("LANCE_LOG", "error")
    # Messages and file names contain characters that some terminals' encodings lack.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # None, or not a file
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # Show records of soundlake, and errors: the warnings of libraries concern things that a user cannot change.
    handler = Told()
    handler.addFilter(lambda record: record.name.startswith(OURS) or record.levelno >= logging.ERROR)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, format="%(message)s")
    if not verbose():
        warnings.simplefilter("ignore")


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM, which schedulers send, end a command as Ctrl-C does; a second signal does not disturb the clean-up.

    A signal that this process was started to ignore, as by ``nohup``, stays ignored. Processes that it starts do not
    inherit the handlers: the system resets them for a new program.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = float("-inf")

    def stop(*_: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > ONE_WISH_S:
            last = now
            # With a message: Beam appends the step to it, and turns an error without one into another error.
            raise KeyboardInterrupt("interrupted")

    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code.

    0 done, 1 internal error, 2 the call or its input is wrong, 3 model rejected by the quality gate, 4 more rejects
    than allowed, 75 temporary failure, 130 interrupted.
    """
    prepare()
    with _stoppable():
        try:
            try:
                return _run(sys.argv[1:] if arguments is None else arguments)
            finally:
                # Flush here: at Python's exit, no code would report an error in words.
                if sys.stdout is not None:  # None if closed from the start
                    sys.stdout.flush()
        except BaseException as error:
            return _told(error)


def _run(arguments: list[str]) -> int:
    """Run the command line; return the exit code. Errors of the command are raised."""
    streams = sys.stdout, sys.stderr
    command = next((word for word in arguments if not word.startswith("-")), "soundlake")
    try:
        with at_work(command):
            code = app(args=arguments, standalone_mode=False)
    except SystemExit as error:
        # Beam's own parser raises it. Typer raises it, too, after any broken pipe, and replaces the streams. `Answer`
        # handles a broken pipe of stdout, so this one comes from the work of the command.
        sys.stdout, sys.stderr = streams
        if isinstance(error.__context__, BrokenPipeError):
            raise error.__context__ from None
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.ctx.get_help())  # type: ignore[attr-defined]
            return 2
        raise
    if code == 130:  # Typer's exit code for Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _told(error: BaseException) -> int:
    """Report the error that ended a command; return the exit code."""
    if interrupted(error) or isinstance(error, typer.Abort):
        return _fail(130, "interrupted; finished work is kept, run the same command to continue", error)
    if isinstance(error, HandedOver):
        say("soundlake: the template is written; the run ends when a job started from it ends")
        return 0
    for kind, code in ((InputError, 2), (HeldError, 3), (TryLaterError, 75)):
        if isinstance(error, kind):
            return _fail(code, str(error), error)
    # Typer has a parser of its own, or uses click's: recognise usage errors by their attributes.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "soundlake"
        return _fail(2, f"{_sentence(error.format_message())} See {path} --help", error)
    if (explained := _of_storage(error)) is not None:
        return _fail(2 if isinstance(explained, InputError) else 75, str(explained), error)
    hint = "" if verbose() else "; -v shows the traceback"
    if hint and any(note.startswith(MANIFEST) for note in getattr(error, "__notes__", [])):
        hint += ", and so does the newest manifest in the lake's runs/"
    return _fail(1, f"internal error (please report it): {type(error).__name__}: {_one_line(error)}{hint}", error)


def _sentence(text: str) -> str:
    """The text with one punctuation mark at its end."""
    text = text.rstrip(" .")
    return text if text.endswith(("?", "!")) else f"{text}."


def _of_storage(error: BaseException) -> InputError | TryLaterError | None:
    """An error of the system, a bucket or Lance that no other code has explained; None for an internal error."""
    from soundlake.pipelines.storage.patience import is_of_storage

    if (explained := of_system(error)) is not None:
        return explained
    if isinstance(error, Exception) and is_of_storage(error):
        return TryLaterError(f"a bucket failed: {_one_line(error)}; run the same command again")
    if isinstance(error, MemoryError):
        return TryLaterError(
            "not enough memory: stop other programs, or use fewer --workers, and run the command again"
        )
    if is_of_lance(error):
        # No error of the system is behind it, so the bytes themselves are wrong.
        text = _one_line(error).split(", /")[0].split(", rust/")[0].rpartition("LanceError(IO): ")[2]
        text = re.sub("^((External error|Wrapped error|Invalid user input): )+", "", text)
        return InputError(
            f"a ledger or table of the lake is damaged ({text}): check the disk, then restore its folder from a backup"
        )
    return None


def _one_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:500] if lines else ""


def _fail(code: int, message: str, error: BaseException) -> int:
    if verbose():
        import traceback

        say_all("".join(traceback.format_exception(error)))
    say(f"soundlake: {' '.join(message.split())}")
    return code


def script() -> None:
    """Run the `soundlake` command; or the worker, if Beam calls this program on a worker of Spark or Flink."""
    if WORKER in os.environ:
        prepare()
        work(sys.argv[1:])
        return
    Answer.install()
    code = main()
    if code == 130:
        # Work that is left to Python's exit, such as removing temporary folders, has no handler: ignore the signals.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)
