"""A three-stage network for images of a few pixels, as the embedded proofs train it in seconds."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.conv import conv_patches


def _conv(x: Array, kernel: Array, strides: Any, *_: Any, **__: Any) -> Array:
    return conv_patches(x, kernel, stride=strides[0])


class SmallCNN(nn.Module):
    """Three stages of conv3x3, BatchNorm, ReLU with width, 2 width and 4 width channels.

    Attributes:
      width: channels of the first stage.
      repeats: convolutions a stage.
      pool: stages 2 and 3 start from a 2x2 max-pooling; else their first convolution has stride 2.
      num_classes: size of the logits.
      dtype: of the computation; parameters and statistics stay float32.

    Call: image [B, H, W, C], train -> (logits [B, num_classes] float32, taps). Taps: `stage1` to
    `stage3` after the last activation of a stage, `stage1_pre` to `stage3_pre` right before it,
    `embed` (the mean of `stage3` over pixels).
    """

    width: int = 16
    repeats: int = 1
    pool: bool = False
    num_classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch h w c"], *, train: bool
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        taps: dict[str, Array] = {}
        x = image.astype(self.dtype)
        for stage in range(1, 4):
            if self.pool and stage > 1:
                x = nn.max_pool(x, (2, 2), (2, 2))
            for i in range(self.repeats):
                stride = 2 if stage > 1 and not i and not self.pool else 1
                # Explicit padding: "SAME" shifts strided convolutions by a pixel.
                x = nn.Conv(
                    self.width << stage - 1,
                    (3, 3),
                    stride,
                    padding=1,
                    use_bias=False,
                    kernel_init=init,
                    dtype=self.dtype,
                    # Many steps run in one scan, where CPUs have no fast kernel gradient.
                    conv_general_dilated=_conv,
                    name=f"stage{stage}_conv{i}",
                )(x)
                taps[f"stage{stage}_pre"] = nn.BatchNorm(
                    use_running_average=not train,
                    momentum=0.9,
                    epsilon=1e-5,
                    dtype=self.dtype,
                    name=f"stage{stage}_bn{i}",
                )(x)
                taps[f"stage{stage}"] = x = nn.relu(taps[f"stage{stage}_pre"])
        taps["embed"] = x.mean((1, 2))
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(taps["embed"])
        return logits.astype(jnp.float32), taps
