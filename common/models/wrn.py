"""Wide residual networks for small images (Zagoruyko, Komodakis, BMVC 2016)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.conv import conv_general_dilated


class WRN(nn.Module):
    """WRN-depth-width with pre-activation blocks; WRN-16-2 has 691,674 parameters at 10 classes.

    Attributes:
      depth: 6 n + 4.
      width: factor on the channels 16, 32, 64.
      num_classes: size of the logits.
      dtype: of the computation; parameters and statistics stay float32.

    Call: image [B, H, W, C], train -> (logits [B, num_classes] float32, taps). Taps: `stem`;
    `stage1_sum` to `stage3_sum`, the sum that a stage's last block returns; `stage1_pre` to
    `stage3_pre`, its BatchNorm, which opens the next stage (or the head); `stage1` to `stage3`
    after the activation that follows; `embed` (the mean of `stage3` over pixels).
    """

    depth: int = 16
    width: int = 2
    num_classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch h w c"], *, train: bool
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        if (self.depth - 4) % 6:
            raise ValueError(f"WRN: depth = {self.depth}: must be 6 n + 4")
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

        def norm(name: str, x: Array) -> Array:
            return nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                dtype=self.dtype,
                name=name,
            )(x)

        def conv(name: str, x: Array, channels: int, size: int, stride: int) -> Array:
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

        taps = {"stem": conv("stem", image.astype(self.dtype), 16, 3, 1)}
        x = taps["stem"]
        for stage in range(1, 4):
            channels = 8 * self.width << stage
            for block in range((self.depth - 4) // 6):
                name = f"stage{stage}_block{block}"
                stride = 2 if stage > 1 and not block else 1
                pre = norm(f"{name}_bn0", x)
                h = nn.relu(pre)
                if stage > 1 and not block:
                    taps[f"stage{stage - 1}_pre"], taps[f"stage{stage - 1}"] = pre, h
                # Where the shape changes, the shortcut starts after the shared activation.
                if x.shape[-1] != channels or stride > 1:
                    x = conv(f"{name}_shortcut", h, channels, 1, stride)
                h = conv(f"{name}_conv0", h, channels, 3, stride)
                h = nn.relu(norm(f"{name}_bn1", h))
                x = x + conv(f"{name}_conv1", h, channels, 3, 1)
            taps[f"stage{stage}_sum"] = x
        taps["stage3_pre"] = norm("bn", x)
        taps["stage3"] = nn.relu(taps["stage3_pre"])
        taps["embed"] = taps["stage3"].mean((1, 2))
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(taps["embed"])
        return logits.astype(jnp.float32), taps
