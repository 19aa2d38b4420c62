"""What a command needs of the terminal: the lake that was named, words for people, one JSON object for programs."""

import json
import sys
from typing import Any


def lake_at(root: str) -> Any:
    """The lake of a command's ``--lake``."""
    from pipelines.lake import Lake

    return Lake.at(root)


def say(text: str = "") -> None:
    """A line for people, who may be looking while stdout goes to a program."""
    print(text, file=sys.stderr)


def out(result: Any, lake: Any = None) -> None:
    """The one JSON object of ``--json``: what a command found, and of its run the manifest, less what it found."""
    if lake is not None and result.get("run_id"):
        manifest = json.loads(lake.read(f"runs/{result['run_id']}.json"))
        result = result | {"manifest": {name: value for name, value in manifest.items() if name != "counts"}}
    print(json.dumps(result, sort_keys=True, default=str))
