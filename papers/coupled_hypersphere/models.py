"""Backbones: what a recipe builds by name; the equations take any maps."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from reprise.common.models.resnet import ResNet


def _edges(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
    """N(0, 1) minus 0.7 of each kernel's spatial mean, scaled to an L2 norm of sqrt(2)."""
    kernel = jax.random.normal(key, shape, dtype)
    kernel -= 0.7 * kernel.mean((0, 1), keepdims=True)
    return kernel * jnp.sqrt(2.0 / (kernel**2).sum((0, 1, 2), keepdims=True))


class RandomPyramid(nn.Module):
    """Three strided 3x3 convolutions with ReLU and random kernels that answer to edges.

    Stands in for a trained backbone where there are no weights.

    Attributes:
      widths: channels of the three.
      dtype: of the computation.

    Call: image [B, H, W, C], train (ignored) -> (mean of the last map [B, D], taps). Taps:
    `stage1` to `stage3`, at 1/2, 1/4 and 1/8 of the size.
    """

    widths: tuple[int, ...] = (16, 32, 64)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch h w c"], *, train: bool
    ) -> tuple[Float[Array, "batch d"], dict[str, Array]]:
        x, taps = image.astype(self.dtype), {}
        for i, width in enumerate(self.widths, 1):
            conv = nn.Conv(
                width,
                (3, 3),
                2,
                padding=1,
                use_bias=False,
                kernel_init=_edges,
                dtype=self.dtype,
                name=f"conv{i}",
            )
            taps[f"stage{i}"] = x = nn.relu(conv(x))
        return x.mean((1, 2)), taps


def backbone(config: ConfigDict) -> nn.Module:
    """The frozen network of a config, of precision `config.precision`.

    Raises:
      ValueError: an unknown name.
    """
    m, dtype = config.model, jnp.dtype(config.precision)
    if m.backbone == "random_pyramid":
        return RandomPyramid(dtype=dtype)
    if m.backbone == "resnet":
        classes = m.backbone_classes or None
        return ResNet(m.depth, classes, m.width, m.widen, dtype=dtype)
    raise ValueError(f"config.model.backbone = {m.backbone!r}: random_pyramid or resnet")
