"""The 4-convolution network of few-shot learning, without a state."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.conv import conv_patches

EPSILON = 1e-5  # of the normalisation; the context's gradient exists through it alone


class BatchNorm(nn.Module):
    """Normalises by the mean and the biased variance of this very batch; no running statistics.

    gain (x - mean) / sqrt(var + 1e-5) + bias, statistics in float32.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = wide.mean((0, 1, 2))
        centred = wide - mean
        variance = (centred**2).mean((0, 1, 2))
        return (centred * (scale / jnp.sqrt(variance + EPSILON)) + bias).astype(x.dtype)


def conv3x3(x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c d"]) -> Float[Array, "n h w d"]:
    """Convolution of stride 1 with zero padding that keeps the size, as one matrix product.

    Under vmap over tasks every task has a kernel of its own. XLA makes a grouped convolution of
    that, which is slow on every device; of this a batched matrix product, and so are its gradients
    of any order.
    """
    return conv_patches(x, kernel, 1, 1)


def max_pool2x2(x: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 c"]:
    """Largest of each 2 x 2 window; an odd last row or column is dropped.

    Written with `maximum`: the gradient of a windowed reduction is slow on CPUs.
    """
    h, w = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    corners = [x[:, i:h:2, j:w:2] for i in (0, 1) for j in (0, 1)]
    return jnp.maximum(jnp.maximum(*corners[:2]), jnp.maximum(*corners[2:]))


class ConvNet(nn.Module):
    """Blocks of [conv 3x3, BatchNorm, max-pool 2x2, leaky ReLU], then a dense layer.

    Pooling before the activation is the same function, a quarter of the work. Kernels are
    Xavier-uniform, biases 0; convolutions have none.

    Attributes:
      ways: classes of a task.
      filters: of each block; one entry a block.
      dtype: of the computation; parameters stay float32.

    Call: images [n, H, W, C] -> (logits [n, ways], {"block0": [n, H/2, W/2, filters], ...}).
    """

    ways: int
    filters: tuple[int, ...] = (48, 48, 48, 48)
    dtype: Any = None
    conv: Callable[[Array, Array], Array] = conv3x3

    @nn.compact
    def __call__(
        self, images: Float[Array, "n h w c"]
    ) -> tuple[Float[Array, "n ways"], dict[str, Array]]:
        smallest = 2 ** len(self.filters)
        if images.ndim != 4 or min(images.shape[1:3]) < smallest:
            raise ValueError(
                f"ConvNet: images {images.shape} must be [n, H, W, C] with H and W at least "
                f"{smallest}: {len(self.filters)} blocks halve them"
            )
        x, taps = images, {}
        for i, filters in enumerate(self.filters):
            x = _Conv(filters, self.dtype, self.conv, name=f"conv{i}")(x)
            x = max_pool2x2(BatchNorm(name=f"norm{i}")(x))
            x = taps[f"block{i}"] = jax.nn.leaky_relu(x, 0.01)
        head = nn.Dense(
            self.ways,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            name="linear",
        )
        return head(x.reshape(len(x), -1)), taps

    def scaled_paths(self) -> tuple[str, ...]:
        """Where the kernels lie that CxGrad rescales."""
        return tuple(f"conv{i}/kernel" for i in range(len(self.filters)))


class _Conv(nn.Module):
    filters: int
    dtype: Any
    conv: Callable[[Array, Array], Array]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (3, 3, x.shape[-1], self.filters)
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), shape)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return self.conv(x, kernel)
