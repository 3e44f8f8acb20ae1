"""The common ground of distillation methods."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reprise.common.models.connector import FeatureConnector
from reprise.common.models.small_cnn import SmallCNN
from reprise.common.models.wrn import WRN
from reprise.common.training import distillation, distillation_setting, state


def test_draw_is_a_permutation_every_epoch():
    data = {"image": jnp.arange(10.0)[:, None], "label": jnp.arange(10)}
    order = jax.random.key_data(jax.random.key(3))
    epochs = [
        np.concatenate(
            [distillation.draw(data, order, jnp.int32(3 * e + i), 3)["label"] for i in range(3)]
        )
        for e in range(2)
    ]
    for seen in epochs:
        assert len(set(seen.tolist())) == 9
    assert epochs[0].tolist() != epochs[1].tolist()
    with pytest.raises(ValueError, match="batch_size = 11: there are only 10"):
        distillation.draw(data, order, jnp.int32(0), 11)


def test_taps_that_do_not_fit_are_named_with_their_shapes():
    images = {"image": np.zeros((2, 8, 8, 1), np.float32), "label": np.zeros(2, np.int32)}
    setting = distillation.Setting(SmallCNN(8), SmallCNN(2), images, images, {"": images})
    distillation.check_taps(setting, {"stage1": "stage1"})
    with pytest.raises(ValueError, match=r"'stage1' \[8, 8, 2\].*'stage2' \[4, 4, 16\].*pixels"):
        distillation.check_taps(setting, {"stage1": "stage2"})
    with pytest.raises(ValueError, match="pixels and channels"):
        distillation.check_taps(setting, {"stage1": "stage1"}, channels=True)
    with pytest.raises(ValueError, match="student has no tap 'stage9'; it has embed"):
        distillation.check_taps(setting, {"stage9": "stage1"})


def test_gradients_of_terms_apart_sum_to_the_gradient_of_their_sum():
    params = {"w": jnp.array([1.0, -2.0])}

    def terms(params, model_state, batch, key):
        values = {"a": (params["w"] ** 2).sum(), "b": (3 * params["w"]).sum()}
        return values, (model_state, {})

    def whole(*args):
        values, aux = terms(*args)
        return sum(values.values()), aux

    tx = optax.sgd(0.1)
    together = state.gradient_step(whole, tx)
    apart = state.gradient_step(
        terms, tx, combine=lambda g, step: jax.tree.map(jnp.add, g["a"], g["b"])
    )
    start = state.create(params, tx)
    key = jax.random.key(0)
    (one, first), (two, second) = together(start, {}, key), apart(start, {}, key)
    np.testing.assert_allclose(one.params["w"], two.params["w"])
    assert float(first["loss"]) == float(second["loss"])


def test_connector_normalises_by_the_batch():
    x = jax.random.normal(jax.random.key(0), (4, 3, 3, 5)) * 3 + 2
    out, variables = FeatureConnector(7).init_with_output(jax.random.key(1), x)
    assert out.shape == (4, 3, 3, 7) and set(variables["params"]) == {"conv", "scale", "bias"}
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-4)


def test_small_cnn_matches_its_description():
    image = jnp.ones((2, 8, 8, 1))
    for pool in (False, True):
        model = SmallCNN(4, repeats=2, pool=pool)
        (logits, taps), _ = model.init_with_output(jax.random.key(0), image, train=False)
        assert logits.shape == (2, 10)
        assert [taps[f"stage{i}"].shape[1:] for i in (1, 2, 3)] == [
            (8, 8, 4),
            (4, 4, 8),
            (2, 2, 16),
        ]
        np.testing.assert_array_equal(taps["stage3"], jax.nn.relu(taps["stage3_pre"]))


def test_networks_by_name():
    assert distillation_setting.network("wrn-16-2", 10) == WRN(16, 2, 10)
    with pytest.raises(ValueError, match="allowed are cnn-WIDTH"):
        distillation_setting.network("lenet", 10)


def test_crop_and_flip_keeps_what_it_shows():
    image = jnp.arange(2 * 6 * 6).reshape(2, 6, 6, 1).astype(jnp.float32)
    out = distillation_setting.crop_and_flip(jax.random.key(0), image, pad=2)
    assert out.shape == image.shape
    for i in range(2):
        assert set(np.unique(out[i])) <= set(np.unique(image[i]))
    same = distillation_setting.crop_and_flip(jax.random.key(0), image, pad=0)
    for got, was in zip(same, image, strict=True):
        assert np.array_equal(got, was) or np.array_equal(got, was[:, ::-1])
