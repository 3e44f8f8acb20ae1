"""VGG networks for images of 32 x 32 (Simonyan, Zisserman, ICLR 2015, cut down)."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.conv import conv_general_dilated

# Convolutions of the stages of 64, 128, 256, 512, 512 channels.
NORMALISED = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
# Convolutions of the stages of 64, 128, 256, 512 channels, and hidden layers of 1024 units.
PLAIN = {6: ((1, 1, 1, 1), 1), 13: ((2, 2, 3, 3), 2)}


class VGG(nn.Module):
    """Stages of 3x3 convolutions with a 2x2 max-pooling between them, in two forms.

    Normalised: BatchNorm after every convolution, three poolings (the fourth and fifth stage share
    a resolution), the mean over pixels, a linear head: vgg8 to vgg19 of contrastive representation
    distillation (Tian, Krishnan, Isola, ICLR 2020). VGG-13 has 9,462,180 parameters at 100 classes.

    Plain: no BatchNorm, a pooling after every stage, hidden layers on the flattened map: teacher
    (depth 13) and student (depth 6) of KD-SVD (Lee, Kim, Song, ECCV 2018).

    Attributes:
      depth: layers with weights, as in `NORMALISED` and `PLAIN`.
      plain: which form.
      dropout: rate after each hidden layer of the plain form, 0.5 in the paper; where it is not 0
        training needs `rngs={"dropout": key}`.
      num_classes: size of the logits.
      dtype: of the computation; parameters and statistics stay float32.

    Call: image [B, H, W, C], train -> (logits [B, num_classes] float32, taps). Taps: `stage1` to
    `stage5` (`stage4` where plain) after the last activation, `stage1_pre` ... right before it,
    `stage1_pool` ... after the pooling where there is one, `embed`, the input of the head.
    """

    depth: int = 13
    plain: bool = False
    dropout: float = 0.0
    num_classes: int = 100
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch h w c"], *, train: bool
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        table: Any = PLAIN if self.plain else NORMALISED
        if self.depth not in table:
            allowed = ", ".join(map(str, table))
            raise ValueError(
                f"VGG: depth = {self.depth}, plain = {self.plain}: allowed are {allowed}"
            )
        counts, hidden = PLAIN[self.depth] if self.plain else (NORMALISED[self.depth], 0)
        init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
        taps: dict[str, Array] = {}
        x = image.astype(self.dtype)
        for stage, count in enumerate(counts, 1):
            for i in range(count):
                x = nn.Conv(
                    min(32 << stage, 512),
                    (3, 3),
                    padding=1,
                    kernel_init=init,
                    dtype=self.dtype,
                    conv_general_dilated=conv_general_dilated,
                    name=f"stage{stage}_conv{i}",
                )(x)
                if not self.plain:
                    x = nn.BatchNorm(
                        use_running_average=not train,
                        momentum=0.9,
                        epsilon=1e-5,
                        dtype=self.dtype,
                        name=f"stage{stage}_bn{i}",
                    )(x)
                taps[f"stage{stage}_pre"] = x
                taps[f"stage{stage}"] = x = nn.relu(x)
            if self.plain or stage < 4:
                taps[f"stage{stage}_pool"] = x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1) if self.plain else x.mean((1, 2))
        for i in range(hidden):
            x = nn.relu(nn.Dense(1024, dtype=self.dtype, name=f"hidden{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        taps["embed"] = x
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="head")(x)
        return logits.astype(jnp.float32), taps
