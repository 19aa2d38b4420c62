"""Log-mel → sound with about that log-mel: phases are guessed, and the power of a mel band is spread over its bins."""

import numpy as np
import numpy.typing as npt

from soundlake.model.features.log_mel import FeatureSpec, mel_filters

# Number of multiplicative updates (mel bands to bins), and of Griffin-Lim rounds (magnitudes to phases).
UPDATES, ROUNDS = 30, 32
_LEAST = 1e-12

Array = npt.NDArray[np.float32]


def bins_of_bands(mel_power: Array, spec: FeatureSpec) -> Array:
    """A non-negative power spectrum with about this mel power, (frames, n_fft // 2 + 1).

    It starts from the clipped pseudo-inverse and is refined by the multiplicative updates of non-negative matrix
    factorisation with fixed filters: Lee and Seung, Algorithms for Non-negative Matrix Factorization (2001), theorem 1.

    Parameters
    ----------
    mel_power : ndarray of float32, shape (frames, n_mels)
    spec : FeatureSpec
    """
    filters = mel_filters(spec)
    power = np.maximum(mel_power @ np.linalg.pinv(filters).T, _LEAST)
    target, gram = mel_power @ filters, filters.T @ filters
    for _ in range(UPDATES):
        power *= target / np.maximum(power @ gram, _LEAST)
    return np.asarray(power, np.float32)


def sound_of(features: Array, spec: FeatureSpec) -> Array:
    """Sound with about this log-mel.

    Phases come from librosa's fast Griffin-Lim algorithm: Perraudin et al. (2013).

    Parameters
    ----------
    features : ndarray of float32, shape (frames, n_mels)
        Nats.
    spec : FeatureSpec

    Returns
    -------
    ndarray of float32, shape ((frames - 1) * hop_length,)
        Mono, at the sample rate of the spec, within ±1.
    """
    import librosa

    power = np.maximum(np.exp(features) - np.float32(spec.log_offset), 0)
    magnitude = np.sqrt(bins_of_bands(power, spec)).T
    sound = librosa.griffinlim(
        magnitude,
        n_iter=ROUNDS,
        hop_length=spec.hop_length,
        win_length=spec.win_length,
        n_fft=spec.n_fft,
        random_state=0,
    )
    return np.clip(np.asarray(sound, np.float32), -1, 1)
