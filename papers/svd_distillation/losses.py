"""The relation between singular vectors of consecutive layers (steps 1 to 6 of the method)."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.svd import align_singular_vectors, canonicalize_sign, truncated_svd


def rbf_relation(
    front: Float[Array, "batch cf k"], back: Float[Array, "batch cb k"], beta: float = 8.0
) -> Float[Array, "batch cb cf k"]:
    """R[m, n, i] = exp(-(back_i[m] - front_i[n])^2 / beta): [B, Cb, Cf, K].

    Args:
      front, back: weighted singular vectors of two consecutive taps, as columns.
      beta: the paper's width; the squared differences are at most 4.

    Raises:
      ValueError: not [B, Cf, K] and [B, Cb, K].

    Source: Lee, Kim, Song, ECCV 2018, the distillation feature vectors.
    """
    same = front.ndim == back.ndim == 3 and front.shape[::2] == back.shape[::2]
    if not same:
        raise ValueError(
            f"rbf_relation: front {front.shape} and back {back.shape} must be [B, Cf, K] and "
            "[B, Cb, K] with the same B and K"
        )
    wide = jnp.promote_types(jnp.result_type(front, back), jnp.float32)
    front, back = front.astype(wide), back.astype(wide)
    return jnp.exp(-((back[:, :, None] - front[:, None]) ** 2) / beta)


def svd_distillation_loss(
    student_features: Sequence[Float[Array, "batch ..."]],
    teacher_features: Sequence[Float[Array, "batch ..."]],
    *,
    num_vectors: int = 1,
    num_extra: int = 3,
    beta: float = 8.0,
) -> Float[Array, " batch"]:
    """Squared distance of the student's RBF relations to the teacher's, summed: [B].

    Each map becomes [HW, C] and is decomposed without centring. The teacher's first K right vectors
    get the sign of `canonicalize_sign`, the student's are aligned to them, both are weighted by the
    teacher's singular values over their norm. For each pair of consecutive taps the loss sums
    (R_S - R_T)^2 over both taps' channels and the K vectors. No gradient passes to the teacher;
    signs and alignment have none. One example's value depends on that example alone.

    Args:
      student_features, teacher_features: two taps or more, front to back, each [B, H, W, C] or a
        vector [B, C]. Channels agree tap by tap, pixels need not.
      num_vectors: K, the teacher's vectors; with fewer at a tap, of a small map, the pair of taps
        uses what both have.
      num_extra: further candidates of the student for the alignment.
      beta: see `rbf_relation`.

    Returns:
      [B], in float32 at least. A squared difference that is not finite counts 0.

    Raises:
      ValueError: fewer than two taps, sequences of different length, other ranks, or batch or
        channels that differ.

    Source: Lee, Kim, Song, ECCV 2018, with the plain sum, the three extra candidates and the
    student-side alignment of the authors' later code.
    """
    count = len(student_features)
    if count != len(teacher_features) or count < 2:
        raise ValueError(
            f"svd_distillation_loss: {count} student_features and {len(teacher_features)} "
            "teacher_features must be equally many taps, at least two"
        )
    if num_vectors < 1 or num_extra < 0:
        raise ValueError(
            f"svd_distillation_loss: num_vectors = {num_vectors} must be 1 or more and num_extra = "
            f"{num_extra} 0 or more"
        )
    pairs = zip(student_features, teacher_features, strict=True)
    taps = [weighted_vectors(s, t, num_vectors, num_extra) for s, t in pairs]
    total = jnp.zeros((), jnp.float32)
    for (front_s, front_t), (back_s, back_t) in itertools.pairwise(taps):
        k = min(front_t.shape[-1], back_t.shape[-1])
        ours = rbf_relation(front_s[..., :k], back_s[..., :k], beta)
        theirs = rbf_relation(front_t[..., :k], back_t[..., :k], beta)
        difference = ours - jax.lax.stop_gradient(theirs)
        difference = jnp.where(jnp.isfinite(difference), difference, 0)
        total = total + (difference**2).sum((1, 2, 3))
    return total


def weighted_vectors(
    student: Float[Array, "batch ..."],
    teacher: Float[Array, "batch ..."],
    num_vectors: int = 1,
    num_extra: int = 3,
) -> tuple[Float[Array, "batch c k"], Float[Array, "batch c k"]]:
    """The aligned right vectors of one tap, weighted by the teacher's spectrum (steps 1 to 4).

    No gradient passes to the teacher; see `svd_distillation_loss`.

    Returns:
      (f_S, f_T), each [B, C, K], K at most min(HW, C) of both maps.

    Raises:
      ValueError: neither [B, H, W, C] nor [B, C], or batch or channels that differ.
    """
    alike = student.ndim == teacher.ndim and student.ndim in (2, 4)
    if not alike or (student.shape[0], student.shape[-1]) != (teacher.shape[0], teacher.shape[-1]):
        raise ValueError(
            f"svd_distillation_loss: student tap {student.shape} and teacher tap {teacher.shape} "
            "must be [B, H, W, C] or [B, C] with the same batch and channels"
        )
    teacher = jax.lax.stop_gradient(teacher)
    student, teacher = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (student, teacher))
    s, v = truncated_svd(teacher, num_vectors)
    v = canonicalize_sign(v)
    energy = (s**2).sum(-1, keepdims=True)
    weights = jnp.where(energy > 0, s * jax.lax.rsqrt(jnp.where(energy > 0, energy, 1)), 0)
    _, candidates = truncated_svd(student, v.shape[-1] + num_extra)
    aligned = align_singular_vectors(candidates, v)
    return weights[:, None] * aligned, weights[:, None] * v
