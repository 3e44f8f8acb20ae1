"""The losses of feature fusion learning, and of its closest relative, deep mutual learning."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from reprise.common.ops.dtypes import wide


def _check_networks(name: str, sub_logits: Array, labels: Array) -> None:
    if sub_logits.ndim != 3 or labels.shape != sub_logits.shape[1:2]:
        raise ValueError(
            f"{name}: sub_logits {sub_logits.shape} must be [M, B, K], labels {labels.shape} [B]"
        )


def ensemble_logits(
    sub_logits: Float[Array, "nets batch classes"],
) -> Float[Array, "batch classes"]:
    """z_e, the mean of the networks' logits (before any softmax): [B, K].

    Raises:
      ValueError: sub_logits that are not [M, B, K].

    Source: Kim, Hyun, Chung, Kwak, ICPR 2020, the ensemble classifier.
    """
    if sub_logits.ndim != 3:
        raise ValueError(f"ensemble_logits: sub_logits {sub_logits.shape} must be [M, B, K]")
    return wide(sub_logits).mean(0)


def soft_target_kl(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    temperature: float = 3.0,
    target_epsilon: float = 1e-7,
) -> Float[Array, " batch"]:
    """T^2 sum_k Q_k (log Q_k - log softmax(p / T)_k) with Q = softmax(q / T) + epsilon: [B].

    Q is not normalised again, as in the released code. No gradient passes to the teacher.

    Args:
      student_logits: p [B, K].
      teacher_logits: q [B, K].
      temperature: T.
      target_epsilon: 1e-7; keeps log Q finite.

    Raises:
      ValueError: shapes that differ or are not [B, K].

    Source: Kim, Hyun, Chung, Kwak, ICPR 2020, the released code's KLLoss.
    """
    if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"soft_target_kl: student_logits {student_logits.shape} and teacher_logits "
            f"{teacher_logits.shape} must be the same [B, K]"
        )
    # In float32 at least: bfloat16 would lose the epsilon.
    target = jax.nn.softmax(jax.lax.stop_gradient(wide(teacher_logits)) / temperature)
    target = target + target_epsilon
    log_p = jax.nn.log_softmax(wide(student_logits) / temperature)
    return temperature**2 * (target * (jnp.log(target) - log_p)).sum(-1)


def sigmoid_rampup(epoch: Real[Array, "..."] | float, rampup_length: float) -> Float[Array, "..."]:
    """w(e) = exp(-5 (1 - min(e, R) / R)^2), from 0.0067 at e = 0 to 1 at e = R; 1 where R = 0.

    Args:
      epoch: e, from 0; any shape.
      rampup_length: R, static.

    Raises:
      ValueError: a negative R.

    Source: Laine, Aila, ICLR 2017, as Kim, Hyun, Chung, Kwak, ICPR 2020, use it.
    """
    if rampup_length < 0:
        raise ValueError(f"sigmoid_rampup: rampup_length = {rampup_length}: must be 0 or more")
    e = jnp.asarray(epoch, jnp.promote_types(jnp.result_type(epoch), jnp.float32))
    if rampup_length == 0:
        return jnp.ones_like(e)
    return jnp.exp(-5.0 * (1.0 - jnp.clip(e, 0.0, rampup_length) / rampup_length) ** 2)


def mutual_distillation_loss(
    sub_logits: Float[Array, "nets batch classes"],
    fused_logits: Float[Array, "batch classes"],
    labels: Int[Array, " batch"],
    consistency_weight: Float[Array, ""] | float,
    temperature: float = 3.0,
) -> Float[Array, " batch"]:
    """L_ce + w L_mkd, where knowledge goes round: [B].

    L_ce = sum_m CE(z_m, y) + CE(z_f, y); L_mkd = sum_m KL(z_m <- z_f) + KL(z_f <- z_e): the
    ensemble z_e teaches the fused classifier z_f, which teaches every network z_m. No gradient
    passes to the teacher of a term: z_f is a constant for the networks, z_e for z_f.

    Args:
      sub_logits: z_m [M, B, K].
      fused_logits: z_f [B, K].
      labels: y [B].
      consistency_weight: w, see `sigmoid_rampup`.
      temperature: T, of the divergences.

    Raises:
      ValueError: shapes that do not fit.

    Source: Kim, Hyun, Chung, Kwak, ICPR 2020, the total loss.
    """
    _check_networks("mutual_distillation_loss", sub_logits, labels)
    if fused_logits.shape != sub_logits.shape[1:]:
        raise ValueError(
            f"mutual_distillation_loss: fused_logits {fused_logits.shape} must be [B, K] = "
            f"{sub_logits.shape[1:]}"
        )
    together = soft_target_kl(fused_logits, ensemble_logits(sub_logits), temperature)
    for z in sub_logits:
        together += soft_target_kl(z, fused_logits, temperature)
    apart = _cross_entropy(sub_logits, labels).sum(0) + _cross_entropy(fused_logits, labels)
    return apart + consistency_weight * together


def deep_mutual_learning_loss(
    sub_logits: Float[Array, "nets batch classes"],
    labels: Int[Array, " batch"],
    consistency_weight: Float[Array, ""] | float,
    temperature: float = 3.0,
) -> Float[Array, " batch"]:
    """sum_m (CE(z_m, y) + w / (M - 1) sum over n != m of KL(z_m <- z_n)): [B]. The baseline.

    With weight and temperature of feature fusion learning, so that the two differ in who teaches
    alone. No gradient passes to the teacher of a term.

    Raises:
      ValueError: shapes that do not fit.

    Source: Zhang, Xiang, Hospedales, Lu, CVPR 2018 (there w = 1, T = 1).
    """
    _check_networks("deep_mutual_learning_loss", sub_logits, labels)
    each = _cross_entropy(sub_logits, labels).sum(0)
    count = len(sub_logits)
    pairs = [(m, n) for m in range(count) for n in range(count) if m != n]
    for m, n in pairs:
        kl = soft_target_kl(sub_logits[m], sub_logits[n], temperature)
        each += consistency_weight / (count - 1) * kl
    return each


def _cross_entropy(logits: Array, labels: Array) -> Array:
    log_p = jax.nn.log_softmax(wide(logits))
    where = jnp.broadcast_to(labels, logits.shape[:-1])[..., None]
    return -jnp.take_along_axis(log_p, where, -1)[..., 0]
