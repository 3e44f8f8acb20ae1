"""The network of the two-dimensional proof."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

# PyTorch's default: biases too are spread, which places the first layer's folds over the plane.
_KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _bias(fan_in: int) -> Any:
    def init(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
        return nn.initializers.uniform(2.0)(key, shape, dtype) / fan_in**0.5 - fan_in**-0.5

    return init


class PointMLP(nn.Module):
    """Two hidden layers of ReLUs over the flattened input.

    Attributes:
      width: units a hidden layer.
      num_classes: size of the logits.
      dtype: of the computation; parameters stay float32.

    Call: image [B, ...], train -> (logits [B, num_classes] float32, taps); the tap `embed` is the
    second hidden layer after its activation. Training and inference are the same.
    """

    width: int = 16
    num_classes: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, image: Float[Array, "batch ..."], *, train: bool
    ) -> tuple[Float[Array, "batch classes"], dict[str, Array]]:
        def dense(name: str, x: Array, features: int) -> Array:
            return nn.Dense(
                features,
                kernel_init=_KERNEL,
                bias_init=_bias(x.shape[-1]),
                dtype=self.dtype,
                name=name,
            )(x)

        x = image.reshape(len(image), -1).astype(self.dtype)
        for i in (1, 2):
            x = nn.relu(dense(f"hidden{i}", x, self.width))
        return dense("head", x, self.num_classes).astype(jnp.float32), {"embed": x}
