"""Extract, on Beam's real local engine: counts by formula, only what is stale is done, every file accounted for."""

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import apache_beam as beam
import numpy as np
import pytest
import soundfile
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.util import assert_that, equal_to

from soundlake.model.errors import InputError
from soundlake.model.features.log_mel import PRESETS
from soundlake.model.features.records import decode, read_framed
from soundlake.pipelines import commands
from soundlake.pipelines.audio.reading import REASONS, Probe, probe
from soundlake.pipelines.audio.recording import TRANSIENT
from soundlake.pipelines.cli import messages
from soundlake.pipelines.corpus.files import uri_of
from soundlake.pipelines.extract import account, plan, survey
from soundlake.pipelines.extract.account import Candidate, Work
from soundlake.pipelines.extract.pipeline import _Tally
from soundlake.pipelines.lake import ledger
from soundlake.pipelines.lake.lake import Lake
from tests.conftest import SHARED

SPEC = PRESETS["general"]


def write(path: Path, seconds: float, *, rate: int = 16_000, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sound = np.random.default_rng(seed).standard_normal(round(seconds * rate)) * 0.1
    soundfile.write(path, sound.clip(-1, 1), rate, subtype="PCM_16")
    return path


def corpus(folder: Path) -> Path:
    """Lengths around the borders of a window (128 frames of 256 samples; a new one every 64)."""
    for i, seconds in enumerate((0.01, 1.0, 2.0, 2.048, 3.1, 7.77, 12.0)):
        write(folder / f"{i}.wav", seconds, seed=i)
    return folder


def run(lake: Lake, audio: Path, **changes: Any) -> dict[str, Any]:
    return commands.extract(lake, str(audio), spec=SPEC, **changes)


def rows(lake: Lake) -> dict[str, dict[str, Any]]:
    return {r["uri"]: r for r in ledger.open_ledger(lake, SPEC.spec_id).to_table().to_pylist()}


def shards(lake: Lake) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(lake.root).glob("features/*/shards/*.tfrecord")}


def windows_of(lake: Lake) -> dict[tuple[str, int], tuple[int, bytes]]:
    found = {}
    for data in shards(lake).values():
        for record in read_framed(io.BytesIO(data)):
            one = decode(record, window_frames=128, n_mels=128)
            assert (one.recording_id, one.window) not in found
            found[one.recording_id, one.window] = (one.valid_frames, one.values.tobytes())
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def by_formula(samples: int) -> int:
    """Windows of a recording at the spec's own rate: enough, 64 frames apart, to cover a frame every 256 samples."""
    frames = samples // 256 + 1
    return 1 if frames <= 128 else 1 + -(-(frames - 128) // 64)


def test_counts(tmp_path: Path) -> None:
    audio, lake = corpus(tmp_path / "audio"), Lake.at(str(tmp_path / "lake"))
    totals = run(lake, audio)
    assert (totals["listed"], totals["done"], totals["rejected"], totals["unchanged"]) == (7, 7, 0, 0)
    stored = Counter(recording_id for recording_id, _ in windows_of(lake))
    for path in audio.iterdir():
        samples = soundfile.info(path).frames
        row = rows(lake)[str(path)]
        assert row["windows"] == stored[sha256(path)] == by_formula(samples)
        assert row["duration_s"] == pytest.approx(samples / 16_000)
        assert row["recording_id"] == sha256(path)
    # Every shard and its outcomes file are named alike.
    outcomes = {path.stem for path in Path(lake.root).glob("features/*/outcomes/*")}
    assert outcomes == {Path(name).stem for name in shards(lake)}


def test_again_changed_new_gone_renamed_copied(tmp_path: Path) -> None:
    audio, lake = corpus(tmp_path / "audio"), Lake.at(str(tmp_path / "lake"))
    first = run(lake, audio)
    before, files = rows(lake), shards(lake)
    again = run(lake, audio)
    assert (again["unchanged"], again["done"], again["ledger_version"]) == (7, 0, first["ledger_version"])
    assert shards(lake) == files

    write(audio / "0.wav", 4.0, seed=99)
    write(audio / "new.wav", 1.0, seed=98)
    (audio / "1.wav").unlink()
    os.rename(audio / "2.wav", audio / "two.wav")
    shutil.copy(audio / "3.wav", audio / "copy.wav")
    totals = run(lake, audio)
    assert (totals["listed"], totals["unchanged"], totals["done"], totals["gone"]) == (8, 4, 4, 2)
    after = rows(lake)
    assert sorted(Path(uri).name for uri in after) == sorted(path.name for path in audio.iterdir())
    # Known content costs no decode: its row points to the shard that was there.
    assert after[f"{audio}/two.wav"]["bundles"] == before[f"{audio}/2.wav"]["bundles"]
    assert after[f"{audio}/copy.wav"]["bundles"] == before[f"{audio}/3.wav"]["bundles"]
    added = set(shards(lake)) - set(files)
    assert set(after[f"{audio}/0.wav"]["bundles"]) | set(after[f"{audio}/new.wav"]["bundles"]) == {
        Path(name).stem for name in added
    }
    assert all(shards(lake)[name] == data for name, data in files.items())


def test_shards_depend_on_content_alone(tmp_path: Path) -> None:
    """One worker, two workers, and the same bytes in another folder under other names."""
    audio = corpus(tmp_path / "audio")
    other = tmp_path / "elsewhere" / "deep"
    other.mkdir(parents=True)
    for path in audio.iterdir():
        shutil.copy(path, other / f"x{9 - int(path.stem)}.bin")
    made = []
    for name, folder, workers in (("a", audio, 1), ("b", audio, 2), ("c", other, 2)):
        lake = Lake.at(str(tmp_path / name))
        run(lake, folder, workers=workers)
        made.append(shards(lake))
    assert made[0] == made[1] == made[2]


def test_one_corrupt_file_costs_its_neighbours_nothing(tmp_path: Path) -> None:
    audio = corpus(tmp_path / "audio")
    clean, lake = Lake.at(str(tmp_path / "clean")), Lake.at(str(tmp_path / "lake"))
    run(clean, audio)
    # Opens as FLAC, and breaks in the middle: some of its windows are written before that.
    broken = audio / "broken.flac"
    soundfile.write(broken, np.random.default_rng(1).standard_normal(16_000 * 20) * 0.1, 16_000)
    data = bytearray(broken.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 60] = b"\xff" * 60
    broken.write_bytes(data)
    totals = run(lake, audio)
    assert (totals["done"], totals["rejected"]) == (7, 1)
    row = rows(lake)[str(broken)]
    assert (row["status"], row["stage"], row["reason"]) == ("rejected", "decode", "damaged")
    assert "after" in row["detail"]
    assert windows_of(lake) == windows_of(clean)


def test_silence_is_not_stored(tmp_path: Path) -> None:
    audio, lake = tmp_path / "audio", Lake.at(str(tmp_path / "lake"))
    audio.mkdir()
    noise = np.random.default_rng(0).standard_normal(16_000) * 0.1
    soundfile.write(audio / "gap.wav", np.concatenate([noise, np.zeros(16_000 * 20), noise]), 16_000)
    # Whole numbers: rounding alone would leave the channels a step apart.
    whole = np.rint(noise * 32_767).astype(np.int16)
    soundfile.write(audio / "nothing.wav", np.zeros(16_000 * 5), 16_000)
    soundfile.write(audio / "cancels.wav", np.stack([whole, -whole], axis=1), 16_000)
    run(lake, audio)
    found = rows(lake)
    gap = found[f"{audio}/gap.wav"]
    assert gap["windows"] + gap["silent_windows"] == by_formula(22 * 16_000)
    # Windows that start after the last frame of the first noise and end before the first of the second.
    starts = range(by_formula(22 * 16_000))
    silent = [w for w in starts if w * 64 * 256 - 512 >= 16_000 and (w * 64 + 127) * 256 + 512 <= 21 * 16_000]
    assert gap["silent_windows"] == len(silent)
    for name in ("nothing", "cancels"):
        assert (found[f"{audio}/{name}.wav"]["status"], found[f"{audio}/{name}.wav"]["reason"]) == (
            "rejected",
            "silent",
        )
    assert "2 channels" in found[f"{audio}/cancels.wav"]["detail"]


def test_an_empty_corpus(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    lake = Lake.at(str(tmp_path / "lake"))
    totals = run(lake, tmp_path / "audio")
    assert (totals["listed"], totals["ledger_version"]) == (0, 0)
    assert ledger.open_ledger(lake, SPEC.spec_id) is None


def test_a_corpus_that_is_suddenly_empty_empties_nothing(tmp_path: Path) -> None:
    """As when a disk is not mounted."""
    audio, lake = corpus(tmp_path / "audio"), Lake.at(str(tmp_path / "lake"))
    run(lake, audio)
    before = rows(lake)
    shutil.move(audio, tmp_path / "aside")
    audio.mkdir()
    with pytest.raises(InputError, match="is it mounted"):
        run(lake, audio)
    assert rows(lake) == before
    assert run(lake, audio, allow_empty=True)["gone"] == 7
    assert rows(lake) == {}


def test_a_corpus_that_was_moved_may_be_taken_leave_of(tmp_path: Path) -> None:
    """But not one of another name, which is a slip of the pen."""
    audio, lake = corpus(tmp_path / "audio"), Lake.at(str(tmp_path / "lake"))
    run(lake, audio)
    moved = Path(shutil.move(audio, tmp_path / "moved"))
    run(lake, moved)
    with pytest.raises(InputError, match=r"there is no such folder$"):
        run(lake, audio)
    with pytest.raises(InputError, match="no file of it in the ledger"):
        run(lake, tmp_path / "audoi", allow_empty=True)
    assert run(lake, audio, allow_empty=True)["gone"] == 7
    assert set(rows(lake)) == {f"{moved}/{i}.wav" for i in range(7)}


@pytest.mark.parametrize("link", [False, True])
def test_lake_and_corpus_are_kept_apart(tmp_path: Path, link: bool) -> None:
    """A lake in the corpus would be listed, and grow by what was listed."""
    audio = corpus(tmp_path / "audio")
    if link:
        (tmp_path / "link").symlink_to(audio)
    lake = Lake.at(str(tmp_path / ("link" if link else "audio") / "lake"))
    with pytest.raises(InputError, match=r"is inside the corpus .*--lake"):
        run(lake, audio)
    assert not os.path.exists(lake.root)
    beside = Lake.at(f"{audio}-lake")
    assert run(beside, audio)["done"] == 7
    with pytest.raises(InputError, match="is inside the lake"):
        run(beside, Path(beside.root) / "features")


def test_labels_come_and_change_without_work(tmp_path: Path) -> None:
    audio, lake = corpus(tmp_path / "audio"), Lake.at(str(tmp_path / "lake"))
    (audio / "labels.csv").write_text("uri,label,group\n0.wav,dog,a\nnowhere.wav,cat,b\n")
    assert messages.files(run(lake, audio)).endswith(", 1 label without a file")
    assert rows(lake)[f"{audio}/0.wav"]["label"] == "dog"
    files = shards(lake)
    (audio / "labels.csv").write_text("uri,label,group\n0.wav,wolf,a\n")
    totals = run(lake, audio)
    assert (totals["unchanged"], totals["done"]) == (6, 1)
    assert rows(lake)[f"{audio}/0.wav"]["label"] == "wolf"
    assert shards(lake) == files


def test_a_long_recording_is_cut_and_comes_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audio, lake, whole = tmp_path / "audio", Lake.at(str(tmp_path / "lake")), Lake.at(str(tmp_path / "whole"))
    path = write(audio / "long.wav", 100.0)
    run(whole, audio)
    monkeypatch.setattr(plan, "SEGMENT_WINDOWS", 20)
    monkeypatch.setattr(plan, "MIN_BUNDLE_WINDOWS", 40)
    run(lake, audio)
    assert len(shards(lake)) > 1
    assert windows_of(lake) == windows_of(whole)
    assert rows(lake)[str(path)]["windows"] == by_formula(1_600_000)
    assert rows(lake)[str(path)]["duration_s"] == 100.0


def test_finished_bundles_are_found_by_name(tmp_path: Path) -> None:
    """As after a kill before the commit: the shards are there, the ledger is not."""
    audio, lake = corpus(tmp_path / "audio"), Lake.at(str(tmp_path / "lake"))
    run(lake, audio)
    before = rows(lake)
    times = {p: p.stat().st_mtime_ns for p in Path(lake.root).glob("features/*/*/*") if p.suffix != ".lance"}
    times = {p: t for p, t in times.items() if "ledger" not in str(p)}
    shutil.rmtree(next(Path(lake.root).glob("features/*/ledger.lance")))
    assert run(lake, audio)["done"] == 7
    assert rows(lake) == before
    assert {p: p.stat().st_mtime_ns for p in times} == times


def candidate(tmp_path: Path, name: str = "a.wav", seconds: float = 2.0) -> Candidate:
    path = write(tmp_path / name, seconds)
    info = path.stat()
    return Candidate(str(path), info.st_size, info.st_mtime_ns, probe=probe(path))


def test_settle_refuses_to_lose_a_segment(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="not accounted for"):
        account.settle("ab" * 32, [candidate(tmp_path)], [], SPEC, "/c")


def test_what_crosses_a_shuffle_comes_back(tmp_path: Path) -> None:
    file = replace(candidate(tmp_path), label="x", replaces=3)
    assert Candidate.of(json.loads(json.dumps(file.values()))) == file
    work = Work(plan.Segment("ab" * 32, 0, None, 2), (file, replace(file, uri="/ü")), {"reason": None})
    assert Work.unpacked(work.packed()) == work


def test_compare_as_a_transform() -> None:
    """A known file, a new one with a label, one that has gone, one of another corpus, one of a killed run."""
    entry, done = account.packed([5, 7]), [2, "uri", "ab" * 32, "/c", 5, 7, None, None, None, 2]
    foreign = [*done[:3], "/d", *done[4:]]
    header = list(astuple(Probe("WAV", "PCM_16", 16_000, 1, 9, True, "soundfile")))
    nothing: dict[str, list[bytes]] = {"listed": [], "known": [], "labels": [], "left": []}
    element = [
        ("/c/known", nothing | {"listed": [entry], "known": [account.packed(done)]}),
        ("/c/new", nothing | {"listed": [entry], "labels": [account.packed([2, "x", None])]}),
        ("/c/gone", nothing | {"known": [account.packed(done)]}),
        ("/d/other", nothing | {"known": [account.packed(foreign)]}),
        ("/c/left", nothing | {"listed": [entry], "left": [account.packed([5, 7, "cd" * 32, header])]}),
        ("/c/edited", nothing | {"listed": [entry], "left": [account.packed([5, 8, "cd" * 32, header])]}),
    ]
    with TestPipeline(runner="FnApiRunner") as pipeline:
        out = (
            pipeline
            | beam.Create(element)
            | beam.ParDo(survey._Compare("/c", None, TRANSIENT)).with_outputs(
                "gone", "counts", "identified", main="candidates"
            )
        )
        wanted = [Candidate("/c/new", 5, 7, "x"), Candidate("/c/edited", 5, 7)]
        assert_that(out.candidates, equal_to(wanted), label="candidates")
        assert_that(out.gone, equal_to([(2, "/c/gone")]), label="gone")
        left = Candidate("/c/left", 5, 7, probe=Probe(*header))
        assert_that(
            out.identified | beam.Map(lambda found: (found[0], Candidate.of(json.loads(found[1])))),
            equal_to([("cd" * 32, left)]),
            label="identified",
        )
        counts = [("listed", 1)] * 4 + [("new", 1)] * 3 + [("unchanged", 1), ("older decoder", 0), ("gone", 1)]
        assert_that(out.counts, equal_to(counts), label="counts")


def test_lost_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a runner that loses records: nothing is committed, and the message says which are missing."""
    audio, lake = corpus(tmp_path / "audio"), Lake.at(str(tmp_path / "lake"))
    settle = account.settle
    monkeypatch.setattr(
        account, "settle", lambda *given: [row for row in settle(*given) if not row["uri"].endswith("3.wav")]
    )
    with pytest.raises(RuntimeError, match=rf"7 files were listed and 6 accounted for.*{audio}/3\.wav"):
        run(lake, audio)
    assert ledger.open_ledger(lake, SPEC.spec_id) is None


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]], dict[str, Any]]:
    """Every hostile file, extracted once."""
    if not (SHARED / "nasty").is_dir():
        pytest.skip("needs ../shared/nasty, which this clone is without")
    folder = tmp_path_factory.mktemp("nasty")
    subprocess.run(
        [sys.executable, SHARED / "nasty" / "make_nasty.py", folder / "audio"], check=True, capture_output=True
    )
    lake = Lake.at(str(folder / "lake"))
    totals = run(lake, folder / "audio")
    return folder / "audio", rows(lake), totals


def test_every_hostile_file_ends_as_it_may(nasty: tuple[Path, dict[str, dict[str, Any]], dict[str, Any]]) -> None:
    audio, found, totals = nasty
    wrong = []
    with open(SHARED / "nasty" / "expect.csv") as file:
        for case in csv.DictReader(file):
            raw = os.fsencode(audio) + b"/" + unquote_to_bytes(case["file"])
            row = found.get(uri_of(raw))
            if row is None and not os.path.lexists(raw):
                continue  # made only with --special
            status = "left out" if row is None else row["status"]
            allowed = {"done": {"done"}, "rejected": {"rejected"}, "either": {"done", "rejected", "left out"}}
            if case["why"].startswith("an empty folder"):
                allowed["rejected"].add("left out")
            if status not in allowed[case["expect"]]:
                wrong.append((case["file"], status, case["expect"]))
            if status == "rejected" and row is not None:
                assert row["reason"] in REASONS, case
            if status == "done" and row is not None:
                assert row["windows"] > 0, case
    assert not wrong
    assert totals["listed"] == totals["done"] + totals["rejected"] == len(found)
    assert not (audio / "pwned").exists()
    assert not Path("pwned").exists()


def test_good_files_among_hostile_ones_are_themselves(
    nasty: tuple[Path, dict[str, dict[str, Any]], dict[str, Any]],
) -> None:
    audio, found, _ = nasty
    good = found[str(audio / "good.wav")]
    assert (good["windows"], good["duration_s"]) == (1, 1.0)
    assert found[str(audio / "duplicate-of-good.wav")]["recording_id"] == good["recording_id"]


def test_a_step_leaves_its_input_as_it_was() -> None:
    """Beam forbids to change it: an engine may give the same object to another step."""
    row = ledger.row(uri="/a", status="done", windows=5, duration_s=7.4) | {ledger.REPLACES: 3}
    before = dict(row)
    *_, replaced, kept = _Tally().process(row)
    assert row == before
    assert replaced.value == (3, "/a")
    assert kept == {name: value for name, value in before.items() if name != ledger.REPLACES}


def test_counters_for_who_watches_the_runner() -> None:
    """One for each status and each reason, in Beam's own metrics."""
    bad = ledger.row(uri="/x", status="rejected", reason="damaged")
    made = [bad, bad | {"uri": "/y"}, bad | {"uri": "/z", "reason": "silent"}]
    made.append(ledger.row(uri="/a", status="done", windows=5, duration_s=7.4))
    pipeline = TestPipeline(runner="FnApiRunner")
    _ = pipeline | beam.Create([row | {ledger.REPLACES: None} for row in made]) | beam.ParDo(_Tally())
    result = pipeline.run()
    result.wait_until_finish()
    counters = {c.key.metric.name: c.committed for c in result.metrics().query()["counters"]}
    assert counters == {
        "files_rejected": 3,
        "files_done": 1,
        "rejected_damaged": 2,
        "rejected_silent": 1,
        "windows": 5,
        "audio_seconds": 7,
    }
