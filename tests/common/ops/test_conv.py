"""Convolutions with a gradient of their own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reprise.common.ops.conv import conv_general_dilated, conv_same, conv_small


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


@pytest.mark.parametrize("size, stride, padding", [(3, 1, 1), (3, 2, 1), (2, 2, 0), (5, 3, 2)])
def test_patches_are_the_same_convolution(size, stride, padding):
    x, _ = arrays()
    options = dict(features=4, kernel_size=(size, size), strides=stride, padding=padding)
    plain = nn.Conv(**options)
    ours = nn.Conv(**options, conv_general_dilated=conv_small)
    params = plain.init(jax.random.key(2), x)

    def both(conv):
        def loss(params, x):
            return (jnp.tanh(conv.apply(params, x)) ** 2).sum()

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(params, x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        both(ours),
        both(plain),
    )


@pytest.mark.parametrize(
    "options", [dict(padding="SAME"), dict(strides=(1, 2)), dict(feature_group_count=3)]
)
def test_small_convolutions_refuse_the_unusual(options):
    x, _ = arrays()
    options = dict(features=3, kernel_size=(3, 3), padding=1) | options
    made = nn.Conv(**options, conv_general_dilated=conv_small)
    with pytest.raises(ValueError, match="only one stride and one padding"):
        made.init(jax.random.key(0), x)
