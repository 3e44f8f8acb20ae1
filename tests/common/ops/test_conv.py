"""Convolutions with a gradient of their own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reprise.common.ops.conv import conv_general_dilated, conv_patches, conv_same


def plain(x, kernel):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims)


def arrays(dtype=jnp.float32):
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3), dtype)
    return x, jax.random.normal(jax.random.key(1), (3, 5, 3, 4), dtype)


def test_values_gradients_and_second_derivatives_are_laxs():
    with jax.enable_x64(True):
        x, kernel = arrays(jnp.float64)

        def loss(conv):
            return lambda x, k: (jnp.tanh(conv(x, k)) ** 2).sum()

        def squared(conv):
            slope = jax.grad(loss(conv), (0, 1))
            return lambda x, k: sum((s**2).sum() for s in slope(x, k))

        for make in (loss, squared):
            ours = jax.value_and_grad(make(conv_same), (0, 1))(x, kernel)
            theirs = jax.value_and_grad(make(plain), (0, 1))(x, kernel)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), ours, theirs)


def test_it_serves_linens_conv():
    x, _ = arrays()
    ours = nn.Conv(4, (3, 3), conv_general_dilated=conv_general_dilated)
    params = ours.init(jax.random.key(2), x)
    np.testing.assert_allclose(
        ours.apply(params, x), nn.Conv(4, (3, 3)).apply(params, x), atol=1e-5
    )


@pytest.mark.parametrize(
    "options",
    [dict(strides=2), dict(padding="VALID"), dict(kernel_size=(2, 2)), dict(feature_group_count=3)],
)
def test_what_it_cannot_do_is_refused(options):
    x, _ = arrays()
    options = dict(features=3, kernel_size=(3, 3)) | options
    made = nn.Conv(**options, conv_general_dilated=conv_general_dilated)
    with pytest.raises(ValueError, match="only odd 2-D kernels, stride 1"):
        made.init(jax.random.key(0), x)


def test_patches_are_the_same_convolution():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(2, 6, 8, 3)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 3, 4)).astype(np.float32)
    for stride in (1, 2):

        def plain(x, kernel, stride=stride):
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                (stride,) * 2,
                ((1, 1), (1, 1)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )

        def ours(x, kernel, stride=stride):
            return conv_patches(x, kernel, stride=stride)

        np.testing.assert_allclose(ours(x, kernel), plain(x, kernel), rtol=1e-4, atol=1e-5)
        slopes = [jax.grad(lambda a, f=f: (f(*a) ** 2).sum())((x, kernel)) for f in (plain, ours)]
        for expected, got in zip(*slopes, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="conv_patches"):
        conv_patches(x, kernel[:2])
