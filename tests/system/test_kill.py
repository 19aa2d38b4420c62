"""A run killed at any moment ends like an undisturbed one: SIGKILL, real processes, moments drawn at random."""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lance
import numpy as np
import pytest
import soundfile

from soundlake.pipelines.cli.synth import synthesise
from tests.system.lakes import (
    Command,
    done,
    half_made,
    ledger_rows,
    outcomes,
    shards,
    table_rows,
    weights,
)

RECORDINGS = 32
STEPS = ("--steps", "12", "--batch-size", "8", "--latent-dim", "4")
# By the name of the fixture's parameter.
KILLS = {"few": {"extract": 5, "train": 2, "encode": 3}, "many": {"extract": 14, "train": 4, "encode": 8}}


@dataclass(frozen=True)
class Undisturbed:
    """A corpus, its lake, and the seconds that each command took."""

    audio: Path
    lake: Path
    seconds: dict[str, float]

    def call(self, command: str, lake: Path) -> list[str | Path]:
        """The arguments of a command."""
        first: dict[str, list[str | Path]] = {"extract": [self.audio], "train": [*STEPS], "encode": []}
        return [command, *first[command], "--lake", lake]


@dataclass(frozen=True)
class Disturbed:
    """Lakes by the command that was killed and brought to its end in them, and all commands that were killed."""

    kills: dict[str, int]
    lakes: dict[str, list[Path]]
    killed: list[tuple[Command, bool]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    synthesise(str(folder / "audio"), recordings=RECORDINGS)
    found = Undisturbed(folder / "audio", folder / "lake", {})
    for command in KILLS["few"]:
        began = time.monotonic()
        done(*found.call(command, found.lake), small=True)
        found.seconds[command] = time.monotonic() - began
    return found


def copy_without(lake: Path, target: Path, *left_out: str) -> Path:
    shutil.copytree(lake, target, ignore=lambda folder, names: [n for n in names if n in left_out])
    return target


@pytest.fixture(scope="module", params=["few", pytest.param("many", marks=pytest.mark.slow)])
def disturbed(
    request: pytest.FixtureRequest, undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory
) -> Disturbed:
    """Each command killed again and again, at moments drawn over the time that it takes undisturbed.

    A command that comes to its end before enough kills begins again, on a lake that does not have its results.
    """
    folder, draw = tmp_path_factory.mktemp("disturbed"), random.Random(20240)
    found = Disturbed(KILLS[request.param], {name: [] for name in KILLS[request.param]}, [])

    def kill_until(command: str, fresh: Callable[[int], Path]) -> None:
        kills, lakes, span = 0, found.lakes[command], undisturbed.seconds[command]
        while kills < found.kills[command]:
            lake = fresh(len(lakes))
            while True:
                call = Command(*undisturbed.call(command, lake), small=True)
                began, moment = time.monotonic(), draw.uniform(0, span)
                if kills == found.kills[command] or call.ended_before(moment):
                    assert call.end() == 0, call.err
                    # Less was to be done than undisturbed, or the machine is faster now.
                    span = min(span, time.monotonic() - began)
                    break
                group = len(found.killed) % 2 == 1
                if call.kill(group=group):
                    found.killed.append((call, group))
                    kills += 1
            lakes.append(lake)

    kill_until("extract", lambda n: folder / f"extract-{n}")
    base = found.lakes["extract"][-1]
    kill_until("train", lambda n: copy_without(base, folder / f"train-{n}", "models"))
    trained = found.lakes["train"][-1]
    kill_until("encode", lambda n: copy_without(trained, folder / f"encode-{n}", "tables"))
    return found


def test_every_shard_has_the_same_bytes(undisturbed: Undisturbed, disturbed: Disturbed) -> None:
    wanted = shards(undisturbed.lake)
    assert len(wanted) > RECORDINGS / 2
    for lake in disturbed.lakes["extract"]:
        assert shards(lake) == wanted


def test_the_ledger_has_the_same_rows(undisturbed: Undisturbed, disturbed: Disturbed) -> None:
    wanted = ledger_rows(undisturbed.lake)
    assert len(wanted) == RECORDINGS + 2
    for lake in disturbed.lakes["extract"]:
        assert ledger_rows(lake) == wanted


def test_the_model_has_the_same_weights(undisturbed: Undisturbed, disturbed: Disturbed) -> None:
    """To the bit, and so its id is the same, too, and every file that a reader opens."""
    wanted = weights(undisturbed.lake)
    for lake in disturbed.lakes["train"]:
        assert weights(lake) == wanted
        names = {path.name for path in lake.glob("models/*")}
        assert names == {path.name for path in undisturbed.lake.glob("models/*")}


def test_the_table_has_the_same_rows(undisturbed: Undisturbed, disturbed: Disturbed) -> None:
    """All columns, embeddings to the bit."""
    wanted = table_rows(undisturbed.lake)
    assert len(wanted) == sum(row["windows"] or 0 for row in ledger_rows(undisturbed.lake))
    for lake in disturbed.lakes["encode"]:
        assert table_rows(lake) == wanted


def test_nothing_half_made_is_seen(disturbed: Disturbed) -> None:
    for lakes in disturbed.lakes.values():
        for lake in lakes:
            assert not list(half_made(lake))
            for staged in lake.glob("tables/*.staged/*"):
                # The next run takes up what was on the way from its own version.
                assert int(staged.name) < lance.dataset(str(staged.parent.with_suffix(".lance"))).version


def test_no_process_is_left_behind(disturbed: Disturbed) -> None:
    """Neither the server of the decoders nor one of them, whether they were killed as well or not."""
    assert sum(disturbed.kills.values()) <= len(disturbed.killed)
    assert {group for _, group in disturbed.killed} == {True, False}
    assert [command.left() for command, _ in disturbed.killed if not command.is_gone(15)] == []


def test_what_was_extracted_is_kept(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Killed late: no shard that was finished is written again."""
    lake = tmp_path / "lake"
    half = len(outcomes(undisturbed.lake)) / 2
    call = Command(*undisturbed.call("extract", lake), small=True)
    while len(outcomes(lake)) < half:
        assert not call.ended_before(0.002), call.err
    assert call.kill()
    finished = [path for path in lake.glob("features/*/shards/*.tfrecord") if path.stem in outcomes(lake)]
    assert len(finished) >= half - 2  # the two bundles of rejects have none
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in finished}
    done(*undisturbed.call("extract", lake), small=True)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in finished} == before
    assert shards(lake) == shards(undisturbed.lake)


def test_what_was_encoded_is_kept(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Killed in the middle: the rows that were written become part of the table as they are."""
    lake = copy_without(undisturbed.lake, tmp_path / "lake", "tables")
    call = Command(*undisturbed.call("encode", lake), small=True)
    while len(list(lake.glob("tables/*.staged/*/*.json"))) < 8:
        assert not call.ended_before(0.002), call.err
    assert call.kill()
    staged = [path.read_text() for path in lake.glob("tables/*.staged/*/*.json")]
    before = {path: path.stat().st_ino for path in lake.glob("tables/*.lance/data/*") if path.name in "".join(staged)}
    assert len(before) >= 8
    done(*undisturbed.call("encode", lake), small=True)
    assert {path: path.stat().st_ino for path in before} == before
    (table,) = lake.glob("tables/*.lance")
    used = {file.path for part in lance.dataset(str(table)).get_fragments() for file in part.data_files()}
    assert {path.name for path in before} <= used
    assert table_rows(lake) == table_rows(undisturbed.lake)


@pytest.mark.parametrize(("command", "dataset"), [("extract", "features/*/ledger.lance"), ("encode", "tables/*.lance")])
def test_killed_in_the_middle_of_a_first_commit(
    undisturbed: Undisturbed, tmp_path: Path, command: str, dataset: str
) -> None:
    """What Lance has on the disk then, for some microseconds: half a version, under a name that is none."""
    lake = copy_without(undisturbed.lake, tmp_path / "lake", *(["tables"] if command == "extract" else []))
    (path,) = lake.glob(dataset)
    (first,) = path.glob("_versions/18446744073709551614.manifest")
    half = first.read_bytes()[: first.stat().st_size // 2]
    for file in [*path.glob("_versions/*"), *lake.glob("tables/*.json")]:
        file.unlink()
    Path(f"{first}#1").write_bytes(half)
    done("status", "--lake", lake)
    done(*undisturbed.call(command, lake), small=True)
    rows = ledger_rows if command == "extract" else table_rows
    assert rows(lake) == rows(undisturbed.lake)


def test_a_decoder_stops_when_nobody_waits_for_it(tmp_path: Path) -> None:
    """Only the main process is killed, in the middle of a recording that takes far longer than the wait here."""
    audio, lake = tmp_path / "audio", tmp_path / "lake"
    audio.mkdir()
    piece = tmp_path / "piece.mp3"
    soundfile.write(piece, np.random.default_rng(0).standard_normal(44_100 * 60) * 0.1, 44_100, format="MP3")
    # A day: frames of MP3 follow each other, whatever file they come from. The first one only says how many there are.
    data = piece.read_bytes()
    (audio / "long.mp3").write_bytes(data[data.index(data[:2], 2) :] * 1440)
    call = Command("extract", audio, "--lake", lake)
    while not any(path.stat().st_size for path in lake.glob("features/*/shards/.part-*")):
        assert not call.ended_before(0.01), call.err
    assert call.kill()
    assert call.is_gone(10)
