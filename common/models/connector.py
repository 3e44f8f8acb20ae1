"""What brings a student's features to its teacher's width."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class FeatureConnector(nn.Module):
    """A 1x1 convolution without bias, then BatchNorm with batch statistics.

    It exists during training alone, so that it keeps no running statistics. Heo et al., AAAI 2019
    (activation boundaries) and ICCV 2019 (overhaul of feature distillation).

    Attributes:
      features: M, the teacher's channels.
      dtype: of the computation.

    Call: [B, H, W, N] (or [B, ..., N]) -> [B, H, W, M].
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch ... n"]) -> Float[Array, "batch ... m"]:
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        x = nn.Dense(
            self.features, use_bias=False, kernel_init=init, dtype=self.dtype, name="conv"
        )(x)
        scale = self.param("scale", nn.initializers.ones, (self.features,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        axes = tuple(range(x.ndim - 1))
        mean, var = wide.mean(axes), wide.var(axes)
        return ((wide - mean) * (scale / jnp.sqrt(var + 1e-5)) + bias).astype(x.dtype)
