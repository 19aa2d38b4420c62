"""The audit of what is locked: a hole is found, one that is accepted is not, and no answer is no good answer.

With the real pip-audit, where `make audit` has installed it, and a service of advisories on loopback.
"""

import datetime
import importlib.util
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "infra" / "audit" / "audit.py"
PYTHON = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "soundlake", "audit", "bin", "python")
LOCK = f"""\
alpha==1.0 \\
    --hash=sha256:{"0" * 64} \\
    --hash=sha256:{"1" * 64}
beta==2.0 ; python_version >= "3.8" \\
    --hash=sha256:{"2" * 64}
"""


def script() -> Any:
    found = importlib.util.spec_from_file_location("audit", SCRIPT)
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    return made


class Advisories(BaseHTTPRequestHandler):
    """OSV's answers: of packages by name."""

    holes: ClassVar[dict[str, list[dict[str, Any]]]] = {}

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"vulns": self.holes.get(asked["package"]["name"], [])}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Advisories, "holes", {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Advisories)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1/query"
    server.shutdown()
    server.server_close()


def audit(tmp_path: Path, url: str, accepted: str = "") -> subprocess.CompletedProcess[str]:
    if not PYTHON.exists():
        pytest.skip("needs pip-audit, which `make audit` installs")
    for name, text in (("audit.py", SCRIPT.read_text()), ("accepted.toml", accepted), ("x.lock", LOCK)):
        (tmp_path / name).write_text(text)
    line = [str(PYTHON), "audit.py", "x.lock", "--", "-s", "osv", "--osv-url", url, "--timeout", "5"]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


HOLE = {
    "id": "GHSA-aaaa-bbbb-cccc",
    "aliases": ["CVE-2026-0001"],
    "summary": "x",
    "affected": [
        {
            "package": {"name": "beta", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.1"}]}],
            "versions": ["2.0"],
        }
    ],
}


def test_a_hole_is_found(tmp_path: Path, service: str) -> None:
    done = audit(tmp_path, service)
    assert (done.returncode, done.stdout) == (0, "x.lock: 2 packages, 0 advisories that are not accepted\n"), (
        done.stderr
    )
    Advisories.holes["beta"] = [HOLE]
    done = audit(tmp_path, service)
    assert done.returncode == 3
    assert "beta 2.0: CVE-2026-0001 GHSA-aaaa-bbbb-cccc; mended in 2.1; accepted: no" in done.stdout


@pytest.mark.parametrize(("days", "code"), [(1, 0), (0, 0), (-1, 3)])
def test_one_may_be_lived_with_for_a_time(tmp_path: Path, service: str, days: int, code: int) -> None:
    Advisories.holes["beta"] = [HOLE]
    until = datetime.datetime.now(datetime.UTC).date() + datetime.timedelta(days)
    done = audit(tmp_path, service, f'[[advisory]]\nid = "CVE-2026-0001"\nuntil = {until}\nreason = "not called"\n')
    assert done.returncode == code
    assert ("accepted: not called" in done.stdout) == (code == 0)


def test_no_answer_is_75_and_one_line(tmp_path: Path) -> None:
    done = audit(tmp_path, "http://127.0.0.1:9/v1/query")
    assert (done.returncode, done.stdout) == (75, "")
    assert len(done.stderr.splitlines()) == 1
    assert "was not audited" in done.stderr


def test_the_first_package_of_a_lock(tmp_path: Path) -> None:
    (tmp_path / "x.lock").write_text(LOCK)
    assert script().first_of(tmp_path / "x.lock") == LOCK[: LOCK.index("beta")]
    (tmp_path / "y.lock").write_text(LOCK[: LOCK.index("beta")])
    assert script().first_of(tmp_path / "y.lock") == LOCK[: LOCK.index("beta")]


def test_what_is_accepted_has_a_reason_and_an_end() -> None:
    script().accepted(datetime.date(2026, 1, 1))


def test_a_wrong_call() -> None:
    assert script().main([]) == 2
    assert script().main(["nothing.lock"]) == 2
