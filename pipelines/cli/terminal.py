"""What a command needs of the terminal: the lake that was named, words for people, one JSON object for programs."""

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

# Whose log records are ours.
OURS = ("soundlake.",)


def lake_at(root: str) -> Any:
    """The lake of a command's ``--lake``."""
    from soundlake.pipelines.lake.lake import Lake

    return Lake.at(root)


def visible(text: str) -> str:
    """The same on one line, with nothing in it that a terminal obeys or hides: ``\\x1b`` for an escape, and so on.

    Names of files and words of a lake come from anywhere: none may move the cursor, or pass for a line of ours.
    """
    if text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in _OBEYED else c for c in text)


# Controls, formats such as a change of direction, halves of pairs; line and paragraph separators.
_OBEYED = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def _to_nowhere(stream: TextIO) -> None:
    """Let what a stream still holds, and all that follows, go nowhere: Python would try again at its exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


class Answer(io.TextIOWrapper):
    """Stdout whose errors are told for what they are.

    Once the reader of a pipe has enough, the command goes on, and ends, without it.

    Raises
    ------
    TryLaterError
        If stdout takes no more, such as a file on a full disk.
    """

    @classmethod
    def install(cls) -> None:
        """Take the place of this process's stdout, if it has one."""
        out = sys.stdout
        if isinstance(out, io.TextIOWrapper):
            sys.stdout = cls(
                out.buffer,
                encoding=out.encoding,
                errors=out.errors,
                line_buffering=out.line_buffering,
                write_through=out.write_through,
            )

    def write(self, text: str) -> int:
        """All of it, or what is left goes nowhere."""
        if text != "":  # with nothing Typer tries what kind of stream this is, and hears of no error
            with self._writing():
                super().write(text)
        return len(text)

    def flush(self) -> None:
        """What is held back, likewise."""
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
    """A line of the answer, on stdout."""
    display.end()
    print(visible(text))


def say(text: str = "") -> None:
    """A line for people, who may be looking while stdout goes to a program."""
    if sys.stderr is None:  # closed from the beginning: print would take stdout
        return
    try:
        with display.hidden():
            print(visible(text), file=sys.stderr, flush=True)
    except OSError:  # nobody looks any more
        _to_nowhere(sys.stderr)


def say_all(text: str) -> None:
    """Lines for people, such as a traceback: those after the first are indented, so that none passes for a message."""
    first, *others = text.rstrip("\n").split("\n")
    for line in (first, *(f"  {line}" for line in others)):
        say(line)


class Told(logging.Handler):
    """What is logged, for people."""

    def emit(self, record: logging.LogRecord) -> None:
        """A message, whose it is unless it is ours, and the traceback that it may have."""
        whose = "" if record.name.startswith(OURS) else f"{record.name}: "
        say_all(f"soundlake: {whose}{self.format(record)}")


def out(result: Any, lake: Any = None) -> None:
    """The one JSON object of ``--json``: what a command found, and of its run the manifest, less what it found."""
    if lake is not None and result.get("run_id"):
        manifest = json.loads(lake.read(f"runs/{result['run_id']}.json"))
        result = result | {"manifest": {name: value for name, value in manifest.items() if name != "counts"}}
    display.end()
    print(json.dumps(result, sort_keys=True, default=str, allow_nan=False))
