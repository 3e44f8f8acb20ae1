"""The common ground of distillation methods."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reprise.common.data import digits8
from reprise.common.models.connector import FeatureConnector
from reprise.common.models.small_cnn import SmallCNN
from reprise.common.models.wrn import WRN
from reprise.common.training import distillation, distillation_pool, distillation_setting, state


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
    assert distillation_setting.network("pooled-8-2", 5) == SmallCNN(8, 2, True, 5)
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


def pooled(count=20, pool=30):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(pool, 8, 8, 1)).astype(np.float32)
    labelled = {"image": image[:count], "label": (np.arange(count) % 10).astype(np.int32)}
    net = SmallCNN(2, pool=True)
    data = {**labelled, "pool": image}
    return distillation.Setting(net, net, labelled, data, {"": labelled})


def student_section(batch_size=4, num_steps=4):
    from ml_collections import ConfigDict

    from reprise.common import config as base

    optimizer = base.optimizer("sgd", 0.1)
    return ConfigDict(dict(batch_size=batch_size, num_steps=num_steps, optimizer=optimizer))


def test_pool_batches_leave_the_labelled_ones_as_they_were():
    setting = pooled()
    order = jax.random.key_data(jax.random.key(1))
    carried = distillation.Carried({}, {}, (), order, jnp.int32(2))
    draw = distillation_pool.batches(setting, 5)
    batch = draw(dict(setting.student_data), carried, jax.random.key(0))
    alone = {k: v for k, v in setting.student_data.items() if k != "pool"}
    plain = distillation.draw(alone, order, jnp.int32(2), 5)
    np.testing.assert_array_equal(batch["image"], plain["image"])
    assert batch["pool"].shape == (5, 8, 8, 1)
    assert distillation_pool.transfer_images(batch) is batch["pool"]
    bare = draw(alone, carried, jax.random.key(0))
    assert "pool" not in bare and distillation_pool.transfer_images(bare) is bare["image"]


def test_transfer_is_clipped_by_the_cross_entropy_and_may_leave_no_statistics():
    setting, section = pooled(), student_section()

    def pull(taps, targets, carried):
        return {"pull": carried.extra * (taps["stage2"] ** 2).sum()}

    phases = {
        pool: distillation_pool.clipped_transfer(setting, section, pull, pool_statistics=pool)
        for pool in (False, True)
    }
    steps = {pool: jax.jit(phase.step) for pool, phase in phases.items()}
    start = jax.jit(phases[True].init)(jax.random.key(0), None)
    teacher = {"params": start.params["student"], "batch_stats": start.model_state.stats}
    after = {}
    for scale in (0.0, 1.0, 1e6, 1e7):
        carried = start.model_state._replace(teacher=teacher, extra=jnp.float32(scale))
        step = steps[scale != 1]
        after[scale], metrics = step(
            start._replace(model_state=carried), phases[True].batches, jax.random.key(1)
        )
        assert np.isfinite(metrics["loss"])
    bare, with_pool, again = (
        np.asarray(after[w].model_state.stats["stage1_bn0"]["mean"]) for w in (1.0, 0.0, 1e6)
    )
    assert (bare != with_pool).all()
    np.testing.assert_allclose(with_pool, again, rtol=1e-6)
    kernel = {
        w: np.asarray(s.params["student"]["stage1_conv0"]["kernel"]) for w, s in after.items()
    }
    np.testing.assert_allclose(kernel[1e6], kernel[1e7], rtol=1e-5)
    before = np.asarray(start.params["student"]["stage1_conv0"]["kernel"])
    # sigmoid(0) = 1/2 of the cross entropy's step.
    pull = np.linalg.norm(kernel[1e6] - kernel[0.0])
    np.testing.assert_allclose(pull, np.linalg.norm(kernel[0.0] - before) / 2, rtol=1e-4)
    head = [s.params["student"]["head"]["kernel"] for s in (after[0.0], after[1e6])]
    np.testing.assert_array_equal(*head)


def test_digits_with_a_pool():
    parts = digits8.pool_split(3, 100)
    assert len(parts.teacher["image"]) == len(parts.student["pool"]) == 1200
    assert len(parts.test["image"]) == 597 and parts.student["image"].min() == np.float32(-0.3)
    np.testing.assert_array_equal(parts.student["image"], parts.student["pool"][:100])
    moved = jax.vmap(distillation_setting.shift, (0, None))(
        jax.random.split(jax.random.key(0), 20), parts.test["image"][:2]
    )
    inner = np.asarray(parts.test["image"][:2, 1:-1, 1:-1])
    seen = {
        (a, b)
        for a in range(3)
        for b in range(3)
        if any(np.array_equal(m[:, a : a + 6, b : b + 6], inner) for m in np.asarray(moved))
    }
    assert len(seen) >= 5
