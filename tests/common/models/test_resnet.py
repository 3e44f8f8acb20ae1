"""Residual networks of ImageNet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reprise.common.models.resnet import ResNet


def shapes(model, image=(2, 224, 224, 3)):
    image = jax.ShapeDtypeStruct(image, jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    _, taps = jax.eval_shape(lambda v, x: model.apply(v, x, train=False), variables, image)
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"]))
    return count, {name: tap.shape[1:] for name, tap in taps.items()}


@pytest.mark.parametrize(
    ("depth", "widen", "parameters", "channels"),
    [
        (18, 1, 11_689_512, 64),
        (34, 1, 21_797_672, 64),
        (50, 1, 25_557_032, 256),
        (152, 1, 60_192_808, 256),
        (50, 2, 68_883_240, 256),
    ],
)
def test_published_parameter_counts(depth, widen, parameters, channels):
    count, taps = shapes(ResNet(depth, widen=widen))
    assert count == parameters
    assert taps["stem"] == (112, 112, 64)
    assert taps["stage1"] == taps["stage1_pre"] == (56, 56, channels)
    assert taps["stage3"] == (14, 14, 4 * channels) and taps["embed"] == (8 * channels,)


def test_small_images_and_no_head():
    count, taps = shapes(ResNet(18, None, small_images=True), (2, 32, 32, 3))
    assert count == 11_689_512 - 512 * 1000 - 1000 - 64 * 3 * (49 - 9)
    assert taps["stage1"] == (32, 32, 64) and taps["stage4"] == (4, 4, 512)


def test_taps_before_and_after_the_activation_in_bfloat16():
    model = ResNet(10, 5, width=4, small_images=True, dtype=jnp.bfloat16)
    image = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(  # drawn here: compiling `init` takes longer than all the rest
        lambda leaf: np.float32(rng.normal(0.5, 0.3, leaf.shape)),
        jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False)),
    )
    apply = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    (logits, taps), new = apply(variables, image)
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32 and jnp.isfinite(logits).all()
    for name in ("stem", "stage1", "stage4"):
        assert taps[name].dtype == jnp.bfloat16
        np.testing.assert_array_equal(jax.nn.relu(taps[f"{name}_pre"]), taps[name])
    assert (taps["stem_pre"] < 0).any() and (taps["stage1_pre"] < 0).any()
    assert jax.tree.leaves(new)[0].dtype == jnp.float32


def test_zero_initialised_blocks_start_as_identities():
    model = ResNet(10, None, width=2, small_images=True, zero_init=True)

    @jax.jit
    def first_stage(image):
        variables = model.init(jax.random.key(0), image, train=False)
        _, taps = model.apply(variables, image, train=False)
        scales = [variables["params"][f"stage4_block0_bn{i}"]["scale"] for i in range(2)]
        return taps["stem"], taps["stage1"], scales

    stem, stage1, (first, last) = first_stage(jnp.ones((1, 8, 8, 3)))
    np.testing.assert_array_equal(stem, stage1)  # this stage has no shortcut convolution
    assert (first == 1).all() and (last == 0).all()


def test_bad_depth_and_width_are_refused():
    image = jnp.ones((1, 8, 8, 3))
    with pytest.raises(ValueError, match="depth = 20: one of 10, 14, 18"):
        ResNet(20).init(jax.random.key(0), image, train=False)
    with pytest.raises(ValueError, match="widen = 2: 1 for the basic blocks"):
        ResNet(18, widen=2).init(jax.random.key(0), image, train=False)
