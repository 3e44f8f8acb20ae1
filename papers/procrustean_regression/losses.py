"""The cost of a group of shapes: reprojection, and low rank after alignment."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from reprise.common.ops.dtypes import wide
from reprise.common.ops.svd import thin_svd
from reprise.papers.procrustean_regression.alignment import procrustes_align


def nuclear_norm(matrix: Float[Array, "rows columns"]) -> Float[Array, ""]:
    """Sum of the singular values, with the subgradient U V^T of the thin SVD: a scalar.

    Singular values below max(1e-8, eps max(F, N)) times the largest count as 0, and add nothing to
    the subgradient; that of the zero matrix is 0. Reverse mode, once; the SVD is not
    differentiated.

    Args:
      matrix: [F, N]; computed in float32 at least.

    Raises:
      ValueError: not a matrix.
    """
    matrix = wide(matrix)
    if matrix.ndim != 2:
        raise ValueError(f"nuclear_norm: matrix {matrix.shape} must be [F, N]")
    return _nuclear(matrix)


@jax.custom_vjp
def _nuclear(matrix: Array) -> Array:
    return thin_svd(matrix)[1].sum()


def _nuclear_fwd(matrix: Array) -> Any:
    u, s, vt = thin_svd(matrix)
    smallest = max(1e-8, float(jnp.finfo(matrix.dtype).eps) * max(matrix.shape))
    u = jnp.where(s > smallest * s[:1], u, 0)
    return s.sum(), jnp.matmul(u, vt, precision="highest")


def _nuclear_bwd(subgradient: Array, ct: Array) -> Any:
    return (ct * subgradient,)


_nuclear.defvjp(_nuclear_fwd, _nuclear_bwd)


def reprojection_error(
    shapes: Float[Array, "frames points 3"],
    points2d: Float[Array, "frames points 2"],
    mask: Bool[Array, "frames points"] | Float[Array, "frames points"] | None = None,
) -> Float[Array, " frames"]:
    """1/2 sum_p mask_p ||X_p[0:2] - U_p||^2 of each frame: [F]. Orthographic, not centred.

    Args:
      shapes: X [F, P, 3].
      points2d: U [F, P, 2]; what lies where the mask is 0 may be anything, NaN included.
      mask: 1 where a point is seen; default: everywhere. A frame without a seen point has error 0.

    Raises:
      ValueError: shapes that do not fit.
    """
    shapes, points2d = wide(shapes), wide(points2d)
    if shapes.ndim != 3 or shapes.shape[-1] != 3 or points2d.shape != (*shapes.shape[:2], 2):
        raise ValueError(
            f"reprojection_error: shapes {shapes.shape} must be [F, P, 3] and points2d "
            f"{points2d.shape} [F, P, 2]"
        )
    if mask is None:
        return 0.5 * ((shapes[..., :2] - points2d) ** 2).sum((1, 2))
    if jnp.shape(mask) != shapes.shape[:2]:
        raise ValueError(
            f"reprojection_error: mask {jnp.shape(mask)} must be [F, P] = {shapes.shape[:2]}"
        )
    weight = wide(mask)[..., None]
    difference = shapes[..., :2] - jnp.where(weight > 0, points2d, 0)
    return 0.5 * (weight * difference**2).sum((1, 2))


def procrustean_regression_loss(
    shapes: Float[Array, "frames points 3"],
    points2d: Float[Array, "frames points 2"],
    mask: Bool[Array, "frames points"] | Float[Array, "frames points"] | None = None,
    reg_weight: float = 0.05,
    *,
    num_iters: int = 100,
    tol: float = 1e-15,
    rotation_gradient: bool = True,
) -> Float[Array, ""]:
    """The cost of a group of frames, a scalar: f + lambda g.

    Park, Lee, Kwak, "Procrustean Regression Networks" (ECCV 2020): f sums the reprojection error of
    the frames, g is the nuclear norm of the aligned shapes as a matrix [F, 3P], their mean not
    removed. lambda = 0.05 belongs to sums over frames and points, 2D points of unit norm and F
    about 32. The cost couples the frames of a group: for several groups `jax.vmap` it and add up.
    (The released code returns f / lambda + g, with the gradient of f + lambda g.)

    Args:
      shapes: X [F, P, 3], the network's output.
      points2d: U [F, P, 2], see `normalize_points`.
      mask: [F, P], 1 where a point is seen. It enters f alone: g sees complete shapes.
      reg_weight: lambda.
      num_iters, tol, rotation_gradient: see `procrustes_align`; num_iters = 0 is g without
        alignment.

    Returns:
      A scalar, differentiable in shapes. A frame without a seen point is held by g alone. In a
      group of one frame g is the frame's norm and says nothing of depth. NaN in a shape or in a
      seen point gives NaN.

    Raises:
      ValueError: shapes that do not fit.
    """
    error = reprojection_error(shapes, points2d, mask).sum()
    aligned, _ = procrustes_align(
        shapes, num_iters=num_iters, tol=tol, rotation_gradient=rotation_gradient
    )
    return error + reg_weight * nuclear_norm(aligned.reshape(len(aligned), -1))


def normalize_points(
    points: Float[Array, "*batch points d"], mask: Shaped[Array, "*batch points"] | None = None
) -> tuple[Float[Array, "*batch points d"], Float[Array, "*batch"]]:
    """Centres points, and divides by the Frobenius norm of their first two coordinates.

    Args:
      points: [..., P, 2] or [..., P, 3].
      mask: [..., P], 1 where a point is seen; centre and norm are those of seen points.

    Returns:
      (points, with 0 where they are not seen; scale [...], what they were divided by). Without a
      seen point, or where the first two coordinates of all coincide as far as rounding tells, these
      are 0 and the scale is 1.

    Raises:
      ValueError: shapes that do not fit.
    """
    points = wide(points)
    if points.ndim < 2 or points.shape[-1] not in (2, 3):
        raise ValueError(f"normalize_points: points {points.shape} must be [..., P, 2 or 3]")
    if mask is not None and jnp.shape(mask) != points.shape[:-1]:
        raise ValueError(
            f"normalize_points: mask {jnp.shape(mask)} must be [..., P] = {points.shape[:-1]}"
        )
    seen = jnp.ones(points.shape[:-1], bool) if mask is None else jnp.asarray(mask) > 0
    seen = seen[..., None]
    count = jnp.maximum(seen.sum(-2, keepdims=True), 1)
    points = jnp.where(seen, points, 0)
    size = jnp.abs(points[..., :2]).max((-2, -1), initial=0)
    points = jnp.where(seen, points - points.sum(-2, keepdims=True) / count, 0)
    squared = (points[..., :2] ** 2).sum((-2, -1))
    # Points that coincide are apart by the rounding of their mean.
    same = squared <= (points.shape[-2] * jnp.finfo(points.dtype).eps * size) ** 2
    scale = jnp.where(same, 1, jnp.sqrt(jnp.where(same, 1, squared)))
    points = jnp.where(same[..., None, None] & (jnp.arange(points.shape[-1]) < 2), 0, points)
    return points / scale[..., None, None], scale
