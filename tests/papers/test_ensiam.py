"""papers/ensiam: golden, properties, gradients, collapse, devices, recipes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from reprise.common import config as configs
from reprise.common.training import program, run, sharding
from reprise.papers.ensiam import (
    Predictor,
    Projector,
    augment_views,
    ensemble_target,
    ensiam_loss,
    models,
    simsiam_pairwise_loss,
    target_variance,
    tasks,
    training,
    views,
)

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = dict(np.load(ROOT / "tests/goldens/ensiam.npz"))
LOSSES = [ensiam_loss, simsiam_pairwise_loss]


def golden(dtype=jnp.float32):
    return tuple(jnp.asarray(GOLDEN[name], dtype) for name in ("predictions", "projections"))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_golden_values_and_gradients():
    p, z = golden()
    np.testing.assert_allclose(ensiam_loss(p, z), GOLDEN["expected"], atol=1e-5)
    members = ensiam_loss(p, z, normalize_members=True)
    np.testing.assert_allclose(members, GOLDEN["expected_normalized_members"], atol=1e-5)
    np.testing.assert_allclose(simsiam_pairwise_loss(p, z), GOLDEN["expected_pairwise"], atol=1e-5)
    d_p, d_z = jax.grad(lambda p, z: ensiam_loss(p, z).sum(), (0, 1))(p, z)
    np.testing.assert_allclose(d_p, GOLDEN["grad_predictions"], atol=1e-5)
    np.testing.assert_array_equal(d_z, GOLDEN["grad_projections"])


def test_two_views_are_simsiam():
    p, z = (np.asarray(x[:2]) for x in golden())
    a, b = ((unit(p[k]) * unit(z[1 - k])).sum(-1) for k in (0, 1))
    np.testing.assert_allclose(simsiam_pairwise_loss(p, z), -(a + b) / 2, atol=1e-6)


def test_pairwise_is_the_sum_over_pairs():
    p, z = (np.asarray(x) for x in golden())
    pairs = [(unit(p[k]) * unit(z[l])).sum(-1) for k in range(4) for l in range(4) if k != l]
    np.testing.assert_allclose(simsiam_pairwise_loss(p, z), -np.mean(pairs, 0), atol=1e-6)


def test_without_self_term_and_length_the_ensemble_is_pairwise():
    p, z = golden()
    u = unit(np.asarray(z))
    means = (u.sum(0) - u) / 3
    products = (unit(np.asarray(p)) * means).sum(-1)
    np.testing.assert_allclose(simsiam_pairwise_loss(p, z), -products.mean(0), atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_invariances_and_range(loss):
    p, z = golden()
    each = loss(p, z)
    assert each.shape == (5,) and (jnp.abs(each) <= 1).all()
    order = jnp.asarray([2, 0, 3, 1])
    np.testing.assert_allclose(loss(p[order], z[order]), each, atol=1e-6)
    turn = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (16, 16)))[0]
    np.testing.assert_allclose(loss(p @ turn, z @ turn), each, atol=1e-5)
    np.testing.assert_allclose(loss(3 * p, 0.1 * z), each, atol=1e-5)
    np.testing.assert_allclose(jax.jit(loss)(p, z), each, atol=1e-6)
    one = jax.vmap(lambda p, z: loss(p[:, None], z[:, None])[0], 1)(p, z)
    np.testing.assert_allclose(one, each, atol=1e-6)
    same = jnp.broadcast_to(z[:1], z.shape)
    np.testing.assert_allclose(loss(same, same), -1, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_targets_get_no_gradient_and_float64_gradients_are_right(loss):
    with jax.enable_x64(True):
        p, z = golden(jnp.float64)
        assert loss(p, z).dtype == jnp.float64
        check_grads(lambda p: loss(p, z).sum(), (p,), 2, modes=["rev"], atol=1e-6, rtol=1e-6)
        assert float(jnp.abs(jax.grad(lambda z: loss(p, z).sum())(z)).max()) == 0
        # Through p = h(z) they do.
        through = jax.grad(lambda z: loss(jnp.tanh(z), z).sum())(z)
        assert float(jnp.abs(through).min()) > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_zeros_and_bfloat16_stay_finite(loss):
    zero = jnp.zeros((3, 2, 4))
    value, slope = jax.value_and_grad(lambda p: loss(p, zero).sum())(zero)
    assert value == 0 and np.isfinite(slope).all()
    p, z = golden(jnp.bfloat16)
    value, slope = jax.value_and_grad(lambda p: loss(p, z).sum())(p)
    assert value.dtype == jnp.float32 and np.isfinite(slope.astype(np.float32)).all()
    expected = GOLDEN["expected" if loss is ensiam_loss else "expected_pairwise"].sum()
    assert float(value) == pytest.approx(expected, abs=0.02)


def test_the_target():
    z = golden()[1]
    np.testing.assert_allclose(ensemble_target(z), z.mean(0), atol=1e-6)
    members = ensemble_target(z, normalize_members=True)
    np.testing.assert_allclose(members, unit(np.asarray(z)).mean(0), atol=1e-6)


def test_the_variance_of_the_target_falls_with_the_number_of_views():
    # Views far from 0 with independent noise: the mean of 4 has a quarter of the variance.
    noise = jax.random.normal(jax.random.key(0), (400, 4, 3, 8))
    z = 10 * jnp.ones(8) + noise
    single = target_variance(z[:, 0])
    ensemble = target_variance(jax.vmap(ensemble_target)(z))
    np.testing.assert_allclose(ensemble / single, 0.25, atol=0.04)
    np.testing.assert_allclose(target_variance(jnp.ones((3, 2, 4))), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ensiam_loss(jnp.ones((2, 3, 4)), jnp.ones((2, 3, 5))), "ensiam_loss: predictions"),
        (lambda: ensiam_loss(jnp.ones((1, 3, 4)), jnp.ones((1, 3, 4))), "K >= 2"),
        (lambda: simsiam_pairwise_loss(jnp.ones((3, 4)), jnp.ones((3, 4))), "must be the same"),
        (lambda: ensemble_target(jnp.ones(3)), "ensemble_target: projections"),
        (lambda: target_variance(jnp.ones((3, 4))), "target_variance: targets"),
        (lambda: augment_views(jax.random.key(0), jnp.ones((8, 8, 3)), 2), "must be"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_heads_are_simsiams():
    x = jax.random.normal(jax.random.key(0), (64, 6))
    projector, predictor = Projector((8, 8, 5)), Predictor(3)
    found = projector.init(jax.random.key(1), x, train=True)
    assert "bn2" not in found["params"], "the last BatchNorm has no scale and no bias"
    assert all("bias" not in found["params"][f"dense{i}"] for i in range(3))
    z, _ = projector.apply(found, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-2)
    found = predictor.init(jax.random.key(1), z, train=True)["params"]
    assert found["dense1"]["kernel"].shape == (3, 5) and "bias" in found["dense1"]
    assert set(found) == {"dense0", "bn0", "dense1"}


def test_the_small_network_is_convolution_and_max_pooling():
    x = jax.random.normal(jax.random.key(0), (2, 9, 6, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
    expected = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(models._conv(x, kernel), expected, atol=1e-4)
    np.testing.assert_allclose(models._halve(x), nn.max_pool(x, (2, 2), (2, 2)))


def test_views_of_digits():
    image = tasks.digits()[0]["image"][0]
    keys = jax.random.split(jax.random.key(0), 16)
    out = jax.jit(jax.vmap(lambda k, s: views.digits_view(k, image, strength=s), (0, None)))
    np.testing.assert_allclose(out(keys, 0.0), np.broadcast_to(image, (16, 8, 8, 1)), atol=1e-6)
    weak, strong = (float(((out(keys, s) - image) ** 2).mean()) for s in (0.5, 2.0))
    assert 0 < weak < strong


def test_views_of_photographs_are_keyed_by_index():
    images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    drawn = jax.jit(lambda images, index: augment_views(jax.random.key(1), images, 2, index=index))
    out, swapped = drawn(images, jnp.arange(2)), drawn(images[::-1], jnp.arange(2)[::-1])
    assert out.shape == (2, 2, 8, 8, 3) and out.min() >= 0 and out.max() <= 1.0001
    np.testing.assert_allclose(out, swapped[:, ::-1], atol=1e-5)
    assert not np.allclose(out[0], out[1])


@pytest.mark.parametrize("on_host", [False, True])
def test_views_in_training_are_keyed_by_the_images_number(on_host):
    config = tiny(**{"data.crops_on_host": on_host})
    batch = {name: x[:3] for name, x in tasks.stream(tiny()).batch(1).items()}
    np.testing.assert_array_equal(batch["image"], tasks.digits()[0]["image"][batch["index"]])
    if on_host:
        batch["image"] = np.stack([batch["image"]] * 2, 1)
    drawn = jax.jit(lambda batch: training.views_of(config, batch, jax.random.key(1), 1.0))
    out, swapped = drawn(batch), drawn({name: x[::-1] for name, x in batch.items()})
    np.testing.assert_allclose(out, swapped[:, ::-1], atol=1e-6)
    assert out.shape == (2, 3, 8, 8, 1) and not np.allclose(out[0], out[1])


def test_host_crops_are_pure_in_their_generator():
    image = np.random.default_rng(0).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    cut = tasks.random_crops(3, 16, (0.2, 1.0))
    one, two = (
        cut({"image": image, "label": 1, "index": 7}, np.random.default_rng(s)) for s in (5, 5)
    )
    assert one["index"] == 7
    one, two = one["image"], two["image"]
    assert one.shape == (3, 16, 16, 3) and (one == two).all() and (one[0] != one[1]).any()
    assert tasks.centre_crop(16)({"image": image, "label": 1})["image"].shape == (16, 16, 3)


TINY = {
    "num_steps": 4,
    "batch_size": 16,
    "checkpoint.every": 2,
    "log.every": 1,
    "cache_dir": "",
    "compilation_cache": "",
    "model.num_views": 2,
    "model.widths": (4,),
    "model.projector": 8,
    "model.predictor": 4,
}


def tiny(variant="digits", **more):
    return configs.apply_overrides(run.load_config(f"ensiam:{variant}"), TINY | more)


def test_the_predictors_rate_can_stay_constant():
    config = tiny(**{"model.constant_predictor_rate": True, "optimizer.l2": 0.0})
    config.optimizer.args.momentum = 0.0
    tx = training.optimizer(config, 0.1)
    params = {name: jnp.zeros(2) for name in ("backbone", "projector", "predictor")}
    state, moved = tx.init(params), []
    for _ in range(5):
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        moved.append({name: -float(x[0]) for name, x in updates.items()})
    assert [round(m["predictor"], 5) for m in moved] == [0.1] * 5
    cosine = [0.05 * (1 + np.cos(np.pi * t / 4)) for t in range(5)]
    np.testing.assert_allclose([m["backbone"] for m in moved], cosine, atol=1e-6)


@pytest.fixture(scope="module")
def one_step():
    """The network, the state before a step, the batch, and what the step gives."""
    model, start, step = training.build(tiny())
    state = jax.jit(start)(jax.random.key(0), 0.1, 1.0)
    batch = {"image": tasks.digits()[0]["image"][:16], "index": np.arange(16)}
    return model, state, batch, *jax.jit(step)(state, batch, jax.random.key(1))


def test_running_statistics_move_once_a_view(one_step):
    model, state, batch, after, _ = one_step

    @jax.jit
    def one_after_another(stats):
        for view in training.views_of(tiny(), batch, jax.random.key(1), 1.0):
            variables = {"params": state.params, "batch_stats": stats}
            new = model.apply(variables, view, train=True, mutable=["batch_stats"])[1]
            stats = new["batch_stats"]
        return stats["backbone"]["bn0"]["mean"]

    expected = one_after_another(state.model_state["batch_stats"])
    found = after.model_state["batch_stats"]["backbone"]["bn0"]["mean"]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_8_devices_give_what_1_gives(one_step, tmp_path):
    _, _, _, after, metrics = one_step
    leaves = jax.tree.leaves(after.params)
    np.savez(tmp_path / "one.npz", *leaves, loss=metrics["loss"])
    code = f"""
import sys; sys.path.insert(0, "tests/papers")
import jax, jax.numpy as jnp, numpy as np
import test_ensiam as t
from reprise.common.evaluation.representation import features_over_set
from reprise.common.training import sharding
one = np.load("{tmp_path}/one.npz")
model, start, step = t.training.build(t.tiny())
mesh = sharding.make_mesh(t.tiny().mesh)
state = jax.device_put(jax.jit(start)(jax.random.key(0), 0.1, 1.0), sharding.replicated(mesh))
batch = {{"image": t.tasks.digits()[0]["image"][:16], "index": np.arange(16)}}
batch = jax.device_put(batch, sharding.batched(mesh))
found, metrics = jax.jit(step)(state, batch, jax.random.key(1))
assert jax.device_count() == 8
np.testing.assert_allclose(metrics["loss"], one["loss"], atol=1e-5)
for i, leaf in enumerate(jax.tree.leaves(found.params)):
    np.testing.assert_allclose(leaf, one[f"arr_{{i}}"], atol=2e-4)
with jax.set_mesh(mesh):
    x = np.arange(21, dtype=np.float32)
    out = features_over_set(lambda s, b: s * b["x"], {{"x": x}}, 10)(jnp.float32(2.0))
np.testing.assert_array_equal(out, 2 * x)
print("ok")
"""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags}
    env |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "ok", done.stderr[-2000:]


@pytest.mark.parametrize(
    "more",
    [
        {"variant": "digits", "judge.redraws": 2, "judge.images": 4},
        {"variant": "digits_stability", "sweep.learning_rates": (0.1, 0.3), "sweep.strengths": ()},
    ],
)
def test_recipes_train_evaluate_checkpoint_and_resume(more, tmp_path):
    config = tiny(**more)
    whole = run.run(config, tmp_path)
    assert all(np.isfinite(v) for v in whole.metrics[0].values())
    assert "knn" in whole.metrics[0] or "knn_range" in whole.metrics[0]
    before = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints" / "0-train" / "4")
    assert run.run(config, tmp_path).metrics == whole.metrics
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_wrong_loss_is_named():
    with pytest.raises(ValueError, match=r"config.model.loss = 'byol': one of ensiam"):
        training.build(tiny(**{"model.loss": "byol"}))


@pytest.mark.parametrize("variant", ["digits", "digits_stability", "cifar10", "imagenet"])
def test_every_variant_builds_its_real_model(variant):
    config = run.load_config(f"ensiam:{variant}")
    previous = None
    for phase in run.recipe(config).phases(config):
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
        built = program.build(phase, mesh, previous=previous)
        assert "loss" in built.metrics
        previous = built.state


def test_every_arm_of_every_study_is_a_config():
    for variant in ("digits", "digits_stability", "cifar_small", "cifar10", "cifar100", "imagenet"):
        config = run.load_config(f"ensiam:{variant}")
        study = run.recipe(config).study(config)
        assert next(iter(study.arms)) == "ensiam"
        for arm in study.arms.values():
            configs.validate(configs.apply_overrides(config, arm.overrides), 1)
