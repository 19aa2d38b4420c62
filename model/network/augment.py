"""How a training window is changed, so that what stays the same is learned: masks, level, pitch, noise.

Nothing is drawn here but the bank of masks, from a seed; the callers draw keyed by seed and step, so that a resumed run
draws what it would have drawn.
"""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from keras import ops

from soundlake.model.features.log_mel import FeatureSpec

# Masks of a bank; a window gets one of them. More would take memory, fewer would be learned by heart.
MASKS = 1024


def mask_bank(spec: FeatureSpec, *, widest: float, seed: int, count: int = MASKS) -> npt.NDArray[np.bool_]:
    """Masks of a stretch of time and a stretch of mel bands, by `tensorflow_io`'s audio ops.

    SpecAugment without warping: Park et al., SpecAugment (2019), section 2. The ops draw from TensorFlow's stateful
    generators, which no resumed run could take up; so a bank of masks is made at the start, seeded, and picked from.

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
        # Of its compiled parts, made for another TensorFlow; the audio ops used here are Python.
        warnings.filterwarnings("ignore", message="unable to load libtensorflow_io")
        warnings.filterwarnings("ignore", message="file system plugins are not loaded")
        import tensorflow_io as tfio

    # The ops have no room for a mask as wide as the window.
    frames, bands = (min(size - 1, round(widest * size)) for size in (spec.window_frames, spec.n_mels))
    whole = np.ones((spec.window_frames, spec.n_mels), np.uint8)
    # A graph of its own has a seed of its own, whatever else was drawn in this process.
    with tf.Graph().as_default() as graph:
        tf.random.set_seed(seed)

        def mask(_: Any) -> Any:
            return tfio.audio.time_mask(tfio.audio.freq_mask(whole, param=bands + 1), param=frames + 1)

        masks = tf.map_fn(mask, tf.range(count), parallel_iterations=1, fn_output_signature=tf.uint8)
        with tf.compat.v1.Session(graph=graph) as session:
            return np.asarray(session.run(masks), bool)


def transposed(x: Any, bands: Any) -> Any:
    """Windows moved up by so many mel bands each; the band at the border is repeated.

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
    """Windows as the sound would have given them at another level: mel power scaled, and the offset added as before.

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
    """Windows with others in their background: mel powers are added, in shares, at the same mean power.

    Of sounds that know nothing of each other powers add up. Niizumi et al., BYOL for Audio (2021), section III-B1
    (mixup of log-mel, there without making levels even).

    Parameters
    ----------
    x, other : tensor, shape (batch, window_frames, n_mels)
        log(mel power + log_offset), nats.
    share : tensor of float32, shape (batch,)
        Of the other, from 0 to 1.
    log_offset : float
    """
    power, added = (ops.maximum(ops.exp(one) - log_offset, 0.0) for one in (x, other))
    mean, mean_added = (ops.mean(one, axis=(1, 2), keepdims=True) for one in (power, added))
    # Near silence has no level to be raised to another's.
    gain = mean / ops.maximum(mean_added, log_offset)
    share = share[:, None, None]
    return ops.log((1 - share) * power + share * gain * added + log_offset)
