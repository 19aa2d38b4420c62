"""What forget says, in words."""

import shlex
from collections.abc import Callable
from typing import Any


def forgotten(result: dict[str, Any], lake: str, say: Callable[[str], None]) -> None:
    """Say what was forgotten, what still knows of it, and what is to be done about that."""
    if result["already"] and not (result["recordings"] or result["names"] > result["already"]):
        say(f"already forgotten: {result['already']}; every file of the lake was looked through again")
    else:
        again = f", {result['already']} of them were already forgotten" if result["already"] else ""
        say(f"forgotten: {result['recordings']} recordings, {result['names']} names{again}")
    say("removed from shards, ledger, tables, their old versions, reports and logs; the next extract leaves it out")
    at = f"--lake {shlex.quote(lake)}"
    for model in result["models"]:
        use = " (promoted)" if model["promoted"] else ""
        if model["recordings"] is None:
            say(f"model {model['model_id']}{use}: of a format that does not say what it was trained on")
        else:
            say(f"model {model['model_id']}{use}: trained on {model['recordings']} recordings that are forgotten")
    if result["models"]:
        say(
            f"weights may keep traces of what they were trained on: soundlake train {at}, promote the new model, then "
            "delete models/MODEL, tables/MODEL.lance and tables/MODEL.json of the old ones in the lake"
        )
    say("reports went with what they showed: `soundlake evaluate` writes them anew")
    say("copies elsewhere are not the lake's: the files themselves, exports, backups, versions that a bucket keeps")
