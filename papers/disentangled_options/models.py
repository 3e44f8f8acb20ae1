"""The network of option-critic: one trunk, a head for each of values, terminations, policies."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.conv import conv_general_dilated
from reprise.common.ops.dtypes import wide

LOG_STD = (-3.0, 0.5)  # range of the logarithm of a Gaussian policy's standard deviation


class OptionNetwork(nn.Module):
    """Option values, terminations and intra-option policies over shared features.

    The values train the trunk; terminations and policies, and so the regulariser, train their own
    heads, as in the original code.

    Attributes:
      num_options: O.
      num_actions: A, or the size of a continuous action.
      channels: of 3x3 convolutions before the dense layers, ReLU; () for vectors.
      widths: of dense layers, ReLU.
      gaussian: policies are diagonal Gaussians.
      stop_features: False lets the other heads train the trunk too.
      dtype: of the computation; heads are float32.

    Call: observations [B, ...] -> ((values [B, O], terminations [B, O] in (0, 1), policy), taps);
      policy is logits [B, O, A], or (mean, log_std) of [B, O, A] each; taps {"features": [B, F]}.
    """

    num_options: int
    num_actions: int
    channels: tuple[int, ...] = ()
    widths: tuple[int, ...] = (32, 64)
    gaussian: bool = False
    stop_features: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, observation: Float[Array, "batch ..."]) -> tuple[Any, dict[str, Array]]:
        x = observation.astype(self.dtype)
        for i, width in enumerate(self.channels):
            x = nn.Conv(
                width,
                (3, 3),
                dtype=self.dtype,
                conv_general_dilated=conv_general_dilated,
                name=f"conv{i}",
            )(x)
            x = nn.relu(x)
        x = x.reshape(len(x), -1)
        for i, width in enumerate(self.widths):
            x = nn.relu(nn.Dense(width, dtype=self.dtype, name=f"dense{i}")(x))
        features = wide(x)
        still = jax.lax.stop_gradient(features) if self.stop_features else features
        values = nn.Dense(self.num_options, name="values")(features)
        terminations = nn.sigmoid(nn.Dense(self.num_options, name="terminations")(still))
        # Small noise: where all policies are identical the regulariser has no gradient.
        shape, small = (self.num_options, self.num_actions), nn.initializers.normal(0.01)
        policy = nn.DenseGeneral(shape, kernel_init=small, name="policy")(still)
        if self.gaussian:
            start = nn.initializers.constant(-0.5)
            log_std = nn.DenseGeneral(shape, kernel_init=small, bias_init=start, name="log_std")
            policy = (policy, jnp.clip(log_std(still), *LOG_STD))
        return (values, terminations, policy), {"features": features}
