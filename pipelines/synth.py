"""The demo corpus, made from nothing: eight kinds of sound, several formats, labels, and two files that are no use.

Every sample follows from the seed: the same call writes the same corpus (lossy codecs aside, whose encoders may differ
between machines).
"""

import csv
import errno
import functools
import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt

from model.errors import InputError, storage_errors
from pipelines.display import stage
from pipelines.store import Folder

Signal = npt.NDArray[np.float64]
Rng = np.random.Generator

# Format, subtype, ending, rate in Hz: what a real folder mixes.
FORMATS = (
    ("WAV", "PCM_16", ".wav", 44_100),
    ("FLAC", "PCM_16", ".flac", 48_000),
    ("OGG", "VORBIS", ".ogg", 44_100),
    ("WAV", "PCM_24", ".wav", 16_000),
    ("MP3", "MPEG_LAYER_III", ".mp3", 44_100),
)


def _time(seconds: float, rate: int) -> Signal:
    return np.arange(round(seconds * rate)) / rate


def _events(rng: Rng, seconds: float, every: float) -> Signal:
    """Times of events, about `every` seconds apart, in [0, seconds)."""
    count = max(1, round(seconds / every))
    return np.sort((np.arange(count) + rng.uniform(0, 0.8, count)) * seconds / count)


def _placed(seconds: float, rate: int, times: Signal, make: Callable[[], Signal]) -> Signal:
    out = np.zeros(round(seconds * rate))
    for t in times:
        sound = make()[: max(0, len(out) - round(t * rate))]
        out[round(t * rate) : round(t * rate) + len(sound)] += sound
    return out


def _noise(rng: Rng, count: int, slope: float) -> Signal:
    """Noise whose amplitude falls with frequency as f^-slope."""
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** slope
    spectrum[0] = 0
    out = np.fft.irfft(spectrum, count)
    return out / (np.abs(out).max() + 1e-12)


def _bird(rng: Rng, seconds: float, rate: int) -> Signal:
    low, high = rng.uniform(2000, 3000), rng.uniform(4000, 6500)

    def chirp() -> Signal:
        t = _time(rng.uniform(0.08, 0.25), rate)
        sweep = low + (high - low) * np.abs(np.sin(np.pi * rng.uniform(1, 3) * t / t[-1]))
        return np.sin(2 * np.pi * np.cumsum(sweep) / rate) * np.hanning(len(t))

    return _placed(seconds, rate, _events(rng, seconds, rng.uniform(0.3, 0.7)), chirp)


def _bell(rng: Rng, seconds: float, rate: int) -> Signal:
    pitch = rng.uniform(220, 700)

    def stroke() -> Signal:
        t = _time(2.5, rate)
        partials = ((1, 1.0), (2.76, 0.6), (5.4, 0.35), (8.93, 0.2))
        return sum(a * np.sin(2 * np.pi * pitch * p * t) * np.exp(-t * (1 + p)) for p, a in partials)  # type: ignore[return-value]

    return _placed(seconds, rate, _events(rng, seconds, rng.uniform(0.8, 1.6)), stroke)


def _engine(rng: Rng, seconds: float, rate: int) -> Signal:
    t = _time(seconds, rate)
    turns = rng.uniform(40, 90) * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.1, 0.4) * t))
    phase = 2 * np.pi * np.cumsum(turns) / rate
    return sum(np.sin(n * phase) / n for n in range(1, 12)) + 0.2 * _noise(rng, len(t), 0.5)


def _rain(rng: Rng, seconds: float, rate: int) -> Signal:
    count = round(seconds * rate)
    drops = np.zeros(count)
    drops[rng.integers(0, count, round(seconds * rng.uniform(60, 200)))] = rng.uniform(0.3, 1)
    t = _time(0.02, rate)
    return np.convolve(drops, np.exp(-t * 400) * np.sin(2 * np.pi * 3500 * t))[:count] + 0.15 * _noise(rng, count, 0.1)


def _wind(rng: Rng, seconds: float, rate: int) -> Signal:
    t = _time(seconds, rate)
    gusts = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(0.1, 0.3) * t + rng.uniform(0, 6))
    return _noise(rng, len(t), rng.uniform(0.8, 1.2)) * gusts


def _drum(rng: Rng, seconds: float, rate: int) -> Signal:
    beat = rng.uniform(0.35, 0.6)
    pitch = rng.uniform(50, 90)

    def hit() -> Signal:
        t = _time(0.3, rate)
        body = np.sin(2 * np.pi * (pitch * t + 3 * (1 - np.exp(-t * 30)))) * np.exp(-t * 12)
        return body + 0.4 * rng.standard_normal(len(t)) * np.exp(-t * 60)

    return _placed(seconds, rate, np.arange(0, seconds, beat), hit)


def _voice(rng: Rng, seconds: float, rate: int) -> Signal:
    pitch = rng.uniform(90, 240)

    def vowel() -> Signal:
        t = _time(rng.uniform(0.15, 0.4), rate)
        formants = ((rng.uniform(300, 800), 80), (rng.uniform(900, 2300), 120), (2700, 160))
        tone = np.zeros(len(t))
        for n in range(1, int(4000 / pitch)):
            level = sum(np.exp(-(((n * pitch - f) / (2 * width)) ** 2)) for f, width in formants)
            tone += level * np.sin(2 * np.pi * n * pitch * t * (1 + 0.01 * np.sin(2 * np.pi * 5 * t)))
        return tone * np.hanning(len(t))

    return _placed(seconds, rate, _events(rng, seconds, 0.4), vowel)


def _beeper(rng: Rng, seconds: float, rate: int) -> Signal:
    tone, length = rng.uniform(800, 2500), rng.uniform(0.1, 0.3)

    def beep() -> Signal:
        t = _time(length, rate)
        return np.sign(np.sin(2 * np.pi * tone * t)) * 0.5

    return _placed(seconds, rate, np.arange(0.1, seconds, 2 * length), beep)


KINDS: dict[str, Callable[[Rng, float, int], Signal]] = {
    "bell": _bell,
    "beeper": _beeper,
    "bird": _bird,
    "drum": _drum,
    "engine": _engine,
    "rain": _rain,
    "voice": _voice,
    "wind": _wind,
}


def synthesise(folder: str, *, recordings: int = 96, seed: int = 0) -> int:
    """Write the demo corpus into a new or empty folder, or into its own what is missing there.

    Parameters
    ----------
    folder : str
        Local path.
    recordings : int
        Sound files, spread evenly over the kinds, 4 to 9 s each; two rejects come on top.
    seed : int

    Returns
    -------
    int
        Files of the corpus.

    Raises
    ------
    InputError
        If the folder holds something else, also a demo corpus of another size or seed, or `recordings` is not between
        1 and 100,000.
    """
    if not 1 <= recordings <= 100_000:
        raise InputError(f"--recordings must lie between 1 and 100000, not {recordings}")
    plan, labels = _planned(recordings)
    with storage_errors(folder):
        files = Folder(os.path.abspath(folder))
        if files.exists("") and os.listdir(files.root):
            _refuse_others(folder, plan, labels, seed)
        # First: by it, what a run that was stopped has made is known for a part of this corpus.
        _make(files, "labels.csv", lambda file: file.write(labels))
        with stage("making sounds") as report:
            for number, one in enumerate(plan):
                report("making sounds", number, len(plan), f"{number} of {len(plan)} files")
                _make(files, one.name, functools.partial(_write_sound, one, seed))
        silent = functools.partial(_encode, sound=np.zeros(16_000 * 3), rate=16_000, container="WAV", subtype="PCM_16")
        _make(files, "recorder-off.wav", silent)
        _make(files, "not-a-sound.wav", lambda file: file.write(b"Someone saved a note under a sound's name.\n"))
    return recordings + 2


@dataclass(frozen=True)
class _Planned:
    """A recording of the corpus: its name, its kind, the source it shares with another, its form."""

    name: str
    kind: str
    source: str
    container: str
    subtype: str
    rate: int

    def rng(self, seed: int) -> tuple[Rng, float]:
        """Its own random numbers, and its length in seconds, the first of them."""
        rng = _seeded(seed, self.name)
        return rng, rng.uniform(4, 9)


def _planned(recordings: int) -> tuple[list[_Planned], bytes]:
    """The recordings, and the label file that lists them."""
    labels = io.StringIO()
    writer = csv.writer(labels, lineterminator="\n")
    writer.writerow(["uri", "label", "group"])
    plan = []
    for i in range(recordings):
        kind = sorted(KINDS)[i % len(KINDS)]
        # Two recordings of one source: they must stay on one side of a split.
        source = f"{kind}-{i // len(KINDS) // 2:03d}"
        container, subtype, ending, rate = FORMATS[(i + i // len(KINDS)) % len(FORMATS)]
        plan.append(_Planned(f"{kind}/{kind}-{i // len(KINDS):03d}{ending}", kind, source, container, subtype, rate))
        writer.writerow([plan[-1].name, kind, source])
    return plan, labels.getvalue().encode()


def _seeded(seed: int, name: str) -> Rng:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big"))


def _refuse_others(folder: str, plan: list[_Planned], labels: bytes, seed: int) -> None:
    """Raise `InputError` unless a folder holds this corpus, or a part of it."""
    found = b""
    if os.path.isfile(marker := os.path.join(folder, "labels.csv")):
        with open(marker, "rb") as file:
            found = file.read()
    shorter, longer = sorted((found, labels), key=len)
    # The label files of two sizes begin alike; the first line alone says nothing.
    if found != labels and shorter.count(b"\n") > 1 and longer.startswith(shorter):
        count = found.count(b"\n") - 1
        raise InputError(f"{folder} holds a demo corpus of {count} recordings, not {len(plan)}: name another folder")
    there = [one for one in plan if os.path.isfile(os.path.join(folder, one.name))]
    if found not in (b"", labels) or not (found or there):
        raise InputError(f"{folder} is not empty: name a new or empty folder")
    # Lengths tell seeds apart. One that is right will do: the user may have changed the others, and they stay.
    if there and not any(_frames(os.path.join(folder, p.name)) == round(p.rng(seed)[1] * p.rate) for p in there):
        what = "a demo corpus of another seed" if found else "something else"
        raise InputError(f"{folder} holds {what}: name another folder")


def _frames(path: str) -> int | None:
    """Length of a sound file; None if it is none."""
    import soundfile

    try:
        return int(soundfile.info(os.fsencode(path)).frames)
    except soundfile.LibsndfileError:
        return None


def _make(files: Folder, name: str, write: Callable[[IO[bytes]], object]) -> None:
    """A file, whole or not at all, unless it is there."""
    if not files.exists(name):
        with files.create(name, durable=False) as file:
            write(file)


def _write_sound(one: _Planned, seed: int, file: IO[bytes]) -> None:
    (rng, seconds), voice = one.rng(seed), _seeded(seed, one.source)
    sound = KINDS[one.kind](voice, seconds, one.rate)
    sound = sound / (np.abs(sound).max() + 1e-9) * rng.uniform(0.3, 0.8) + 0.002 * rng.standard_normal(len(sound))
    _encode(file, sound=sound.clip(-1, 1), rate=one.rate, container=one.container, subtype=one.subtype)


def _encode(file: IO[bytes], *, sound: Signal, rate: int, container: str, subtype: str) -> None:
    import soundfile

    try:
        # By name: through a Python file, Ctrl-C would be lost in a callback.
        soundfile.write(os.fsencode(file.name), sound, rate, format=container, subtype=subtype)
    except soundfile.LibsndfileError as error:
        # A full disk is a "system error" to it, no more.
        raise OSError(errno.EIO, str(error).rstrip(".")) from error
