"""What a command needs of the terminal: the lake that was named, words for people, one JSON object for programs."""

import json
import logging
import sys
import unicodedata
from typing import Any


def lake_at(root: str) -> Any:
    """The lake of a command's ``--lake``."""
    from pipelines.lake import Lake

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


def tell(text: str = "") -> None:
    """A line of the answer, on stdout."""
    print(visible(text))


def say(text: str = "") -> None:
    """A line for people, who may be looking while stdout goes to a program."""
    print(visible(text), file=sys.stderr, flush=True)


def say_all(text: str) -> None:
    """Lines for people, such as a traceback: those after the first are indented, so that none passes for a message."""
    first, *others = text.rstrip("\n").split("\n")
    for line in (first, *(f"  {line}" for line in others)):
        say(line)


class Told(logging.Handler):
    """What is logged, for people."""

    def emit(self, record: logging.LogRecord) -> None:
        """A message, and the traceback that it may have."""
        say_all(f"soundlake: {self.format(record)}")


def out(result: Any, lake: Any = None) -> None:
    """The one JSON object of ``--json``: what a command found, and of its run the manifest, less what it found."""
    if lake is not None and result.get("run_id"):
        manifest = json.loads(lake.read(f"runs/{result['run_id']}.json"))
        result = result | {"manifest": {name: value for name, value in manifest.items() if name != "counts"}}
    print(json.dumps(result, sort_keys=True, default=str))
