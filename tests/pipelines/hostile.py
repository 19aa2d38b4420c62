"""What tests of a lake, a corpus or a name from somebody who means harm have in common."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from soundlake.model.features.log_mel import PRESETS
from soundlake.pipelines.cli import options
from soundlake.pipelines.cli.program import main
from tests.conftest import Made

SPEC = PRESETS["general"].spec_id
# What a terminal obeys: colours, a title, a new line, a change of direction, a carriage return.
NASTY = "a\x1b[31mred\x1b]0;title\x07\r\nsoundlake: all is well \u202efdp"


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    # Another call was another process.
    options._verbose = False
    code = main(list(arguments))
    options._verbose = False
    out, err = capsys.readouterr()
    return code, out, err


def tree(folder: Path) -> dict[str, str]:
    """Digests of all files below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def model_of(made: Made) -> str:
    return str(made.result["model"]["model_id"])


def refused(capsys: pytest.CaptureFixture[str], said: str, *arguments: str) -> None:
    """The command ends with 2 and one line."""
    code, _, err = call(capsys, *arguments)
    assert (code, len(err.splitlines())) == (2, 1), err
    assert said in err


COMMANDS: dict[str, Callable[[Made], list[str]]] = {
    "status": lambda made: ["status"],
    "search": lambda made: ["search", str(sorted(made.audio.glob("bird/*"))[0])],
    "list": lambda made: ["search", "--where", "label = 'bird'"],
    "maintain": lambda made: ["maintain", "--grace", "0"],
    "forget": lambda made: ["forget", str(sorted(made.audio.glob("*/*"))[0])],
    "train": lambda made: ["train", "--steps", "60", "--batch-size", "32"],
    "encode": lambda made: ["encode"],
    "extract": lambda made: ["extract", str(made.audio)],
}
