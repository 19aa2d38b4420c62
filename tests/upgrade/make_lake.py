"""Make a lake of an earlier version, to be kept as a fixture; lakes/README.md tells how this is called.

Runs with the code of that version on PYTHONPATH, so it uses nothing that a version lacks.
"""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile

# Uris of the lake begin with this, on whatever machine it is made.
HOME = Path("/tmp/soundlake-fixture")
# As small as features can be told apart by.
SPEC = {"sample_rate": 8000, "n_fft": 256, "win_length": 256, "hop_length": 128, "n_mels": 16, "f_max": 4000.0}
SPEC |= {"window_frames": 16, "window_step": 8}
# Random numbers do not compress: weights keep three bits of their mantissa, and the archive a third of its size.
PROGRAM = """
import numpy as np
from model.saved import artifact
from pipelines.cli.program import script

export = artifact.export

def rounded(vae, *given, **named):
    vae.set_weights([(w.view(np.uint32) & 0xFFF00000).view(np.float32) for w in vae.get_weights()])
    return export(vae, *given, **named)

artifact.export = rounded
raise SystemExit(script())
"""
TRAINING = ["--steps", "8", "--batch-size", "8", "--latent-dim", "4", "--likeness-dim", "4", "--pitch", "2"]


def sounds(folder: Path) -> None:
    """Two recordings of a second of each kind, with labels, and a chained Ogg, of which version 1 read one half."""
    from pipelines.cli.synth import KINDS

    rows = [["uri", "label", "group"]]
    for number, kind in enumerate(sorted(KINDS) * 2):
        rng = np.random.default_rng(number)
        sound = KINDS[kind](rng, 1.0, 8000)
        name = f"{kind}-{number:02d}.flac"
        soundfile.write(folder / name, 0.5 * sound / np.abs(sound).max(), 8000, subtype="PCM_16")
        rows.append([name, kind, f"source-{number:02d}"])
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    with open(folder / "chain.ogg", "wb") as chain:
        for number, kind in enumerate(("bell", "bird")):
            part = folder / "part.ogg"
            sound = KINDS[kind](np.random.default_rng(100 + number), 2.0, 8000)
            soundfile.write(part, 0.5 * sound / np.abs(sound).max(), 8000, format="OGG", subtype="VORBIS")
            chain.write(part.read_bytes())
            part.unlink()


def main(target: str) -> None:
    """Make audio and lake in a new folder."""
    shutil.rmtree(HOME, ignore_errors=True)
    audio, lake = HOME / "audio", HOME / "lake"
    audio.mkdir(parents=True)
    sounds(audio)
    spec = HOME / "spec.json"
    spec.write_text(json.dumps(SPEC))
    for command in (["extract", audio, "--spec", spec], ["train", *TRAINING], ["encode"]):
        subprocess.run([sys.executable, "-c", PROGRAM, *map(str, command), "--lake", str(lake)], check=True)
    # A finished model needs no checkpoints, and they are most of what it weighs.
    for checkpoints in lake.glob("models/*/checkpoints"):
        shutil.rmtree(checkpoints)
    shutil.move(HOME, target)


if __name__ == "__main__":
    main(sys.argv[1])
