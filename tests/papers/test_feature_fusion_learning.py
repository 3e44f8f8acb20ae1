"""Feature fusion learning: the original's numbers, what the maths promises, and the recipe."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.test_util import check_grads

from reprise.common import config as configs
from reprise.common.models.small_cnn import SmallCNN
from reprise.common.training import run
from reprise.papers.feature_fusion_learning import (
    FeatureFusion,
    FusionModule,
    ParallelNetworks,
    ParallelResNet,
    deep_mutual_learning_loss,
    ensemble_logits,
    mutual_distillation_loss,
    sigmoid_rampup,
    soft_target_kl,
)
from reprise.papers.feature_fusion_learning import recipe as ffl

ROOT = Path(__file__).parents[2]
GOLDEN = dict(np.load(ROOT / "tests" / "goldens" / "feature_fusion_learning.npz"))
SUB, FUSED, LABELS = (GOLDEN[name] for name in ("sub_logits", "fused_logits", "labels"))
RNG = np.random.default_rng(0)


def count(tree):
    return sum(x.size for x in jax.tree.leaves(tree))


def test_golden_loss_and_gradients():
    args = (LABELS, 0.6, 3.0)

    def loss(sub, fused):
        each = mutual_distillation_loss(sub, fused, *args)
        return each.sum(), each

    (sub, fused), found = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(SUB, FUSED)
    np.testing.assert_allclose(found, GOLDEN["expected"], rtol=1e-5)
    np.testing.assert_allclose(sub, GOLDEN["grad_sub_logits"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fused, GOLDEN["grad_fused_logits"], rtol=1e-5, atol=1e-6)


def test_golden_rampup():
    found = sigmoid_rampup(GOLDEN["rampup_epochs"], 80)
    np.testing.assert_allclose(found, GOLDEN["expected_rampup"], rtol=1e-5)
    assert sigmoid_rampup(3, 0) == 1.0
    assert jax.jit(lambda e: sigmoid_rampup(e, 80))(jnp.int32(80)) == 1.0


def golden_variables():
    parts = {"dw": ["kernel"], "pw": ["kernel"], "fc": ["kernel", "bias"]}
    parts |= {"bn1": ["scale", "bias"], "bn2": ["scale", "bias"]}
    params = {p: {n: GOLDEN[f"fusion_{p}_{n}"] for n in names} for p, names in parts.items()}
    stats = {f"bn{i}": {"mean": np.zeros(n), "var": np.ones(n)} for i, n in ((1, 12), (2, 6))}
    return {"params": params, "batch_stats": jax.tree.map(np.float32, stats)}


def test_golden_fusion_module_and_its_gradient():
    module, variables = FusionModule(5, 6), golden_variables()

    def squared(maps):
        (_, z), _ = module.apply(variables, maps, True, mutable=["batch_stats"])
        return (z**2).sum(), z

    maps = [GOLDEN[f"fusion_features_{i}"] for i in (0, 1)]
    slopes, logits = jax.jit(jax.grad(squared, has_aux=True))(maps)
    np.testing.assert_allclose(logits, GOLDEN["expected_fusion_logits"], rtol=1e-5)
    for i, slope in enumerate(slopes):
        expected = GOLDEN[f"grad_fusion_features_{i}"]
        np.testing.assert_allclose(slope, expected, atol=2e-4 * np.abs(expected).max())


def test_each_term_moves_its_student_alone():
    student, teacher = jax.grad(lambda p, q: soft_target_kl(p, q).sum(), (0, 1))(*SUB)
    assert np.abs(student).max() > 0
    np.testing.assert_array_equal(teacher, 0.0)

    # Without labels: the fused classifier follows the ensemble, the networks the fused classifier.
    def mutual(sub, fused):
        both = [mutual_distillation_loss(sub, fused, LABELS, w) for w in (1.0, 0.0)]
        return (both[0] - both[1]).sum()

    sub, fused = jax.grad(mutual, (0, 1))(SUB, FUSED)
    for m in (0, 1):
        expected = jax.grad(lambda z: soft_target_kl(z, FUSED).sum())(SUB[m])
        np.testing.assert_allclose(sub[m], expected, atol=1e-5)
    expected = jax.grad(lambda z: soft_target_kl(z, SUB.mean(0)).sum())(FUSED)
    np.testing.assert_allclose(fused, expected, atol=1e-5)


def test_agreement_costs_next_to_nothing_and_shifts_of_logits_nothing():
    # Only what the epsilon of the target leaves.
    assert np.abs(soft_target_kl(SUB[0], SUB[0])).max() < 1e-4
    shifted = soft_target_kl(SUB[0] + 5, SUB[1] - 3)
    np.testing.assert_allclose(shifted, soft_target_kl(SUB[0], SUB[1]), rtol=1e-4)
    plain = soft_target_kl(SUB[0], SUB[1], 3.0, 0.0)
    p, q = (jax.nn.log_softmax(z / 3) for z in SUB)
    np.testing.assert_allclose(plain, 9 * optax.kl_divergence(p, jnp.exp(q)), rtol=1e-4)


def test_without_weight_labels_are_all_there_is():
    ce = optax.softmax_cross_entropy_with_integer_labels
    each = [ce(jnp.asarray(z), LABELS) for z in (*SUB, FUSED)]
    found = mutual_distillation_loss(SUB, FUSED, LABELS, 0.0)
    np.testing.assert_allclose(found, sum(each), rtol=1e-5)
    found = deep_mutual_learning_loss(SUB, LABELS, 0.0)
    np.testing.assert_allclose(found, each[0] + each[1], rtol=1e-5)


def test_networks_are_interchangeable():
    ours = mutual_distillation_loss(SUB, FUSED, LABELS, 0.6)
    swapped = mutual_distillation_loss(SUB[::-1], FUSED, LABELS, 0.6)
    np.testing.assert_allclose(ours, swapped, rtol=1e-6)
    three = np.concatenate([SUB, SUB[:1]])
    np.testing.assert_allclose(ensemble_logits(three), (2 * SUB[0] + SUB[1]) / 3, rtol=1e-5)
    pair = deep_mutual_learning_loss(SUB, LABELS, 0.5)
    ce = deep_mutual_learning_loss(SUB, LABELS, 0.0)
    both = soft_target_kl(SUB[0], SUB[1]) + soft_target_kl(SUB[1], SUB[0])
    np.testing.assert_allclose(pair, ce + 0.5 * both, rtol=1e-5)


def test_gradients_in_float64_and_finite_in_bfloat16():
    with jax.enable_x64(True):
        sub, fused = SUB.astype(np.float64), FUSED.astype(np.float64)
        # The teachers of the terms are constants: held apart, finite differences agree.
        check_grads(jax.jit(lambda p: soft_target_kl(p, fused)), (sub[0],), 1, modes=["rev"])
        ce = jax.jit(lambda s: mutual_distillation_loss(s, fused, LABELS, 0.0))
        check_grads(ce, (sub,), 1, modes=["rev"])
        assert soft_target_kl(sub[0], fused).dtype == jnp.float64
    low = [x.astype(jnp.bfloat16) for x in (300 * SUB, FUSED)]
    loss, slope = jax.jit(
        jax.value_and_grad(lambda s: mutual_distillation_loss(s, low[1], LABELS, 1.0).sum())
    )(low[0])
    assert loss.dtype == jnp.float32 and np.isfinite(loss)
    assert np.isfinite(slope.astype(np.float32)).all()


def test_fusion_module_has_the_published_size():
    maps = [jax.ShapeDtypeStruct((2, 8, 8, 64), jnp.float32)] * 2
    shapes = jax.eval_shape(
        lambda *m: FusionModule(100, 64).init(jax.random.key(0), m, True), *maps
    )
    assert count(shapes["params"]) == 16_228


def test_unlike_maps_are_brought_to_one_shape():
    maps = [jnp.ones((2, 8, 8, 3)), jnp.ones((2, 4, 4, 5))]
    (fused, logits), variables = jax.eval_shape(
        lambda: FusionModule(7, 6).init_with_output(jax.random.key(0), maps, False)
    )
    assert fused.shape == (2, 4, 4, 6) and logits.shape == (2, 7)
    assert variables["params"]["adapt0"]["kernel"].shape == (3, 3, 3, 6)
    with pytest.raises(ValueError, match="whole multiple of 4 x 4"):
        unlike = [jnp.ones((2, 6, 6, 3)), maps[1]]
        jax.eval_shape(lambda: FusionModule(7, 6).init(jax.random.key(0), unlike, False))


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_branches_share_what_they_should(shared):
    image = jnp.zeros((1, 8, 8, 3))
    model = ParallelResNet(8, 2, shared, 10)
    logits, maps = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), image, train=False)[0]
    )
    assert logits.shape == (2, 1, 10) and [m.shape for m in maps] == [(1, 2, 2, 64)] * 2
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), image, train=False))["params"]
    single = jax.eval_shape(
        lambda: ParallelResNet(8, 1, 0, 10).init(jax.random.key(0), image, train=False)
    )["params"]
    part = count(params.get("shared", {}))
    assert count(params) - part == 2 * (count(single) - part)
    assert ("shared" in params) == (shared > 0)


def test_networks_start_apart_and_are_themselves():
    image = jnp.asarray(RNG.normal(size=(3, 8, 8, 1)), jnp.float32)
    one = SmallCNN(2)
    pair = ParallelNetworks([one.clone(), one.clone()])
    (logits, maps), variables = jax.jit(
        lambda x: pair.init_with_output(jax.random.key(0), x, train=False)
    )(image)
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
    apply = jax.jit(lambda own: one.apply(own, image, train=False))
    for m in (0, 1):
        own = {kind: tree[f"networks_{m}"] for kind, tree in variables.items()}
        alone, taps = apply(own)
        np.testing.assert_allclose(alone, logits[m], atol=1e-6)
        np.testing.assert_allclose(taps["stage3"], maps[m], atol=1e-6)


def test_networks_may_be_of_different_kinds():
    networks = [SmallCNN(2), SmallCNN(3)]
    model = FeatureFusion(ParallelNetworks(networks), 10)
    image = jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.float32)
    fused, taps = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=True)[0], image
    )
    assert fused.shape == (2, 10) and taps["sub_logits"].shape == (2, 2, 10)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"labels \(5,\)"):
        mutual_distillation_loss(SUB, FUSED, LABELS[:5], 0.0)
    with pytest.raises(ValueError, match=r"fused_logits \(2, 6, 10\)"):
        mutual_distillation_loss(SUB, SUB, LABELS, 0.0)
    with pytest.raises(ValueError, match=r"\[M, B, K\]"):
        ensemble_logits(FUSED)
    with pytest.raises(ValueError, match=r"\[B, K\]"):
        soft_target_kl(SUB, SUB)
    with pytest.raises(ValueError, match="rampup_length = -1"):
        sigmoid_rampup(0, -1)
    with pytest.raises(ValueError, match=r"6 n \+ 2"):
        ParallelResNet(30).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    with pytest.raises(ValueError, match="shared_stages = 3"):
        ParallelResNet(8, 2, 3).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
    with pytest.raises(ValueError, match="no tap 'stage4'"):
        pair = ParallelNetworks([SmallCNN(1)], "stage4")
        jax.eval_shape(lambda: pair.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), train=False))


def test_8_devices_give_what_1_gives():
    code = """
import sys; sys.path.insert(0, "tests/papers")
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P, AxisType
import test_feature_fusion_learning as t
module, variables = t.FusionModule(5, 6), t.golden_variables()
maps = [jnp.tile(t.GOLDEN[f"fusion_features_{i}"], (3, 1, 1, 1))[:8] for i in (0, 1)]
labels = jnp.arange(8) % 5
def loss(maps, labels):
    (_, fused), _ = module.apply(variables, maps, True, mutable=["batch_stats"])
    sub = jnp.stack([m.mean((1, 2))[:, :5] for m in maps])
    return t.mutual_distillation_loss(sub, fused, labels, 0.5).mean()
f = jax.jit(jax.value_and_grad(loss))
plain = f(maps, labels)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
spread = jax.device_put((maps, labels), NamedSharding(mesh, P("data")))
found = f(*spread)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, plain)
print("ok")
"""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "ok", done.stderr[-2000:]


def tiny(tmp_path, **fields):
    few = {
        "model.student": "cnn-1",
        "data.count": 20,
        "batch_size": 10,
        "num_steps": 4,
        "steps_per_dispatch": 1,
        "optimizer.schedule.args.boundaries": (2, 3),
        "cache_dir": str(tmp_path / "cache"),
        "compilation_cache": "",
        "checkpoint.every": 2,
    }
    config = run.load_config("feature_fusion_learning")
    return configs.apply_overrides(config, {**few, **fields})


def test_recipe_trains_evaluates_and_resumes(tmp_path, caplog):
    config = tiny(tmp_path)
    done = run.run(config, tmp_path)
    assert set(done.metrics[0]) == {"accuracy", "ensemble_accuracy", "fused_accuracy"}
    assert all(0 <= v <= 1 for v in done.metrics[0].values())
    shutil.rmtree(tmp_path / "checkpoints" / "0-student" / "4")
    (tmp_path / "checkpoints" / "0-student" / "4.json").unlink()
    with caplog.at_level("INFO", "reprise"):
        again = run.run(config, tmp_path)
    assert "continues at step 2" in caplog.text
    assert jax.tree.all(jax.tree.map(np.array_equal, done.state.params, again.state.params))


def built(phases, previous=None):
    """The last phase's state and step by their shapes, without data or compilation."""
    for phase in phases:
        state = jax.eval_shape(phase.init, jax.random.key(0), previous)
        after, _ = jax.eval_shape(phase.step, state, phase.batches, jax.random.key(0))
        assert jax.tree.structure(after) == jax.tree.structure(state)
        previous = state
    return previous


def test_every_arm_builds_with_the_same_weights(tmp_path):
    ours = built(ffl.phases(tiny(tmp_path)))
    for method in ("fusion", "dml", "vanilla"):
        state = built(ffl.phases(tiny(tmp_path, **{"model.method": method})))
        # The initialiser sees names and shapes alone: equal trees start equal.
        assert jax.tree.structure(state.params) == jax.tree.structure(ours.params)


def test_the_method_serves_other_settings_and_names_unknown_ones(tmp_path):
    from reprise.common.training import distillation

    config = tiny(tmp_path)
    setting = ffl.build(config)
    setting = setting._replace(teacher=SmallCNN(1), teacher_data=setting.student_data)
    built([distillation.teacher_phase(setting, config, {}), *ffl.method(setting, config)])
    with pytest.raises(ValueError, match="allowed are ffl, fusion, dml, vanilla"):
        ffl.phases(tiny(tmp_path, **{"model.method": "one"}))


def test_the_papers_variants_build(monkeypatch):
    from reprise.common.training import distillation_setting

    def few(name, split, data_dir):
        shape = (128, 32, 32, 3)
        return {"image": np.zeros(shape, np.float32), "label": np.zeros(128, np.int32)}

    monkeypatch.setattr(distillation_setting, "_normalised", few)
    config = run.load_config("feature_fusion_learning:cifar100")
    state = built(ffl.phases(config))
    assert count(state.params["student"]["fusion"]) == 16_228
    # The other one differs in its epochs alone.
    short = run.load_config("feature_fusion_learning:cifar100_short")
    assert config.num_steps == 117_000 and short.num_steps == 39_000
    assert len(ffl.phases(short)) == 1
