"""BirdNET as a yardstick: what it is given, what is kept, and what is said where its wheel cannot be had."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benches import birdnet

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("seconds", "count"), [(0, 1), (0.2, 1), (1.4, 1), (3, 1), (4.4, 1), (4.5, 2), (6, 2), (7.4, 2), (7.6, 3)]
)
def test_windows_follow_one_another_and_a_short_rest_is_left_out(seconds: float, count: int) -> None:
    sound = np.arange(1, round(seconds * 48_000) + 1, dtype=np.float32)
    found = birdnet.windows(sound)
    assert found.shape == (count, 144_000)
    row = found.reshape(-1)
    held = min(len(sound), len(row))
    np.testing.assert_array_equal(row[:held], sound[:held])
    assert not row[held:].any()


def test_a_set_is_embedded_once_and_read_by_the_uris_of_a_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(birdnet, "KEPT", tmp_path / "kept")
    corpus = tmp_path / "claps"
    (corpus / "audio").mkdir(parents=True)
    assert birdnet.read(corpus) is None
    levels = {"audio/a.wav": [0.25], "audio/b c.wav": [0.5, 0.25]}  # channels
    for uri, channels in levels.items():
        soundfile.write(corpus / uri, np.tile(channels, (6 * 48_000, 1)), 48_000, subtype="FLOAT")
    (corpus / "labels.csv").write_text("uri,label\n" + "".join(f"{uri},clap\n" for uri in levels))

    def numbered(window: np.ndarray) -> np.ndarray:
        seen.append(window)
        return np.full(1024, window[0] * len(seen), np.float32)

    seen: list[np.ndarray] = []
    assert birdnet.embed_set(corpus, numbered) == 2
    assert birdnet.embed_set(corpus, numbered) == 0
    assert len(seen) == 4
    found = birdnet.read(corpus)
    assert found is not None
    assert {uri: (v.shape, float(v[0])) for uri, v in found.items()} == {
        str(corpus / "audio/a.wav"): ((1024,), 0.25 * (1 + 2) / 2),
        str(corpus / "audio/b c.wav"): ((1024,), 0.375 * (3 + 4) / 2),
    }
    # A file that is another now is embedded again, and it alone.
    soundfile.write(corpus / "audio/a.wav", np.full(48_000, 0.125), 48_000, subtype="FLOAT")
    assert birdnet.embed_set(corpus, numbered) == 1
    found = birdnet.read(corpus)
    assert found is not None
    assert [float(v[0]) for v in found.values()] == [0.125 * 5, 0.375 * (3 + 4) / 2]


def test_where_the_wheel_cannot_be_had_one_line_says_so(tmp_path: Path) -> None:
    line = ["make", "-s", "bench-birdnet", f"BIRDNET={tmp_path}/birdnet/venv", f"CORPORA={tmp_path}"]
    nowhere = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_NO_CACHE_DIR": "1"}
    done = subprocess.run(line, cwd=ROOT, env=nowhere, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.count("bench-birdnet: its wheels could not be installed") == 1
    assert not (tmp_path / "birdnet" / "venv" / "ready").exists()
