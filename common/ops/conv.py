"""Convolutions whose gradient is fast inside loops on CPUs.

XLA's CPU compiler rewrites the convolution of an input gradient into one that it has a fast kernel
for, but not inside the body of a loop, where it is about ten times slower. Backward fixed-point
iterations and inner processes are such loops. Here the gradient is written as the convolution that
it is, with the flipped and transposed kernel, and so are the gradient's gradients.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

Image = Float[Array, "batch height width c_in"]
Kernel = Float[Array, "kh kw c_in c_out"]


def _flipped(kernel: Kernel) -> Kernel:
    return jnp.swapaxes(kernel[::-1, ::-1], 2, 3)


@jax.custom_vjp
def conv_same(x: Image, kernel: Kernel) -> Float[Array, "batch height width c_out"]:
    """Convolution of stride 1 with zero padding that keeps the size; odd kernels.

    Reverse mode of any order; no forward mode.
    """
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=_DIMENSIONS)


def _conv_fwd(x: Image, kernel: Kernel) -> Any:
    return conv_same(x, kernel), (x, kernel)


def _conv_bwd(residuals: Any, ct: Image) -> Any:
    x, kernel = residuals
    return conv_same(ct, _flipped(kernel)), _kernel_gradient(kernel.shape[:2], x, ct)


conv_same.defvjp(_conv_fwd, _conv_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_gradient(size: tuple[int, int], x: Image, ct: Image) -> Kernel:
    """The kernel's cotangent; linear in x and in ct."""
    shape = jax.ShapeDtypeStruct((*size, x.shape[-1], ct.shape[-1]), x.dtype)

    def of_kernel(kernel: Kernel) -> Image:
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=_DIMENSIONS
        )

    return jax.linear_transpose(of_kernel, shape)(ct)[0]


def _gradient_fwd(size: tuple[int, int], x: Image, ct: Image) -> Any:
    return _kernel_gradient(size, x, ct), (x, ct)


def _gradient_bwd(size: tuple[int, int], residuals: Any, kernel: Kernel) -> Any:
    x, ct = residuals
    return conv_same(ct, _flipped(kernel)), conv_same(x, kernel)


_kernel_gradient.defvjp(_gradient_fwd, _gradient_bwd)


def conv_general_dilated(
    lhs: Image, rhs: Kernel, window_strides: Any, padding: Any, **options: Any
) -> Image:
    """`conv_same` with the signature that `flax.linen.Conv(conv_general_dilated=...)` calls.

    Raises:
      ValueError: anything but an odd kernel, stride 1, "SAME" padding and no dilation or groups.
    """
    odd = all(n % 2 for n in rhs.shape[:2])
    plain = all(v == 1 for v in window_strides) and options.get("feature_group_count", 1) == 1
    for name in ("lhs_dilation", "rhs_dilation"):
        plain &= all(v == 1 for v in options.get(name) or (1, 1))
    if not (odd and plain and padding == "SAME" and lhs.ndim == 4):
        raise ValueError(
            f"conv_same: kernel {rhs.shape}, strides {window_strides}, padding {padding!r}: only "
            'odd 2-D kernels, stride 1, "SAME", no dilation, no groups'
        )
    return conv_same(lhs, rhs)


def conv_patches(
    x: Image, kernel: Kernel, *, stride: int = 1
) -> Float[Array, "batch rows columns c_out"]:
    """Convolution with k // 2 zeros around the image, as one product of patches and kernel.

    XLA's CPU compiler has no fast kernel for a convolution's kernel gradient inside loops either;
    products are fast everywhere. For small images: the patches are k^2 times as large.

    Args:
      x: the images.
      kernel: odd height and width.
      stride: of both axes.

    Raises:
      ValueError: an even kernel, or channels that do not fit.
    """
    rows, columns, channels, out = kernel.shape
    if not rows % 2 or not columns % 2 or x.shape[-1] != channels:
        raise ValueError(
            f"conv_patches: x {x.shape} and kernel {kernel.shape} must be [B, H, W, C] and "
            "[odd, odd, C, M]"
        )
    height, width = x.shape[1:3]
    edge = ((0, 0), (rows // 2,) * 2, (columns // 2,) * 2, (0, 0))
    padded = jnp.pad(x, edge)
    parts = [
        padded[:, i : i + height : stride, j : j + width : stride]
        for i in range(rows)
        for j in range(columns)
    ]
    return jnp.concatenate(parts, -1) @ kernel.reshape(-1, out)
