"""Feature compression, the estimator's loss and the distance of attention graphs."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.dtypes import wide
from reprise.common.ops.svd import align_singular_vectors, canonicalize_sign, truncated_svd
from reprise.papers.multi_head_graph_distillation.layers import attention_logits, l2_normalize


def principal_vectors(
    student_features: Sequence[Float[Array, "batch _ _ _"]],
    teacher_features: Sequence[Float[Array, "batch _ _ _"]],
    num_candidates: int = 4,
) -> tuple[list[Float[Array, "batch _"]], list[Float[Array, "batch _"]]]:
    """The first right singular vector of each map, the student's aligned to the teacher's.

    The teacher's has the sign of `canonicalize_sign`; the student's is the one of its first
    candidates that is most parallel to it, with its sign. No gradient passes to the teacher, to
    signs or to the choice.

    Args:
      student_features, teacher_features: taps front to back, [B, H, W, C]; channels agree tap by
        tap, pixels need not.
      num_candidates: of the student.

    Returns:
      (student's vectors, teacher's vectors), each a list of [B, C] of length 1.

    Raises:
      ValueError: different or no taps, or batch or channels that differ.

    Source: Lee, Song, BMVC 2019, after KD-SVD.
    """
    if len(student_features) != len(teacher_features) or not len(student_features):
        raise ValueError(
            f"principal_vectors: {len(student_features)} student_features and "
            f"{len(teacher_features)} teacher_features must be equally many, at least one"
        )
    pairs = zip(student_features, teacher_features, strict=True)
    each = [_vectors(s, t, num_candidates) for s, t in pairs]
    return [s for s, _ in each], [t for _, t in each]


def _vectors(student: Array, teacher: Array, num_candidates: int) -> tuple[Array, Array]:
    ends = [(x.shape[0], x.shape[-1]) for x in (student, teacher)]
    if student.ndim != 4 or teacher.ndim != 4 or ends[0] != ends[1]:
        raise ValueError(
            f"principal_vectors: student tap {student.shape} and teacher tap {teacher.shape} must "
            "be [B, H, W, C] with the same batch and channels"
        )
    student, teacher = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in (student, teacher))
    target = canonicalize_sign(truncated_svd(jax.lax.stop_gradient(teacher), 1)[1])
    found = align_singular_vectors(truncated_svd(student, num_candidates)[1], target)
    return found[..., 0], target[..., 0]


def vector_estimation_loss(
    estimate: Float[Array, "batch db"], target: Float[Array, "batch db"]
) -> Float[Array, " batch"]:
    """1 - cosine of each estimated back vector with the teacher's: [B] in [0, 2].

    Raises:
      ValueError: shapes that differ or are not [B, Db].

    Source: Lee, Song, BMVC 2019, L_MHAN before its mean; the poster prints it without "1 -".
    """
    if estimate.ndim != 2 or estimate.shape != target.shape:
        raise ValueError(
            f"vector_estimation_loss: estimate {estimate.shape} and target {target.shape} must be "
            "the same [B, Db]"
        )
    return 1 - (l2_normalize(wide(estimate)) * l2_normalize(wide(target))).sum(-1)


def attention_graph_loss(
    student_logits: Float[Array, "heads batch columns"],
    teacher_logits: Float[Array, "heads batch columns"],
) -> Float[Array, " batch"]:
    """KL(student || teacher) of the rows of softmax(tanh(S)), summed over heads: [B].

    No gradient passes to the teacher.

    Raises:
      ValueError: shapes that differ or are not [A, B, B].

    Source: Lee, Song, BMVC 2019. The tanh is in the released code alone: without it one large
    logit rules its row.
    """
    if student_logits.ndim != 3 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"attention_graph_loss: student_logits {student_logits.shape} and teacher_logits "
            f"{teacher_logits.shape} must be the same [A, B, B]"
        )
    log_p = jax.nn.log_softmax(jnp.tanh(wide(student_logits)), -1)
    log_q = jax.nn.log_softmax(jnp.tanh(jax.lax.stop_gradient(wide(teacher_logits))), -1)
    return (jnp.exp(log_p) * (log_p - log_q)).sum((0, 2))


def multi_head_graph_distillation_loss(
    params_per_pair: Sequence[Mapping[str, Any]],
    student_vectors: Sequence[Float[Array, "batch _"]],
    teacher_vectors: Sequence[Float[Array, "batch _"]],
    *,
    num_heads: int = 8,
) -> Float[Array, ""]:
    """`attention_graph_loss` summed over examples and pairs of taps: a scalar of the whole batch.

    The graphs of student and teacher come from the same attention heads, in inference mode. No
    gradient passes to the heads or to the teacher.

    Args:
      params_per_pair: of each pair of consecutive taps, front to back.
      student_vectors, teacher_vectors: of `principal_vectors`, one more than pairs.
      num_heads: A.

    Raises:
      ValueError: numbers of pairs and vectors that do not fit, or shapes that do not.

    Source: Lee, Song, BMVC 2019, L_KD.
    """
    counts = len(params_per_pair), len(student_vectors), len(teacher_vectors)
    if not counts[0] or counts[1] != counts[0] + 1 or counts[2] != counts[1]:
        raise ValueError(
            f"multi_head_graph_distillation_loss: {counts[0]} params_per_pair need one more of "
            f"student_vectors and teacher_vectors, given {counts[1]} and {counts[2]}"
        )
    total = jnp.zeros((), jnp.float32)
    for i, params in enumerate(params_per_pair):
        params = jax.lax.stop_gradient(dict(params))
        ours, theirs = (
            attention_logits(params, of[i + 1], of[i], num_heads=num_heads)
            for of in (student_vectors, teacher_vectors)
        )
        total = total + attention_graph_loss(ours, theirs).sum()
    return total
