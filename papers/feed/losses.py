"""Distances between factors, and what trains the paraphrasers (sections 3.1, 3.3 and 3.4)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.dtypes import wide


def _check(name: str, first: str, one: Array, second: str, other: Array) -> None:
    if jnp.ndim(one) < 2 or jnp.shape(one) != jnp.shape(other):
        raise ValueError(
            f"{name}: {first} {jnp.shape(one)} and {second} {jnp.shape(other)} must be the same "
            "[B, ...]"
        )


def factor_distance(
    student_factor: Float[Array, "batch *shape"],
    teacher_factor: Float[Array, "batch *shape"],
    epsilon: float = 1e-12,
) -> Float[Array, " batch"]:
    """Mean over elements of |unit(G) - unit(F)|, each factor one vector of length 1: [B].

    unit(v) = v / max(||v||, epsilon) over all of an example's elements together. Independent
    directions of D elements are about 1 / sqrt(D) apart, so that a weight on it grows with sqrt(D).
    No gradient passes to the teacher; a factor of zeros has a gradient of zeros.

    Args:
      student_factor: G [B, ...].
      teacher_factor: F, the same shape.
      epsilon: the least length that is divided by.

    Raises:
      ValueError: shapes that differ or have fewer than two axes.

    Source: Kim, Park, Kwak, NeurIPS 2018 (factor transfer), as its released code has it: the mean,
    where the text has a norm.
    """
    _check("factor_distance", "student_factor", student_factor, "teacher_factor", teacher_factor)

    def unit(v: Array) -> Array:
        flat = wide(v).reshape(len(v), -1)
        square = (flat**2).sum(-1, keepdims=True)
        # A factor of zeros lies in the constant branch: its slope is 0 / epsilon, cut below.
        length = jax.lax.rsqrt(jnp.maximum(square, epsilon**2))
        return jnp.where(square > 0, flat * length, 0.0)

    difference = unit(student_factor) - jax.lax.stop_gradient(unit(teacher_factor))
    return abs(difference).mean(-1)


def feed_loss(
    student_factors: Float[Array, "teachers batch *shape"] | Sequence[Float[Array, "batch ..."]],
    teacher_factors: Float[Array, "teachers batch *shape"] | Sequence[Float[Array, "batch ..."]],
    teacher_reduction: str = "sum",
) -> Float[Array, " batch"]:
    """sum_n factor_distance(G_n, F_n) over N teachers: [B]. With N = 1 it is factor transfer.

    Args:
      student_factors: G [N, B, ...] of one translator a teacher; a sequence where shapes differ.
      teacher_factors: F, alike. No gradient passes to them.
      teacher_reduction: "sum" as in the paper, or "mean", whose total weight does not grow with N.

    Raises:
      ValueError: different or no numbers of teachers, shapes that differ, another reduction.

    Source: Park, Kwak, 2019, parallel FEED; its weight beta and the cross entropy are outside.
    """
    if teacher_reduction not in ("sum", "mean"):
        raise ValueError(
            f"feed_loss: teacher_reduction = {teacher_reduction!r}: allowed are sum, mean"
        )
    if len(student_factors) != len(teacher_factors) or not len(student_factors):
        raise ValueError(
            f"feed_loss: {len(student_factors)} student_factors and {len(teacher_factors)} "
            "teacher_factors must be equally many, at least one"
        )
    pairs = zip(student_factors, teacher_factors, strict=True)
    each = jnp.stack([factor_distance(g, f) for g, f in pairs])
    return each.sum(0) if teacher_reduction == "sum" else each.mean(0)


def reconstruction_loss(
    features: Float[Array, "batch *shape"], reconstruction: Float[Array, "batch *shape"]
) -> Float[Array, " batch"]:
    """Mean over elements of |reconstruction - features|: [B]. It trains the paraphrasers.

    No gradient passes to the teacher's features.

    Raises:
      ValueError: shapes that differ or have fewer than two axes.

    Source: Kim, Park, Kwak, NeurIPS 2018, released code; the text has the squared distance.
    """
    _check("reconstruction_loss", "features", features, "reconstruction", reconstruction)
    difference = wide(reconstruction) - jax.lax.stop_gradient(wide(features))
    return abs(difference).reshape(len(difference), -1).mean(-1)
