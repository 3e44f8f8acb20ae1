"""Convolutions whose gradient is fast inside loops on CPUs.

XLA's CPU compiler has a fast kernel for convolutions of images [B, H, W, C] with kernels
[h, w, C, D]. It brings others into this form, those of gradients among them, but not in the body of
a loop or a branch, where the gradient to an image is about thirty times slower and that to a kernel
a hundred times. Training steps that are scanned, fixed-point iterations and walks of an image are
such loops. Here the gradients are written in this form, and so are the gradients' gradients.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")

Image = Float[Array, "batch height width c_in"]
Kernel = Float[Array, "kh kw c_in c_out"]


class _Geometry(NamedTuple):
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    image_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(geometry: _Geometry, x: Image, kernel: Kernel) -> Float[Array, "batch h w c_out"]:
    return jax.lax.conv_general_dilated(x, kernel, *geometry, dimension_numbers=_DIMENSIONS)


def _conv_fwd(geometry: _Geometry, x: Image, kernel: Kernel) -> Any:
    return _conv(geometry, x, kernel), (x, kernel)


def _conv_bwd(geometry: _Geometry, residuals: Any, ct: Image) -> Any:
    x, kernel = residuals
    strides, padding, image_dilation, kernel_dilation = geometry
    of_image, of_kernel = [], []
    for axis, (before, _) in enumerate(padding):
        n, k, m = (
            (size - 1) * dilation + 1
            for size, dilation in (
                (x.shape[1 + axis], image_dilation[axis]),
                (kernel.shape[axis], kernel_dilation[axis]),
                (ct.shape[1 + axis], strides[axis]),
            )
        )
        of_image.append((k - 1 - before, n - m + before))
        of_kernel.append((before, k - 1 + m - n - before))
    flipped = jnp.swapaxes(kernel[::-1, ::-1], 2, 3)
    pull_image = _Geometry(image_dilation, tuple(of_image), strides, kernel_dilation)
    pull_kernel = _Geometry(kernel_dilation, tuple(of_kernel), image_dilation, strides)
    grad = _conv(pull_kernel, x.transpose(3, 1, 2, 0), ct.transpose(1, 2, 0, 3))
    return _conv(pull_image, ct, flipped), grad.transpose(1, 2, 0, 3)


_conv.defvjp(_conv_fwd, _conv_bwd)


def conv_same(x: Image, kernel: Kernel) -> Float[Array, "batch height width c_out"]:
    """Convolution of stride 1 with zero padding that keeps the size.

    Reverse mode of any order; no forward mode.
    """
    return conv_general_dilated(x, kernel, (1, 1), "SAME")


def conv_general_dilated(
    lhs: Image,
    rhs: Float[Array, "kh kw c_in_per_group c_out"],
    window_strides: Any,
    padding: Any,
    lhs_dilation: Any = None,
    rhs_dilation: Any = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Float[Array, "batch h w c_out"]:
    """As `flax.linen.Conv(conv_general_dilated=...)` calls it: [B, H, W, C] and [h, w, C, D].

    Reverse mode of any order; no forward mode. Depthwise convolutions without dilation are
    `conv_depthwise` on CPUs. With other groups or a precision, and for other ranks than images, it
    is `jax.lax.conv_general_dilated` itself.
    """
    groups = feature_group_count
    whole = all(step == 1 for pair in (lhs_dilation, rhs_dilation) for step in pair or (1, 1))
    if lhs.ndim == 4 and 1 < groups == lhs.shape[-1] == rhs.shape[-1] and whole and not precision:
        pads = _pads(lhs, rhs, tuple(window_strides), padding, (1, 1))
        return jax.lax.platform_dependent(
            lhs,
            rhs,
            cpu=lambda x, kernel: conv_depthwise(x, kernel, tuple(window_strides), pads),
            default=lambda x, kernel: jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides,
                pads,
                dimension_numbers=_DIMENSIONS,
                feature_group_count=groups,
            ),
        )
    if lhs.ndim != 4 or groups != 1 or precision is not None:
        return jax.lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers if dimension_numbers is not None else _DIMENSIONS,
            groups,
            precision=precision,
        )
    strides, apart, dilation = (
        tuple(pair) if pair is not None else (1, 1)
        for pair in (window_strides, lhs_dilation, rhs_dilation)
    )
    pads = _pads(lhs, rhs, strides, padding, dilation)
    return _conv(_Geometry(strides, pads, apart, dilation), lhs, rhs)


def _pads(
    x: Image, kernel: Kernel, strides: tuple[int, ...], padding: Any, dilation: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str):
        sizes = [(k - 1) * d + 1 for k, d in zip(kernel.shape[:2], dilation, strict=True)]
        padding = jax.lax.padtype_to_pads(x.shape[1:3], sizes, strides, padding)
    return tuple((int(before), int(after)) for before, after in padding)


def conv_depthwise(
    x: Image,
    kernel: Float[Array, "kh kw 1 c_in"],
    strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
) -> Float[Array, "batch h w c_in"]:
    """One kernel a channel, as a sum of shifted images: h w multiply-adds of whole images.

    So are its gradients, of any order. XLA's grouped convolution on CPUs is many times slower.
    """
    rows, columns = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    total = jnp.zeros((), x.dtype)
    for i in range(rows):
        for j in range(columns):
            shifted = x[:, i : i + height : strides[0], j : j + width : strides[1]]
            total = total + shifted * kernel[i, j, 0]
    return total


def conv_patches(x: Image, kernel: Kernel, stride: int, padding: int) -> Array:
    """The convolution as one matrix product of patches: [B, H', W', c_out], zero padding.

    So are its gradients, of any order. It is the faster one for images of a few pixels; under vmap
    over kernels it is a batched product, where XLA makes a slow grouped convolution. For more than
    a few pixels `conv_general_dilated` is faster.
    """
    rows, columns = kernel.shape[:2]
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = x.shape[1] - rows + 1, x.shape[2] - columns + 1
    shifted = [
        x[:, i : i + height : stride, j : j + width : stride]
        for i in range(rows)
        for j in range(columns)
    ]
    return jnp.concatenate(shifted, -1) @ kernel.reshape(-1, kernel.shape[-1])


def conv_small(lhs: Image, rhs: Kernel, window_strides: Any, padding: Any, **options: Any) -> Array:
    """`conv_patches` on CPUs, XLA's convolution elsewhere, for `nn.Conv(conv_general_dilated=...)`.

    Raises:
      ValueError: strides or paddings that differ between the axes, dilation, or groups.
    """
    plain = options.get("feature_group_count", 1) == 1 and not isinstance(padding, str)
    for name in ("lhs_dilation", "rhs_dilation"):
        plain &= all(v == 1 for v in options.get(name) or (1, 1))
    if not plain or len({n for pair in padding for n in pair}) > 1 or len(set(window_strides)) > 1:
        raise ValueError(
            f"conv_small: strides {window_strides}, padding {padding!r}: only one stride and one "
            "padding in pixels for both axes, no dilation, no groups"
        )
    stride, pad = window_strides[0], padding[0][0]
    return jax.lax.platform_dependent(
        lhs,
        rhs,
        cpu=lambda x, kernel: conv_patches(x, kernel, stride, pad),
        default=lambda x, kernel: jax.lax.conv_general_dilated(
            x, kernel, window_strides, padding, dimension_numbers=_DIMENSIONS
        ),
    )
