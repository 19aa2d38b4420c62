"""Terms that compose with the negative ELBO, in backend-neutral Keras: free bits, KL warm-up, the contrastive term."""

from typing import Any

from keras import ops

# Subtracted from a window's similarity with itself, so that it is not its own negative.
_NEVER = 1e9


def warm_up(step: Any, steps: int) -> Any:
    """Weight of the KL at a step: it rises linearly from near 0 to 1 over `steps`.

    Bowman et al., Generating Sentences from a Continuous Space (2016), section 3.1; Sønderby et al., Ladder Variational
    Autoencoders (2016). Without warm-up, the decoder may learn to ignore a latent that carries no information yet.
    """
    return ops.minimum(1.0, ops.cast(step + 1, "float32") / max(1, steps))


def free_bits(kl_per_dim: Any, mean_kl: Any, least: float) -> Any:
    """KL of each example, nats, where each dimension costs at least `least`: Σ max(least, KL).

    Kingma et al., Improving Variational Inference with Inverse Autoregressive Flow (2016), eq. 15: the maximum is taken
    of the mean over the minibatch. So the KL of a dimension below `least` has no gradient, and may rise for free.

    Parameters
    ----------
    kl_per_dim : tensor, shape (batch, latent_dim)
    mean_kl : tensor, shape (latent_dim,)
        Mean over the whole minibatch of all replicas.
    least : float
        Nats.

    Returns
    -------
    tensor, shape (batch,)
    """
    return ops.sum(ops.where(mean_kl > least, kl_per_dim, ops.full_like(kl_per_dim, least)), axis=1)


def nt_xent(projected: Any, everyone: Any, *, offset: Any, temperature: float) -> Any:
    """Normalised temperature-scaled cross-entropy of finding the other window of the same recording among all others.

    −log exp(cos(a, b) / τ) / Σ_k≠a exp(cos(a, k) / τ), where a and b are two windows of a recording, and k is every
    window of the batch except a. The result is the mean over both choices of a in a pair. Chen et al., A Simple
    Framework for Contrastive Learning of Visual Representations (2020), eq. 1.

    Parameters
    ----------
    projected : tensor, shape (pairs, 2, size)
        Projections of this replica.
    everyone : tensor, shape (all_pairs, 2, size)
        Projections of all replicas; the pairs of this one begin at `offset`.
    offset : int or scalar tensor
    temperature : float

    Returns
    -------
    tensor, shape (pairs,)
        Nats; log(2 · all_pairs − 1) if all windows look the same.
    """
    size = projected.shape[-1]
    queries, keys = (ops.normalize(ops.reshape(vectors, (-1, size)), axis=-1) for vectors in (projected, everyone))
    scores = ops.matmul(queries, ops.transpose(keys)) / temperature
    rows = 2 * offset + ops.arange(ops.shape(queries)[0])
    scores = scores - _NEVER * ops.one_hot(rows, ops.shape(keys)[0])
    # The windows of pair i are in rows 2 i and 2 i + 1.
    partner = rows + 1 - 2 * (rows % 2)
    loss = ops.logsumexp(scores, axis=1) - ops.take_along_axis(scores, partner[:, None], axis=1)[:, 0]
    return ops.mean(ops.reshape(loss, (-1, 2)), axis=1)
