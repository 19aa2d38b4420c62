"""Synthetic sound for the benches, of medium difficulty for encoders."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

PART_SECONDS = 10
# Hz and amplitude of the tones: a voice's pitch with its overtones, and a bright tone above.
TONES = ((220, 0.2), (440, 0.1), (663, 0.08), (1330, 0.05), (3520, 0.02))


def sound(*, rate: int, seconds: int, channels: int) -> Iterator[NDArray[np.float32]]:
    """Tones with vibrato in pink noise, with a varying level; the channels differ a little, as in a stereo recording.

    Parameters
    ----------
    rate, seconds, channels : int
        Samples per second; duration, a multiple of 10; one or two channels.

    Yields
    ------
    ndarray of float32, shape (10 * rate, channels)
        Full scale is ±1, which is never reached.
    """
    rng = np.random.default_rng(1)
    size = PART_SECONDS * rate

    def pink() -> NDArray[np.float64]:
        spectrum = np.fft.rfft(rng.standard_normal(size))
        noise = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), size)
        return noise / noise.std()

    for first in range(0, seconds, PART_SECONDS):
        t = first + np.arange(size) / rate
        swell = 0.2 + 0.8 * np.sin(2 * np.pi * t / 7.3) ** 2 * np.abs(np.sin(2 * np.pi * 1.7 * t))
        waver = 0.3 * np.sin(2 * np.pi * 5 * t)
        middle = swell * sum(loud * np.sin(2 * np.pi * pitch * t + waver) for pitch, loud in TONES) + 0.04 * pink()
        side = 0.02 * pink()
        both = np.stack([middle + side, middle - side][:channels], axis=1)
        yield both.clip(-0.99, 0.99).astype(np.float32)
