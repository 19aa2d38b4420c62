"""The same bytes whatever does the work: threads, processes, the order of a listing."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from soundlake.pipelines import commands
from soundlake.pipelines.extract import plan, survey
from soundlake.pipelines.lake import lookup
from soundlake.pipelines.lake.lake import Lake
from tests.system.lakes import done, half_made, ledger_rows, shards

PROCESSES = ("--", "--direct_running_mode=multi_processing", "--direct_num_workers=2")


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty minutes that are cut into segments, short recordings in formats that are not, a copy, and a reject."""
    folder, rng = tmp_path_factory.mktemp("bytes") / "audio", np.random.default_rng(7)
    folder.mkdir()
    soundfile.write(folder / "long.wav", rng.standard_normal(8_000 * 1200) * 0.1, 8_000, subtype="PCM_16")
    for i, (ending, rate) in enumerate([("mp3", 44_100), ("ogg", 32_000), ("flac", 48_000), ("wav", 22_050)] * 4):
        sound = rng.standard_normal((rate * (3 + i), 1 + i % 2)) * 0.1
        soundfile.write(folder / f"{i:02d}.{ending}", sound, rate)
    (folder / "copy.mp3").write_bytes((folder / "00.mp3").read_bytes())
    (folder / "note.wav").write_text("no sound")
    return folder


@pytest.fixture(scope="module")
def wanted(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Digests of shards and rows of the ledger, from one thread of the local engine."""
    lake = tmp_path_factory.mktemp("one") / "lake"
    done("extract", audio, "--lake", lake, "--workers", "1")
    found = shards(lake), ledger_rows(lake)
    (long,) = (row for row in found[1] if row["uri"].endswith("long.wav"))
    # Windows begin 64 frames of 256 samples at 16 kHz apart; the last reaches the end.
    assert long["windows"] == 1 + -(-(1200 * 16_000 // 256 + 1 - 128) // 64)
    assert len(long["bundles"]) == -(-long["windows"] // plan.SEGMENT_WINDOWS) == 3
    assert {row["status"] for row in found[1]} == {"done", "rejected"}
    return found


@pytest.mark.parametrize("how", [("--workers", "2"), ("--workers", "5"), PROCESSES])
def test_threads_and_processes(
    audio: Path, wanted: tuple[dict[str, str], list[dict[str, Any]]], tmp_path: Path, how: tuple[str, ...]
) -> None:
    """Five threads on any number of cores: what is done side by side ends in another order each time."""
    lake = tmp_path / "lake"
    done("extract", audio, "--lake", lake, *how)
    assert (shards(lake), ledger_rows(lake)) == wanted
    assert not list(half_made(lake))


@pytest.mark.parametrize("seed", [1, 2])
def test_any_order_of_the_listing(
    audio: Path,
    wanted: tuple[dict[str, str], list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    listing, order = survey.listing, tmp_path / "order"

    def shuffled(root: str, partition: str | None = None) -> Iterator[Any]:
        found = list(listing(root, partition))
        random.Random(seed).shuffle(found)
        order.write_text(repr(found))
        yield from found

    monkeypatch.setattr(survey, "listing", shuffled)
    lake = Lake.at(str(tmp_path / "lake"))
    commands.extract(lake, str(audio), spec=lookup.parse_spec("general"))
    in_order = repr(list(listing(str(audio))))
    assert sorted(order.read_text()) == sorted(in_order)
    assert order.read_text() != in_order
    assert (shards(Path(lake.root)), ledger_rows(Path(lake.root))) == wanted


def test_a_corpus_that_comes_in_two_parts_holds_the_same_windows_a_recording(
    audio: Path, wanted: tuple[dict[str, str], list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Other bundles, since a bundle is what was new together; and of each recording the ledger says the same."""
    lake, part = tmp_path / "lake", tmp_path / "part"
    part.mkdir()
    for path in sorted(audio.iterdir())[:9]:
        (part / path.name).symlink_to(path)
    call = ("extract", part, "--lake", lake)
    done(*call)
    for path in sorted(audio.iterdir())[9:]:
        (part / path.name).symlink_to(path)
    done(*call)

    def said(rows: list[dict[str, Any]]) -> dict[str, Any]:
        left_out = {"uri": None, "corpus": None, "bundles": None, "mtime_ns": None}
        return {Path(row["uri"]).name: row | left_out for row in rows}

    assert said(ledger_rows(lake)) == said(wanted[1])
