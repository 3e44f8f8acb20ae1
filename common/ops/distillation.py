"""Losses that distillation methods share, one value an example, and the clipping of their terms."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.dtypes import wide


def _logits_alike(name: str, student: Array, teacher: Array) -> None:
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"{name}: student_logits {student.shape} and teacher_logits {teacher.shape} must be "
            "the same [B, K]"
        )


def kd_kl_divergence(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    temperature: float = 4.0,
    scale_by_t2: bool = True,
) -> Float[Array, " batch"]:
    """KL(softmax(z_t / T) || softmax(z_s / T)), times T^2 where asked: [B].

    Hinton, Vinyals, Dean, 2015. No gradient passes to the teacher.

    Raises:
      ValueError: shapes that differ or are not [B, K].
    """
    _logits_alike("kd_kl_divergence", student_logits, teacher_logits)
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(wide(teacher_logits)) / temperature)
    log_q = jax.nn.log_softmax(wide(student_logits) / temperature)
    each = (jnp.exp(log_p) * (log_p - log_q)).sum(-1)
    return temperature**2 * each if scale_by_t2 else each


def soft_cross_entropy(
    student_logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    temperature: float = 3.0,
) -> Float[Array, " batch"]:
    """-sum_k softmax(z_t / T)_k log softmax(z_s / T)_k, without T^2: [B].

    The divergence plus the teacher's entropy, which is constant. No gradient to the teacher.

    Raises:
      ValueError: shapes that differ or are not [B, K].
    """
    _logits_alike("soft_cross_entropy", student_logits, teacher_logits)
    target = jax.nn.softmax(jax.lax.stop_gradient(wide(teacher_logits)) / temperature)
    return -(target * jax.nn.log_softmax(wide(student_logits) / temperature)).sum(-1)


def squared_feature_loss(
    student_features: Float[Array, "batch *shape"], teacher_features: Float[Array, "batch *shape"]
) -> Float[Array, " batch"]:
    """Sum over units of (s - t)^2: [B]. FitNets (Romero et al., ICLR 2015), after the regressor.

    No gradient passes to the teacher.

    Raises:
      ValueError: shapes that differ.
    """
    if student_features.shape != teacher_features.shape:
        raise ValueError(
            f"squared_feature_loss: student_features {student_features.shape} and "
            f"teacher_features {teacher_features.shape} must be the same"
        )
    difference = wide(student_features) - jax.lax.stop_gradient(wide(teacher_features))
    return (difference**2).reshape(len(difference), -1).sum(-1)


def attention_transfer_loss(
    student_features: Float[Array, "batch h w n"], teacher_features: Float[Array, "batch h w m"]
) -> Float[Array, " batch"]:
    """Mean over pixels of the squared difference of normalised attention maps: [B].

    Zagoruyko, Komodakis, ICLR 2017: the map is the mean over channels of the squared features, as
    a vector of length 1 (the released code; the channels may differ, the pixels not). No gradient
    passes to the teacher.

    Raises:
      ValueError: [B, H, W] that differ.
    """
    if student_features.shape[:-1] != teacher_features.shape[:-1] or student_features.ndim != 4:
        raise ValueError(
            f"attention_transfer_loss: student_features {student_features.shape} and "
            f"teacher_features {teacher_features.shape} must be [B, H, W, channels] alike"
        )

    def attention(x: Array) -> Array:
        energy = (wide(x) ** 2).mean(-1).reshape(len(x), -1)
        # The limit at a map of zeros, without the NaN of its square root's slope.
        return energy * jax.lax.rsqrt(jnp.maximum((energy**2).sum(-1, keepdims=True), 1e-24))

    difference = attention(student_features) - jax.lax.stop_gradient(attention(teacher_features))
    return (difference**2).mean(-1)


def flow_matrix(
    front: Float[Array, "batch h w n"], back: Float[Array, "batch h2 w2 m"]
) -> Float[Array, "batch n m"]:
    """Gram matrix between two layers, mean over pixels; the larger map is max-pooled to the other.

    FSP: Yim et al., CVPR 2017.

    Raises:
      ValueError: a map that is no multiple of the other.
    """
    if front.ndim != 4 or back.ndim != 4 or front.shape[0] != back.shape[0]:
        raise ValueError(f"flow_matrix: front {front.shape} and back {back.shape}: [B, H, W, C]")
    rows, cols = front.shape[1] // back.shape[1], front.shape[2] // back.shape[2]
    if (back.shape[1] * rows, back.shape[2] * cols) != front.shape[1:3]:
        raise ValueError(
            f"flow_matrix: front {front.shape} must be a whole multiple of back {back.shape}"
        )
    f, b = wide(front), wide(back)
    f = f.reshape(f.shape[0], b.shape[1], rows, b.shape[2], cols, f.shape[3]).max((2, 4))
    pixels = b.shape[1] * b.shape[2]
    return jnp.einsum("bhwn,bhwm->bnm", f, b, precision="highest") / pixels


def flow_loss(student_flow: Any, teacher_flow: Any) -> Float[Array, " batch"]:
    """Mean squared difference of FSP matrices: [B]. No gradient passes to the teacher.

    Raises:
      ValueError: shapes that differ: FSP needs the same channels in student and teacher.
    """
    if student_flow.shape != teacher_flow.shape:
        raise ValueError(
            f"flow_loss: student_flow {student_flow.shape} and teacher_flow {teacher_flow.shape} "
            "must be the same: FSP needs the same channels at the taps of both networks"
        )
    return ((student_flow - jax.lax.stop_gradient(teacher_flow)) ** 2).mean((1, 2))


def clip_to_reference_norm(grads: Any, reference_grads: Any, factor: Any = 1.0) -> Any:
    """Shrinks each leaf g to at most factor times the norm of the reference's leaf.

    g min(1, factor ||reference|| / max(||g||, 1e-12)), leaf by leaf, in float32. Lee, Kim, Song
    (KD-SVD, ECCV 2018) clip a transfer gradient so by the classification gradient, with factor
    sigmoid(epoch).

    Raises:
      ValueError: trees of different structure.
    """
    ours, theirs = str(jax.tree.structure(grads)), str(jax.tree.structure(reference_grads))
    if ours != theirs:
        raise ValueError(
            f"clip_to_reference_norm: grads {ours} and reference_grads {theirs} must have one "
            "structure"
        )

    def clip(g: Array, reference: Array) -> Array:
        norm = jnp.sqrt((wide(g) ** 2).sum())
        cap = factor * jnp.sqrt((wide(reference) ** 2).sum())
        return (g * jnp.minimum(1.0, cap / jnp.maximum(norm, 1e-12))).astype(g.dtype)

    return jax.tree.map(clip, grads, reference_grads)
