"""From the maps of a backbone to patch descriptors."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def patch_features(
    maps: Sequence[Float[Array, "batch _ _ _"]],
) -> Float[Array, "batch height width all_channels"]:
    """Pools every map over 3x3, brings all to the first one's size, and concatenates: o1, o2, o3.

    Args:
      maps: [B, Hi, Wi, Ci], the largest first. The zeros of the padding count in the averages.

    Returns:
      [B, H, W, sum Ci] of the first map's H and W; smaller maps are resized bilinearly with
      half-pixel centres.

    Raises:
      ValueError: no map, one that is not [B, Hi, Wi, Ci] with the first one's B, or a larger one.

    Source: Lee, Lee, Song, IEEE Access 2022, the patch features p.
    """
    shapes = [m.shape for m in maps]
    if not shapes or any(len(s) != 4 or s[0] != shapes[0][0] for s in shapes):
        raise ValueError(f"patch_features: maps {shapes} must be [B, H, W, C] of one batch size")
    height, width = shapes[0][1:3]
    if any(s[1] > height or s[2] > width for s in shapes):
        raise ValueError(f"patch_features: maps {shapes}: the first must be the largest")
    pooled = [nn.avg_pool(m, (3, 3), (1, 1), ((1, 1), (1, 1))) for m in maps]
    resized = [
        jax.image.resize(m, (len(m), height, width, m.shape[-1]), "linear", antialias=False)
        for m in pooled
    ]
    return jnp.concatenate(resized, -1)


def add_coords(x: Float[Array, "batch height width c"]) -> Float[Array, "batch height width c_2"]:
    """Appends each pixel's row, then its column, both from -1 to 1: [B, H, W, C + 2].

    Raises:
      ValueError: x is not [B, H, W, C].

    Source: Liu et al., NeurIPS 2018 (CoordConv).
    """
    if x.ndim != 4:
        raise ValueError(f"add_coords: x {x.shape} must be [B, H, W, C]")
    batch, height, width, _ = x.shape
    rows = jnp.linspace(-1.0, 1.0, height, dtype=x.dtype)[None, :, None, None]
    columns = jnp.linspace(-1.0, 1.0, width, dtype=x.dtype)[None, None, :, None]
    shape = (batch, height, width, 1)
    return jnp.concatenate([x, jnp.broadcast_to(rows, shape), jnp.broadcast_to(columns, shape)], -1)


def _uniform_fan_in(key: Array, shape: Sequence[int], fan_in: int, dtype: Any) -> Array:
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class PatchDescriptor(nn.Module):
    """phi: a 1x1 convolution of the patch features and their coordinates, with a bias.

    Kernel and bias start uniform in +-1/sqrt(Cin + 2), as PyTorch's convolutions do: the memory
    bank is made of this random map, so its scale matters.

    Attributes:
      features: D, the width of a descriptor.
      dtype: of the computation; None: that of the inputs and parameters together. Parameters are
        float32.

    Call: [B, H, W, Cin] -> [B, H, W, D]. Parameters: `kernel` [Cin + 2, D], whose last two rows are
    the row and the column coordinate, and `bias` [D].
    """

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width c"]
    ) -> Float[Array, "batch height width d"]:
        fan_in = x.shape[-1] + 2
        shapes = {"kernel": (fan_in, self.features), "bias": (self.features,)}
        kernel, bias = (
            self.param(name, lambda key, s=shape: _uniform_fan_in(key, s, fan_in, jnp.float32))
            for name, shape in shapes.items()
        )
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return add_coords(x) @ kernel + bias
