"""Bilinear warps of images and linear ones of signals, and changes of scale of flow fields."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.dtypes import wide


def warp_bilinear(
    image: Float[Array, "batch height width channels"], flow: Float[Array, "batch height width 2"]
) -> Float[Array, "batch height width channels"]:
    """The image seen along a flow: out(p) = image(p + flow(p)).

    Bilinear; coordinates outside the image are clamped to its border. Differentiable in both; the
    second derivative in each component of the flow is zero between grid points. At them the
    derivative is the one to the right or below; exactly on the border, where the clamping begins,
    half of the one inside.

    Args:
      image: any floating dtype, kept.
      flow: displacement in pixels; channel 0 horizontal (x, to the right), channel 1 vertical.

    Raises:
      ValueError: shapes that do not fit.
    """
    if image.ndim != 4 or flow.shape != (*image.shape[:3], 2):
        raise ValueError(
            f"warp_bilinear: image {image.shape} must be [B, H, W, C] and flow {flow.shape} "
            "[B, H, W, 2]"
        )
    _, height, width, _ = image.shape
    # Positions in float32 whatever comes in: bfloat16 has no pixel beyond 256.
    flow = wide(flow)
    x = jnp.clip(jnp.arange(width, dtype=flow.dtype) + flow[..., 0], 0, width - 1)
    y = jnp.clip(jnp.arange(height, dtype=flow.dtype)[:, None] + flow[..., 1], 0, height - 1)
    left = jnp.clip(jnp.floor(jax.lax.stop_gradient(x)), 0, max(width - 2, 0))
    top = jnp.clip(jnp.floor(jax.lax.stop_gradient(y)), 0, max(height - 2, 0))
    wx, wy = (x - left)[..., None], (y - top)[..., None]
    i, j = top.astype(jnp.int32), left.astype(jnp.int32)
    right, bottom = jnp.minimum(j + 1, width - 1), jnp.minimum(i + 1, height - 1)

    def at(rows: Array, columns: Array) -> Array:
        return jax.vmap(lambda one, r, c: one[r, c])(image, rows, columns)

    upper = at(i, j) * (1 - wx) + at(i, right) * wx
    lower = at(bottom, j) * (1 - wx) + at(bottom, right) * wx
    return (upper * (1 - wy) + lower * wy).astype(image.dtype)


def warp_linear_1d(
    signal: Float[Array, "batch length"], shift: Float[Array, " batch"]
) -> Float[Array, "batch length"]:
    """The signal moved by one shift an example: out(t) = signal(clamp(t + shift, 0, length - 1)).

    The derivative in the shift is as of `warp_bilinear`.

    Args:
      signal: [B, L].
      shift: in samples.

    Raises:
      ValueError: shapes that do not fit.
    """
    if signal.ndim != 2 or shift.shape != signal.shape[:1]:
        raise ValueError(
            f"warp_linear_1d: signal {signal.shape} must be [B, L] and shift {shift.shape} [B]"
        )
    length = signal.shape[1]
    shift = wide(shift)
    t = jnp.clip(jnp.arange(length, dtype=shift.dtype) + shift[:, None], 0, length - 1)
    left = jnp.clip(jnp.floor(jax.lax.stop_gradient(t)), 0, max(length - 2, 0))
    weight, i = t - left, left.astype(jnp.int32)
    before = jnp.take_along_axis(signal, i, 1)
    after = jnp.take_along_axis(signal, jnp.minimum(i + 1, length - 1), 1)
    return (before * (1 - weight) + after * weight).astype(signal.dtype)


def halve(
    image: Float[Array, "batch height width channels"],
) -> Float[Array, "batch h2 w2 channels"]:
    """The next level of a pyramid: means of 2 x 2 pixels. Odd sizes raise ValueError."""
    batch, height, width, channels = image.shape
    if height % 2 or width % 2:
        raise ValueError(f"halve: height and width must be even, got {image.shape}")
    return image.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def double_flow(flow: Float[Array, "batch height width 2"]) -> Float[Array, "batch h2 w2 2"]:
    """The flow on the next finer level: bilinear, and twice as many pixels long."""
    batch, height, width, _ = flow.shape
    shape = (batch, 2 * height, 2 * width, 2)
    return 2 * jax.image.resize(flow, shape, "bilinear")
