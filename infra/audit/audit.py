"""Known vulnerabilities in locked packages: run pip-audit on each lock, and list its findings with those accepted.

    audit.py LOCK … [-- options of pip-audit, such as -s osv]

Exit codes as in the soundlake commands: 0 for no finding beyond accepted.toml; 2 for a wrong call; 3 for any other;
75 if the advisory service does not answer or does not know a package, which pip-audit itself counts as no finding.
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
    """The audit of a lock failed or is incomplete."""


def report(lock: Path, options: Sequence[str]) -> list[dict[str, Any]]:
    """pip-audit's report on each package of a lock.

    Raises
    ------
    NotAuditedError
        If pip-audit gives no report, or skipped a package.
    """
    cache = Path(sys.prefix, "advisories")
    line = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json", "--aliases", "on"]
    line += ["--cache-dir", str(cache), "--disable-pip", "--require-hashes", "--requirement", str(lock), *options]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError) as error:
        reason = [text for text in done.stderr.splitlines() if text.strip()] or ["nothing"]
        raise NotAuditedError(f"pip-audit says: {reason[-1].strip()[:300]}") from error
    skipped = [package for package in packages if "skip_reason" in package]
    if skipped or not packages:
        reason = skipped[0]["skip_reason"] if skipped else "no package at all"
        raise NotAuditedError(f"{len(skipped)} of {len(packages)} packages were not looked at: {reason}")
    return packages


def first_of(lock: Path) -> str:
    """The first package of a lock with its hashes, for a test whether the advisory service answers."""
    lines = lock.read_text().splitlines(keepends=True)
    end = next((i for i, line in enumerate(lines) if i and not line.startswith(" ")), len(lines))
    return "".join(lines[:end])


def findings(found: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, set[str], str]]:
    """Yield (package, version, id and its aliases, fixed versions) of each advisory."""
    for package in found:
        for advisory in package["vulns"]:
            names = {advisory["id"], *advisory.get("aliases", ())}
            yield package["name"], package["version"], names, ", ".join(advisory["fix_versions"]) or "none yet"


def accepted(today: datetime.date, path: Path = ACCEPTED) -> dict[str, str]:
    """Ids of advisories that are accepted today, with the reasons."""
    entries = tomllib.loads(path.read_text()).get("advisory", [])
    return {entry["id"]: entry["reason"] for entry in entries if entry["until"] >= today}


def main(arguments: Sequence[str]) -> int:
    """Audit the locks; return the exit code."""
    separator = arguments.index("--") if "--" in arguments else len(arguments)
    locks, options = [Path(name) for name in arguments[:separator]], arguments[separator + 1 :]
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
            packages = report(lock, options)
        except NotAuditedError as error:
            print(f"audit: {lock} was not audited: {error}; call again where an advisory service is", file=sys.stderr)
            return TRY_LATER
        count = 0
        for name, version, names, fixed in findings(packages):
            reason = next((known[advisory_id] for advisory_id in sorted(names) if advisory_id in known), None)
            count += reason is None
            print(f"{lock}: {name} {version}: {' '.join(sorted(names))}; mended in {fixed}; accepted: {reason or 'no'}")
        print(f"{lock}: {len(packages)} packages, {count} advisories that are not accepted")
        code = FOUND if count else code
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
