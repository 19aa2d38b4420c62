"""Messages of maintain in words."""

from collections.abc import Callable
from typing import Any

from soundlake.pipelines.upkeep.leftovers import OUTCOMES, PARTS, RUNS, SHARDS, STAGED

_KINDS = {
    PARTS: "unfinished file(s)",
    RUNS: "folder(s) of dead runs",
    STAGED: "staging folder(s) of finished encodes",
    OUTCOMES: "outcome file(s) of bundles that are not in the ledger",
    SHARDS: "shard(s) of such bundles",
}


def maintained(result: dict[str, Any], say: Callable[[str], None]) -> None:
    """Print what maintain did, or would do."""
    dry = result["dry_run"]
    swept = [f"{n['count']} {_KINDS[kind]}{_size(n)}" for kind, n in result["swept"].items() if n["count"]]
    say(f"{'would remove' if dry else 'removed'}: {', '.join(swept) or 'nothing'}")
    for spec_id, outcome in result["ledgers"].items():
        say(f"ledger {spec_id}: {_tidied(outcome, dry)}")
    for model_id, outcome in result["tables"].items():
        say(f"table {model_id}: {_tidied(outcome, dry)}{_index(outcome['index'] or {})}")
    if dry:
        say("dry run: nothing was changed")


def _tidied(one: dict[str, Any], dry: bool) -> str:
    if one["left_alone"] is not None:
        return f"skipped: {one['left_alone']}"
    count, version = one["fragments"], one["version"]
    if not (one["merged"] or one["versions_removed"] or one["bytes_removed"] or version["before"] != version["after"]):
        return f"nothing to do, {count['after']} fragments, version {version['after']}"
    gone = f"{one['versions_removed']} old versions{_size({'bytes': one['bytes_removed']})}"
    if dry:
        return f"{one['merged']} of {count['before']} fragments to merge, {gone} to remove"
    return (
        f"version {version['before']} → {version['after']}, fragments {count['before']} → {count['after']}, "
        f"{gone} removed"
    )


def _index(found: dict[str, Any]) -> str:
    if not found:
        return ""
    recall = f", recall {found['recall']:.3f}" if "recall" in found else ""
    built = ", rebuilt" if found.get("anew") else ""
    due = ", index to be built or updated" if found.get("due") else ""
    return f"; search is {found['kind']}{recall}{built}{due}"


def _size(found: dict[str, int]) -> str:
    """Number of bytes in words; empty for 0."""
    size = found["bytes"]
    power = (len(str(size)) - 1) // 3
    return f" ({size / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]})" if size else ""
