"""The `soundlake` program around its commands: quiet libraries, exit codes, one line for whatever goes wrong."""

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

# After a Ctrl-C another one is part of the same wish for so long: `timeout`, for one, always signals twice.
ONE_WISH_S = 10.0


def prepare() -> None:
    """What must be set before the heavy libraries are imported."""
    import logging

    # One thread a worker in BLAS: Beam's workers and tf.data bring the parallelism.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("LANCE_LOG", "error")
    # Words of ours and names of files have letters that not every terminal's encoding has.
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # none, or not a file's
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # Ours, and what is serious; the libraries' own warnings are about things that a user cannot change.
    handler = Told()
    handler.addFilter(lambda record: record.name.startswith(OURS) or record.levelno >= logging.ERROR)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, format="%(message)s")
    if not verbose():
        warnings.simplefilter("ignore")


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM, a scheduler's, end a command as Ctrl-C does, and neither spoil the clean-up after the first.

    A signal that this process was started to ignore, as by ``nohup``, stays ignored. Processes that it starts have
    none of this: the system gives a new program its own handlers.
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
            # With a word: Beam adds the step to it, and makes another error of one that has none.
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
                # Here, not at Python's exit, where nobody tells of an error in words.
                if sys.stdout is not None:  # closed from the beginning
                    sys.stdout.flush()
        except BaseException as error:
            return _told(error)


def _run(arguments: list[str]) -> int:
    """Run the command line; return the exit code, where nothing went wrong."""
    streams = sys.stdout, sys.stderr
    command = next((one for one in arguments if not one.startswith("-")), "soundlake")
    try:
        with at_work(command):
            code = app(args=arguments, standalone_mode=False)
    except SystemExit as error:
        # Of Beam's own parser. And Typer's answer to any broken pipe, for which it takes the streams away: stdout's
        # come to nothing (`Answer`), so that it is one of the command's work.
        sys.stdout, sys.stderr = streams
        if isinstance(error.__context__, BrokenPipeError):
            raise error.__context__ from None
        return error.code if isinstance(error.code, int) else 1
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.ctx.get_help())  # type: ignore[attr-defined]
            return 2
        raise
    if code == 130:  # Typer's own answer to Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _told(error: BaseException) -> int:
    """Tell of what a command ended with; the exit code."""
    if interrupted(error) or isinstance(error, typer.Abort):
        return _fail(130, "interrupted; finished work is kept, run the same command to continue", error)
    if isinstance(error, HandedOver):
        say("soundlake: the template is written; the run ends when a job started from it ends")
        return 0
    for kind, code in ((InputError, 2), (HeldError, 3), (TryLaterError, 75)):
        if isinstance(error, kind):
            return _fail(code, str(error), error)
    # Typer brings a parser of its own, or uses click's: its usage errors are known by what they can do.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "soundlake"
        return _fail(2, f"{_sentence(error.format_message())} See {path} --help", error)
    if (clear := _of_storage(error)) is not None:
        return _fail(2 if isinstance(clear, InputError) else 75, str(clear), error)
    where = "" if verbose() else "; -v shows the traceback"
    if where and any(note.startswith(MANIFEST) for note in getattr(error, "__notes__", [])):
        where += ", and so does the newest manifest in the lake's runs/"
    return _fail(1, f"internal error (please report it): {type(error).__name__}: {_one_line(error)}{where}", error)


def _sentence(text: str) -> str:
    """The same with one mark at its end."""
    text = text.rstrip(" .")
    return text if text.endswith(("?", "!")) else f"{text}."


def _of_storage(error: BaseException) -> InputError | TryLaterError | None:
    """What the system, a bucket or Lance says where nothing nearer to it has told it; None of an internal error."""
    from soundlake.pipelines.storage.patience import is_of_storage

    if (clear := of_system(error)) is not None:
        return clear
    if isinstance(error, Exception) and is_of_storage(error):
        return TryLaterError(f"a bucket failed: {_one_line(error)}; run the same command again")
    if isinstance(error, MemoryError):
        return TryLaterError(
            "not enough memory: stop other programs, or use fewer --workers, and run the command again"
        )
    if is_of_lance(error):
        # The system has no part in it, so the bytes themselves are wrong.
        said = _one_line(error).split(", /")[0].split(", rust/")[0].rpartition("LanceError(IO): ")[2]
        said = re.sub("^((External error|Wrapped error|Invalid user input): )+", "", said)
        return InputError(
            f"a ledger or table of the lake is damaged ({said}): check the disk, then restore its folder from a backup"
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
    """The `soundlake` command; on a worker of Spark or Flink, where Beam calls it, the worker."""
    if WORKER in os.environ:
        prepare()
        work(sys.argv[1:])
        return
    Answer.install()
    code = main()
    if code == 130:
        # What is left to Python's exit, such as temporary folders, has no handler any more.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(code)
