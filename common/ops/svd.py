"""Leading singular vectors of matrices, with a sign rule and derivatives that stay finite."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.dtypes import wide

_einsum = functools.partial(jnp.einsum, precision="highest")


def truncated_svd(
    matrix: Float[Array, "*batch n c"],
    rank: int,
    *,
    gradient_rank: int | None = None,
    eps: float = 1e-8,
) -> tuple[Float[Array, "*batch k"], Float[Array, "*batch c k"]]:
    """The k = min(rank, N, C) largest singular values, descending, and their right vectors.

    Signs are whatever the linear algebra library returns; see `canonicalize_sign`. The derivative
    (reverse mode, first order) is the exact one of the full decomposition, but what is not
    determined counts as 0: rotations between singular vectors whose values are equal as far as
    rounding tells, and vectors of singular value 0. So it is finite for repeated, tiny and zero
    singular values.

    Args:
      matrix: [..., N, C]; decomposed in float32 at least.
      rank: singular vectors to keep, at least 1.
      gradient_rank: let only the first so many singular vectors turn into each other; the released
        code of KD-SVD has 5. None: all.
      eps: added to singular values that the derivative divides by where N < C.

    Returns:
      (singular values [..., k], right vectors as columns [..., C, k]).

    Raises:
      ValueError: fewer than two axes, or a rank below 1.

    Source: Lee, Kim, Song, ECCV 2018 (KD-SVD), whose derivative this is where the singular values
    are apart.
    """
    shape = jnp.shape(matrix)
    if len(shape) < 2 or 0 in shape[-2:]:
        raise ValueError(f"truncated_svd: matrix {shape} must be [..., N, C], not empty")
    if rank < 1 or (gradient_rank is not None and gradient_rank < 1):
        raise ValueError(
            f"truncated_svd: rank = {rank}, gradient_rank = {gradient_rank}: must be 1 or more"
        )
    return _svd(wide(matrix), min(rank, *shape[-2:]), gradient_rank, eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _svd(matrix: Array, k: int, gradient_rank: int | None, eps: float) -> tuple[Array, Array]:
    return _svd_forward(matrix, k, gradient_rank, eps)[0]


def _decompose(matrix: Array) -> tuple[Array, Array, Array]:
    return tuple(jnp.linalg.svd(matrix, full_matrices=False))


# One matrix a call, also under vmap. jaxlib's CPU kernel hands a batch's parts to the threads that
# programs run on and blocks one of them until they are done: as many batches at once as there are
# threads, and the program waits for ever.
_decompose_alone = jax.custom_batching.sequential_vmap(_decompose)


def thin_svd(
    matrix: Float[Array, "*batch n c"],
) -> tuple[Float[Array, "*batch n k"], Float[Array, "*batch k"], Float[Array, "*batch k c"]]:
    """U, singular values and V^T, k = min(N, C), safe under vmap on CPUs; has no derivative."""
    flat = matrix.reshape(-1, *matrix.shape[-2:])
    # A loop cannot run over an axis that is split over devices by its type.
    split = any(part is not None for part in jax.typeof(flat).sharding.spec[:1])
    alone = _decompose if split else jax.vmap(_decompose_alone)
    out = jax.lax.platform_dependent(flat, cpu=alone, default=_decompose)
    u, s, vt = (x.reshape(*matrix.shape[:-2], *x.shape[1:]) for x in out)
    return u, s, vt


def _svd_forward(matrix: Array, k: int, gradient_rank: int | None, eps: float) -> Any:
    u, s, vt = thin_svd(matrix)
    v = jnp.swapaxes(vt, -1, -2)
    return (s[..., :k], v[..., :k]), (u, s, v)


def _svd_backward(k: int, gradient_rank: int | None, eps: float, kept: Any, slopes: Any) -> Any:
    """dL/dM = U (diag(s) P + diag(ds)) V^T + U diag(1/s) dV^T (I - V V^T), P = F*A + (F*A)^T."""
    u, s, v = kept
    to_s, to_v = slopes
    count = s.shape[-1]
    extend = [(0, 0)] * (s.ndim - 1) + [(0, count - k)]
    to_s, to_v = jnp.pad(to_s, extend), jnp.pad(to_v, [(0, 0), *extend])
    tiny = 8 * jnp.finfo(s.dtype).eps
    largest = s[..., :1]
    size = jnp.where(largest > 0, largest, 1)
    t = s / size
    # s_j^2 - s_i^2 in units of the largest, without cancellation; F_ij is its inverse.
    apart, both = t[..., None, :] - t[..., :, None], t[..., None, :] + t[..., :, None]
    gap = apart * both
    same = (jnp.abs(apart) <= tiny) | (jnp.abs(gap) <= 1e-9)
    if gradient_rank is not None:
        within = jnp.arange(count) < gradient_rank
        same = same | ~(within[:, None] & within)
    turn = _einsum("...ci,...cj->...ij", v, to_v) * jnp.where(same, 0, 1 / jnp.where(same, 1, gap))
    turn = turn + jnp.swapaxes(turn, -1, -2)
    inner = (t / size)[..., :, None] * turn + to_s[..., :, None] * jnp.eye(count, dtype=s.dtype)
    out = _einsum("...ni,...ij,...cj->...nc", u, inner, v)
    if v.shape[-2] > count:
        outside = to_v - _einsum("...ci,...di,...dj->...cj", v, v, to_v)
        alive = t > tiny
        inverse = jnp.where(alive, 1 / jnp.where(alive, s + eps, 1), 0)
        out = out + _einsum("...ni,...i,...ci->...nc", u, inverse, outside)
    finite = jnp.isfinite(out).all((-1, -2), keepdims=True) & (largest > 0)[..., None]
    return (jnp.where(finite, out, 0),)


_svd.defvjp(_svd_forward, _svd_backward)


def canonicalize_sign(vectors: Float[Array, "*batch c k"]) -> Float[Array, "*batch c k"]:
    """Flips columns so that max + min of each is not negative; the flip has no derivative.

    A singular vector is known up to its sign, which differs between linear algebra libraries; this
    rule makes it a function of the matrix. A column whose max + min is 0 stays.

    Raises:
      ValueError: fewer than two axes.
    """
    if jnp.ndim(vectors) < 2:
        raise ValueError(f"canonicalize_sign: vectors {jnp.shape(vectors)} must be [..., C, k]")
    vectors = jnp.asarray(vectors)
    extremes = vectors.max(-2, keepdims=True) + vectors.min(-2, keepdims=True)
    return vectors * jax.lax.stop_gradient(jnp.where(extremes < 0, -1, 1).astype(vectors.dtype))


def align_singular_vectors(
    student: Float[Array, "batch c j"], teacher: Float[Array, "batch c k"]
) -> Float[Array, "batch c k"]:
    """For each of the teacher's vectors the student's most parallel one, with the teacher's sign.

    Neither the choice nor the sign has a derivative; the chosen vector does. Two of the teacher's
    may choose the same; ties go to the first. No gradient passes to the teacher.

    Args:
      student: candidates as columns, of length 1; more of them than the teacher's allow for
        singular vectors in another order.
      teacher: as columns.

    Raises:
      ValueError: not [B, C, J] and [B, C, K].

    Source: Lee, Kim, Song, ECCV 2018.
    """
    if jnp.ndim(student) != 3 or jnp.ndim(teacher) != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"align_singular_vectors: student {jnp.shape(student)} and teacher "
            f"{jnp.shape(teacher)} must be [B, C, J] and [B, C, K] with the same B and C"
        )
    student = wide(student)
    cosine = jax.lax.stop_gradient(_einsum("bcj,bck->bjk", student, wide(teacher)))
    chosen = jnp.abs(cosine).argmax(1)[:, None]
    sign = jnp.where(jnp.take_along_axis(cosine, chosen, 1) < 0, -1, 1).astype(student.dtype)
    return sign * jnp.take_along_axis(student, chosen, 2)


def left_vectors(
    matrix: Float[Array, "*batch n c"], right_vectors: Float[Array, "*batch c k"]
) -> Float[Array, "*batch n k"]:
    """Left singular vectors of the right ones, M v / |M v|, with signs that belong to theirs.

    Of a vector of singular value 0 it is 0.

    Raises:
      ValueError: shapes that do not fit.
    """
    if jnp.ndim(matrix) < 2 or jnp.shape(matrix)[-1:] != jnp.shape(right_vectors)[-2:-1]:
        raise ValueError(
            f"left_vectors: matrix {jnp.shape(matrix)} and right_vectors "
            f"{jnp.shape(right_vectors)} must be [..., N, C] and [..., C, k]"
        )
    moved = _einsum("...nc,...ck->...nk", wide(matrix), wide(right_vectors))
    energy = (moved**2).sum(-2, keepdims=True)
    return moved * jax.lax.rsqrt(jnp.maximum(energy, 1e-24))
