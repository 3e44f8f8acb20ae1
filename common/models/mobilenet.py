"""MobileNet v1 (Howard et al., 2017)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.conv import conv_general_dilated

# Depthwise-separable blocks -> channels of the stages' blocks, after the first block of 64.
STAGES: dict[int, tuple[tuple[int, ...], ...]] = {
    13: ((128, 128), (256, 256), (512,) * 6, (1024, 1024)),
    7: ((128, 128), (256, 256), (512, 512)),
    4: ((128,), (256,), (512,)),
}


class MobileNet(nn.Module):
    """MobileNet: 3x3 depthwise, BatchNorm, ReLU, 1x1, BatchNorm, ReLU; 4,231,976 parameters.

    Attributes:
      width: factor on all channels (alpha).
      blocks: 13, the network of ImageNet, whose first convolution has stride 2; 7 and 4, teacher
        and student for images of 32 x 32 in the released code of KD-SVD (Lee, Kim, Song, ECCV
        2018), whose first convolution has stride 1.
      num_classes: size of the logits.
      dtype: of the computation; parameters and statistics stay float32.

    Call: image [B, H, W, C], train -> (logits [B, num_classes] float32, taps). Taps: `stem` (after
    the block of 64 channels), `stage1` to `stage4` (`stage3` where blocks < 13) after the last
    activation, `stem_pre`, `stage1_pre` ... right before it, `embed` (the mean over pixels). Each
    stage starts with stride 2, so that with 13 blocks they are as large as those of a ResNet-50.
    """

    width: float = 1.0
    blocks: int = 13
    num_classes: int = 1000
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch h w c"], *, train: bool
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        if self.blocks not in STAGES:
            allowed = ", ".join(map(str, STAGES))
            raise ValueError(f"MobileNet: blocks = {self.blocks}: allowed are {allowed}")
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")

        def conv_norm(
            name: str, x: Array, channels: int, size: int, stride: int = 1, groups: int = 1
        ) -> Array:
            # Explicit padding: "SAME" shifts strided convolutions by a pixel against PyTorch's.
            x = nn.Conv(
                channels,
                (size, size),
                stride,
                padding=size // 2,
                feature_group_count=groups,
                use_bias=False,
                kernel_init=init,
                dtype=self.dtype,
                conv_general_dilated=conv_general_dilated,
                name=name,
            )(x)
            return nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                dtype=self.dtype,
                name=f"{name}_bn",
            )(x)

        stride = 2 if self.blocks == 13 else 1
        taps: dict[str, Array] = {}
        x = conv_norm("stem", image.astype(self.dtype), int(32 * self.width), 3, stride)
        x = nn.relu(x)
        stages: dict[str, tuple[int, ...]] = {"stem": (64,)}
        stages |= {f"stage{i}": widths for i, widths in enumerate(STAGES[self.blocks], 1)}
        for stage, widths in stages.items():
            for block, channels in enumerate(widths):
                stride = 2 if stage != "stem" and not block else 1
                name, deep = f"{stage}_block{block}", x.shape[-1]
                x = nn.relu(conv_norm(f"{name}_depthwise", x, deep, 3, stride, deep))
                x = conv_norm(f"{name}_pointwise", x, int(channels * self.width), 1)
                taps[f"{stage}_pre"] = x
                taps[stage] = x = nn.relu(x)
        taps["embed"] = x.mean((1, 2))
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(taps["embed"])
        return logits.astype(jnp.float32), taps
