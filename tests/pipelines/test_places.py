"""What search answers lies where a player finds it, in files whose time line is more than the sound that they hold."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from soundlake.pipelines import commands
from soundlake.pipelines.cli.program import main
from soundlake.pipelines.lake import lookup
from tests.conftest import Made
from tests.pipelines.sounds import encode, remuxed, vorbis

RATE = 48_000
# "To 50 ms where the sound itself is found."
WITHIN_S = 0.05


def melody(seed: int, *, seconds: float = 16.0) -> np.ndarray:
    """Notes of 0.2 s, no two alike, ``(frames,)``."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(0.2 * RATE)) / RATE
    notes = []
    for _ in range(round(seconds / 0.2)):
        pitch, fall = rng.uniform(200, 3000), rng.uniform(5, 30)
        notes.append(np.exp(-fall * time) * sum(np.sin(2 * np.pi * pitch * n * time) / n for n in (1, 2, 3)))
    return 0.3 * np.concatenate(notes) + 0.002 * rng.standard_normal(round(seconds * RATE))


def test_the_same_sound_is_found_where_a_player_has_it(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lake, corpus = made.copy(tmp_path), tmp_path / "more"
    corpus.mkdir()
    sounds = {name: melody(seed) for seed, name in enumerate(("gap", "late", "chain", "plain"))}
    whole = encode(tmp_path / "whole.webm", "libopus", RATE, sounds["gap"])
    # The seconds 5 to 9 are lost, and what follows keeps its time stamps.
    remuxed(whole, corpus / "gap.webm", lambda second: None if 5 <= second < 9 else second)
    encode(corpus / "late.mkv", "aac", RATE, sounds["late"], late=4.0, video="mpeg4")
    parts = [vorbis(tmp_path / f"{i}.ogg", RATE, part) for i, part in enumerate((sounds["plain"], sounds["chain"]))]
    (corpus / "chain.ogg").write_bytes(b"".join(part.read_bytes() for part in parts))
    encode(corpus / "plain.m4a", "aac", RATE, sounds["plain"][: 12 * RATE])
    commands.extract(lake, str(corpus), spec=lookup.parse_spec("general"))
    commands.encode(lake)
    # Where the sound was put in the file: as it was, 4 s later, behind 16 s.
    for file, name, shift in [("gap.webm", "gap", 0), ("late.mkv", "late", 4), ("chain.ogg", "chain", 16)]:
        soundfile.write(tmp_path / f"{name}.wav", sounds[name], RATE)
        query, play_list = f"{tmp_path}/{name}.wav@11.3-13.3", tmp_path / f"{name}.m3u"
        capsys.readouterr()
        call = ["search", query, "--lake", lake.root, "-k", "3", "--json", "--play-list", str(play_list)]
        assert main(call) == 0
        (answer,) = json.loads(capsys.readouterr().out)["results"]
        first = answer["hits"][0]
        assert first["uri"] == str(corpus / file), first
        assert first["same_sound"], first
        assert first["start_s"] == pytest.approx(11.3 + shift, abs=WITHIN_S)
        assert first["end_s"] == pytest.approx(13.3 + shift, abs=WITHIN_S)
        start = next(line for line in play_list.read_text().splitlines() if "start-time" in line)
        assert float(start.partition("start-time=")[2]) == pytest.approx(11.3 + shift, abs=WITHIN_S)
