"""What set-up rests on: the lock and the wheel."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A wheel of the source tree, and one of its sdist: without network, by the build backend of the lock."""
    folder = tmp_path_factory.mktemp("built")

    def build(kind: str, source: Path, target: Path) -> Path:
        program = f"import sys; from hatchling.build import build_{kind} as build; print(build(sys.argv[1]))"
        call = [sys.executable, "-c", program, str(target)]
        done = subprocess.run(call, cwd=source, capture_output=True, text=True, check=True)
        return target / done.stdout.strip().splitlines()[-1]

    with tarfile.open(build("sdist", ROOT, folder)) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    return build("wheel", ROOT, folder), build("wheel", source, folder / "again")


def test_wheel_sdist_and_tree_hold_the_same(built: tuple[Path, Path]) -> None:
    names, again = (sorted(zipfile.ZipFile(wheel).namelist()) for wheel in built)
    assert names == again
    package = ROOT / "soundlake"
    tree = [Path(folder, name) for folder, _, found in os.walk(package, followlinks=True) for name in found]
    installed = [path.relative_to(ROOT).as_posix() for path in tree if "__pycache__" not in path.parts]
    assert [name for name in names if ".dist-info/" not in name] == sorted(installed)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"soundlake"}
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert {"soundlake/py.typed", "soundlake/model/judging/report.html.j2"} <= set(names)


def test_the_wheel_gives_the_command(built: tuple[Path, Path], tmp_path: Path) -> None:
    """Beside a user's own modules of the names that soundlake's folders have in its repository."""
    site, home = tmp_path / "site", tmp_path / "home"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*pip, str(built[0])], check=True)
    home.mkdir()
    for name in ("model", "pipelines"):
        (home / f"{name}.py").write_text("raise RuntimeError('a stranger')")
    # The folder it runs in comes first, as in a notebook; the source tree is not on the path.
    run = f"import sys; sys.path[:] = ['', {str(site)!r}, *(p for p in sys.path if p != {str(ROOT)!r})]\n"
    run += "import soundlake; print(soundlake.__file__)\n"
    run += "from soundlake.pipelines.cli.program import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-I", "-c", run], cwd=home, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(site))
    assert "search" in done.stdout
    assert (site / "bin" / "soundlake").exists()
