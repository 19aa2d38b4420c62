"""Maintain beside other commands, and after killed ones: nothing is lost, and all comes to the same in the end."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import pytest
from lance.dataset import DatasetOptimizer

from soundlake.model.features.log_mel import PRESETS
from soundlake.pipelines import commands
from soundlake.pipelines.cli.program import main
from soundlake.pipelines.cli.synth import synthesise
from soundlake.pipelines.lake import fragments, ledger
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.status import status
from soundlake.pipelines.upkeep.maintain import maintain
from soundlake.pipelines.upkeep.tidying import Tidying
from tests.conftest import Made
from tests.pipelines.test_extract import corpus, run
from tests.system.lakes import Command, done, half_made, ledger_rows, outcomes, shards, table_rows, temporary
from tests.system.test_two_at_once import both, once_each

SPEC = PRESETS["general"].spec_id
OLD = 100 * 3600.0


def age(*paths: Path, seconds: float = OLD) -> None:
    then = time.time() - seconds
    for path in paths:
        os.utime(path, (then, then))


def table_dir(lake: Path) -> Path:
    (path,) = lake.glob("tables/*.lance")
    return path


def fragments_of(lake: Path) -> list[int]:
    (known,) = lake.glob("features/*/ledger.lance")
    return [len(lance.dataset(str(path)).get_fragments()) for path in (known, table_dir(lake))]


def alike(lake: Path, other: Path) -> bool:
    named = {bundle for row in ledger_rows(lake) for bundle in row["bundles"] or ()}
    assert named == {name.partition(".")[0] for name in shards(lake)}
    assert ledger_rows(lake) == ledger_rows(other)
    assert table_rows(lake) == table_rows(other)
    return shards(lake) == shards(other) and once_each(lake) and not list(half_made(lake))


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("more") / "audio"
    synthesise(str(folder), recordings=24, seed=1)
    return folder


@pytest.fixture(scope="module")
def undisturbed(made: Made, more: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake with a second corpus, and no maintain."""
    lake = Path(made.copy(tmp_path_factory.mktemp("undisturbed")).root)
    done("extract", more, "--lake", lake, small=True)
    done("encode", "--lake", lake)
    return lake


def test_a_lake_that_a_kill_left(made: Made, more: Path, undisturbed: Path, tmp_path: Path) -> None:
    lake = Path(made.copy(tmp_path).root)
    before = outcomes(lake)
    call = Command("extract", more, "--lake", lake, small=True)
    while len(outcomes(lake) - before) < 4:
        assert not call.ended_before(0.002), call.err
    assert call.kill(group=True)
    left = outcomes(lake) - before
    half_written = [path for path in temporary(lake) if path.name.startswith(".part-") and "runs" not in path.parts]
    age(*(path for path in lake.rglob("*") if path.is_file()))
    folders = [path for path in lake.glob("runs/*") if path.is_dir()]
    assert len(folders) == 1
    told = maintain(Lake.at(str(lake)))
    assert told["swept"]["outcomes"]["count"] == len(left)
    assert told["swept"]["shards"]["count"] >= len(left) - 2  # the bundles of rejects have none
    assert (told["swept"]["runs"]["count"], told["swept"]["parts"]["count"]) == (1, len(half_written))
    assert outcomes(lake) == before
    assert not folders[0].exists()
    assert not [path for path in temporary(lake) if path.name.startswith(".part-")]
    done("extract", more, "--lake", lake, small=True)
    done("encode", "--lake", lake)
    assert alike(lake, undisturbed)
    maintain(Lake.at(str(lake)))
    assert fragments_of(lake) == [1, 1]
    assert alike(lake, undisturbed)


def test_beside_extract_and_encode(made: Made, more: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Again and again while they are at work, with a process of its own each time."""
    lake = Path(made.copy(tmp_path).root)
    for call in (("extract", more), ("encode",)):
        command = Command(*call, "--lake", lake, small=True)
        while not command.ended_before(0.01):
            done("maintain", "--lake", lake)
        assert command.end() == 0, command.err
    assert alike(lake, undisturbed)


def test_two_at_once(made: Made, tmp_path: Path) -> None:
    lake = Path(made.copy(tmp_path).root)
    junk = lake / "models" / ".part-x"
    junk.write_bytes(b"x")
    age(junk)
    for command in both("maintain", "--lake", lake, "--json"):
        assert command.process.returncode == 0, command.err
    assert not junk.exists()
    assert fragments_of(lake) == [1, 1]
    assert alike(lake, Path(made.lake.root))
    found = [json.loads(path.read_text())["counts"] for path in lake.glob("runs/*-maintain-*.json")]
    assert sorted(one["swept"]["parts"]["count"] for one in found) == [0, 1]
    assert sorted(one["ledgers"][SPEC]["merged"] for one in found) == [0, 2]


# Moments that no clock hits: what happens between a pipeline's end and its commit.


def after_pipeline(monkeypatch: pytest.MonkeyPatch, command: str, do: Callable[[], Any]) -> None:
    """Have the next pipeline of a command followed by something."""
    module = f"soundlake.pipelines.{command}.pipeline.run_pipeline"
    from soundlake.pipelines.engine.runners import run_pipeline

    def once(build: Any, engine: Any) -> None:
        run_pipeline(build, engine)
        monkeypatch.setattr(module, run_pipeline)
        do()

    monkeypatch.setattr(module, once)


def killed() -> None:
    raise RuntimeError("killed")


def unseen(lake: Lake, told: list[dict[str, Any]]) -> Callable[[], None]:
    """Maintain where a run at work shows no sign of it: as while it lists, or after the machine has slept."""

    def do() -> None:
        (folder,) = (path for path in Path(lake.root, "runs").iterdir() if path.is_dir())
        aside = Path(lake.root).with_name("aside")
        shutil.move(folder, aside)
        told.append(maintain(lake))
        shutil.move(aside, folder)

    return do


def test_an_extract_that_found_what_is_swept_plans_again(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = corpus(tmp_path / "audio")
    (tmp_path / "other").mkdir()
    lake, other = made.copy(tmp_path), made.copy(tmp_path / "other")
    run(other, audio)
    maintain(lake)  # or else to put fragments together would be what makes it plan again
    after_pipeline(monkeypatch, "extract", killed)
    with pytest.raises(RuntimeError, match="killed"):
        run(lake, audio)
    assert len(shards(Path(lake.root))) > len(shards(Path(made.lake.root)))
    age(*Path(lake.root).glob("features/*/[so]*/*"))
    told: list[dict[str, Any]] = []
    after_pipeline(monkeypatch, "extract", unseen(lake, told))
    assert run(lake, audio)["done"] == 7
    assert told[0]["swept"]["shards"]["count"] >= 1
    assert shards(Path(lake.root)) == shards(Path(other.root))
    assert ledger_rows(Path(lake.root)) == ledger_rows(Path(other.root))


@pytest.mark.parametrize("old", [True, False])
def test_an_encode_that_found_what_is_swept_begins_again(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    """What is not swept is left to it, rows of more than a week and all."""
    lake = made.copy(tmp_path)
    root = Path(lake.root)
    shutil.rmtree(root / "tables")
    after_pipeline(monkeypatch, "encode", killed)
    with pytest.raises(RuntimeError, match="killed"):
        commands.encode(lake)
    staged, rows = list(root.glob("tables/*.staged/1/*.json")), list(root.glob("tables/*.lance/data/*"))
    assert len(staged) == len(rows) == 2
    age(*staged, seconds=OLD if old else 0)
    age(*rows, seconds=8 * 24 * 3600)
    told: list[dict[str, Any]] = []
    after_pipeline(monkeypatch, "encode", unseen(lake, told))
    assert commands.encode(lake)["encoded"] == made.result["ledger"]["windows"]
    assert told[0]["swept"]["staged"]["count"] == old
    assert [path.exists() for path in rows] == [not old] * 2
    assert alike(root, Path(made.lake.root))


def test_what_shows_is_not_disturbed(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extract and encode commit what they planned: the versions are those of one commit each."""
    lake, audio = made.copy(tmp_path), corpus(tmp_path / "audio")
    maintain(lake)
    model_id = made.result["model"]["model_id"]
    told: list[dict[str, Any]] = []
    after_pipeline(monkeypatch, "extract", lambda: told.append(maintain(lake)))
    before = lance.dataset(lake.ledger_uri(SPEC)).version
    run(lake, audio)
    assert lance.dataset(lake.ledger_uri(SPEC)).version == before + 1
    after_pipeline(monkeypatch, "encode", lambda: told.append(maintain(lake)))
    before = lance.dataset(lake.table_uri(model_id)).version
    commands.encode(lake)
    assert lance.dataset(lake.table_uri(model_id)).version == before + 1
    assert "extract" in told[0]["ledgers"][SPEC]["left_alone"]
    assert "encode" in told[1]["tables"][model_id]["left_alone"]


# Where there are no locks another machine commits in the middle.


def before_compaction(monkeypatch: pytest.MonkeyPatch, do: Callable[[Any], None]) -> None:
    compact = Tidying.compact

    def once(self: Tidying) -> None:
        monkeypatch.setattr(Tidying, "compact", compact)
        do(self.dataset)
        compact(self)

    monkeypatch.setattr(Tidying, "compact", once)


def test_a_commit_that_takes_rows_away_is_75(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = made.copy(tmp_path)
    rows = ledger_rows(Path(lake.root))
    changed = rows[0] | {"label": "another"}

    def relabel(dataset: Any) -> None:
        (number,) = (
            part.fragment_id
            for part in dataset.get_fragments()
            if rows[0]["uri"] in part.to_table(columns=["uri"])["uri"].to_pylist()
        )
        dropped = fragments.drop((number, [rows[0]["uri"]]), dataset.uri, dataset.version, "uri")
        fragments.commit(
            dataset.uri, dataset.version, dataset.schema, ledger.write_rows(lake, SPEC, [changed]), [dropped]
        )

    compact = DatasetOptimizer.compact_files

    def once(self: DatasetOptimizer, **options: Any) -> Any:
        monkeypatch.setattr(DatasetOptimizer, "compact_files", compact)
        relabel(self._dataset)
        return compact(self, **options)

    # Once it has looked at the newest version.
    monkeypatch.setattr(DatasetOptimizer, "compact_files", once)
    assert main(["maintain", "--lake", lake.root]) == 75
    assert re.fullmatch(r"soundlake: another run changed .*ledger\.lance meanwhile: .*\n", capsys.readouterr().err)
    assert ledger_rows(Path(lake.root)) == [changed, *rows[1:]]
    assert main(["maintain", "--lake", lake.root]) == 0
    assert ledger_rows(Path(lake.root)) == [changed, *rows[1:]]


def test_a_commit_that_adds_rows_is_kept_and_not_taken_for_encoded(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = made.copy(tmp_path)
    rows = ledger_rows(Path(lake.root))
    done_one = next(row for row in rows if row["status"] == "done")
    model_id = made.result["model"]["model_id"]
    added = done_one | {"uri": "/0/copy.wav", "label": "another"}

    def add(dataset: Any) -> None:
        fragments.commit(dataset.uri, dataset.version, dataset.schema, ledger.write_rows(lake, SPEC, [added]), [])

    before_compaction(monkeypatch, add)
    maintain(lake)
    assert ledger_rows(Path(lake.root)) == sorted([added, *rows], key=lambda row: row["uri"])
    assert not status(lake)["tables"][model_id]["up_to_date"]
    assert commands.encode(lake)["renamed"] == done_one["windows"]
