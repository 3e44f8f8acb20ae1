"""Procrustean regression without a network: the shapes themselves are the unknowns."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from reprise.papers.procrustean_regression.losses import procrustean_regression_loss


def fit_shapes(
    points2d: Float[Array, "frames points 2"],
    mask: Bool[Array, "frames points"] | Float[Array, "frames points"] | None = None,
    *,
    reg_weight: float = 0.05,
    num_steps: int = 500,
    learning_rate: float = 1e-2,
    key: Array,
    num_iters: int = 100,
    tol: float = 1e-12,
    rotation_gradient: bool = True,
) -> Float[Array, "frames points 3"]:
    """Shapes of the frames of one sequence, by direct minimisation of the cost over them.

    The cost of Park, Lee, Kwak, "Procrustean Regression" (IEEE TIP 27(3), 2018) without its
    temporal terms, by Adam with a learning rate that falls to 0 along a cosine; x and y start at
    the points (0 where not seen), z at N(0, 0.1): z = 0 is a stationary point of the alignment.

    Args:
      points2d: U [F, P, 2], centred and of unit norm as from `normalize_points`, or of one scale
        for the sequence.
      mask: 1 where a point is seen.
      reg_weight: lambda.
      num_steps, learning_rate: of Adam.
      key: of the start.
      num_iters, tol, rotation_gradient: see `procrustes_align`.

    Returns:
      X [F, P, 3]; the sign of the depth of all frames together is open. A frame without a seen
      point gets what the low rank makes of it.

    Raises:
      ValueError: shapes that do not fit, fewer than 2 frames, or a seen point that is not finite
        (not checked under a transformation such as jit).
    """
    import optax

    points2d, seen = checked_points("fit_shapes", points2d, mask)
    start = start_shapes(key, points2d.shape[:2], points2d.dtype)
    tx = optax.adam(optax.cosine_decay_schedule(learning_rate, max(num_steps, 1)))

    def cost(offset: Array) -> Array:
        return procrustean_regression_loss(
            with_depth(points2d, offset),
            points2d,
            seen,
            reg_weight,
            num_iters=num_iters,
            tol=tol,
            rotation_gradient=rotation_gradient,
        )

    def step(carry: tuple[Array, optax.OptState], _: None) -> tuple[tuple[Array, object], None]:
        offset, opt_state = carry
        updates, opt_state = tx.update(jax.grad(cost)(offset), opt_state)
        return (optax.apply_updates(offset, updates), opt_state), None

    (offset, _), _ = jax.lax.scan(step, (start, tx.init(start)), None, length=num_steps)
    return with_depth(points2d, offset)


def start_shapes(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Where the offsets from (U, 0) start: [..., 3], depth N(0, 0.1)."""
    depth = 0.1 * jax.random.normal(key, (*shape, 1), dtype)
    return jnp.concatenate([jnp.zeros((*shape, 2), dtype), depth], -1)


def with_depth(points2d: Array, offset: Array) -> Array:
    """X = (U, 0) + offset."""
    return offset.at[..., :2].add(points2d)


def checked_points(name: str, points2d: Array, mask: Array | None) -> tuple[Array, Array]:
    """The points in float32 at least, with 0 where they are not seen, and the mask.

    Raises:
      ValueError: see `fit_shapes`.
    """
    points2d = jnp.asarray(points2d)
    if points2d.ndim != 3 or points2d.shape[-1] != 2:
        raise ValueError(f"{name}: points2d {points2d.shape} must be [F, P, 2]")
    if len(points2d) < 2:
        raise ValueError(f"{name}: {len(points2d)} frame: alignment needs 2 or more")
    mask = jnp.ones(points2d.shape[:2]) if mask is None else jnp.asarray(mask)
    if mask.shape != points2d.shape[:2]:
        raise ValueError(f"{name}: mask {mask.shape} must be [F, P] = {points2d.shape[:2]}")
    points2d = jnp.where(mask[..., None] > 0, points2d, 0)
    if not isinstance(points2d, jax.core.Tracer):
        bad = ~np.isfinite(np.asarray(points2d, np.float64)).all((1, 2))
        if bad.any():
            raise ValueError(f"{name}: points2d of frame {np.argmax(bad)} is not finite")
    wide = jnp.promote_types(points2d.dtype, jnp.float32)
    return points2d.astype(wide), mask.astype(wide)
