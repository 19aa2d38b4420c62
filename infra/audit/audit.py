"""Known holes in what is locked: pip-audit on each lock, and what it finds beside what is accepted.

    audit.py LOCK … [-- options of pip-audit, such as -s osv]

Exit codes as of the commands: 0 nothing beyond what accepted.toml tells; 2 the call is wrong; 3 something is; 75 the
service of advisories does not answer, or does not know a package: pip-audit itself would call that no finding.
"""

import datetime
import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ACCEPTED = Path(__file__).with_name("accepted.toml")
NOTHING, WRONG_CALL, FOUND, TRY_LATER = 0, 2, 3, 75


class NotAuditedError(Exception):
    """There is no answer about a lock, or about a part of it."""


def report(lock: Path, options: Sequence[str]) -> list[dict[str, Any]]:
    """What pip-audit says of each package of a lock.

    Raises
    ------
    NotAuditedError
        If it says nothing, or skipped one.
    """
    cache = Path(sys.prefix, "advisories")
    line = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json", "--aliases", "on"]
    line += ["--cache-dir", str(cache), "--disable-pip", "--require-hashes", "--requirement", str(lock), *options]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError) as error:
        said = [text for text in done.stderr.splitlines() if text.strip()] or ["nothing"]
        raise NotAuditedError(f"pip-audit says: {said[-1].strip()[:300]}") from error
    skipped = [one for one in found if "skip_reason" in one]
    if skipped or not found:
        said = skipped[0]["skip_reason"] if skipped else "no package at all"
        raise NotAuditedError(f"{len(skipped)} of {len(found)} packages were not looked at: {said}")
    return found


def first_of(lock: Path) -> str:
    """The first package of a lock, with its hashes: as good as any to see whether anybody answers."""
    lines = lock.read_text().splitlines(keepends=True)
    end = next((i for i, line in enumerate(lines) if i and not line.startswith(" ")), len(lines))
    return "".join(lines[:end])


def findings(found: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, set[str], str]]:
    """(package, version, id and its aliases, versions that are mended) of each advisory."""
    for one in found:
        for hole in one["vulns"]:
            names = {hole["id"], *hole.get("aliases", ())}
            yield one["name"], one["version"], names, ", ".join(hole["fix_versions"]) or "none yet"


def accepted(today: datetime.date, path: Path = ACCEPTED) -> dict[str, str]:
    """Ids that are lived with today, and why."""
    entries = tomllib.loads(path.read_text()).get("advisory", [])
    return {one["id"]: one["reason"] for one in entries if one["until"] >= today}


def main(arguments: Sequence[str]) -> int:
    """Audit the locks; return the exit code."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    locks, options = [Path(name) for name in arguments[:at]], arguments[at + 1 :]
    if not locks or not all(lock.is_file() for lock in locks):
        print("audit: name locks that are there", file=sys.stderr)
        return WRONG_CALL
    known = accepted(datetime.datetime.now(datetime.UTC).date())
    code = NOTHING
    for lock in locks:
        try:
            with tempfile.NamedTemporaryFile("w", suffix=".txt") as probe:
                probe.write(first_of(lock))
                probe.flush()
                report(Path(probe.name), options)
            found = report(lock, options)
        except NotAuditedError as error:
            print(f"audit: {lock} was not audited: {error}; call again where an advisory service is", file=sys.stderr)
            return TRY_LATER
        told = 0
        for name, version, names, mended in findings(found):
            reason = next((known[one] for one in sorted(names) if one in known), None)
            told += reason is None
            print(
                f"{lock}: {name} {version}: {' '.join(sorted(names))}; mended in {mended}; accepted: {reason or 'no'}"
            )
        print(f"{lock}: {len(found)} packages, {told} advisories that are not accepted")
        code = FOUND if told else code
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
