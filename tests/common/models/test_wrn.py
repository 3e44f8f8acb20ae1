"""Wide residual networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reprise.common.models.wrn import WRN


def count(model, shape=(2, 32, 32, 3)):
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    made = jax.eval_shape(lambda k, x: model.init(k, x, train=False), jax.random.key(0), image)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(made["params"]))


@pytest.mark.parametrize(
    ("depth", "width", "classes", "parameters"),
    [(16, 2, 10, 691_674), (40, 2, 10, 2_243_546), (28, 10, 100, 36_536_884)],
)
def test_published_parameter_counts(depth, width, classes, parameters):
    assert count(WRN(depth, width, classes)) == parameters


def test_taps_and_bfloat16():
    model = WRN(10, 1, 5, dtype=jnp.bfloat16)
    image = jax.random.normal(jax.random.key(1), (2, 16, 16, 3))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(  # drawn here: compiling `init` takes longer than all the rest
        lambda leaf: np.float32(rng.normal(0.1, 0.3, leaf.shape)),
        jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False)),
    )
    apply = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    (logits, taps), new = jax.device_get(apply(variables, image))
    assert logits.shape == (2, 5) and logits.dtype == jnp.float32
    shapes = {name: tap.shape[1:] for name, tap in taps.items()}
    assert shapes["stage1"] == (16, 16, 16) and shapes["stage3"] == (4, 4, 64)
    assert shapes["embed"] == (64,)
    for stage in ("stage1", "stage2", "stage3"):
        assert (taps[f"{stage}_pre"] < 0).any() and shapes[f"{stage}_sum"] == shapes[stage]
        np.testing.assert_array_equal(taps[stage], jax.nn.relu(taps[f"{stage}_pre"]))
    assert jax.tree.leaves(new)[0].dtype == jnp.float32
    with pytest.raises(ValueError, match="depth = 12: must be 6 n"):
        count(WRN(12))
