"""Option policies that are diagonal Gaussians, for continuous actions."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from reprise.common.ops.dtypes import wide
from reprise.papers.disentangled_options.losses import check_batch, of_option, pairs, root

EPSILON = 1e-12  # guards the square root at 0


def _log_cosh(x: Array) -> Array:
    """Exact near 0, where it is x^2 / 2, and without overflow far from it."""
    small = jnp.abs(x) < 1.0
    near = jnp.log1p(2 * jnp.sinh(jnp.where(small, x, 0.0) / 2) ** 2)
    far = jnp.logaddexp(x, -x) - math.log(2.0)
    return jnp.where(small, near, far)


def gaussian_hellinger_distance(
    mean1: Float[Array, "... size"],
    log_std1: Float[Array, "... size"],
    mean2: Float[Array, "... size"],
    log_std2: Float[Array, "... size"],
) -> Float[Array, "..."]:
    """Hellinger distance of two diagonal Gaussians, in [0, 1]: [...].

    H = sqrt(1 - BC), and with v = s1^2 + s2^2
    BC = prod_d sqrt(2 s1 s2 / v) exp(-(m1 - m2)^2 / (4 v)),
    with the square root guarded as in `hellinger_distance`; 1 - BC is taken from log BC, so that
    close Gaussians lose no digits. Computed in float32 or wider. Hyun, Choi, Kwak (2019).

    Args:
      mean1, mean2: [..., D].
      log_std1, log_std2: logarithms of the standard deviations, [..., D].

    Raises:
      ValueError: the shapes differ.
    """
    arrays = {"mean1": mean1, "log_std1": log_std1, "mean2": mean2, "log_std2": log_std2}
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) != 1 or len(shapes["mean1"]) < 1:
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"gaussian_hellinger_distance: {given} must be the same [..., D]")
    m1, l1, m2, l2 = (wide(array) for array in arrays.values())
    # 2 s1 s2 / (s1^2 + s2^2) = 1 / cosh(log s1 - log s2)
    widths = 0.5 * _log_cosh(l1 - l2)
    # In units of sqrt(v), bounded: exp(-100) is 0, and products of narrow ones stay finite.
    width = jnp.maximum(0.5 * jnp.logaddexp(2 * l1, 2 * l2), -80.0)
    means = 0.25 * jnp.clip((m1 - m2) * jnp.exp(-width), -20.0, 20.0) ** 2
    return root(-jnp.expm1(-(widths + means).sum(-1)), EPSILON)


def gaussian_hellinger_regularizer(
    mean: Float[Array, "batch options size"], log_std: Float[Array, "batch options size"]
) -> Float[Array, " batch"]:
    """Mean Hellinger distance of all pairs of Gaussian option policies, to be SUBTRACTED: [B].

    See `hellinger_regularizer`.

    Raises:
      ValueError: not the same [B, O, D], or fewer than two options.
    """
    if jnp.ndim(mean) != 3 or jnp.shape(mean) != jnp.shape(log_std) or mean.shape[1] < 2:
        raise ValueError(
            f"gaussian_hellinger_regularizer: mean {jnp.shape(mean)} and log_std "
            f"{jnp.shape(log_std)} must be the same [B, O, D] with O >= 2"
        )
    i, j = pairs(mean.shape[1])
    distance = gaussian_hellinger_distance(mean[:, i], log_std[:, i], mean[:, j], log_std[:, j])
    return distance.mean(-1)


def gaussian_log_prob(
    mean: Float[Array, "... size"], log_std: Float[Array, "... size"], x: Float[Array, "... size"]
) -> Float[Array, "..."]:
    """Logarithm of the density of x: [...]."""
    scaled = (wide(x) - wide(mean)) * jnp.exp(-wide(log_std))
    return -(0.5 * scaled**2 + wide(log_std) + 0.5 * math.log(2 * math.pi)).sum(-1)


def gaussian_intra_option_policy_loss(
    mean: Float[Array, "batch options size"],
    log_std: Float[Array, "batch options size"],
    option: Int[Array, " batch"],
    action: Float[Array, "batch size"],
    advantage: Float[Array, " batch"],
    *,
    entropy_weight: float,
) -> Float[Array, " batch"]:
    """-log pi_w(a|s) A - entropy_weight H(pi_w(.|s)) of Gaussian policies: [B].

    Args:
      mean, log_std: of pi_w, [B, O, D].
      option: w, [B].
      action: a as it was drawn, before any clipping, [B, D].
      advantage: A, [B]; gets no gradient.
      entropy_weight: of the bonus on the differential entropy.

    Raises:
      ValueError: shapes that do not fit.
    """
    name = "gaussian_intra_option_policy_loss"
    check_batch(
        name,
        {
            "mean": (mean, 3),
            "log_std": (log_std, 3),
            "option": (option, 1),
            "advantage": (advantage, 1),
        },
    )
    if mean.shape != log_std.shape or action.shape != (mean.shape[0], mean.shape[2]):
        raise ValueError(
            f"{name}: mean {mean.shape} and log_std {log_std.shape} must be the same [B, O, D], "
            f"and action {action.shape} [B, D]"
        )
    own_mean, own_log_std = of_option(mean, option), of_option(log_std, option)
    log_prob = gaussian_log_prob(own_mean, own_log_std, action)
    entropy = (wide(own_log_std) + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
    return -log_prob * jax.lax.stop_gradient(wide(advantage)) - entropy_weight * entropy
