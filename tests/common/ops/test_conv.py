"""Convolutions with a gradient of their own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reprise.common.ops.conv import conv_general_dilated, conv_same, conv_small

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def arrays(kernel, dtype=jnp.float32):
    x = jax.random.normal(jax.random.key(0), (2, 7, 6, 3), dtype)
    return x, jax.random.normal(jax.random.key(1), (*kernel, 3, 4), dtype)


@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        ((3, 5), ((1, 1), "SAME")),
        ((3, 3), ((2, 2), [(1, 1), (1, 1)])),
        ((1, 1), ((2, 2), [(0, 0), (0, 0)])),
        ((2, 3), ((2, 1), [(1, 0), (2, 1)], (2, 1), (1, 2))),
        ((2, 3), ((2, 1), "VALID", (1, 1), (1, 2))),
        ((3, 3), ((3, 2), [(0, 2), (3, 0)])),
    ],
    ids=["same", "stride", "shortcut", "dilation", "valid", "lopsided"],
)
def test_values_gradients_and_second_derivatives_are_laxs(kernel, options):
    with jax.enable_x64(True):
        arguments = arrays(kernel, jnp.float64)

        def ours(x, k):
            return conv_general_dilated(x, k, *options)

        def plain(x, k):
            return jax.lax.conv_general_dilated(x, k, *options, dimension_numbers=DIMENSIONS)

        def loss(conv):
            return lambda x, k: (jnp.tanh(conv(x, k)) ** 2).sum()

        def squared(conv):
            slope = jax.grad(loss(conv), (0, 1))
            return lambda x, k: sum((s**2).sum() for s in slope(x, k))

        for make in (loss, squared):
            both = [
                jax.jit(jax.value_and_grad(make(conv), (0, 1)))(*arguments)
                for conv in (ours, plain)
            ]
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), *both)


@pytest.mark.parametrize(
    "options",
    [((1, 1), "SAME"), ((2, 2), [(1, 1), (1, 1)]), ((2, 1), [(0, 2), (1, 0)])],
    ids=["same", "stride", "lopsided"],
)
def test_depthwise_values_gradients_and_second_derivatives_are_laxs(options):
    with jax.enable_x64(True):
        x, kernel = arrays((3, 2), jnp.float64)
        kernel = kernel[:, :, :1, :3]

        def plain(x, kernel):
            return jax.lax.conv_general_dilated(
                x, kernel, *options, dimension_numbers=DIMENSIONS, feature_group_count=3
            )

        def ours(x, kernel):
            return conv_general_dilated(x, kernel, *options, feature_group_count=3)

        def slope(conv):
            return jax.grad(lambda x, k: (jnp.tanh(conv(x, k)) ** 2).sum(), (0, 1))

        def squared(conv):
            return lambda x, k: sum((s**2).sum() for s in slope(conv)(x, k))

        for make in (slope, lambda conv: jax.value_and_grad(squared(conv), (0, 1))):
            both = [jax.jit(make(conv))(x, kernel) for conv in (ours, plain)]
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), *both)


def test_depthwise_is_no_grouped_convolution_on_cpus():
    x, kernel = arrays((3, 3))

    def loss(kernel):
        return (conv_general_dilated(x, kernel, (1, 1), "SAME", feature_group_count=3) ** 2).sum()

    compiled = jax.jit(jax.grad(loss)).lower(kernel[:, :, :1, :3]).compile().as_text()
    assert " convolution(" not in compiled


def test_conv_same_keeps_the_size():
    x, kernel = arrays((3, 3))
    plain = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=DIMENSIONS)
    np.testing.assert_array_equal(conv_same(x, kernel), plain)


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(strides=2, padding=1),
        dict(padding="VALID", kernel_size=(2, 2)),
        dict(feature_group_count=3, features=6),
        dict(feature_group_count=3, features=3, strides=2),
        dict(precision="highest"),
    ],
)
def test_it_serves_linens_conv(options):
    x, _ = arrays((3, 3))
    options = dict(features=4, kernel_size=(3, 3)) | options
    ours = nn.Conv(**options, conv_general_dilated=conv_general_dilated)
    params = ours.init(jax.random.key(2), x)
    np.testing.assert_allclose(
        ours.apply(params, x), nn.Conv(**options).apply(params, x), atol=1e-5
    )


def test_gradients_in_a_loop_keep_the_form_that_has_a_fast_kernel():
    x, kernel = arrays((3, 3))
    kernel = jnp.concatenate([kernel] * 3, -1)[..., :3]

    def step(kernel, _):
        slope = jax.grad(lambda x, k: (conv_same(x, k) ** 2).sum(), (0, 1))(x, kernel)
        return kernel - 1e-3 * slope[1] * slope[0].sum(), None

    def loop(kernel):
        return jax.lax.scan(step, kernel, None, length=3)[0]

    compiled = jax.jit(loop).lower(kernel).compile().as_text()
    convolutions = [line for line in compiled.splitlines() if " convolution(" in line]
    assert len(convolutions) >= 3
    assert all("dim_labels=b01f_01io->b01f" in line for line in convolutions)


@pytest.mark.parametrize("size, stride, padding", [(3, 1, 1), (3, 2, 1), (2, 2, 0), (5, 3, 2)])
def test_patches_are_the_same_convolution(size, stride, padding):
    x, _ = arrays((3, 3))
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
    x, _ = arrays((3, 3))
    options = dict(features=3, kernel_size=(3, 3), padding=1) | options
    made = nn.Conv(**options, conv_general_dilated=conv_small)
    with pytest.raises(ValueError, match="only one stride and one padding"):
        made.init(jax.random.key(0), x)
