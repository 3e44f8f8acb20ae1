"""What makes factors of feature maps: paraphrasers of the teachers, translators of the student."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.conv import conv_small


def _convolutions(x: Array, widths: tuple[int, ...], dtype: Any) -> Array:
    """3x3 convolutions, each followed by a leaky ReLU of slope 0.1, the last one too."""
    for i, width in enumerate(widths):
        # U(+-1 / sqrt(fan in)) for kernel and bias, as in the released code of factor transfer.
        bound = (9 * x.shape[-1]) ** -0.5

        def uniform(key: Array, shape: Any, dtype: Any, bound: float = bound) -> Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        x = nn.Conv(
            width,
            (3, 3),
            padding=1,
            kernel_init=uniform,
            bias_init=uniform,
            dtype=dtype,
            # Several teachers' convolutions go side by side, which as products are fast on CPUs.
            conv_general_dilated=conv_small,
            name=f"conv{i}",
        )(x)
        x = nn.leaky_relu(x, 0.1)
    return x


def _check(name: str, what: str, x: Array) -> None:
    if x.ndim != 4:
        raise ValueError(f"{name}: {what} {x.shape} must be [B, H, W, channels]")


class Translator(nn.Module):
    """The student's feature map to a factor: 3x3 convolutions to C, K and K channels.

    Attributes:
      features: K, channels of the factor.
      dtype: of the computation.

    Call: [B, H, W, C] -> [B, H, W, K].
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "batch h w c"]) -> Float[Array, "batch h w k"]:
        _check("Translator", "features", features)
        widths = (features.shape[-1], self.features, self.features)
        return _convolutions(features, widths, self.dtype)


class Decoder(nn.Module):
    """A factor back to a feature map: 3x3 convolutions to K, C and C channels.

    Attributes:
      features: K, channels of the factor.
      dtype: of the computation.

    Call: [B, H, W, K], channels -> [B, H, W, C]. Without `channels` C is what the parameters say.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, factor: Float[Array, "batch h w k"], channels: int | None = None
    ) -> Float[Array, "batch h w c"]:
        _check("Decoder", "factor", factor)
        if channels is None:
            if not self.has_variable("params", "conv2"):
                raise ValueError("Decoder: channels = None: initialise with the number of channels")
            channels = self.get_variable("params", "conv2")["kernel"].shape[-1]
        return _convolutions(factor, (self.features, channels, channels), self.dtype)


class Paraphraser(nn.Module):
    """A convolutional auto-encoder of a teacher's feature map; its code is the factor.

    Attributes:
      features: K, channels of the factor; the paper's rate k is K / C.
      dtype: of the computation.

    Call: [B, H, W, C] -> its reconstruction, the same shape; initialise by this. Methods `encode`:
    [B, H, W, C] -> factor [B, H, W, K], and `decode`: factor -> [B, H, W, C]. The last activation
    is leaky, too, though features after a ReLU are never negative.
    """

    features: int
    dtype: Any = jnp.float32

    def setup(self) -> None:
        self.encoder = Translator(self.features, self.dtype)
        self.decoder = Decoder(self.features, self.dtype)

    def __call__(self, features: Float[Array, "batch h w c"]) -> Float[Array, "batch h w c"]:
        return self.decoder(self.encoder(features), features.shape[-1])

    def encode(self, features: Float[Array, "batch h w c"]) -> Float[Array, "batch h w k"]:
        return self.encoder(features)

    def decode(self, factor: Float[Array, "batch h w k"]) -> Float[Array, "batch h w c"]:
        return self.decoder(factor)
