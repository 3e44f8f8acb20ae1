"""Errors of point sets in space: MPJPE and the normalised error, with mirror and alignment."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.procrustes import apply_rigid, rigid_transform

REFLECTIONS = ("none", "per_example", "global")


def mpjpe(
    pred: Float[Array, "batch points 3"],
    target: Float[Array, "batch points 3"],
    *,
    mask: Float[Array, "batch points"] | None = None,
    reflection: str = "none",
    align: bool = False,
) -> Float[Array, " batch"]:
    """Mean over points of ||pred - target||, in the target's unit: [B].

    Neither set is centred: an offset counts, unless `align` removes it.

    Args:
      pred, target: points; z is the depth.
      mask: 1 where a point counts; what lies at the others may be anything. An example without
        any has error 0.
      reflection: orthographic views leave the sign of the depth open. "none": pred as it is;
        "per_example": the sign of pred's z with the smaller error, example by example; "global":
        the one sign with the smaller mean over the batch, which also sees an example set apart.
      align: first move pred by the best rotation and translation (no scale, no mirror).

    Raises:
      ValueError: shapes that do not fit, or an unknown reflection.
    """

    def error(pred: Array, target: Array, weight: Array) -> Array:
        distance = _norm(pred - target, -1)
        return (distance * weight).sum(-1) / jnp.maximum(weight.sum(-1), 1e-12)

    return _measure("mpjpe", error, pred, target, mask, reflection, align)


def normalized_error(
    pred: Float[Array, "batch points 3"],
    target: Float[Array, "batch points 3"],
    *,
    mask: Float[Array, "batch points"] | None = None,
    reflection: str = "none",
    align: bool = False,
) -> Float[Array, " batch"]:
    """||pred - target||_F / ||target||_F over the points of an example: [B].

    Args and errors: as `mpjpe`. An example whose target is 0 everywhere, or that has no point, has
    its numerator divided by 1e-12.
    """

    def error(pred: Array, target: Array, weight: Array) -> Array:
        root = jnp.sqrt(weight)[..., None]
        scale = _norm(target * root, (-2, -1))
        difference = _norm((pred - target) * root, (-2, -1))
        return difference / jnp.maximum(scale, 1e-12)

    return _measure("normalized_error", error, pred, target, mask, reflection, align)


def _norm(x: Array, axis: int | tuple[int, int]) -> Array:
    """Euclidean norm whose gradient at 0 is 0; NaN stays."""
    squared = (x**2).sum(axis)
    zero = squared == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, squared)))


def _measure(
    name: str,
    error: Callable[[Array, Array, Array], Array],
    pred: Array,
    target: Array,
    mask: Array | None,
    reflection: str,
    align: bool,
) -> Array:
    pred, target = jnp.asarray(pred), jnp.asarray(target)
    if pred.ndim != 3 or pred.shape[-1] != 3 or pred.shape != target.shape:
        raise ValueError(
            f"{name}: pred {pred.shape} and target {target.shape} must be the same [B, P, 3]"
        )
    if mask is not None and jnp.shape(mask) != pred.shape[:2]:
        raise ValueError(f"{name}: mask {jnp.shape(mask)} must be {pred.shape[:2]}")
    if reflection not in REFLECTIONS:
        raise ValueError(
            f"{name}: reflection = {reflection!r}: allowed are {', '.join(REFLECTIONS)}"
        )
    wide = jnp.promote_types(jnp.promote_types(pred.dtype, target.dtype), jnp.float32)
    weight = jnp.ones(pred.shape[:2], wide) if mask is None else jnp.asarray(mask, wide)
    seen = weight[..., None] > 0
    pred = jnp.where(seen, pred.astype(wide), 0)
    target = jnp.where(seen, target.astype(wide), 0)

    def of(pred: Array) -> Array:
        if align:
            pred = apply_rigid(rigid_transform(pred, target, weight), pred)
        return error(pred, target, weight)

    plain = of(pred)
    if reflection == "none":
        return plain
    mirrored = of(pred * jnp.asarray([1, 1, -1], wide))
    if reflection == "per_example":
        return jnp.minimum(plain, mirrored)
    return jnp.where(mirrored.mean() < plain.mean(), mirrored, plain)
