"""Terms that compose with the negative ELBO, in backend-neutral Keras: free bits, KL warm-up, the contrastive term."""

from typing import Any

from keras import ops

# What keeps a window from being its own negative.
_NEVER = 1e9


def warm_up(step: Any, steps: int) -> Any:
    """Weight of the KL at a step: from near 0 to 1 in a straight line over `steps`.

    Bowman et al., Generating Sentences from a Continuous Space (2016), section 3.1; Sønderby et al., Ladder Variational
    Autoencoders (2016). Without, the decoder may learn to do without a latent that has nothing to say yet.
    """
    return ops.minimum(1.0, ops.cast(step + 1, "float32") / max(1, steps))


def free_bits(kl_per_dim: Any, mean_kl: Any, least: float) -> Any:
    """KL of each example, nats, where a dimension costs no less than `least`: Σ max(least, KL).

    Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow (2016), eq. 15: the maximum is taken
    of the mean over the minibatch, so a dimension below has no gradient of its KL, and may rise for free.

    Parameters
    ----------
    kl_per_dim : tensor, shape (batch, latent_dim)
    mean_kl : tensor, shape (latent_dim,)
        Over the whole minibatch, of all replicas.
    least : float
        Nats.

    Returns
    -------
    tensor, shape (batch,)
    """
    return ops.sum(ops.where(mean_kl > least, kl_per_dim, ops.full_like(kl_per_dim, least)), axis=1)


def nt_xent(projected: Any, everyone: Any, *, offset: Any, temperature: float) -> Any:
    """Normalised temperature-scaled cross-entropy: which of all other windows is the other one of the same recording?

    −log exp(cos(a, b) / τ) / Σ_k≠a exp(cos(a, k) / τ), with a and b two windows of a recording, and k every window of
    the batch but a; the mean over both windows of a pair as a. Chen et al., A Simple Framework for Contrastive Learning
    of Visual Representations (2020), eq. 1.

    Parameters
    ----------
    projected : tensor, shape (pairs, 2, size)
        Of this replica.
    everyone : tensor, shape (all_pairs, 2, size)
        Of all replicas; the pairs of this one begin at `offset`.
    offset : int or scalar tensor
    temperature : float

    Returns
    -------
    tensor, shape (pairs,)
        Nats; log(2 · all_pairs − 1) where nothing tells windows apart.
    """
    size = projected.shape[-1]
    mine, keys = (ops.normalize(ops.reshape(one, (-1, size)), axis=-1) for one in (projected, everyone))
    scores = ops.matmul(mine, ops.transpose(keys)) / temperature
    own = 2 * offset + ops.arange(ops.shape(mine)[0])
    scores = scores - _NEVER * ops.one_hot(own, ops.shape(keys)[0])
    # The windows of pair i stand at 2 i and 2 i + 1.
    partner = own + 1 - 2 * (own % 2)
    loss = ops.logsumexp(scores, axis=1) - ops.take_along_axis(scores, partner[:, None], axis=1)[:, 0]
    return ops.mean(ops.reshape(loss, (-1, 2)), axis=1)
