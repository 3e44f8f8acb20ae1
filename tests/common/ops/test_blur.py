"""Gaussian smoothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from reprise.common.ops.blur import gaussian_blur


@pytest.mark.parametrize(
    ("sigma", "truncate", "shape"),
    [(1.3, 4.0, (9, 12)), (4.0, 4.0, (9, 12)), (2.0, 2.5, (5, 3)), (6.0, 4.0, (4, 4))],
)
def test_it_is_scipys_filter_even_where_the_kernel_is_larger_than_the_image(sigma, truncate, shape):
    image = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    found = gaussian_blur(image, sigma, truncate=truncate)
    expected = scipy.ndimage.gaussian_filter(image, (0, sigma, sigma, 0), truncate=truncate)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_constants_stay_and_types_too():
    image = jnp.full((1, 6, 6, 1), 3.0, jnp.bfloat16)
    assert gaussian_blur(image, 2.0).dtype == jnp.bfloat16
    np.testing.assert_array_equal(gaussian_blur(image, 2.0), image)
    assert gaussian_blur(image, 0.0) is image
    slope = jax.grad(lambda x: gaussian_blur(x, 2.0).sum())(image.astype(jnp.float32))
    np.testing.assert_allclose(slope, 1.0, rtol=1e-5)  # the filter keeps the sum
    with pytest.raises(ValueError, match="gaussian_blur: image"):
        gaussian_blur(image[0], 1.0)
    with pytest.raises(ValueError, match=r"sigma = -1.0 0 or more"):
        gaussian_blur(image, -1.0)
