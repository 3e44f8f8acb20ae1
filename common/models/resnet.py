"""Residual networks of ImageNet (He et al., CVPR 2016) in torchvision's layout, and wide ones."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.conv import conv_general_dilated

# depth: (blocks of the four stages, whether they are bottlenecks)
STAGES = {
    10: ((1, 1, 1, 1), False),
    14: ((1, 1, 1, 1), True),
    18: ((2, 2, 2, 2), False),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
}


class ResNet(nn.Module):
    """ResNet-depth with post-activation blocks; a bottleneck strides in its 3x3 convolution (v1.5).

    Wide-ResNet-50-2 is `ResNet(50, widen=2)`. Weights of torchvision are read by
    `torchvision_weights.from_torchvision`.

    Attributes:
      depth: 18, 34 (basic blocks), 50, 101, 152 (bottlenecks); 10 and 14 are the smallest of each.
      num_classes: size of the logits, or None for no head: the output is then `embed`.
      width: channels of the stem and of the first stage's 3x3 convolutions.
      widen: factor on the 3x3 convolutions of bottlenecks; the channels between blocks stay.
      small_images: a stem of one 3x3 convolution, stride 1, and no max-pooling, as for CIFAR.
      zero_init: the last BatchNorm of every block starts at scale 0, so that blocks start as
        identities.
      dtype: of the computation; parameters and statistics stay float32.

    Call: image [B, H, W, C], train -> (logits [B, num_classes] or embed [B, D], float32, taps).
    Taps: `stem` (before the max-pooling) and `stage1` to `stage4` after the last activation,
    `stem_pre` and `stage1_pre` to `stage4_pre` right before it, `embed` (the mean of `stage4` over
    pixels). Under jit, stages nobody reads are not computed.
    """

    depth: int = 18
    num_classes: int | None = 1000
    width: int = 64
    widen: int = 1
    small_images: bool = False
    zero_init: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch h w c"], *, train: bool
    ) -> tuple[Float[Array, "batch d"], dict[str, Array]]:
        if self.depth not in STAGES:
            raise ValueError(f"ResNet: depth = {self.depth}: one of {', '.join(map(str, STAGES))}")
        blocks, bottleneck = STAGES[self.depth]
        if self.widen != 1 and not bottleneck:
            raise ValueError(f"ResNet: widen = {self.widen}: 1 for the basic blocks of depth 10-34")
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

        def norm(name: str, x: Array, scale_init=nn.initializers.ones) -> Array:
            return nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                dtype=self.dtype,
                scale_init=scale_init,
                name=name,
            )(x)

        def conv(name: str, x: Array, channels: int, size: int, stride: int = 1) -> Array:
            # Explicit padding: "SAME" shifts strided convolutions by a pixel against torchvision.
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

        taps = {}
        size, stride = (3, 1) if self.small_images else (7, 2)
        x = conv("stem", image.astype(self.dtype), self.width, size, stride)
        taps["stem_pre"] = norm("stem_bn", x)
        taps["stem"] = x = nn.relu(taps["stem_pre"])
        if not self.small_images:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))

        last = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        for stage, count in enumerate(blocks, 1):
            inner = self.width << stage - 1
            outer = 4 * inner if bottleneck else inner
            for block in range(count):
                name = f"stage{stage}_block{block}"
                stride = 2 if stage > 1 and not block else 1
                if bottleneck:
                    wide = inner * self.widen
                    layers = [(wide, 1, 1), (wide, 3, stride), (outer, 1, 1)]
                else:
                    layers = [(outer, 3, stride), (outer, 3, 1)]
                h = x
                for i, layer in enumerate(layers):
                    final = i == len(layers) - 1
                    h = conv(f"{name}_conv{i}", h, *layer)
                    h = norm(f"{name}_bn{i}", h, last if final else nn.initializers.ones)
                    h = h if final else nn.relu(h)
                if x.shape[-1] != outer or stride > 1:
                    x = conv(f"{name}_shortcut", x, outer, 1, stride)
                    x = norm(f"{name}_shortcut_bn", x)
                x = x + h
                if block == count - 1:
                    taps[f"stage{stage}_pre"] = x
                x = nn.relu(x)
            taps[f"stage{stage}"] = x
        taps["embed"] = out = x.mean((1, 2))
        if self.num_classes is not None:
            out = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(out)
        return out.astype(jnp.float32), taps
