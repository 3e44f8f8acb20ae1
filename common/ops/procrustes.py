"""Orthogonal Procrustes problems: the rotation, or rigid transform, between two point sets.

Points are rows, rotations act on columns: the moved points are `points @ R.T`. Every function takes
leading batch axes.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from reprise.common.ops.dtypes import wide

_einsum = functools.partial(jnp.einsum, precision="highest")


class RigidTransform(NamedTuple):
    """x -> scale R x + translation.

    Attributes:
      rotation: [..., d, d].
      translation: [..., d].
      scale: [...].
    """

    rotation: Float[Array, "*batch d d"]
    translation: Float[Array, "*batch d"]
    scale: Float[Array, "*batch"]


def nearest_rotation(
    matrix: Float[Array, "*batch d d"], *, reflection: bool = False
) -> Float[Array, "*batch d d"]:
    """The rotation R that maximises tr(R^T matrix): U diag(1, .., 1, det(U V^T)) V^T.

    Of a correlation sum_p b_p a_p^T it is the best rotation from the points a to the points b
    (Kabsch 1976; Umeyama 1991). Singular matrices are fine. Derivatives of both modes and any order
    come from R^T M being symmetric, not from the SVD: they exist where the two smallest singular
    values do not cancel, s_{d-1} + sign s_d > 0, repeated ones included. Where they do cancel,
    R is not unique, and what is not determined of its derivative is 0.

    Args:
      matrix: computed in float32 at least.
      reflection: allow det R = -1: the nearest orthogonal matrix.

    Raises:
      ValueError: the last two axes are not equal, or shorter than 2.
    """
    shape = jnp.shape(matrix)
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 2:
        raise ValueError(f"nearest_rotation: matrix {shape} must be [..., d, d] with d >= 2")
    return _polar(wide(matrix), reflection)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _polar(matrix: Array, reflection: bool) -> Array:
    if matrix.shape[-1] == 3 and not reflection:
        return _quaternion_rotation(matrix)
    u, _, vt = jnp.linalg.svd(matrix)
    if not reflection:
        # Exactly +-1, whatever the rounding of the determinant.
        mirrored = jnp.linalg.det(u) * jnp.linalg.det(vt) < 0
        sign = jnp.where(mirrored, -1.0, 1.0).astype(matrix.dtype)
        u = u.at[..., -1].multiply(sign[..., None])
    return _einsum("...ij,...jk->...ik", u, vt)


def _quaternion_rotation(matrix: Array) -> Array:
    """The same for 3x3, from the largest eigenvector of a symmetric 4x4 matrix.

    Horn, "Closed-form solution of absolute orientation using unit quaternions", JOSA A 4(4), 1987;
    the eigenvector by one-sided Jacobi rotations of columns. Batches of small SVDs run one matrix
    at a time; these are operations on whole batches, several times faster. A quaternion can't be a
    reflection.
    """
    size = jnp.abs(matrix).max((-2, -1), keepdims=True)
    scaled = jnp.moveaxis(matrix / jnp.where(size > 0, size, 1), (-2, -1), (0, 1))
    (a, b, c), (d, e, f), (g, h, i) = scaled
    shift = 6 * jnp.ones_like(a)  # more than any eigenvalue's size: all become positive
    columns = (
        (shift + a + e + i, h - f, c - g, d - b),
        (h - f, shift + a - e - i, d + b, c + g),
        (c - g, d + b, shift + e - a - i, h + f),
        (d - b, c + g, h + f, shift + i - a - e),
    )
    start = jnp.stack([jnp.stack(column) for column in columns])
    turned = jax.lax.fori_loop(0, 6, lambda _, w: _jacobi_sweep(w), start)
    # Orthogonal now: each an eigenvector times its eigenvalue.
    largest = jnp.argmax((turned**2).sum(1), 0)
    q = jnp.take_along_axis(turned, largest[None, None], 0)[0]
    w, x, y, z = q / jnp.sqrt((q**2).sum(0))
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def _jacobi_sweep(columns: Array) -> Array:
    """Turns every pair of the columns [4, 4, ...] until it is orthogonal, once."""
    w = list(columns)
    for p, q in ((0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2)):
        x, y = w[p], w[q]
        inner, difference = (x * y).sum(0), ((y - x) * (y + x)).sum(0)
        root = jnp.sqrt(difference**2 + 4 * inner**2)
        below = jnp.where(difference < 0, difference - root, difference + root)
        tangent = jnp.where(below == 0, 0, 2 * inner / jnp.where(below == 0, 1, below))
        cos = jax.lax.rsqrt(1 + tangent**2)
        sin = tangent * cos
        w[p], w[q] = cos * x - sin * y, sin * x + cos * y
    return jnp.stack(w)


@_polar.defjvp
def _polar_jvp(reflection: bool, primals: Any, tangents: Any) -> Any:
    """R^T dR = W, skew, solves W P + P W = R^T dM - dM^T R with P = R^T M (symmetric)."""
    (matrix,), (tangent,) = primals, tangents
    rotation = _polar(matrix, reflection)
    symmetric = _einsum("...ji,...jk->...ik", rotation, matrix)
    basis = jnp.asarray(_skew_basis(matrix.shape[-1]), matrix.dtype)
    # Both sides in coordinates of the skew matrices; the eigenvalues are sums of two of P's.
    system = _einsum("kij,lim,...mj->...kl", basis, basis, symmetric)
    system = (system + jnp.swapaxes(system, -1, -2)) / 2
    right = _einsum("kij,...mi,...mj->...k", basis, rotation, tangent)
    values, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(system))
    largest = jnp.abs(values).max(-1, keepdims=True)
    free = values <= 8 * jnp.finfo(matrix.dtype).eps * largest
    vectors = vectors * free[..., None, :]
    projector = _einsum("...ki,...li->...kl", vectors, vectors)
    size = jnp.where(largest > 0, largest, 1)[..., None]
    right = right - _einsum("...kl,...l->...k", projector, right)
    omega = jnp.linalg.solve(system + size * projector, right[..., None])[..., 0]
    return rotation, _einsum("...ij,...k,kjm->...im", rotation, omega, basis)


def _skew_basis(d: int) -> np.ndarray:
    """[d (d - 1) / 2, d, d]: each has one +1 below the diagonal."""
    rows, columns = np.tril_indices(d, -1)
    basis = np.zeros((len(rows), d, d))
    basis[np.arange(len(rows)), rows, columns] = 1.0
    basis[np.arange(len(rows)), columns, rows] = -1.0
    return basis


def orthogonal_procrustes(
    source: Float[Array, "*batch points d"],
    target: Float[Array, "*batch points d"],
    weights: Float[Array, "*batch points"] | None = None,
    *,
    reflection: bool = False,
) -> Float[Array, "*batch d d"]:
    """The rotation R that minimises sum_p w_p ||R source_p - target_p||^2, about the origin.

    Args:
      source, target: corresponding points; not centred here.
      weights: not negative; points of weight 0 may hold anything. Default: 1.
      reflection: allow det R = -1.

    Raises:
      ValueError: shapes that do not fit.
    """
    source, target, weights = _points("orthogonal_procrustes", source, target, weights)
    matrix = _einsum("...p,...pi,...pj->...ij", weights, target, source)
    return nearest_rotation(matrix, reflection=reflection)


def rigid_transform(
    source: Float[Array, "*batch points d"],
    target: Float[Array, "*batch points d"],
    weights: Float[Array, "*batch points"] | None = None,
    *,
    scaled: bool = False,
    reflection: bool = False,
) -> RigidTransform:
    """The transform that minimises sum_p w_p ||scale R source_p + t - target_p||^2.

    Umeyama, "Least-Squares Estimation of Transformation Parameters Between Two Point Patterns",
    IEEE PAMI 13(4), 1991.

    Args:
      source, target: corresponding points.
      weights: not negative; points of weight 0 may hold anything. All 0: the identity.
      scaled: also find the scale; else it is 1. A source whose points coincide has scale 1.
      reflection: allow det R = -1.

    Raises:
      ValueError: shapes that do not fit.
    """
    source, target, weights = _points("rigid_transform", source, target, weights)
    total = weights.sum(-1)[..., None]
    share = weights / jnp.where(total > 0, total, 1)
    size = jnp.abs(source).max((-2, -1), initial=0)
    centre_source = _einsum("...p,...pi->...i", share, source)
    centre_target = _einsum("...p,...pi->...i", share, target)
    source = source - centre_source[..., None, :]
    target = target - centre_target[..., None, :]
    matrix = _einsum("...p,...pi,...pj->...ij", share, target, source)
    rotation = nearest_rotation(matrix, reflection=reflection)
    scale = jnp.ones(matrix.shape[:-2], matrix.dtype)
    if scaled:
        spread = _einsum("...p,...pi,...pi->...", share, source, source)
        found = _einsum("...ij,...ij->...", rotation, matrix)
        # Points that coincide are apart by the rounding of their mean.
        same = spread <= (source.shape[-2] * jnp.finfo(source.dtype).eps * size) ** 2
        scale = jnp.where(same, 1, found / jnp.where(same, 1, spread))
    moved = _einsum("...ij,...j->...i", rotation, centre_source)
    return RigidTransform(rotation, centre_target - scale[..., None] * moved, scale)


def apply_rigid(
    transform: RigidTransform, points: Float[Array, "*batch points d"]
) -> Float[Array, "*batch points d"]:
    """Moves points: scale R x + translation."""
    moved = _einsum("...ij,...pj->...pi", transform.rotation, points)
    return transform.scale[..., None, None] * moved + transform.translation[..., None, :]


def _points(name: str, source: Any, target: Any, weights: Any) -> tuple[Array, Array, Array]:
    """Wide floats, with 0 where the weight is 0."""
    source, target = wide(source), wide(target)
    if source.ndim < 2 or source.shape[-1] < 2 or source.shape != target.shape:
        raise ValueError(
            f"{name}: source {source.shape} and target {target.shape} must be the same "
            "[..., P, d] with d >= 2"
        )
    if weights is None:
        return source, target, jnp.ones(source.shape[:-1], source.dtype)
    weights = wide(weights)
    if weights.shape != source.shape[:-1]:
        raise ValueError(f"{name}: weights {weights.shape} must be {source.shape[:-1]}")
    seen = weights[..., None] > 0
    return jnp.where(seen, source, 0), jnp.where(seen, target, 0), weights
