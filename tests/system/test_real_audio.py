"""The whole path on real recordings: four corpora, four codecs, rates from 8 to 192 kHz, in one lake."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundlake.pipelines import commands
from soundlake.pipelines.lake import ledger, lookup
from soundlake.pipelines.lake.lake import Lake
from tests.conftest import need_corpus

EACH = 12


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen recordings of each corpus, spread over its list, with their labels and groups."""
    folder = tmp_path_factory.mktemp("real") / "audio"
    with_labels = []
    for name in ("esc10", "digits", "instruments", "drums"):
        corpus = need_corpus(name)
        with open(corpus / "labels.csv") as file:
            rows = list(csv.DictReader(file))
        for row in rows[:: len(rows) // EACH][:EACH]:
            target = folder / name / row["uri"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(corpus / row["uri"], target)
            with_labels.append([f"{name}/{row['uri']}", row["label"], f"{name}:{row['group']}"])
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([["uri", "label", "group"], *with_labels])
    return folder


def test_from_files_to_answers(audio: Path, tmp_path: Path) -> None:
    lake = Lake.at(str(tmp_path / "lake"))
    result = commands.run(
        lake, str(audio), spec=lookup.parse_spec("general"), settings={"max_steps": 60, "batch_size": 32}
    )
    assert result["extract"]["done"] == 4 * EACH
    assert result["extract"]["rejected"] == 0
    rows = ledger.open_ledger(lake, lookup.parse_spec("general").spec_id).to_table().to_pylist()
    for row in rows:
        info = soundfile.info(row["uri"])
        assert row["sample_rate"] == info.samplerate
        # An MP3's header only guesses its length.
        assert row["duration_s"] == pytest.approx(info.duration, abs=0.1 if info.format == "MP3" else 1e-3)
        assert row["label"]
        assert row["group"]
    assert len({row["codec"] for row in rows}) >= 3
    assert result["encode"]["rows"] == result["ledger"]["windows"]

    found = 0
    tried = [row for row in rows if row["duration_s"] > 2.5][::3]
    for row in tried:
        sound, rate = soundfile.read(row["uri"], dtype="float32", always_2d=True)
        # The loudest 1.5 s: a random place of these clips is often silence.
        length = round(1.5 * rate)
        energy = np.convolve(np.square(sound.mean(axis=1)), np.ones(256), "valid")[: len(sound) - length]
        start = max(0, min(int(energy.argmax()) - length // 3, len(sound) - length))
        soundfile.write(tmp_path / "cut.wav", sound[start : start + length], rate, subtype="FLOAT")
        hits = commands.search(lake, [str(tmp_path / "cut.wav")], k=3, where=None, by="recordings")["results"][0][
            "hits"
        ]
        found += hits[0].recording_id == row["recording_id"]
    assert len(tried) >= 5
    assert found == len(tried)
