"""Projector and predictor of SimSiam, and the small network of the embedded recipe."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

# PyTorch's default for linear layers, which the released SimSiam keeps: U(+-1 / sqrt(fan_in)).
_linear = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _norm(train: bool, dtype: Any, name: str, affine: bool = True) -> nn.BatchNorm:
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        use_scale=affine,
        use_bias=affine,
        dtype=dtype,
        name=name,
    )


class Projector(nn.Module):
    """Linear, BN, ReLU, ..., Linear, BN without scale and bias.

    No linear layer has a bias, as a BatchNorm follows each; the released code keeps the last one
    frozen instead, which is the same function.

    Attributes:
      widths: of the layers: three of 2048 for ImageNet, two for CIFAR.
      dtype: of the computation; parameters and statistics stay float32.

    Call: x [B, d], train -> z [B, widths[-1]].
    """

    widths: tuple[int, ...] = (2048, 2048, 2048)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "batch d"], *, train: bool) -> Float[Array, "batch out"]:
        for i, width in enumerate(self.widths):
            last = i + 1 == len(self.widths)
            x = nn.Dense(
                width, use_bias=False, kernel_init=_linear, dtype=self.dtype, name=f"dense{i}"
            )(x)
            x = _norm(train, self.dtype, f"bn{i}", affine=not last)(x)
            x = x if last else nn.relu(x)
        return x


class Predictor(nn.Module):
    """h: Linear, BN, ReLU, Linear with bias; as wide as its input, and no BatchNorm at the end.

    Attributes:
      hidden: width of the bottleneck.
      dtype: of the computation; parameters and statistics stay float32.

    Call: z [B, d], train -> p [B, d].
    """

    hidden: int = 512
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Float[Array, "batch d"], *, train: bool) -> Float[Array, "batch d"]:
        dense = functools.partial(nn.Dense, kernel_init=_linear, dtype=self.dtype)
        h = dense(self.hidden, use_bias=False, name="dense0")(z)
        h = nn.relu(_norm(train, self.dtype, "bn0")(h))
        return dense(z.shape[-1], name="dense1")(h)


def _conv(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """3x3 convolution as one product of matrices, called as `flax.linen.Conv` calls it.

    On a CPU it is faster for few channels, and several seeds in one program cost what they should.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(parts, -1) @ kernel.reshape(-1, kernel.shape[-1])


def _halve(x: Float[Array, "batch h w c"]) -> Float[Array, "batch h/2 w/2 c"]:
    """2x2 max-pooling; as maxima of pairs its gradient is several times faster on CPUs."""
    batch, height, width, channels = x.shape
    cells = x[:, : height // 2 * 2, : width // 2 * 2]
    cells = cells.reshape(batch, height // 2, 2, width // 2, 2, channels)
    rows = jnp.maximum(cells[:, :, 0], cells[:, :, 1])
    return jnp.maximum(rows[:, :, :, 0], rows[:, :, :, 1])


class ConvNet(nn.Module):
    """3x3 convolutions, each with BN, ReLU and 2x2 max-pooling.

    Attributes:
      widths: channels.
      flatten: `embed` is all of the last map, not its mean over pixels.
      dtype: of the computation; parameters and statistics stay float32.

    Call: image [B, H, W, C], train -> (embed, taps). Taps: `stage1`, ... after pooling, `embed`.
    """

    widths: tuple[int, ...] = (24, 48)
    flatten: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch h w c"], *, train: bool
    ) -> tuple[Float[Array, "batch d"], dict[str, Array]]:
        taps, x = {}, image.astype(self.dtype)
        for i, width in enumerate(self.widths):
            x = nn.Conv(
                width,
                (3, 3),
                use_bias=False,
                dtype=self.dtype,
                name=f"conv{i}",
                conv_general_dilated=_conv,
            )(x)
            x = nn.relu(_norm(train, self.dtype, f"bn{i}")(x))
            taps[f"stage{i + 1}"] = x = _halve(x)
        embed = x.reshape(len(x), -1) if self.flatten else x.mean((1, 2))
        taps["embed"] = embed.astype(jnp.float32)
        return taps["embed"], taps


class Siamese(nn.Module):
    """Backbone f, projector and predictor h applied to one view.

    Attributes:
      backbone: (image, train) -> (anything, taps with `embed`).
      projector, predictor: (x, train) -> x.

    Call: image [B, H, W, C], train -> (p [B, d], taps). Taps: `embed` [B, e], what is kept after
    training, and `projection`, z [B, d].
    """

    backbone: nn.Module
    projector: nn.Module
    predictor: nn.Module

    def __call__(
        self, image: Float[Array, "batch h w c"], *, train: bool
    ) -> tuple[Float[Array, "batch d"], dict[str, Array]]:
        embed = self.backbone(image, train=train)[1]["embed"]
        z = self.projector(embed, train=train)
        return self.predictor(z, train=train), {"embed": embed, "projection": z}
