"""Shared input and output of the commands: the lake, messages for people, one JSON object for programs."""

import contextlib
import io
import json
import logging
import os
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO

from soundlake.model.errors import TryLaterError
from soundlake.pipelines.cli import display

# Prefixes of soundlake's own loggers.
OURS = ("soundlake.",)


def lake_at(root: str) -> Any:
    """The lake that ``--lake`` names."""
    from soundlake.pipelines.lake.lake import Lake

    return Lake.at(root)


def visible(text: str) -> str:
    """The text on one line; characters that a terminal obeys or hides are escaped: ``\\x1b`` for an escape, and so on.

    File names and texts in a lake may come from anywhere: they must not move the cursor or imitate a soundlake message.
    """
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in _OBEYED else c for c in text)


# Unicode categories: controls, formats such as a change of direction, surrogates; line and paragraph separators.
_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def _to_nowhere(stream: TextIO) -> None:
    """Discard what a stream still buffers and all that follows: Python would try to write it again at its exit."""
    with contextlib.suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)


class Answer(io.TextIOWrapper):
    """Stdout that reports failures of its own writes clearly.

    After the reader of a pipe has closed it, the command goes on to its end without it.

    Raises
    ------
    TryLaterError
        If stdout accepts no more output, such as a file on a full disk.
    """

    @classmethod
    def install(cls) -> None:
        """Replace this process's stdout, if it has one."""
        stdout = sys.stdout
        if isinstance(stdout, io.TextIOWrapper):
            sys.stdout = cls(
                stdout.buffer,
                encoding=stdout.encoding,
                errors=stdout.errors,
                line_buffering=stdout.line_buffering,
                write_through=stdout.write_through,
            )

    def write(self, text: str) -> int:
        """Write the text; after an error, discard what is left."""
        if text != "":  # Typer tests the kind of stream by writing "": that must not fail
            with self._writing():
                super().write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the buffer; after an error, discard what is left."""
        with self._writing():
            super().flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            _to_nowhere(self)
        except OSError as error:
            _to_nowhere(self)
            raise TryLaterError(f"the output could not be written: {error.strerror}") from error


def tell(text: str = "") -> None:
    """Print a line of the answer on stdout."""
    display.end()
    print(visible(text))


def say(text: str = "") -> None:
    """Print a line for people on stderr, since stdout may go to a program."""
    if sys.stderr is None:  # closed from the start: print would use stdout
        return
    try:
        with display.hidden():
            print(visible(text), file=sys.stderr, flush=True)
    except OSError:  # stderr was closed meanwhile
        _to_nowhere(sys.stderr)


def say_all(text: str) -> None:
    """Print lines for people, such as a traceback; all but the first are indented: none may look like a message."""
    first, *others = text.rstrip("\n").split("\n")
    for line in (first, *(f"  {line}" for line in others)):
        say(line)


class Told(logging.Handler):
    """Handler that prints log records for people."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record's message, its logger unless that is soundlake's, and its traceback, if any."""
        origin = "" if record.name.startswith(OURS) else f"{record.name}: "
        say_all(f"soundlake: {origin}{self.format(record)}")


def out(result: Any, lake: Any = None) -> None:
    """Print the one JSON object of ``--json``: a command's result, and its run's manifest without the ``counts``."""
    if lake is not None and result.get("run_id"):
        manifest = json.loads(lake.read(f"runs/{result['run_id']}.json"))
        result = result | {"manifest": {name: value for name, value in manifest.items() if name != "counts"}}
    display.end()
    print(json.dumps(result, sort_keys=True, default=str, allow_nan=False))
