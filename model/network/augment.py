"""Changes of training windows, from which a model learns what stays the same: masks, level, pitch, background.

Only the bank of masks is drawn here, from a seed. Callers draw all other random numbers, keyed by seed and step. So a
resumed run draws the same numbers as an uninterrupted one.
"""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from keras import ops

from soundlake.model.features.log_mel import FeatureSpec

# Masks in a bank; each window gets one of them. More masks would take more memory, fewer would be memorised.
MASKS = 1024


def mask_bank(spec: FeatureSpec, *, widest: float, seed: int, count: int = MASKS) -> npt.NDArray[np.bool_]:
    """Masks that hide a stretch of time and a stretch of mel bands, made by `tensorflow_io`'s audio ops.

    SpecAugment without warping: Park et al., SpecAugment (2019), section 2. The ops draw from TensorFlow's stateful
    generators, whose state a resumed run could not restore. So a seeded bank of masks is made at the start, and each
    window picks one of them.

    Parameters
    ----------
    spec : FeatureSpec
    widest : float
        A mask's width is uniform from 0 to this share of the window's frames, and of its bands.
    seed, count : int

    Returns
    -------
    ndarray of bool, shape (count, window_frames, n_mels)
        False where masked.
    """
    import tensorflow as tf

    with warnings.catch_warnings():
        # The warnings concern compiled parts for another TensorFlow; the audio ops used here are Python.
        warnings.filterwarnings("ignore", message="unable to load libtensorflow_io")
        warnings.filterwarnings("ignore", message="file system plugins are not loaded")
        import tensorflow_io as tfio

    # The ops do not accept a mask as wide as the window.
    frames, bands = (min(size - 1, round(widest * size)) for size in (spec.window_frames, spec.n_mels))
    unmasked = np.ones((spec.window_frames, spec.n_mels), np.uint8)
    # A separate graph has its own seed, so other draws in this process have no effect.
    with tf.Graph().as_default() as graph:
        tf.random.set_seed(seed)

        def mask(_: Any) -> Any:
            return tfio.audio.time_mask(tfio.audio.freq_mask(unmasked, param=bands + 1), param=frames + 1)

        masks = tf.map_fn(mask, tf.range(count), parallel_iterations=1, fn_output_signature=tf.uint8)
        with tf.compat.v1.Session(graph=graph) as session:
            return np.asarray(session.run(masks), bool)


def transposed(x: Any, bands: Any) -> Any:
    """Windows moved up, each by its number of mel bands; the band at the border is repeated.

    Parameters
    ----------
    x : tensor, shape (batch, window_frames, n_mels)
        Nats.
    bands : tensor of int32, shape (batch,)
    """
    size = x.shape[-1]
    places = ops.clip(ops.arange(size) - bands[:, None], 0, size - 1)
    return ops.take_along_axis(x, ops.broadcast_to(places[:, None], ops.shape(x)), axis=2)


def at_level(x: Any, decibels: Any, *, log_offset: float) -> Any:
    """Windows as if the sound had another level: the mel power is scaled, and the same offset is added again.

    Parameters
    ----------
    x : tensor, shape (batch, window_frames, n_mels)
        log(mel power + log_offset), nats.
    decibels : tensor of float32, shape (batch,)
    log_offset : float
    """
    power = ops.maximum(ops.exp(x) - log_offset, 0.0)
    return ops.log(power * ops.power(10.0, decibels / 10)[:, None, None] + log_offset)


def mixed(x: Any, other: Any, share: Any, *, log_offset: float) -> Any:
    """Windows with others in their background: a weighted sum of the mel powers at the same mean power.

    The powers of uncorrelated sounds add up. Niizumi et al., BYOL for Audio (2021), section III-B1 (mixup of log-mel,
    there without equalising levels).

    Parameters
    ----------
    x, other : tensor, shape (batch, window_frames, n_mels)
        log(mel power + log_offset), nats.
    share : tensor of float32, shape (batch,)
        Share of `other`, from 0 to 1.
    log_offset : float
    """
    power, added = (ops.maximum(ops.exp(windows) - log_offset, 0.0) for windows in (x, other))
    mean, mean_added = (ops.mean(windows, axis=(1, 2), keepdims=True) for windows in (power, added))
    # Near silence is not raised to the other window's level.
    gain = mean / ops.maximum(mean_added, log_offset)
    share = share[:, None, None]
    return ops.log((1 - share) * power + share * gain * added + log_offset)
