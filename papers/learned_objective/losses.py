"""The outer losses, one value an example."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.papers.learned_objective.inner import Objective, PyTree, inner_minimize


def learned_objective_loss(
    objective: Objective,
    params: PyTree,
    x0: PyTree,
    context: PyTree,
    target: PyTree,
    *,
    num_steps: int,
    step_size: float | Float[Array, ""],
    momentum: float = 0.0,
    clip: float | None = None,
    mode: str = "unrolled",
    truncate: int | None = None,
) -> Float[Array, " batch"]:
    """Squared distance of the inner solution from the desired one: sum over elements, [B].

    Args:
      objective, params, x0, context, num_steps, step_size, momentum, clip, mode, truncate: see
        `inner_minimize`.
      target: x*, like x0. Not seen by the inner process.

    Raises:
      ValueError: target and x0 differ in shape.
    """
    expected, found = jax.tree.map(jnp.shape, x0), jax.tree.map(jnp.shape, target)
    if expected != found:
        raise ValueError(f"learned_objective_loss: target {found} must be like x0 {expected}")
    x = inner_minimize(
        objective,
        params,
        x0,
        context,
        num_steps=num_steps,
        step_size=step_size,
        momentum=momentum,
        clip=clip,
        mode=mode,
        truncate=truncate,
    )

    def squared(x: Any, target: Any) -> Float[Array, " batch"]:
        wide = jnp.promote_types(x.dtype, jnp.float32)
        difference = x.astype(wide) - target.astype(wide)
        return (difference**2).reshape(len(x), math.prod(x.shape[1:])).sum(-1)

    each = jax.tree.leaves(jax.tree.map(squared, x, target))
    return jnp.stack(each).sum(0)


def end_point_error(
    flow: Float[Array, "batch height width 2"],
    target: Float[Array, "batch height width 2"],
    mask: Float[Array, "batch height width"] | None = None,
    *,
    epsilon: float = 0.0,
) -> Float[Array, " batch"]:
    """Mean over pixels of ||flow - target||, in pixels: [B].

    Args:
      flow, target: displacements in pixels.
      mask: weights of the pixels, e.g. 1 where the target is known; an example without any has
        error 0.
      epsilon: sqrt(||.||^2 + epsilon) instead; 1e-6 makes it a smooth training loss. With 0 the
        gradient at a perfect pixel is 0.

    Raises:
      ValueError: shapes that do not fit.
    """
    if flow.ndim != 4 or flow.shape[-1] != 2 or flow.shape != target.shape:
        raise ValueError(
            f"end_point_error: flow {flow.shape} and target {target.shape} must be the same "
            "[B, H, W, 2]"
        )
    if mask is not None and mask.shape != flow.shape[:3]:
        raise ValueError(f"end_point_error: mask {mask.shape} must be {flow.shape[:3]}")
    wide = jnp.promote_types(flow.dtype, jnp.float32)
    squared = ((flow.astype(wide) - target.astype(wide)) ** 2).sum(-1) + epsilon
    positive = squared > 0
    error = jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
    if mask is None:
        return error.mean((1, 2))
    weight = mask.astype(wide)
    return (error * weight).sum((1, 2)) / jnp.maximum(weight.sum((1, 2)), 1e-12)
