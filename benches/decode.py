"""Files to quantised windows on one core, compared with plain librosa and with decoding alone.

`python -m benches.decode` · about two minutes
"""

import functools
import tempfile
from pathlib import Path

import librosa
import numpy as np
import soundfile

from benches.harness import Figure, faster, figure, interleaved, on_processor, pin, report
from benches.sounds import sound
from soundlake.model.features.log_mel import PRESETS, log_mel
from soundlake.pipelines.audio.reading import probe
from soundlake.pipelines.audio.resampling import resampled
from soundlake.pipelines.extract.windows import SegmentWindows

SPEC = PRESETS["general"]
RATE, SECONDS, CHANNELS = 44_100, 300, 2
ROUNDS = 15
# Per suffix: format and coding for soundfile, then the promises: times librosa, and part of the floor's rate.
FORMATS = {
    "wav": ("WAV", "PCM_16", 3.5, 0.6),
    "flac": ("FLAC", "PCM_16", 1.7, 0.7),
    "mp3": ("MP3", "MPEG_LAYER_III", 2.0, 0.7),
    "ogg": ("OGG", "VORBIS", 1.4, 0.7),
}


def write(folder: Path) -> dict[str, Path]:
    """Write one sound in every format; return the paths by suffix."""
    paths = {suffix: folder / f"sound.{suffix}" for suffix in FORMATS}
    files = [
        soundfile.SoundFile(path, "w", RATE, CHANNELS, format=FORMATS[suffix][0], subtype=FORMATS[suffix][1])
        for suffix, path in paths.items()
    ]
    for part in sound(rate=RATE, seconds=SECONDS, channels=CHANNELS):
        for file in files:
            file.write(part)
    for file in files:
        file.close()
    return paths


def by_librosa(path: Path) -> np.ndarray:
    """Log-mel in the usual way with librosa; float32, shape (n_mels, n_frames)."""
    samples, _ = librosa.load(path, sr=SPEC.sample_rate, mono=True)
    mel = librosa.feature.melspectrogram(
        y=samples,
        sr=SPEC.sample_rate,
        n_fft=SPEC.n_fft,
        hop_length=SPEC.hop_length,
        n_mels=SPEC.n_mels,
        fmin=SPEC.f_min,
        fmax=SPEC.f_max,
    )
    return np.log(mel + np.float32(SPEC.log_offset))


def windows(path: Path) -> None:
    """Compute all windows of a file, as in the pipeline."""
    for _ in SegmentWindows(path, probe(path), SPEC):
        pass


def floor(path: Path) -> None:
    """Decode, down-mix and resample: a lower bound for the time of any features."""
    for _ in resampled(path, probe(path), SPEC.sample_rate):
        pass


def parity(path: Path) -> str:
    """Difference between soundlake's frames and librosa's, including the resampler, in words."""
    ours = log_mel(np.concatenate(list(resampled(path, probe(path), SPEC.sample_rate))), SPEC).T
    theirs = by_librosa(path)
    frames = min(ours.shape[1], theirs.shape[1])
    error = np.abs(ours[:, :frames] - theirs[:, :frames])
    return f"parity: most {error.max():.1e}, p99.9 {np.quantile(error, 0.999):.1e} nats"


def main() -> None:
    """Measure each format separately; print and write the table."""
    pin(1)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix, path in write(Path(folder)).items():
            _, _, times, part = FORMATS[suffix]
            sides = {
                side.__name__: on_processor(functools.partial(side, path)) for side in (by_librosa, windows, floor)
            }
            took = interleaved(sides, rounds=ROUNDS)
            speed = [SECONDS / seconds for seconds in took["windows"]]
            kbits = path.stat().st_size * 8 / SECONDS / 1000
            name = suffix.upper()
            figures += [
                faster(f"{name}: times librosa", took["by_librosa"], took["windows"], least=times, note=parity(path)),
                faster(f"{name}: part of the floor's rate", took["floor"], took["windows"], least=part),
                faster(f"{name}: the floor, times librosa", took["by_librosa"], took["floor"]),
                figure(f"{name}: times real time", speed, note=f"{kbits:.0f} kbit/s"),
            ]
    title = f"Decode → log-mel windows, one core, {SECONDS // 60} min of {RATE / 1000:g} kHz stereo, 16 bits"
    report("decode", title, figures)


if __name__ == "__main__":
    main()
