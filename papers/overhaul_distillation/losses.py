"""Margin ReLU, partial L2 and their sum over layers (sections 3.1, 3.3 and 3.4)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.dtypes import wide


def _check(name: str, student: Array, other: Array, what: str) -> None:
    if jnp.ndim(student) < 2 or jnp.shape(student) != jnp.shape(other):
        raise ValueError(
            f"{name}: student_features {jnp.shape(student)} and {what} {jnp.shape(other)} must be "
            "the same [B, ..., C]; a connector brings the student's to the teacher's width"
        )


def margin_relu(
    features: Float[Array, "batch *pixels channels"], margin: Float[Array, " channels"]
) -> Float[Array, "batch *pixels channels"]:
    """max(t, m) channel by channel: what the teacher shows of its response t before the ReLU.

    Positive responses pass; negative ones are cut at the margin m < 0 instead of at 0. No gradient
    passes to the teacher's features, nor to the margin.

    Args:
      features: t [B, ..., C].
      margin: m [C].

    Raises:
      ValueError: a margin that is not one value a channel.

    Source: Heo et al., ICCV 2019, the teacher transform.
    """
    if jnp.ndim(features) < 2 or jnp.shape(margin) != jnp.shape(features)[-1:]:
        raise ValueError(
            f"margin_relu: features {jnp.shape(features)} and margin {jnp.shape(margin)} must be "
            "[B, ..., C] and [C]"
        )
    cut = jnp.maximum(jnp.asarray(features), jnp.asarray(margin))
    return jax.lax.stop_gradient(cut)


def partial_l2_loss(
    student_features: Float[Array, "batch *shape"], target_features: Float[Array, "batch *shape"]
) -> Float[Array, " batch"]:
    """Sum over units of (q - T)^2, 0 where q <= T <= 0: [B].

    Where the teacher is off the student need only be off as well. No gradient passes to the target.

    Args:
      student_features: q [B, ..., C], before the ReLU, after the connector.
      target_features: T, the same shape, after `margin_relu`.

    Returns:
      [B], in float32 at least. A sum, not a mean: the weight of the loss counts on it.

    Raises:
      ValueError: shapes that differ or have fewer than two axes.

    Source: Heo et al., ICCV 2019, the partial L2 distance.
    """
    _check("partial_l2_loss", student_features, target_features, "target_features")
    q, target = wide(student_features), jax.lax.stop_gradient(wide(target_features))
    counts = (q > target) | (target > 0)
    each = jnp.where(counts, (q - target) ** 2, 0.0)
    return each.reshape(len(each), -1).sum(-1)


def overhaul_feature_loss(
    student_features: Float[Array, "batch *pixels channels"],
    teacher_features: Float[Array, "batch *pixels channels"],
    margin: Float[Array, " channels"],
) -> Float[Array, " batch"]:
    """partial_l2_loss(q, margin_relu(t, m)): one layer's loss, sum over units, [B].

    Args:
      student_features: q [B, ..., C], before the ReLU, after the connector (no ReLU here).
      teacher_features: t, the same shape, before the ReLU. No gradient passes to it.
      margin: m [C], of `margin_from_batchnorm` or `margin_from_features`.

    Raises:
      ValueError: shapes that differ, or a margin that is not one value a channel.

    Source: Heo et al., ICCV 2019.
    """
    _check("overhaul_feature_loss", student_features, teacher_features, "teacher_features")
    return partial_l2_loss(student_features, margin_relu(wide(teacher_features), wide(margin)))


def multilayer_overhaul_loss(
    student_features: Sequence[Float[Array, "batch ..."]],
    teacher_features: Sequence[Float[Array, "batch ..."]],
    margins: Sequence[Float[Array, " _"]],
    layer_weights: Sequence[float] | None = None,
) -> Float[Array, " batch"]:
    """sum_i w_i overhaul_feature_loss_i over L layers, shallow to deep: [B].

    Args:
      student_features, teacher_features, margins: one a layer; see `overhaul_feature_loss`.
      layer_weights: w; default 2^-(L-1-i), which offsets that a stage has half the units of the one
        before it. For segmentation the released code has (1/8, 1/4, 1/2, 1, 1, 1/16): four stages,
        the pyramid, the decoder.

    Raises:
      ValueError: sequences of different or no length, or shapes that differ.

    Source: Heo et al., ICCV 2019, and its released code for the weights.
    """
    count = len(student_features)
    weights = [2.0 ** (i + 1 - count) for i in range(count)]
    weights = weights if layer_weights is None else list(layer_weights)
    lengths = (count, len(teacher_features), len(margins), len(weights))
    if len(set(lengths)) != 1 or not count:
        raise ValueError(
            f"multilayer_overhaul_loss: {lengths[0]} student_features, {lengths[1]} "
            f"teacher_features, {lengths[2]} margins and {lengths[3]} layer_weights must be "
            "equally many, at least one"
        )
    layers = zip(weights, student_features, teacher_features, margins, strict=True)
    return jnp.stack([w * overhaul_feature_loss(s, t, m) for w, s, t, m in layers]).sum(0)
