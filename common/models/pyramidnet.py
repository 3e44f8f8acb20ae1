"""Pyramidal residual networks for small images (Han, Kim, Kim, CVPR 2017)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.conv import conv_general_dilated


class PyramidNet(nn.Module):
    """Additive PyramidNet-depth(alpha): every block is alpha / (3 n) channels wider than the last.

    Blocks have no activation before their first convolution and a BatchNorm after their last;
    shortcuts average 2x2 pixels where the resolution changes and zeros fill the new channels.
    PyramidNet-110(84) has 3,904,446 parameters at 10 classes, PyramidNet-200(240) 26,752,702.

    Attributes:
      depth: 6 n + 2 of basic blocks, 9 n + 2 of bottlenecks.
      alpha: channels by which the last block is wider than the stem's 16.
      bottleneck: 1x1, 3x3, 1x1 convolutions, four times as many channels between the blocks.
      num_classes: size of the logits.
      dtype: of the computation; parameters and statistics stay float32.

    Call: image [B, H, W, C], train -> (logits [B, num_classes] float32, taps). Taps: `stage1_sum`
    to `stage3_sum`, the sum that a stage's last block returns; `stage1_pre` to `stage3_pre` where
    the overhaul of feature distillation reads them: BatchNorms of the next stage's first block, the
    first one, or the one after the 1x1 convolution of a bottleneck, and the final one; `stage1` to
    `stage3`, these after a ReLU; `embed` (the mean of `stage3` over pixels).
    """

    depth: int = 110
    alpha: int = 84
    bottleneck: bool = False
    num_classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch h w c"], *, train: bool
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        per_block = 9 if self.bottleneck else 6
        if (self.depth - 2) % per_block or self.depth <= 2:
            raise ValueError(
                f"PyramidNet: depth = {self.depth}, bottleneck = {self.bottleneck}: must be "
                f"{per_block} n + 2"
            )
        count = (self.depth - 2) // per_block
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

        def norm(name: str, x: Array) -> Array:
            return nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                dtype=self.dtype,
                name=name,
            )(x)

        def conv(name: str, x: Array, channels: int, size: int, stride: int = 1) -> Array:
            # Explicit padding: "SAME" shifts strided convolutions by a pixel against the original.
            return nn.Conv(
                channels,
                (size, size),
                stride,
                padding=size // 2,
                use_bias=False,
                kernel_init=init,
                dtype=self.dtype,
                conv_general_dilated=conv_general_dilated,
                name=name,
            )(x)

        taps: dict[str, Array] = {}
        x = norm("stem_bn", conv("stem", image.astype(self.dtype), 16, 3))
        wide = 16.0
        for stage in range(1, 4):
            for block in range(count):
                name = f"stage{stage}_block{block}"
                stride = 2 if stage > 1 and not block else 1
                wide += self.alpha / (3 * count)
                inner = round(wide)
                if self.bottleneck:
                    layers = [(inner, 1, 1), (inner, 3, stride), (4 * inner, 1, 1)]
                else:
                    layers = [(inner, 3, stride), (inner, 3, 1)]
                norms = [norm(f"{name}_bn0", x)]
                for i, layer in enumerate(layers):
                    h = nn.relu(norms[-1]) if i else norms[-1]
                    norms.append(norm(f"{name}_bn{i + 1}", conv(f"{name}_conv{i}", h, *layer)))
                if stride > 1:
                    taps[f"stage{stage - 1}_pre"] = norms[1 if self.bottleneck else 0]
                    x = nn.avg_pool(x, (2, 2), (2, 2))
                x = jnp.pad(x, ((0, 0),) * 3 + ((0, layers[-1][0] - x.shape[-1]),)) + norms[-1]
            taps[f"stage{stage}_sum"] = x
        taps["stage3_pre"] = norm("bn", x)
        for stage in range(1, 4):
            taps[f"stage{stage}"] = nn.relu(taps[f"stage{stage}_pre"])
        taps["embed"] = taps["stage3"].mean((1, 2))
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(taps["embed"])
        return logits.astype(jnp.float32), taps
