"""The margin of each channel: its expected negative response (section 3.2)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.dtypes import wide


def margin_from_batchnorm(
    bn_scale: Float[Array, " channels"],
    bn_bias: Float[Array, " channels"],
    min_probability: float = 1e-3,
) -> Float[Array, " channels"]:
    """m = E[t | t < 0] of t ~ Normal(bias, scale^2), channel by channel: [C].

    BatchNorm makes the response of a channel that normal, whatever its running statistics. With
    sigma = |scale| and p = P(t < 0): m = bias - sigma phi(bias / sigma) / p where
    p > min_probability; a channel that is almost never negative has m = -3 sigma. Where sigma is
    0, m = min(bias, 0).

    Args:
      bn_scale: gamma [C] of the teacher's BatchNorm before the ReLU; its sign does not matter.
      bn_bias: beta [C].
      min_probability: of a negative response, below which the expectation is not used.

    Returns:
      [C], in float32 at least, never positive. Not meant to be differentiated.

    Raises:
      ValueError: shapes that differ or are not [C].

    Source: Heo et al., ICCV 2019, the margin value; the branch -3 sigma is in the released code.
    """
    if jnp.ndim(bn_scale) != 1 or jnp.shape(bn_scale) != jnp.shape(bn_bias):
        raise ValueError(
            f"margin_from_batchnorm: bn_scale {jnp.shape(bn_scale)} and bn_bias "
            f"{jnp.shape(bn_bias)} must be the same [C]"
        )
    sigma, mu = abs(wide(bn_scale)), wide(bn_bias)
    degenerate = sigma < 1e-12
    z = mu / jnp.where(degenerate, 1.0, sigma)
    # phi(z) / P(t < 0) by the scaled complementary error function: both are tiny, their ratio not.
    ratio = jnp.sqrt(2 / jnp.pi) / jax.scipy.special.erfcx(z / jnp.sqrt(2.0))
    often = jax.scipy.stats.norm.cdf(-z) > min_probability
    margin = jnp.where(often, mu - sigma * ratio, -3 * sigma)
    return jnp.where(degenerate, jnp.minimum(mu, 0.0), margin)


def margin_from_features(
    features: Float[Array, "batch *pixels channels"],
) -> Float[Array, " channels"]:
    """Mean of the negative responses of each channel: [C]. For taps without a BatchNorm.

    0 where a channel has none. Over several batches the paper's code averages these means.

    Raises:
      ValueError: fewer than two axes.

    Source: Heo et al., ICCV 2019, the margin; the released code adds 1e-10 to the count.
    """
    if jnp.ndim(features) < 2:
        raise ValueError(
            f"margin_from_features: features {jnp.shape(features)} must be [B, ..., C]"
        )
    features = wide(features)
    axes = tuple(range(features.ndim - 1))
    count = (features < 0).sum(axes, dtype=features.dtype)
    return jnp.minimum(features, 0.0).sum(axes) / (count + 1e-10)


def norms_of_taps(
    model: nn.Module, image_shape: Sequence[int], taps: Sequence[str]
) -> dict[str, tuple[str, ...] | None]:
    """Tap -> path of the BatchNorm whose very output it is; None where it is no such output.

    Found by tracing the model once, so that any backbone will do; nothing is computed.

    Args:
      model: (image, train) -> (logits, taps).
      image_shape: (H, W, C).
      taps: names.
    """
    found: dict[str, tuple[str, ...] | None] = {}

    def trace(image: Array) -> None:
        outputs = []

        def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            out = call(*args, **kwargs)
            if isinstance(context.module, nn.BatchNorm):
                outputs.append((context.module.path, out))
            return out

        with nn.intercept_methods(record):
            (_, named), _ = model.init_with_output(jax.random.key(0), image, train=False)
        for tap in taps:
            found[tap] = next((path for path, out in outputs if out is named[tap]), None)

    jax.eval_shape(trace, jax.ShapeDtypeStruct((1, *image_shape), jnp.float32))
    return found
