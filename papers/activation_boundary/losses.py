"""The activation-boundary losses (sections 3.1 to 3.5 of the method)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.dtypes import wide


def _check(name: str, student: Array, teacher: Array) -> None:
    if student.ndim < 2 or student.shape != teacher.shape:
        raise ValueError(
            f"{name}: student_features {student.shape} and teacher_features {teacher.shape} must "
            "be the same [B, ..., M]; a connector brings the student's to the teacher's width"
        )


def activation_boundary_loss(
    student_features: Float[Array, "batch *shape"],
    teacher_features: Float[Array, "batch *shape"],
    margin: float = 1.0,
) -> Float[Array, " batch"]:
    """Squared hinge that puts each unit on the teacher's side of its ReLU: sum over units, [B].

    With q the student's and t the teacher's response before the ReLU: max(margin - q, 0)^2 where
    t > 0, max(margin + q, 0)^2 where t <= 0. Its slope in q is continuous, and 0 beyond the margin.
    No gradient passes to the teacher.

    Args:
      student_features: q [B, ..., M], pre-activation, after the connector.
      teacher_features: t, the same shape.
      margin: mu.

    Returns:
      [B], in float32 at least. Not averaged over units: the scale of
      `multilayer_activation_boundary_loss` counts on it.

    Raises:
      ValueError: shapes that differ or have fewer than two axes.

    Source: Heo, Lee, Yun, Choi, AAAI 2019, the surrogate of the activation transfer loss.
    """
    _check("activation_boundary_loss", student_features, teacher_features)
    side = jnp.where(jax.lax.stop_gradient(teacher_features) > 0, 1.0, -1.0)
    hinge = jnp.maximum(margin - side * wide(student_features), 0.0)
    return (hinge**2).reshape(len(hinge), -1).sum(-1)


def activation_mismatch(
    student_features: Float[Array, "batch *shape"], teacher_features: Float[Array, "batch *shape"]
) -> Float[Array, " batch"]:
    """Share of units that are on in one network and off in the other: [B] in [0, 1].

    The loss that `activation_boundary_loss` stands in for; a response of exactly 0 is off. It has
    no gradient.

    Raises:
      ValueError: shapes that differ or have fewer than two axes.

    Source: Heo, Lee, Yun, Choi, AAAI 2019; one minus it is their activation similarity.
    """
    _check("activation_mismatch", student_features, teacher_features)
    differs = (student_features > 0) != (teacher_features > 0)
    return differs.reshape(len(differs), -1).mean(-1, dtype=jnp.float32)


def multilayer_activation_boundary_loss(
    student_features: Sequence[Float[Array, "batch ..."]],
    teacher_features: Sequence[Float[Array, "batch ..."]],
    margin: float = 1.0,
    scale: float = 3e-3,
) -> Float[Array, " batch"]:
    """scale * sum_i 2^-(L-1-i) activation_boundary_loss_i over L taps, shallow to deep: [B].

    The powers of two offset that a stage has half the units of the one before it. The paper's code
    has scale 3e-3 for CIFAR with three taps, 1e-3 for 224 x 224 images with four.

    Raises:
      ValueError: sequences of different or no length, or shapes that differ.

    Source: Heo, Lee, Yun, Choi, AAAI 2019, and its released code for the weights.
    """
    count = len(student_features)
    if count != len(teacher_features) or not count:
        raise ValueError(
            f"multilayer_activation_boundary_loss: {count} student_features and "
            f"{len(teacher_features)} teacher_features must be equally many, at least one"
        )
    pairs = zip(student_features, teacher_features, strict=True)
    each = [
        2.0 ** (i + 1 - count) * activation_boundary_loss(s, t, margin)
        for i, (s, t) in enumerate(pairs)
    ]
    return scale * jnp.stack(each).sum(0)


def centered_logit_loss(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    weight: float = 10.0,
) -> Float[Array, " batch"]:
    """weight * mean over classes of ((u - mean u) - (v - mean v))^2: [B].

    For transfer to a task with other classes than the teacher's: v is a linear probe of the
    student's pooled features, trained beside it and dropped afterwards. No gradient passes to the
    teacher's logits u.

    Raises:
      ValueError: shapes that differ or are not [B, K].

    Source: Heo, Lee, Yun, Choi, AAAI 2019, the released code of the transfer experiments.
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"centered_logit_loss: student_logits {student_logits.shape} and teacher_logits "
            f"{teacher_logits.shape} must be the same [B, K]"
        )
    v, u = wide(student_logits), jax.lax.stop_gradient(wide(teacher_logits))
    difference = (u - u.mean(-1, keepdims=True)) - (v - v.mean(-1, keepdims=True))
    return weight * (difference**2).mean(-1)
