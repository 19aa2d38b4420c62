"""Messages of forget in words."""

import shlex
from collections.abc import Callable
from typing import Any


def forgotten(result: dict[str, Any], lake: str, say: Callable[[str], None]) -> None:
    """Print what was forgotten, which models may keep traces of it, and how to replace them."""
    if result["already"] and not (result["recordings"] or result["names"]):
        say(f"already forgotten: {result['already']}; every file of the lake was searched again")
    else:
        before = f"; {result['already']} already forgotten before" if result["already"] else ""
        say(f"forgotten: {_count(result['recordings'], 'recording')}, {_count(result['names'], 'name')}{before}")
    say("removed from shards, ledgers, tables, old versions, reports and logs; later extracts leave it out")
    lake_option = f"--lake {shlex.quote(lake)}"
    for model in result["models"]:
        use = " (promoted)" if model["promoted"] else ""
        if model["recordings"] is None:
            say(f"model {model['model_id']}{use}: of a format that does not say what it was trained on")
        else:
            say(f"model {model['model_id']}{use}: trained on {_count(model['recordings'], 'forgotten recording')}")
    if result["models"]:
        say(
            "weights may keep traces of recordings they were trained on; to replace such a model run: "
            f"soundlake train {lake_option}, then soundlake promote, then delete models/MODEL, tables/MODEL.lance and "
            "tables/MODEL.json of the old one in the lake"
        )
    say(f"reports were deleted, since they may show it; to write them again run: soundlake evaluate {lake_option}")
    say("not touched: the files themselves, exports, backups, versions that a bucket keeps")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
