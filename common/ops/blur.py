"""Gaussian smoothing."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def gaussian_blur(
    image: Float[Array, "batch height width channels"], sigma: float, *, truncate: float = 4.0
) -> Float[Array, "batch height width channels"]:
    """Convolves with a Gaussian, as `scipy.ndimage.gaussian_filter` does by default.

    Args:
      image: [B, H, W, C]; borders are reflected (d c b a | a b c d | d c b a).
      sigma: standard deviation in pixels; 0 returns the image.
      truncate: the kernel ends at this many standard deviations.

    Raises:
      ValueError: image is not [B, H, W, C], or sigma is negative.
    """
    if image.ndim != 4 or sigma < 0:
        raise ValueError(
            f"gaussian_blur: image {image.shape} must be [B, H, W, C], sigma = {sigma} 0 or more"
        )
    reach = int(truncate * sigma + 0.5)
    if not reach:
        return image
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    wide = jnp.promote_types(image.dtype, jnp.float32)
    x = image.astype(wide)
    for axis in (1, 2):
        x = _along(x, weights / weights.sum(), axis)
    return x.astype(image.dtype)


def _along(x: Array, weights: np.ndarray, axis: int) -> Array:
    reach, size = len(weights) // 2, x.shape[axis]
    # The convolution of a reflected line is a matrix, made here of the reflected positions.
    period = np.arange(-reach, size + reach) % (2 * size)
    source = np.minimum(period, 2 * size - 1 - period)
    matrix = np.zeros((size, size))
    for out in range(size):
        np.add.at(matrix[out], source[out : out + len(weights)], weights)
    moved = jnp.tensordot(x, jnp.asarray(matrix, x.dtype), (axis, 1), precision="highest")
    return jnp.moveaxis(moved, -1, axis)
