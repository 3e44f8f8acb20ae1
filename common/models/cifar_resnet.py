"""Residual networks of CIFAR (He et al., CVPR 2016, section 4.2)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.conv import conv_general_dilated


class CifarResNet(nn.Module):
    """ResNet-depth of three stages with post-activation basic blocks.

    ResNet-20 has 269,722 parameters at 10 classes with shortcut "A", 272,474 with "B".

    Attributes:
      depth: 6 n + 2, n blocks a stage: 8, 14, 20, 26, 32, 44, 56, 110.
      width: factor on the channels 16, 32, 64 of the stages; where it is not 1 the stem has 32
        channels: ResNet-8x4 and ResNet-32x4 of the distillation literature.
      shortcut: where the shape changes; "A": every second pixel, zeros for new channels (He et al.,
        boundary supporting samples), "B": 1x1 convolution and BatchNorm (the released code of
        overhaul of feature distillation, feature fusion learning, KD-SVD).
      num_classes: size of the logits.
      dtype: of the computation; parameters and statistics stay float32.

    Call: image [B, H, W, C], train -> (logits [B, num_classes] float32, taps). Taps: `stem` and
    `stage1` to `stage3` after the last activation, `stem_pre` and `stage1_pre` to `stage3_pre`
    right before it, `embed` (the mean of `stage3` over pixels).
    """

    depth: int = 20
    width: int = 1
    shortcut: str = "A"
    num_classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch h w c"], *, train: bool
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        if (self.depth - 2) % 6 or self.depth < 8:
            raise ValueError(f"CifarResNet: depth = {self.depth}: must be 6 n + 2, at least 8")
        if self.shortcut not in ("A", "B"):
            raise ValueError(f"CifarResNet: shortcut = {self.shortcut!r}: allowed are A, B")
        if self.shortcut == "A" and self.width != 1:
            raise ValueError(f"CifarResNet: width = {self.width}: needs shortcut B")
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

        def conv_norm(name: str, x: Array, channels: int, size: int, stride: int = 1) -> Array:
            # Explicit padding: "SAME" shifts strided convolutions by a pixel against the originals.
            x = nn.Conv(
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
            return nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                dtype=self.dtype,
                name=f"{name}_bn",
            )(x)

        taps = {}
        stem = 16 if self.width == 1 else 32
        taps["stem_pre"] = conv_norm("stem", image.astype(self.dtype), stem, 3)
        taps["stem"] = x = nn.relu(taps["stem_pre"])
        for stage in range(1, 4):
            channels = 8 * self.width << stage
            for block in range((self.depth - 2) // 6):
                name = f"stage{stage}_block{block}"
                stride = 2 if stage > 1 and not block else 1
                h = nn.relu(conv_norm(f"{name}_conv0", x, channels, 3, stride))
                h = conv_norm(f"{name}_conv1", h, channels, 3)
                if self.shortcut == "A":
                    x = x[:, ::stride, ::stride]
                    x = jnp.pad(x, ((0, 0),) * 3 + ((0, channels - x.shape[-1]),))
                elif x.shape[-1] != channels or stride > 1:
                    x = conv_norm(f"{name}_shortcut", x, channels, 1, stride)
                taps[f"stage{stage}_pre"] = x + h
                taps[f"stage{stage}"] = x = nn.relu(taps[f"stage{stage}_pre"])
        taps["embed"] = x.mean((1, 2))
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(taps["embed"])
        return logits.astype(jnp.float32), taps
