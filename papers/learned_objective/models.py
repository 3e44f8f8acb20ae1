"""Networks used as objectives: (x, context) -> one scalar an example."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.conv import conv_general_dilated
from reprise.common.ops.warp import warp_bilinear


class ObjectiveMLP(nn.Module):
    """Mean of squares of a softplus MLP of [x, context]; smooth, without an offset to identify.

    Attributes:
      widths: of the layers; softplus after all but the last.

    Call: x [B, D], context [B, C] -> [B].
    """

    widths: tuple[int, ...] = (64, 64, 32)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch d"], context: Float[Array, "batch c"]
    ) -> Float[Array, " batch"]:
        h = jnp.concatenate([x, context], -1)
        for i, width in enumerate(self.widths):
            h = nn.Dense(width, name=f"dense{i}")(h)
            if i + 1 < len(self.widths):
                h = nn.softplus(h)
        return (h**2).mean(-1)


class FlowObjective(nn.Module):
    """A learned data term of I1 and warp(I2, x), and a learned smoothness of x.

    Data: ||phi(I1) - phi(warp(I2, x))||^2 summed over pixels, phi = Conv3x3, softplus, Conv3x3,
    softplus, Conv1x1, the same for both images. Smoothness: the sum over pixels and directions k of
    w_k sqrt(d_k^2 + 1e-3) of the differences d_k of x, w_k = softplus of a parameter. Sums, not
    means: the size of a gradient step does not depend on the size of the image.

    Attributes:
      features: channels of the two hidden convolutions and of the last; one number: of all.

    Call: x [B, H, W, 2], context (I1, I2) each [B, H, W, C] -> [B].
    """

    features: int | tuple[int, int, int] = (32, 32, 16)

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w 2"], context: Any) -> Float[Array, " batch"]:
        first, second = context
        channels = (self.features,) * 3 if isinstance(self.features, int) else self.features
        conv = functools.partial(
            nn.Conv, kernel_size=(3, 3), conv_general_dilated=conv_general_dilated
        )
        # One pass for both: the two images are stacked on the batch axis.
        h = jnp.concatenate([first, warp_bilinear(second, x)])
        h = nn.softplus(conv(channels[0], name="conv0")(h))
        h = nn.softplus(conv(channels[1], name="conv1")(h))
        h = nn.Conv(channels[2], (1, 1), name="conv2")(h)
        one, two = jnp.split(h, 2)
        data = ((one - two) ** 2).sum(-1)
        raw = self.param("smoothness", nn.initializers.constant(0.0), (2,))
        return data.sum((1, 2)) + smoothness(x, nn.softplus(raw))


def smoothness(
    x: Float[Array, "batch h w 2"], weights: Float[Array, " 2"], epsilon: float = 1e-3
) -> Float[Array, " batch"]:
    """Sum over pixels of w_k sqrt(d^2 + epsilon) of both components' differences right and down."""

    def rho(d: Array) -> Array:
        return jnp.sqrt(d**2 + epsilon)

    right = rho(x[:, :, 1:] - x[:, :, :-1]).sum((1, 2, 3))
    down = rho(x[:, 1:] - x[:, :-1]).sum((1, 2, 3))
    return weights[0] * right + weights[1] * down
