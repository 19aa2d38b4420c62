"""The synthetic demo corpus: eight kinds of sound, several formats, labels, and two files that are rejected.

Properties that do not define the kind vary between recordings: pitch, pace, level, background noise, room, and the
place of the sound in the recording.

Every sample follows from the seed: the same call writes the same corpus (lossy codecs aside, whose encoders may differ
between machines).
"""

import csv
import errno
import functools
import hashlib
import io
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt

from soundlake.model.errors import InputError, storage_errors
from soundlake.pipelines.lake.stages import stage
from soundlake.pipelines.storage.folder import Folder

Signal = npt.NDArray[np.float64]
Rng = np.random.Generator

# Format, subtype, ending, rate in Hz: a mixture as in a real folder.
FORMATS = (
    ("WAV", "PCM_16", ".wav", 44_100),
    ("FLAC", "PCM_16", ".flac", 48_000),
    ("OGG", "VORBIS", ".ogg", 44_100),
    ("WAV", "PCM_24", ".wav", 16_000),
    ("MP3", "MPEG_LAYER_III", ".mp3", 44_100),
)
# The pairs are ranges, (low, high), from which a value is drawn for each recording. The share of a recording that its
# sound fills.
SHARE = (0.5, 1.0)
# The share of recordings made in a room; its reverberation time, s, and the amplitude of the echoes relative to the
# direct sound.
ROOMS, REVERBERATION, ECHOES = 2 / 3, (0.15, 0.6), (0.2, 0.8)
# The share of recordings with background noise; by how much the sound is above it, dB.
NOISES, SNR = 4 / 5, (10.0, 40.0)
# The highest peak, dB of full scale.
LEVEL = (-27.0, -3.0)
# How long a sound fades in and out, s.
FADE = 0.05


def _time(seconds: float, rate: int) -> Signal:
    return np.arange(round(seconds * rate)) / rate


def _octaves(rng: Rng, low: float, high: float) -> float:
    """A random frequency or rate between two, every octave equally likely."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


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


def _tones(phase: Signal, highest: float, partials: Iterable[tuple[float, Signal | float]]) -> Signal:
    """Sum of sines at multiples of a phase, as (multiple, amplitude); multiples above `highest` would alias."""
    return sum((a * np.sin(n * phase) for n, a in partials if n <= highest), np.zeros(len(phase)))


def _noise(rng: Rng, count: int, rate: int, slope: float) -> Signal:
    """Noise of RMS 1 whose amplitude falls with frequency as f^-slope, above 50 Hz."""
    from scipy.fft import irfft, next_fast_len, rfft, rfftfreq

    size = next_fast_len(count, real=True)
    spectrum = rfft(rng.standard_normal(size)) / np.maximum(rfftfreq(size, 1 / rate), 50) ** slope
    spectrum[0] = 0
    out = np.asarray(irfft(spectrum, size)[:count])
    return out / (_rms(out) + 1e-12)


def _rms(sound: Signal) -> float:
    return float(np.sqrt(np.mean(np.square(sound))))


def _bird(rng: Rng, seconds: float, rate: int) -> Signal:
    low = _octaves(rng, 1500, 4000)
    high = min(low * rng.uniform(1.3, 2.2), 7000)

    def chirp() -> Signal:
        t = _time(rng.uniform(0.08, 0.25), rate)
        sweep = low + (high - low) * np.abs(np.sin(np.pi * rng.uniform(1, 3) * t / t[-1]))
        return np.sin(2 * np.pi * np.cumsum(sweep) / rate) * np.hanning(len(t))

    return _placed(seconds, rate, _events(rng, seconds, _octaves(rng, 0.2, 0.9)), chirp)


def _bell(rng: Rng, seconds: float, rate: int) -> Signal:
    pitch, decay = _octaves(rng, 180, 1200), _octaves(rng, 0.6, 2)

    def stroke() -> Signal:
        t = _time(2.5, rate)
        partials = ((1, 1.0), (2.76, 0.6), (5.4, 0.35), (8.93, 0.2))
        rung = ((p, a * np.exp(-decay * t * (1 + p))) for p, a in partials)
        return _tones(2 * np.pi * pitch * t, rate / 2 / pitch, rung)

    return _placed(seconds, rate, _events(rng, seconds, _octaves(rng, 0.5, 2)), stroke)


def _engine(rng: Rng, seconds: float, rate: int) -> Signal:
    t, steady = _time(seconds, rate), _octaves(rng, 30, 120)
    turns = steady * (1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.1, 0.4) * t))
    strokes = _tones(2 * np.pi * np.cumsum(turns) / rate, np.inf, ((n, 1 / n) for n in range(1, 12)))
    return strokes + 0.05 * _noise(rng, len(t), rate, 0.5)


def _rain(rng: Rng, seconds: float, rate: int) -> Signal:
    from scipy.signal import oaconvolve

    count, pitch = round(seconds * rate), _octaves(rng, 1800, 5000)
    drops = np.zeros(count)
    drops[rng.integers(0, count, round(seconds * _octaves(rng, 30, 200)))] = rng.uniform(0.3, 1)
    t = _time(0.02, rate)
    falling = oaconvolve(drops, np.exp(-t * 400) * np.sin(2 * np.pi * pitch * t))[:count]
    return falling + 0.03 * _noise(rng, count, rate, rng.uniform(0, 0.5))


def _wind(rng: Rng, seconds: float, rate: int) -> Signal:
    t = _time(seconds, rate)
    gusts = 0.5 + 0.5 * np.sin(2 * np.pi * _octaves(rng, 0.1, 0.5) * t + rng.uniform(0, 6))
    return _noise(rng, len(t), rate, rng.uniform(0.7, 1.2)) * gusts


def _drum(rng: Rng, seconds: float, rate: int) -> Signal:
    beat, pitch = _octaves(rng, 0.25, 0.8), _octaves(rng, 50, 150)

    def hit() -> Signal:
        t = _time(0.3, rate)
        body = np.sin(2 * np.pi * (pitch * t + 3 * (1 - np.exp(-t * 30)))) * np.exp(-t * 12)
        return body + 0.4 * rng.standard_normal(len(t)) * np.exp(-t * 60)

    return _placed(seconds, rate, np.arange(0.1, seconds, beat), hit)


def _voice(rng: Rng, seconds: float, rate: int) -> Signal:
    pitch = _octaves(rng, 85, 300)

    def vowel() -> Signal:
        t = _time(rng.uniform(0.15, 0.4), rate)
        formants = ((rng.uniform(300, 800), 80), (rng.uniform(900, 2300), 120), (2700, 160))
        tone = np.zeros(len(t))
        for n in range(1, int(4000 / pitch)):
            level = sum(np.exp(-(((n * pitch - f) / (2 * width)) ** 2)) for f, width in formants)
            tone += level * np.sin(2 * np.pi * n * pitch * t * (1 + 0.01 * np.sin(2 * np.pi * 5 * t)))
        return tone * np.hanning(len(t))

    return _placed(seconds, rate, _events(rng, seconds, _octaves(rng, 0.25, 0.6)), vowel)


def _beeper(rng: Rng, seconds: float, rate: int) -> Signal:
    tone, length = _octaves(rng, 500, 3000), _octaves(rng, 0.06, 0.4)

    def beep() -> Signal:
        return _tones(2 * np.pi * tone * _time(length, rate), rate / 2 / tone, ((n, 1 / n) for n in range(1, 12, 2)))

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
    """Write the demo corpus into a new or empty folder; in a folder with a part of it, write the missing files.

    Parameters
    ----------
    folder : str
        Local path.
    recordings : int
        Number of sound files, spread evenly over the kinds, 4 to 9 s each; two rejects are added. Every two consecutive
        recordings of a kind share a source, such as the same bell, with its own pitch and pace; level, noise, room and
        place in the recording are drawn for each recording.
    seed : int

    Returns
    -------
    int
        Number of files in the corpus.

    Raises
    ------
    InputError
        If the folder holds something else, such as a demo corpus of another size or seed, or `recordings` is not
        between 1 and 100,000.
    """
    if not 1 <= recordings <= 100_000:
        raise InputError(f"--recordings must lie between 1 and 100000, not {recordings}")
    plan, labels = _planned(recordings)
    with storage_errors(folder):
        files = Folder(os.path.abspath(folder))
        if files.exists("") and os.listdir(files.root):
            _refuse_others(folder, plan, labels, seed)
        # Written first: it identifies the files of a stopped run as a part of this corpus.
        _make(files, "labels.csv", lambda file: file.write(labels))
        with stage("making sounds") as report:
            for number, planned in enumerate(plan):
                report("making sounds", number, len(plan), f"{number} of {len(plan)} files")
                _make(files, planned.name, functools.partial(_write_sound, planned, seed))
        silent = functools.partial(_encode, sound=np.zeros(16_000 * 3), rate=16_000, container="WAV", subtype="PCM_16")
        _make(files, "recorder-off.wav", silent)
        _make(files, "not-a-sound.wav", lambda file: file.write(b"Someone saved a note under a sound's name.\n"))
    return recordings + 2


@dataclass(frozen=True)
class _Planned:
    """A recording of the corpus: its name, its kind, the source it shares with another, its format."""

    name: str
    kind: str
    source: str
    container: str
    subtype: str
    rate: int

    def rng(self, seed: int) -> tuple[Rng, float]:
        """Random generator of the recording, and its length in seconds, the first number drawn."""
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
        # Two recordings share a source: they must stay on one side of a split.
        source = f"{kind}-{i // len(KINDS) // 2:03d}"
        container, subtype, ending, rate = FORMATS[(i + i // len(KINDS)) % len(FORMATS)]
        plan.append(_Planned(f"{kind}/{kind}-{i // len(KINDS):03d}{ending}", kind, source, container, subtype, rate))
        writer.writerow([plan[-1].name, kind, source])
    return plan, labels.getvalue().encode()


def _seeded(seed: int, name: str) -> Rng:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big"))


def _refuse_others(folder: str, plan: list[_Planned], labels: bytes, seed: int) -> None:
    """Raise `InputError` unless a folder holds this corpus, or a part of it."""
    existing = b""
    if os.path.isfile(marker := os.path.join(folder, "labels.csv")):
        with open(marker, "rb") as file:
            existing = file.read()
    shorter, longer = sorted((existing, labels), key=len)
    # The label files of two corpus sizes begin alike; the first line alone proves nothing.
    if existing != labels and shorter.count(b"\n") > 1 and longer.startswith(shorter):
        count = existing.count(b"\n") - 1
        raise InputError(f"{folder} holds a demo corpus of {count} recordings, not {len(plan)}: name another folder")
    present = [planned for planned in plan if os.path.isfile(os.path.join(folder, planned.name))]
    if existing not in (b"", labels) or not (existing or present):
        raise InputError(f"{folder} is not empty: name a new or empty folder")
    # Lengths distinguish seeds. One file of the right length is enough: the user may have changed the others, and they
    # are kept.
    if present and not any(_frames(os.path.join(folder, p.name)) == round(p.rng(seed)[1] * p.rate) for p in present):
        content = "a demo corpus of another seed" if existing else "something else"
        raise InputError(f"{folder} holds {content}: name another folder")


def _frames(path: str) -> int | None:
    """Number of frames of a sound file; None if it is no sound file."""
    import soundfile

    try:
        return int(soundfile.info(os.fsencode(path)).frames)
    except soundfile.LibsndfileError:
        return None


def _make(files: Folder, name: str, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file, whole or not at all, unless it exists."""
    if not files.exists(name):
        with files.create(name, durable=False) as file:
            write(file)


def _write_sound(one: _Planned, seed: int, file: IO[bytes]) -> None:
    (rng, seconds), source = one.rng(seed), _seeded(seed, one.source)
    sound = _recorded(rng, seconds, one.rate, functools.partial(KINDS[one.kind], source))
    _encode(file, sound=sound, rate=one.rate, container=one.container, subtype=one.subtype)


def _recorded(rng: Rng, seconds: float, rate: int, make: Callable[[float, int], Signal]) -> Signal:
    """A recording of `seconds` with a sound somewhere in it, perhaps in a room or with noise, at a random level.

    `SNR` is the RMS of the sound while it lasts, without echoes, over the RMS of the noise.
    """
    duration = seconds * rng.uniform(*SHARE)
    sound = make(duration, rate)
    # Fade in and out: a continuous sound, such as an engine's, must not begin or end with a click.
    ramp = np.minimum(np.arange(len(sound)) / (FADE * rate), 1)
    sound = sound * ramp * ramp[::-1]
    out, first = np.zeros(round(seconds * rate)), round(rng.uniform(0, seconds - duration) * rate)
    sound = sound[: len(out) - first]
    out[first : first + len(sound)] = sound
    loud = _rms(sound)
    if rng.uniform() < ROOMS:
        out = _in_a_room(rng, out, rate)
    if rng.uniform() < NOISES:
        noise = _noise(rng, len(out), rate, rng.uniform(0, 1))
        out += noise * loud * 10 ** (-rng.uniform(*SNR) / 20)
    return out / (np.abs(out).max() + 1e-9) * 10 ** (rng.uniform(*LEVEL) / 20)


def _in_a_room(rng: Rng, sound: Signal, rate: int) -> Signal:
    """The sound with echoes that fall by 60 dB in a random time: noise under an exponential.

    Moorer, About This Reverberation Business (1979).
    """
    from scipy.signal import oaconvolve

    reverberation = rng.uniform(*REVERBERATION)
    t = _time(reverberation, rate)
    echoes = rng.standard_normal(len(t)) * 10 ** (-3 * t / reverberation)
    echoes *= rng.uniform(*ECHOES) / np.linalg.norm(echoes)
    return sound + np.asarray(oaconvolve(sound, echoes)[: len(sound)])


def _encode(file: IO[bytes], *, sound: Signal, rate: int, container: str, subtype: str) -> None:
    import soundfile

    try:
        # Pass the name: with a Python file, Ctrl-C would be lost in a callback.
        soundfile.write(os.fsencode(file.name), sound, rate, format=container, subtype=subtype)
    except soundfile.LibsndfileError as error:
        # libsndfile reports a full disk only as a "system error".
        raise OSError(errno.EIO, str(error).rstrip(".")) from error
