"""Wide residual networks for small images (Zagoruyko, Komodakis, BMVC 2016)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class WRN(nn.Module):
    """WRN-depth-width with pre-activation blocks; WRN-16-2 has 691,674 parameters at 10 classes.

    Attributes:
      depth: 6 n + 4.
      width: factor on the channels 16, 32, 64.
      num_classes: size of the logits.
      dtype: of the computation; parameters and statistics stay float32.

    Call: image [B, H, W, C], train -> (logits [B, num_classes] float32, taps). Taps: `stem`,
    `stage1` to `stage3` (after the last block of a stage, before the activation that follows),
    `final` (after the last BatchNorm and activation) and `embed` (its mean over pixels).
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
            batch_norm = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                dtype=self.dtype,
                name=name,
            )
            return nn.relu(batch_norm(x))

        def conv(name: str, x: Array, channels: int, size: int, stride: int) -> Array:
            return nn.Conv(
                channels,
                (size, size),
                stride,
                use_bias=False,
                kernel_init=init,
                dtype=self.dtype,
                name=name,
            )(x)

        taps = {"stem": conv("stem", image.astype(self.dtype), 16, 3, 1)}
        x = taps["stem"]
        for stage in range(3):
            channels = 16 * self.width << stage
            for block in range((self.depth - 4) // 6):
                name = f"stage{stage + 1}_block{block}"
                stride = 2 if stage and not block else 1
                h = norm(f"{name}_bn0", x)
                # Where the shape changes, the shortcut starts after the shared activation.
                if x.shape[-1] != channels or stride > 1:
                    x = conv(f"{name}_shortcut", h, channels, 1, stride)
                h = conv(f"{name}_conv0", h, channels, 3, stride)
                h = conv(f"{name}_conv1", norm(f"{name}_bn1", h), channels, 3, 1)
                x = x + h
            taps[f"stage{stage + 1}"] = x
        taps["final"] = norm("bn", x)
        taps["embed"] = taps["final"].mean((1, 2))
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(taps["embed"])
        return logits.astype(jnp.float32), taps
