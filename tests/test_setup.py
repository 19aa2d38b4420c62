"""What set-up rests on: the lock and the wheel."""

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text()


def test_the_lock_has_hashes_and_names_no_index() -> None:
    assert "://" not in LOCK
    assert not re.search(r"^\s*(-i|--index|--extra-index|--find-links|-f)\b", LOCK, re.MULTILINE)
    pins = re.split(r"\n(?=[A-Za-z0-9])", LOCK.strip())
    assert len(pins) > 50
    for pin in pins:
        assert re.match(r"[\w.\-\[\]]+==\S+", pin), pin
        assert "--hash=sha256:" in pin, pin


def test_the_lock_has_what_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["project"]["dependencies"] + project["dependency-groups"]["dev"]
    locked = {name.lower() for name in re.findall(r"^([\w.\-]+)==", LOCK, re.MULTILINE)}
    for requirement in wanted:
        name = re.match(r"[\w.\-]+", requirement)[0].lower()
        assert name in locked, name


def test_the_wheel_gives_the_command(tmp_path: Path) -> None:
    """Built without network, by the build backend of the lock; installed beside, and run from an empty folder."""
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    wheel = tmp_path / done.stdout.strip().splitlines()[-1]
    names = zipfile.ZipFile(wheel).namelist()
    assert "soundlake/model/judging/report.html.j2" in names
    assert {name.split("/")[0] for name in names} == {
        "soundlake",
        Path(done.stdout.strip()).name.split("-py3")[0] + ".dist-info",
    }
    site = tmp_path / "site"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(pip, check=True)
    # -I and an explicit path: the source tree is not on it.
    run = f"import sys; sys.path.insert(0, {str(site)!r}); import soundlake; print(soundlake.__file__)\n"
    run += "from soundlake.pipelines.cli.program import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-I", "-c", run], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(site))
    assert "search" in done.stdout
    assert (site / "bin" / "soundlake").exists()
