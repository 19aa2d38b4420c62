"""Changes after which a sound still counts as the same: another pitch, level, tempo, room and background.

From windows changed in these ways `texture.projection` learns which statistics stay close for the same sound. All
random numbers come from the generator that is passed in. The changes act on mel power, as if the sound itself had been
changed.
"""

import numpy as np
import numpy.typing as npt
from keras import ops

from soundlake.model.features.log_mel import FeatureSpec
from soundlake.model.network import augment

# Pitch: mel bands up or down, at most. Level: standard deviation in decibels. Noise of each value: at most, in standard
# deviations of the data. Tempo: largest logarithm of the tempo ratio, nats.
PITCH, LEVEL, NOISE, TEMPO = 4, 3.0, 0.1, 0.1
# Range of the time in which a room's reverberation falls by 60 dB, and its largest share of the power.
ROOM_SECONDS, ROOM_SHARE = (0.05, 0.6), 0.5
# Share of the windows that get a background, and the range of its level in decibels below the window's mean power.
BACKGROUND, BACKGROUND_DB = 0.3, (10.0, 40.0)
# Standard deviations, in nats, of a background's spectrum along the bands and of its level over the window, one per
# cosine; and the degrees of freedom of the chi-squared fluctuation of its values.
COLOUR, SWELL, FREEDOM = (3.45, 2.3, 1.38, 0.92, 0.69), (0.4,) * 4, 8

Array = npt.NDArray[np.float32]


def changed(windows: Array, spec: FeatureSpec, drawn: np.random.Generator) -> Array:
    """The same sounds after random changes of pitch, tempo, room, level and background.

    Parameters
    ----------
    windows : ndarray of float32, shape (n, window_frames, n_mels)
        Log-mel, nats.
    spec : FeatureSpec
    drawn : numpy.random.Generator

    Returns
    -------
    ndarray of float32, shape (n, window_frames, n_mels)
        Nats.
    """
    size, offset = len(windows), np.float32(spec.log_offset)
    bands = drawn.integers(-PITCH, PITCH + 1, size, dtype=np.int32)
    power = np.maximum(np.exp(ops.convert_to_numpy(augment.transposed(windows, bands))) - offset, 0)
    power = _reverberated(_stretched(power, drawn), spec, drawn)
    power = power * np.power(10, LEVEL * drawn.standard_normal((size, 1, 1)) / 10).astype(np.float32)
    noise = background(size, spec, drawn)
    decibels = drawn.uniform(*BACKGROUND_DB, size)
    share = np.where(drawn.uniform(size=size) < BACKGROUND, 10 ** (-decibels / 10), 0)
    share = share * power.mean(axis=(1, 2)) / noise.mean(axis=(1, 2))
    return np.asarray(np.log(power + share[:, None, None].astype(np.float32) * noise + offset), np.float32)


def speckled(normalised: Array, drawn: np.random.Generator) -> Array:
    """Normalised windows with a little noise on each value, as quantising and chance add in quiet places."""
    noise = drawn.standard_normal(normalised.shape, np.float32)
    return np.asarray(normalised + noise * drawn.uniform(0, NOISE, (len(normalised), 1, 1)), np.float32)


def background(size: int, spec: FeatureSpec, drawn: np.random.Generator) -> Array:
    """Mel power of coloured noise whose level varies over time, shape (size, window_frames, n_mels); not scaled."""
    frames, bands = spec.window_frames, spec.n_mels
    colour = drawn.standard_normal((size, len(COLOUR))) * COLOUR @ _cosines(len(COLOUR), bands)
    phases = drawn.uniform(0, 2 * np.pi, (size, len(SWELL), 1))
    turns = 2 * np.pi * np.outer(np.arange(1, len(SWELL) + 1), np.arange(frames)) / frames
    heights = drawn.standard_normal((size, len(SWELL), 1)) * np.array(SWELL)[:, None]
    swell = (heights * np.cos(turns + phases)).sum(axis=1)
    values = drawn.chisquare(FREEDOM, (size, frames, bands)).astype(np.float32) / FREEDOM
    return np.asarray(values * np.exp(colour[:, None] + swell[..., None]), np.float32)


def _cosines(count: int, size: int) -> npt.NDArray[np.float64]:
    """Cosines with half a period, one period, … over `size` places, shape (count, size)."""
    return np.asarray(np.cos(np.pi * np.outer(np.arange(1, count + 1), (np.arange(size) + 0.5) / size)))


def _stretched(power: Array, drawn: np.random.Generator) -> Array:
    """Mel power at another tempo, from the window's first frame on; after its end the last frame repeats."""
    size, frames = power.shape[:2]
    ratio = np.exp(drawn.uniform(-TEMPO, TEMPO, (size, 1)))
    place = np.minimum(np.arange(frames) * ratio, frames - 1)
    before = place.astype(np.int64)
    share = (place - before)[..., None].astype(np.float32)
    row = np.arange(size)[:, None]
    return np.asarray(power[row, before] * (1 - share) + power[row, np.minimum(before + 1, frames - 1)] * share)


def _reverberated(power: Array, spec: FeatureSpec, drawn: np.random.Generator) -> Array:
    """Mel power in a room: a share of the power decays exponentially."""
    size = len(power)
    seconds = drawn.uniform(*ROOM_SECONDS, (size, 1))
    decay = (10 ** (-6 * spec.hop_length / spec.sample_rate / seconds)).astype(np.float32)
    wet = drawn.uniform(0, ROOM_SHARE, (size, 1)).astype(np.float32)
    out, tail = np.empty_like(power), np.zeros_like(power[:, 0])
    for frame in range(power.shape[1]):
        tail = decay * tail + (1 - decay) * power[:, frame]
        out[:, frame] = (1 - wet) * power[:, frame] + wet * tail
    return out
