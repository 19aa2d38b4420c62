"""docs/operating.md: every command of the page, in its order, on a lake of an earlier version."""

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from soundlake.pipelines import commands
from soundlake.pipelines.cli.program import main
from soundlake.pipelines.lake import ledger, lookup, models
from soundlake.pipelines.lake.lake import Lake
from tests.upgrade.conftest import MODELS, SPEC_ID, Old, unpacked

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operating.md"


def blocks() -> dict[str, list[str]]:
    """Commands by the heading that they stand under; a line that ends with a backslash goes on."""
    found: dict[str, list[str]] = {}
    heading, inside = "", False
    for line in PAGE.read_text().replace("\\\n", "").splitlines():
        if line.startswith("```"):
            inside = line == "```sh"
        elif line.startswith("## "):
            heading = line.removeprefix("## ")
        elif inside and line:
            found.setdefault(heading, []).append(line)
    return found


def call(line: str, environment: dict[str, str]) -> None:
    """Run a line as it stands; soundlake in this process, and with the spec of this lake, which is no preset."""
    if not line.startswith("soundlake "):
        subprocess.run(["bash", "-euc", line], check=True, env={**os.environ, **environment})
        return
    for name, value in environment.items():
        line = line.replace(f'"${name}"', value)
    arguments = shlex.split(line)[1:]
    if arguments[0] == "extract":
        arguments += ["--spec", f"{arguments[-1]}/features/{SPEC_ID}/spec.json"]
    assert main(arguments) == 0, line


def rows(lake: str) -> list[dict[str, Any]]:
    found = ledger.open_ledger(Lake.at(lake), SPEC_ID)
    return sorted(ledger.read(found, ledger.SCHEMA.names), key=lambda row: row["uri"])


def bundles(lake: str) -> set[str]:
    return {path.name for path in Path(lake).glob("features/*/shards/*")}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Old:
    """A folder with `lake` and `audio`; two models, the later one in use."""
    old = unpacked(tmp_path, 3)
    other = Path(unpacked(tmp_path, 4).lake.root)
    for name in (f"models/{MODELS[4]}", f"tables/{MODELS[4]}.lance", f"tables/{MODELS[4]}.json"):
        (other / name).rename(Path(old.lake.root) / name)
    (old.audio.parent / "elsewhere").mkdir()
    monkeypatch.chdir(old.audio.parent)
    commands.promote(old.lake, MODELS[4], force=True)
    return old


def test_the_page(here: Old, capsys: pytest.CaptureFixture[str]) -> None:
    page = blocks()
    environment = {"EARLIER": MODELS[3], "MODEL": MODELS[3]}
    for line in page.pop("Backup"):
        call(line, environment)
    for line in page.pop("Restore"):
        call(line, environment)
    assert "0 damaged" in capsys.readouterr().out
    assert bundles("restored") == bundles("lake")
    # The corpus lies elsewhere than when the lake was made: each file has a second name now.
    assert {row["recording_id"] for row in rows("restored")} == {row["recording_id"] for row in rows("lake")}
    assert len(rows("restored")) == 2 * len(rows("lake"))
    for line in page.pop("Upgrade"):
        call(line, environment)
    assert {row["decoder"] for row in rows("lake")} == {2}
    for line in page.pop("Roll back a model"):
        call(line, environment)
    assert models.promoted(here.lake, SPEC_ID) == MODELS[3]
    _, table = lookup.find_table(here.lake, None)
    before = table.count_rows()
    for line in page.pop("Roll back a table"):
        call(line, environment)
    _, table = lookup.find_table(here.lake, None)
    assert table.count_rows() == before > 0
    kept, made = rows("lake"), bundles("lake")
    away, gone, back, *rest = page.pop("Roll back an extract")
    call(away, environment)
    call(gone, environment)
    assert len(rows("lake")) == len(kept) - 1
    call(back, environment)
    for line in rest:
        call(line, environment)
    assert rows("lake") == kept
    assert bundles("lake") == made
    for line in page.pop("Roll back the installation"):
        call(line, environment)
    assert rows("lake") == kept
    assert not page


def test_a_backup_that_is_made_while_a_run_goes_on(here: Old) -> None:
    """Between its halves the lake is rechecked, encoded and given another model: the copy is of before, and whole."""
    names, first, second = blocks()["Backup"]
    spec = lookup.parse_spec(here.spec)
    before, table = rows("lake"), lookup.find_table(here.lake, None)[1].count_rows()
    call(names, {})
    call(first, {})
    commands.extract(here.lake, "audio", spec=spec, recheck=True)
    commands.encode(here.lake)
    commands.promote(here.lake, MODELS[3], force=True)
    call(second, {})
    for line in blocks()["Restore"][:2]:
        call(line, {})
    restored = Lake.at(str(Path("restored").resolve()))
    assert rows("restored") == before
    assert lookup.find_model(restored, None).model_id == MODELS[4]
    assert lookup.find_table(restored, None)[1].count_rows() == table
    # What was decoded meanwhile is in the copy, and is found.
    made = bundles("restored")
    assert commands.extract(restored, "audio", spec=spec, recheck=True)["recheck"]["different"] == 2
    assert bundles("restored") == made
    commands.encode(restored)
