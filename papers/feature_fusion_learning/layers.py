"""The fusion module: the last maps of several networks become one, with a classifier of its own."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.conv import conv_general_dilated
from reprise.common.ops.dtypes import wide

CONV_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
DENSE_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def dense(features: int, fan_in: int, dtype: Any, name: str) -> nn.Dense:
    """A linear layer with PyTorch's initialisation, U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""

    def bias(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return (nn.initializers.uniform(2.0)(key, shape, dtype) - 1.0) * fan_in**-0.5

    return nn.Dense(features, kernel_init=DENSE_INIT, bias_init=bias, dtype=dtype, name=name)


class FusionModule(nn.Module):
    """Depthwise 3x3 convolution of the concatenated maps, then a pointwise one to D channels.

    Each convolution is followed by BatchNorm and ReLU; the fused map is averaged over pixels and
    classified. Maps of different shapes are first brought to the smallest resolution and to D
    channels by a strided 3x3 convolution with BatchNorm each. With two maps of 64 channels, D = 64
    and 100 classes there are 16,228 parameters. Gradients pass to all maps.

    Attributes:
      num_classes: K.
      features: D.
      dtype: of the computation; parameters and statistics stay float32.

    Call: maps [B, h, w, D_m] after the last ReLU and before pooling, train -> (fused map
    [B, h, w, D], logits [B, K] float32).

    Raises:
      ValueError: no maps, maps that are not [B, h, w, D_m] of one batch, or a resolution that is no
        whole multiple of the smallest.

    Source: Kim, Hyun, Chung, Kwak, ICPR 2020; the adaptation of unlike maps is a choice of ours.
    """

    num_classes: int
    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[Array, "batch h w d"]], train: bool
    ) -> tuple[Float[Array, "batch h w features"], Float[Array, "batch classes"]]:
        shapes = [x.shape for x in maps]
        if not maps or any(len(s) != 4 or s[0] != shapes[0][0] for s in shapes):
            raise ValueError(f"FusionModule: maps {shapes} must be [B, h, w, D_m] of one batch")
        if len(set(shapes)) > 1:
            maps = self._alike(maps, train)
        x = jnp.concatenate([m.astype(self.dtype) for m in maps], -1)
        x = nn.Conv(
            x.shape[-1],
            (3, 3),
            padding=1,
            feature_group_count=x.shape[-1],
            use_bias=False,
            kernel_init=CONV_INIT,
            dtype=self.dtype,
            conv_general_dilated=conv_general_dilated,
            name="dw",
        )(x)
        x = nn.relu(self._norm("bn1", x, train))
        x = nn.Conv(
            self.features,
            (1, 1),
            use_bias=False,
            kernel_init=CONV_INIT,
            dtype=self.dtype,
            conv_general_dilated=conv_general_dilated,
            name="pw",
        )(x)
        fused = nn.relu(self._norm("bn2", x, train))
        logits = dense(self.num_classes, self.features, self.dtype, "fc")(fused.mean((1, 2)))
        return fused, wide(logits)

    def _norm(self, name: str, x: Array, train: bool) -> Array:
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            name=name,
        )(x)

    def _alike(self, maps: Sequence[Array], train: bool) -> list[Array]:
        rows, columns = (min(x.shape[axis] for x in maps) for axis in (1, 2))
        alike = []
        for i, x in enumerate(maps):
            strides = (x.shape[1] // rows, x.shape[2] // columns)
            if (rows * strides[0], columns * strides[1]) != x.shape[1:3]:
                raise ValueError(
                    f"FusionModule: map {i} {x.shape} must be a whole multiple of {rows} x "
                    f"{columns}, the smallest resolution"
                )
            x = nn.Conv(
                self.features,
                (3, 3),
                strides,
                padding=1,
                use_bias=False,
                kernel_init=CONV_INIT,
                dtype=self.dtype,
                conv_general_dilated=conv_general_dilated,
                name=f"adapt{i}",
            )(x.astype(self.dtype))
            alike.append(self._norm(f"adapt{i}_bn", x, train))
        return alike
