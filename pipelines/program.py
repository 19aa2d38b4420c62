"""The `soundlake` program around its commands: quiet libraries, exit codes, one line for whatever goes wrong."""

import os
import sys
import warnings

import typer

from model.errors import HeldError, InputError, TryLaterError
from pipelines.cli import app
from pipelines.lake import HandedOver
from pipelines.options import verbose
from pipelines.terminal import Told, say, say_all
from pipelines.worker_boot import WORKER, work


def prepare() -> None:
    """What must be set before the heavy libraries are imported."""
    import logging

    # One thread a worker in BLAS: Beam's workers and tf.data bring the parallelism.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("LANCE_LOG", "error")
    # Ours, and what is serious; the libraries' own warnings are about things that a user cannot change.
    handler = Told()
    handler.addFilter(
        lambda record: record.name.startswith(("model.", "pipelines.")) or record.levelno >= logging.ERROR
    )
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    if not verbose():
        warnings.simplefilter("ignore")


def _reasons_filled_in(arguments: list[str]) -> list[str]:
    """The same with ``all`` after a ``--retry-rejected`` without a reason: Typer wants a value for each option."""
    filled = []
    for argument, after in zip(arguments, [*arguments[1:], "-"], strict=True):
        filled += [argument, "all"] if argument == "--retry-rejected" and after.startswith("-") else [argument]
    return filled


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code.

    0 done, 1 a fault of ours, 2 the call or its input is wrong, 3 a gate said no, 4 more rejects than allowed,
    75 may go through later, 130 interrupted.
    """
    prepare()
    try:
        code = app(args=_reasons_filled_in(sys.argv[1:] if arguments is None else arguments), standalone_mode=False)
        if code == 130:  # Typer's own answer to Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except (KeyboardInterrupt, typer.Abort) as error:
        return _fail(130, "interrupted; what is done is kept, the same command goes on from there", error)
    except InputError as error:
        return _fail(2, str(error), error)
    except HandedOver:
        print("soundlake: the pipeline is written down; the run ends with the job that is made of it", file=sys.stderr)
        return 0
    except HeldError as error:
        return _fail(3, str(error), error)
    except TryLaterError as error:
        return _fail(75, str(error), error)
    except BrokenPipeError:
        # The reader of a pipe has enough; not ours to complain about, nor Python's at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # Typer brings a parser of its own, or uses click's: its usage errors are known by what they can do.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            context = getattr(error, "ctx", None)
            if type(error).__name__ == "NoArgsIsHelpError":
                print(context.get_help() if context else "")
                return 2
            return _fail(
                2, f"{error.format_message()} See {context.command_path if context else 'soundlake'} --help", error
            )
        where = "" if verbose() else "; -v shows where, and so does the newest manifest in the lake's runs/"
        return _fail(1, f"a fault of soundlake's own: {type(error).__name__}: {_one_line(error)}{where}", error)


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
    sys.exit(main())
