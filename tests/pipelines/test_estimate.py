"""Plan: a dry run says what extract then does, and its estimate comes from what decoding took."""

import json
import shutil
from pathlib import Path

import pytest
import soundfile

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import PRESETS
from soundlake.model.features.records import Record, encode
from soundlake.pipelines import commands
from soundlake.pipelines.cli import messages
from soundlake.pipelines.extract import cost, estimate
from soundlake.pipelines.lake.lake import Lake
from soundlake.pipelines.lake.status import status
from tests.pipelines.test_extract import SPEC, corpus, run, shards, windows_of, write


def plan(lake: Lake, audio: Path, **changes: object) -> dict:
    return commands.plan(lake, str(audio), spec=SPEC, **changes)  # type: ignore[arg-type]


def test_a_plan_of_a_lake_that_is_not_there_makes_none(tmp_path: Path) -> None:
    audio, lake = corpus(tmp_path / "audio"), Lake.at(str(tmp_path / "lake"))
    (audio / "text.wav").write_text("no sound")
    (audio / "notes.txt").write_text("left out")
    found = plan(lake, audio, prices={"cpu": 3600.0, "storage": 1e9})
    assert not Path(lake.root).exists()
    assert (found["listed"], found["new"], found["recordings"], found["left_out"]) == (8, 8, 7, 1)
    assert found["rejects"] == {"not-audio": 1}
    assert found["planned_s"] == {"WAV": pytest.approx(0.01 + 1 + 2 + 2.048 + 3.1 + 7.77 + 12, abs=1e-3)}
    cost = found["estimate"]
    assert cost["cpu_s"] > 0
    # At these prices money counts seconds and bytes.
    assert cost["money"] == {"cpu": pytest.approx(cost["cpu_s"]), "storage": pytest.approx(cost["bytes"])}
    done = run(lake, audio)
    files = shards(lake)
    assert found["shards"] == len(files)
    assert found["planned_windows"] == len(windows_of(lake))
    assert cost["bytes"] == pytest.approx(sum(len(data) for data in files.values()), rel=1e-4)
    assert done["done"] == found["recordings"]


def test_new_changed_known_and_gone(tmp_path: Path) -> None:
    audio, lake = corpus(tmp_path / "audio"), Lake.at(str(tmp_path / "lake"))
    run(lake, audio)
    before = sorted(p for p in Path(lake.root).rglob("*") if "runs" not in p.parts)
    write(audio / "0.wav", 4.0, seed=99)
    write(audio / "new.wav", 1.0, seed=98)
    (audio / "1.wav").unlink()
    shutil.copy(audio / "3.wav", audio / "copy.wav")
    found = plan(lake, audio)
    names = ("listed", "unchanged", "new", "changed", "gone", "known", "recordings")
    assert [found[name] for name in names] == [8, 5, 2, 1, 1, 1, 2]
    assert sorted(p for p in Path(lake.root).rglob("*") if "runs" not in p.parts) == before
    manifest = json.loads(sorted(Path(lake.root).glob("runs/*-plan-*.json"))[-1].read_text())
    assert manifest["counts"]["new"] == 2
    assert run(lake, audio)["unchanged"] == 5
    assert plan(lake, audio)["recordings"] == 0


def test_rejects_to_be_tried_again(tmp_path: Path) -> None:
    audio, lake = corpus(tmp_path / "audio"), Lake.at(str(tmp_path / "lake"))
    (audio / "text.wav").write_text("no sound")
    (audio / "empty.wav").write_bytes(b"")
    run(lake, audio)
    assert plan(lake, audio)["tried_again"] == 0
    assert plan(lake, audio, retry="empty")["tried_again"] == 1
    assert plan(lake, audio, retry="all")["tried_again"] == 2


def test_the_error_of_the_last_estimate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run goes by the rate of the first."""
    monkeypatch.setattr(cost, "TOLD_S", 0.0)
    lake = Lake.at(str(tmp_path / "lake"))
    for i in range(3):
        write(tmp_path / "a" / f"{i}.wav", 60.0, seed=i, rate=44_100)
    run(lake, tmp_path / "a")
    for i in range(3):
        write(tmp_path / "b" / f"{i}.wav", 60.0, seed=10 + i, rate=44_100)
    told = run(lake, tmp_path / "b")["estimate"]
    assert told["took_cpu_s"] > 0
    assert told["error"] == pytest.approx(told["estimated_cpu_s"] / told["took_cpu_s"] - 1)
    assert status(lake)["specs"][SPEC.spec_id]["estimate"] == told


def test_sums_by_hand() -> None:
    known = {"WAV": 0.001, "FLAC": 0.003}
    assert cost.cpu_seconds({"WAV": 1000.0, "FLAC": 500.0}, known) == pytest.approx(1.0 + 1.5)
    # A container that no run has met takes the mean.
    assert cost.cpu_seconds({"MP3": 1000.0}, known) == pytest.approx(2.0)
    assert cost.cpu_seconds({"MP3": 1000.0}, {}) is None
    assert cost.cpu_seconds({}, {}) == 0.0
    assert cost.error(None, 10.0) is None
    assert cost.error(5.0, 0.1) is None
    assert cost.error(5.0, 10.0) == {"estimated_cpu_s": 5.0, "took_cpu_s": 10.0, "error": -0.5}


@pytest.mark.parametrize(
    ("estimated_s", "took_s", "said"),
    [
        (100.0, 98.0, "as estimated"),
        (120.0, 100.0, "20% less than estimated"),
        (70.0, 100.0, "30% more than estimated"),
        (342.0, 100.0, "the estimate was 3.4 times as much"),
        (20.0, 100.0, "5.0 times the estimate"),
    ],
)
def test_an_error_in_words(estimated_s: float, took_s: float, said: str) -> None:
    found = cost.error(estimated_s, took_s)
    assert found is not None
    line = messages.estimate_error(found)
    assert line.startswith(f"last extract: estimated at {messages.duration(estimated_s)} of CPU time, took ")
    assert line.endswith(f": {said}")


def test_a_header_that_claims_more_than_its_file_holds(tmp_path: Path) -> None:
    """49 days, by the header of a FLAC of some kilobytes."""
    audio = tmp_path / "audio"
    write(audio / "a.wav", 2.0)
    sound, rate = soundfile.read(audio / "a.wav")
    soundfile.write(audio / "a.flac", sound, rate)
    (audio / "a.wav").unlink()
    data = (audio / "a.flac").read_bytes()
    total = int.from_bytes(data[18:26]) | 2**36 - 1
    (audio / "a.flac").write_bytes(data[:18] + total.to_bytes(8) + data[26:])
    found = plan(Lake.at(str(tmp_path / "lake")), audio)
    assert found["recordings"] == 1
    assert sum(found["planned_s"].values()) < 60


def test_a_records_bytes() -> None:
    import numpy as np

    values = np.random.default_rng(0).integers(0, 65_536, (128, 128)).astype(np.uint16)
    # Length, its checksum, the data, its checksum.
    assert estimate.record_bytes(SPEC) == 8 + 4 + len(encode(Record("a" * 64, 3, 128, values))) + 4


def test_a_plan_elsewhere_needs_a_lake(tmp_path: Path) -> None:
    audio = corpus(tmp_path / "audio")
    with pytest.raises(InputError, match="no lake"):
        plan(Lake.at(str(tmp_path / "lake")), audio, beam=["--runner=PortableRunner", "--job_endpoint=localhost:1"])


@pytest.mark.parametrize(("short", "long", "suggested"), [(3, 2, True), (2, 2, False), (0, 1, False)])
def test_short_recordings_have_a_preset(tmp_path: Path, short: int, long: int, suggested: bool) -> None:
    for i in range(short + long):
        write(tmp_path / "audio" / f"{i}.wav", 0.4 if i < short else 0.6, seed=i)
    lake = Lake.at(str(tmp_path / "lake"))
    found = plan(lake, tmp_path / "audio")
    said: list[str] = []
    messages.plan(found, said.append)
    lines = [line.strip() for line in said if "oneshots" in line]
    hint = (
        f"{short}  of these recordings are shorter than half a second, and most of a window of 2 s would be padding: "
        "--spec oneshots has shorter windows"
    )
    assert found["suggested_spec"] == ("oneshots" if suggested else None)
    assert lines == ([hint] if suggested else [])


def test_a_corpus_of_less_than_a_second_has_an_estimate(tmp_path: Path) -> None:
    write(tmp_path / "audio" / "a.wav", 0.2)
    found = plan(Lake.at(str(tmp_path / "lake")), tmp_path / "audio")
    said: list[str] = []
    messages.plan(found, said.append)
    assert found["estimate"]["cpu_s"] > 0
    assert [line for line in said if line.startswith("estimate: ")]


def test_whoever_asks_for_short_windows_is_not_told_of_them(tmp_path: Path) -> None:
    write(tmp_path / "audio" / "a.wav", 0.1)
    found = commands.plan(Lake.at(str(tmp_path / "lake")), str(tmp_path / "audio"), spec=PRESETS["oneshots"])
    assert (found["short_recordings"], found["suggested_spec"]) == (1, None)
