"""Generalised Procrustes analysis as a layer: shapes of a group turned onto their common mean."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.procrustes import nearest_rotation

_einsum = functools.partial(jnp.einsum, precision="highest")


def procrustes_align(
    shapes: Float[Array, "frames points 3"],
    *,
    num_iters: int = 100,
    tol: float = 1e-15,
    rotation_gradient: bool = True,
) -> tuple[Float[Array, "frames points 3"], Float[Array, "frames 3 3"]]:
    """Rotates the centred shapes of a group onto their mean, and differentiates through it.

    Park, Lee, Kwak, "Procrustean Regression Networks" (ECCV 2020), phase 1: A_i = R_i (X_i - mean),
    R_i in SO(3) minimising sum_i ||A_i - M||^2 with M = mean_i A_i, by alternation from M = the
    first shape. No scaling, no reflection. The gradient is that of the minimiser, from its
    stationarity sum_p A_i[p] x S[p] = 0 (S = sum_i A_i): one linear system of 3F unknowns, neither
    the iterations nor an SVD. It is exact at convergence. The index of a cross product differs
    from the released code's, whose gradient is off by up to 9 %.

    Defined up to a rotation of the whole group: only functions that do not see one have a
    meaningful gradient. What is not determined of a frame's rotation (the spin of points on a line,
    or a turn between two rotations that tie, as of a mirror image) counts as a constant. One frame
    alone is returned centred.

    Args:
      shapes: X [F, P, 3]; computed in float32 at least. Groups: `jax.vmap`.
      num_iters: largest number of alternations; 0: no alignment, R_i = I.
      tol: stop when the mean square change of M is below it; 0: all `num_iters`, in a loop of
        fixed length (30 are enough). In float32 rounding can be above 1e-15: take 1e-12.
      rotation_gradient: False holds the rotations constant in the backward pass. This is not the
        paper's gradient.

    Returns:
      (aligned A [F, P, 3], rotations R [F, 3, 3]). Rotations carry no gradient. Reverse mode, once.
      NaN in a shape gives NaN for the group.

    Raises:
      ValueError: shapes not [F, P, 3] with F, P >= 1, or a negative option.
    """
    shapes = jnp.asarray(shapes)
    if shapes.ndim != 3 or shapes.shape[-1] != 3 or 0 in shapes.shape:
        raise ValueError(f"procrustes_align: shapes {shapes.shape} must be [F, P, 3], F, P >= 1")
    if num_iters < 0 or tol < 0:
        raise ValueError(
            f"procrustes_align: num_iters = {num_iters}, tol = {tol}: must not be negative"
        )
    wide = shapes.astype(jnp.promote_types(shapes.dtype, jnp.float32))
    centred = wide - wide.mean(1, keepdims=True)
    if num_iters == 0:
        eye = jnp.broadcast_to(jnp.eye(3, dtype=wide.dtype), (len(wide), 3, 3))
        return centred, eye
    aligned, rotations = _align(num_iters, float(tol), rotation_gradient, centred)
    return aligned, jax.lax.stop_gradient(rotations)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _align(num_iters: int, tol: float, rotation_gradient: bool, centred: Array) -> Any:
    def alternate(mean: Array) -> tuple[Array, Array]:
        rotations = nearest_rotation(_einsum("pa,ipb->iab", mean, centred))
        return rotations, _einsum("iab,ipb->pa", rotations, centred) / len(centred)

    start = (jnp.zeros((len(centred), 3, 3), centred.dtype), centred[0])
    if tol == 0:
        rotations, _ = jax.lax.fori_loop(0, num_iters, lambda _, x: alternate(x[1]), start)
    else:

        def body(carry: Any) -> Any:
            mean, count = carry[1], carry[3]
            rotations, after = alternate(mean)
            return rotations, after, ((after - mean) ** 2).mean(), count + 1

        def goes_on(carry: Any) -> Array:
            return ~(carry[2] < tol) & (carry[3] < num_iters)  # NaN goes on, and spreads

        far = jnp.asarray(jnp.inf, centred.dtype)
        rotations = jax.lax.while_loop(goes_on, body, (*start, far, 0))[0]
    return _einsum("iab,ipb->ipa", rotations, centred), rotations


def _align_fwd(num_iters: int, tol: float, rotation_gradient: bool, centred: Array) -> Any:
    aligned, rotations = _align(num_iters, tol, rotation_gradient, centred)
    return (aligned, rotations), (aligned, rotations)


def _align_bwd(num_iters: int, tol: float, rotation_gradient: bool, residuals: Any, ct: Any) -> Any:
    (aligned, rotations), (ct, _) = residuals, ct
    if rotation_gradient:
        ct = ct + rotation_cotangent(aligned, ct)
    return (_einsum("iab,ipa->ipb", rotations, ct),)


_align.defvjp(_align_fwd, _align_bwd)


def rotation_cotangent(
    aligned: Float[Array, "frames points 3"], cotangent: Float[Array, "frames points 3"]
) -> Float[Array, "frames points 3"]:
    """What the dependence of the rotations on the shapes adds to the cotangent of A.

    With t_i = sum_p A_i[p] x D_i[p] and M z = t: S[p] x z_i + sum_k z_k x A_k[p].

    Args:
      aligned: A, at a stationary point of the alignment.
      cotangent: D = dL/dA.
    """
    frames, points = aligned.shape[:2]
    eye = jnp.eye(3, dtype=aligned.dtype)
    total = aligned.sum(0)
    right = jnp.cross(aligned, cotangent).sum(1)
    # Blocks [i, a, j, b] of A_j^T A_i - tr(A_j^T A_i) I.
    products = _einsum("jpa,ipb->iajb", aligned, aligned)
    system = products - _einsum("icjc,ab->iajb", products, eye)
    own = _einsum("ipa,pb->iab", aligned, total)
    own = (own + jnp.swapaxes(own, 1, 2)) / 2  # symmetric at convergence
    own = jnp.trace(own, axis1=1, axis2=2)[:, None, None] * eye - own
    # Its eigenvalues are sums of two of the frame's correlation with the mean, s_2 +- s_3 the
    # smallest. A turn about an eigenvector whose value is 0 is not determined (points on a line
    # spin freely), and counts as a constant.
    values, vectors = jnp.linalg.eigh(own)
    eps = jnp.finfo(aligned.dtype).eps
    vectors = jnp.where((values > 100 * eps * values[:, 2:])[:, None], 0, vectors)
    held = _einsum("iak,ibk->iab", vectors, vectors)
    index = jnp.arange(frames)
    system = system.at[index, :, index].add(own)
    scale = (total**2).sum() / frames
    scale = jnp.where(scale > 0, scale, 1)
    # A rotation of all frames together is free, and any choice of it serves; unless what is held of
    # some frame would move its points.
    moved = jnp.cross(jnp.swapaxes(held, 1, 2)[:, :, None], aligned[:, None])
    gauge = jnp.where((moved**2).sum() <= eps * (total**2).sum(), scale / frames, 0)
    system = system + gauge * eye[:, None, :]
    turns = eye - held
    # Written out: products of 3x3 blocks are too small to be worth a call each.
    rows = [turns[:, :, c, None, None] * system[:, None, c] for c in range(3)]
    system = rows[0] + rows[1] + rows[2]
    columns = [system[..., d, None] * turns[:, d] for d in range(3)]
    system = columns[0] + columns[1] + columns[2]
    system = system.at[index, :, index].add(scale * (held + eps * eye))
    right = _einsum("iab,ib->ia", turns, right)
    flat = system.reshape(3 * frames, 3 * frames)
    z = jnp.linalg.solve(flat, right.reshape(-1, 1)).reshape(frames, 1, 3)
    return jnp.cross(total[None], z) + jnp.cross(z, aligned).sum(0)
