"""Weights of the loss over training, and the likeness of two networks' boundaries."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from reprise.common.ops.dtypes import wide


def bss_loss_weights(
    epoch: Real[Array, "..."] | float, num_epochs: float
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(alpha, beta), the weights of KD on clean images and on boundary supporting samples.

    alpha = max(3 (1 - e / E), 0) + 1 falls from 4 to 1; beta = max(2 (1 - 4 e / (3 E)), 0) falls
    from 2 to 0 at e = 0.75 E and stays there. The loss is CE + alpha L_kd + beta L_bss.

    Args:
      epoch: e, from 1; any shape.
      num_epochs: E.

    Raises:
      ValueError: E that is not positive.

    Source: Heo, Lee, Yun, Choi, AAAI 2019, and its released code.
    """
    if not num_epochs > 0:
        raise ValueError(f"bss_loss_weights: num_epochs = {num_epochs}: must be more than 0")
    share = jnp.asarray(epoch, jnp.promote_types(jnp.result_type(epoch), jnp.float32)) / num_epochs
    alpha = jnp.maximum(3.0 * (1.0 - share), 0.0) + 1.0
    return alpha, jnp.maximum(2.0 * (1.0 - 4.0 * share / 3.0), 0.0)


def boundary_similarity(
    perturbation_a: Float[Array, "batch *shape"], perturbation_b: Float[Array, "batch *shape"]
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """(MagSim, AngSim) of the ways from one image to the boundary of two networks: [B] each.

    MagSim = min(|a|, |b|) / max(|a|, |b|), AngSim = <a, b> / (|a| |b|); both are 1 where the ways
    are the same, and 0 where one of them has length 0.

    Args:
      perturbation_a: [B, ...], sample on the boundary minus image, of one network.
      perturbation_b: the same of the other, towards the same class.

    Returns:
      Two of [B], in float32 at least.

    Raises:
      ValueError: shapes that differ or have fewer than two axes.

    Source: Heo, Lee, Yun, Choi, AAAI 2019, the analysis of boundaries.
    """
    if perturbation_a.ndim < 2 or perturbation_a.shape != perturbation_b.shape:
        raise ValueError(
            f"boundary_similarity: perturbation_a {perturbation_a.shape} and perturbation_b "
            f"{perturbation_b.shape} must be the same [B, ...]"
        )

    def flat(x: Array) -> Array:
        return wide(x).reshape(len(x), -1)

    a, b = flat(perturbation_a), flat(perturbation_b)
    # The floor keeps slopes finite at a length of 0.
    long_a, long_b = (jnp.sqrt(jnp.maximum((v**2).sum(-1), 1e-24)) for v in (a, b))
    some = (a != 0).any(-1) & (b != 0).any(-1)
    magnitude = jnp.minimum(long_a, long_b) / jnp.maximum(long_a, long_b)
    angle = (a * b).sum(-1) / (long_a * long_b)
    return jnp.where(some, magnitude, 0.0), jnp.where(some, angle, 0.0)
