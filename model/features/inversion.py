"""Log-mel → sound with about that log-mel: phases are guessed, and what is in a mel band is spread over it."""

import numpy as np
import numpy.typing as npt

from soundlake.model.features.log_mel import FeatureSpec, mel_filters

# Multiplicative updates from mel bands to bins, rounds of Griffin and Lim from magnitudes to phases.
UPDATES, ROUNDS = 30, 32
_LEAST = 1e-12

Array = npt.NDArray[np.float32]


def bins_of_bands(mel_power: Array, spec: FeatureSpec) -> Array:
    """A power spectrum that is nowhere negative and has this mel power, (frames, n_fft // 2 + 1).

    From the clipped pseudo-inverse, multiplicative updates as of non-negative matrix factorisation with the filters
    fixed: Lee and Seung, Algorithms for Non-negative Matrix Factorization (2001), theorem 1.

    Parameters
    ----------
    mel_power : ndarray of float32, shape (frames, n_mels)
    spec : FeatureSpec
    """
    filters = mel_filters(spec)
    found = np.maximum(mel_power @ np.linalg.pinv(filters).T, _LEAST)
    wanted, gram = mel_power @ filters, filters.T @ filters
    for _ in range(UPDATES):
        found *= wanted / np.maximum(found @ gram, _LEAST)
    return np.asarray(found, np.float32)


def sound_of(features: Array, spec: FeatureSpec) -> Array:
    """Sound with about this log-mel.

    Phases by the fast algorithm of Griffin and Lim, as librosa has it: Perraudin et al. (2013).

    Parameters
    ----------
    features : ndarray of float32, shape (frames, n_mels)
        Nats.
    spec : FeatureSpec

    Returns
    -------
    ndarray of float32, shape ((frames - 1) * hop_length,)
        Mono, at the spec's rate, within ±1.
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
