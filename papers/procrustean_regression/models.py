"""The network that lifts one frame of 2D points."""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float


class PRNFCN(nn.Module):
    """PRN-FCN: a residual network of dense layers, with a branch for xy and one for z.

    The input does not skip to the xy output: reprojection is learnt. About 6.4 M parameters at
    width 1024. Dense layers have no bias and are followed by BatchNorm; the two outputs have one.

    Attributes:
      num_points: P.
      width: of every hidden layer.
      momentum: share of the running statistics kept each step.
      dtype: of the computation; parameters and the output are float32.

    Call: points2d [B, P, 2] (0 where not seen), train: use the batch's statistics -> X [B, P, 3].
    """

    num_points: int = 17
    width: int = 1024
    momentum: float = 0.999
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, points2d: Float[Array, "batch points 2"], *, train: bool = False
    ) -> Float[Array, "batch points 3"]:
        if points2d.ndim != 3 or points2d.shape[1:] != (self.num_points, 2):
            raise ValueError(f"PRNFCN: points2d {points2d.shape} must be [B, {self.num_points}, 2]")
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.momentum,
            epsilon=1e-5,
            dtype=self.dtype,
        )
        # Caffe's "xavier": uniform, by the number of inputs.
        dense = functools.partial(
            nn.Dense,
            self.width,
            use_bias=False,
            kernel_init=nn.initializers.lecun_uniform(),
            dtype=self.dtype,
        )

        def block(h: Array, name: str) -> Array:
            r = nn.relu(norm(name=f"{name}_norm0")(dense(name=f"{name}_dense0")(h)))
            return nn.relu(h + norm(name=f"{name}_norm1")(dense(name=f"{name}_dense1")(r)))

        def out(h: Array, size: int, name: str) -> Array:
            start = nn.initializers.normal(1e-3)
            return nn.Dense(size, kernel_init=start, dtype=jnp.float32, name=name)(h)

        batch = len(points2d)
        h = points2d.reshape(batch, -1).astype(self.dtype)
        h = nn.relu(norm(name="in_norm")(dense(name="in_dense")(h)))
        h = block(h, "shared")
        xy = out(block(h, "xy"), 2 * self.num_points, "xy_out").reshape(batch, -1, 2)
        z = out(block(h, "z"), self.num_points, "z_out")[..., None]
        return jnp.concatenate([xy, z], -1)
