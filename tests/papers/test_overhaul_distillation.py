"""Overhaul of feature distillation: the original's numbers, what the maths promises, the recipe."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import integrate, stats

from reprise.common import config as configs
from reprise.common.models.small_cnn import SmallCNN
from reprise.common.models.wrn import WRN
from reprise.common.training import distillation, distillation_setting, run
from reprise.papers.overhaul_distillation import (
    margin_from_batchnorm,
    margin_from_features,
    margin_relu,
    multilayer_overhaul_loss,
    overhaul_feature_loss,
    partial_l2_loss,
)
from reprise.papers.overhaul_distillation import recipe as ofd
from reprise.papers.overhaul_distillation.margins import norms_of_taps

ROOT = Path(__file__).parents[2]
GOLDEN = np.load(ROOT / "tests" / "goldens" / "overhaul_distillation.npz")
S, T, M = (GOLDEN[name] for name in ("student_features", "teacher_features", "margin"))
RNG = np.random.default_rng(0)
KEY = jax.random.key(0)


def test_golden_values_and_gradient():
    np.testing.assert_allclose(overhaul_feature_loss(S, T, M), GOLDEN["expected"], rtol=1e-5)
    slope = jax.grad(lambda s: overhaul_feature_loss(s, T, M).sum())(S)
    np.testing.assert_allclose(slope, GOLDEN["grad_student_features"], rtol=1e-5, atol=1e-6)
    margin = margin_from_batchnorm(GOLDEN["bn_scale"], GOLDEN["bn_bias"])
    np.testing.assert_allclose(margin, GOLDEN["expected_margin"], rtol=1e-5)


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (0.5, -2.0), (-0.7, 1.2), (0.3, 0.92)])
def test_margin_is_the_expected_negative_response(scale, bias):
    normal = stats.norm(bias, abs(scale))
    mass, _ = integrate.quad(normal.pdf, -12, 0, epsabs=1e-13)
    first, _ = integrate.quad(lambda t: t * normal.pdf(t), -12, 0, epsabs=1e-13)
    found = margin_from_batchnorm(jnp.array([scale]), jnp.array([bias]))[0]
    np.testing.assert_allclose(found, first / mass, rtol=2e-5)


def test_margin_of_channels_that_are_hardly_ever_negative_or_constant():
    scale, bias = jnp.array([0.5, 0.5, 0.0, 0.0, 1.0]), jnp.array([1.5, 1.6, -0.3, 0.3, -200.0])
    margin = np.asarray(margin_from_batchnorm(scale, bias))
    # P(t < 0) is 1.35e-3, 6.9e-4, then 1 or 0 without any spread.
    assert margin[0] > -0.2
    np.testing.assert_allclose(margin[1:], [-1.5, -0.3, 0.0, -200.0], rtol=1e-6)
    # The threshold decides between the expectation and -3 sigma.
    np.testing.assert_allclose(margin_from_batchnorm(scale, bias, 2e-3)[0], -1.5)


def test_margin_of_features_is_the_mean_of_negative_ones():
    features = jnp.array([[[1.0, 2.0], [-1.0, 0.0]], [[-3.0, 0.5], [0.0, 4.0]]])
    np.testing.assert_allclose(margin_from_features(features), [-2.0, 0.0])
    draws = RNG.normal([0.5, -1.0], [1.0, 0.3], (200_000, 2)).astype(np.float32)
    expected = margin_from_batchnorm(jnp.array([1.0, 0.3]), jnp.array([0.5, -1.0]))
    np.testing.assert_allclose(margin_from_features(draws), expected, rtol=1e-2)


def test_where_the_teacher_is_off_the_student_need_only_be_off():
    t, m = jnp.array([[-5.0, -0.2, 2.0, 2.0]]), jnp.full(4, -1.0)
    np.testing.assert_allclose(margin_relu(t, m), [[-1.0, -0.2, 2.0, 2.0]], rtol=1e-6)
    # Below the target; between the margin and 0; below and above a positive target.
    q = jnp.array([[-9.0, -0.1, 1.0, 4.0]])
    np.testing.assert_allclose(overhaul_feature_loss(q, t, m), [0.1**2 + 1.0 + 4.0], rtol=1e-6)
    slope = jax.grad(lambda q: overhaul_feature_loss(q, t, m).sum())(q)
    np.testing.assert_allclose(slope, [[0.0, 0.2, -2.0, 4.0]], rtol=1e-6)
    # Against a positive target everywhere it is the squared distance.
    np.testing.assert_allclose(
        partial_l2_loss(S, abs(T) + 1), ((S - abs(T) - 1) ** 2).sum((1, 2, 3)), rtol=1e-5
    )


def test_no_gradient_to_teacher_or_margin():
    slopes = jax.grad(lambda t, m: overhaul_feature_loss(S, t, m).sum(), (0, 1))(T, M)
    assert all((slope == 0).all() for slope in slopes)
    assert (jax.grad(lambda t: partial_l2_loss(S, t).sum())(T) == 0).all()


def test_layers_weigh_by_powers_of_two_unless_told():
    first, second = overhaul_feature_loss(S, T, M), overhaul_feature_loss(2 * S, T, M)
    layers = ([S, 2 * S], [T, T], [M, M])
    np.testing.assert_allclose(multilayer_overhaul_loss(*layers), first / 2 + second, rtol=1e-6)
    weighed = multilayer_overhaul_loss(*layers, layer_weights=(0.0, 3.0))
    np.testing.assert_allclose(weighed, 3 * second, rtol=1e-6)


def test_gradients_in_float64_and_finite_in_bfloat16():
    with jax.enable_x64(True):
        s, t = RNG.normal(size=(2, 2, 3, 4))
        m = np.full(4, -0.7)
        check_grads(lambda s: overhaul_feature_loss(s, t, m), (s,), 1, modes=["rev"])
        assert overhaul_feature_loss(s, t, m).dtype == jnp.float64
        margin = margin_from_batchnorm(np.array([0.5]), np.array([1.5]))
        z = 3.0
        expected = 1.5 - 0.5 * stats.norm.pdf(z) / stats.norm.sf(z)
        np.testing.assert_allclose(margin, [expected], rtol=1e-12)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (S, T, M)]
    assert overhaul_feature_loss(*low).dtype == jnp.float32
    assert np.isfinite(overhaul_feature_loss(*low)).all()
    for margin in (margin_from_batchnorm(abs(low[2]), low[2]), margin_from_features(low[1])):
        assert margin.dtype == jnp.float32 and np.isfinite(margin).all()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 6, 5, 7\).*connector"):
        overhaul_feature_loss(S[..., :7], T, M)
    with pytest.raises(ValueError, match=r"partial_l2_loss.*target_features \(4, 6, 5, 7\)"):
        partial_l2_loss(S, T[..., :7])
    with pytest.raises(ValueError, match=r"margin \(7,\)"):
        margin_relu(T, M[:7])
    with pytest.raises(ValueError, match="2 student_features, 2 teacher_features, 1 margins"):
        multilayer_overhaul_loss([S, S], [T, T], [M])
    with pytest.raises(ValueError, match=r"bn_scale \(8,\) and bn_bias \(7,\)"):
        margin_from_batchnorm(M, M[:7])
    with pytest.raises(ValueError, match="margin_from_features"):
        margin_from_features(M)


def test_8_devices_give_what_1_gives():
    code = """
import sys; sys.path.insert(0, "tests/papers")
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import test_overhaul_distillation as t
def loss(s, features):
    m = t.margin_from_features(features)
    return t.multilayer_overhaul_loss([s, s], [features, features], [m, t.M]).mean()
s, features = jnp.tile(t.S, (2, 1, 1, 1)), jnp.tile(t.T, (2, 1, 1, 1))
plain = jax.jit(jax.value_and_grad(loss))(s, features)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
spread = jax.device_put((s, features), NamedSharding(mesh, P("data")))
found = jax.jit(jax.value_and_grad(loss))(*spread)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, plain)
print("ok", jax.device_count())
"""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "ok 8", done.stderr[-2000:]


def test_the_batchnorm_of_a_tap_is_found_in_any_backbone():
    taps = ("stage1_pre", "stage3_pre", "stage3")
    assert norms_of_taps(SmallCNN(2, repeats=2), (8, 8, 1), taps) == {
        "stage1_pre": ("stage1_bn1",),
        "stage3_pre": ("stage3_bn1",),
        "stage3": None,
    }
    assert norms_of_taps(WRN(10, 1), (8, 8, 3), (*taps, "stage1_sum")) == {
        "stage1_pre": ("stage2_block0_bn0",),
        "stage3_pre": ("bn",),
        "stage3": None,
        "stage1_sum": None,
    }


def tiny(tmp_path, **fields):
    config = run.load_config("overhaul_distillation")
    few = {
        "model.teacher": "cnn-4",
        "model.student": "cnn-2",
        "teacher.num_steps": 0,
        "num_steps": 4,
        "steps_per_dispatch": 1,
        "cache_dir": str(tmp_path / "cache"),
        "compilation_cache": "",
        "optimizer.schedule.args.boundaries": (2, 3),
    }
    return configs.apply_overrides(config, {**few, **fields})


def test_recipe_trains_resumes_and_leaves_its_teacher_alone(tmp_path, caplog):
    config = tiny(tmp_path, **{"checkpoint.every": 2})
    done = run.run(config, tmp_path / "whole")
    assert 0 <= done.metrics[0]["accuracy"] <= 1
    rows = [row for row in done.history if row["kind"] == "train"]
    assert [row["phase"] for row in rows][-1] == "student" and rows[-1]["feature_loss"] > 0
    # Cut off in the last phase, and continued.
    folder = tmp_path / "whole" / "checkpoints" / "1-student"
    shutil.rmtree(folder / "4")
    (folder / "4.json").unlink()
    with caplog.at_level("INFO", "reprise"):
        again = run.run(config, tmp_path / "whole")
    assert "phase teacher: taken from" in caplog.text and "continues at step 2" in caplog.text
    assert jax.tree.all(jax.tree.map(np.array_equal, done.state.params, again.state.params))
    # With batch statistics the teacher remembers nothing of the batches it saw.
    setting = distillation_setting.build(config)
    teacher = run.train(lambda c: [distillation_setting.teacher_phase(setting, c)], config)
    kept = done.state.model_state.teacher["batch_stats"]
    assert jax.tree.all(jax.tree.map(np.array_equal, kept, teacher.state[0].model_state))


def test_every_arm_of_the_study_builds(tmp_path):
    study = ofd.study(run.load_config("overhaul_distillation"))
    for arm in study.arms.values():
        config = configs.apply_overrides(tiny(tmp_path), arm.overrides)
        setting = distillation_setting.build(config)
        teacher = distillation_setting.teacher_phase(setting, config)
        assert_steps(ofd.method(setting, config), jax.eval_shape(teacher.init, KEY, None))
    with pytest.raises(ValueError, match=r"config\.model\.method = 'at'"):
        ofd.phases(tiny(tmp_path, **{"model.method": "at"}))
    with pytest.raises(ValueError, match="student has no tap 'stage4_pre'"):
        ofd.phases(tiny(tmp_path, **{"model.taps": ("stage4_pre",)}))
    others, ours = np.array([0.87, 0.92]), np.array([0.9, 0.95])
    results = {arm: {"accuracy": ours if arm == "ofd" else others} for arm in study.arms}
    text, holds = study.claim(results)
    assert holds and "+3.0 (worst seed +3.0)" in text


def assert_steps(phases, previous=None):
    """Each phase's step returns the state it takes, by shapes alone."""
    for phase in phases:
        state = jax.eval_shape(phase.init, KEY, previous)
        after, _ = jax.eval_shape(phase.step, state, phase.batches, KEY)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        previous = state


def test_without_a_batchnorm_the_margin_comes_from_the_batch():
    images = {"image": np.ones((8, 8, 8, 3), np.float32), "label": np.zeros(8, np.int32)}
    setting = distillation.Setting(WRN(10, 1), WRN(10, 1), images, images, {"": images})
    config = run.load_config("overhaul_distillation")
    more = {"model.taps": ("stage1_sum", "stage2_sum"), "batch_size": 8}
    (phase,) = ofd.method(setting, configs.apply_overrides(config, more))
    teacher = distillation.teacher_phase(setting, config.teacher, {})
    before = jax.eval_shape(teacher.init, KEY, None)
    state = jax.eval_shape(phase.init, KEY, before)
    assert set(state.params["extra"]) == {"connector0", "connector1"}
    assert_steps([phase], before)


def test_the_papers_variants_build(monkeypatch):
    def few(name, split, data_dir):
        return {
            "image": np.zeros((128, 32, 32, 3), np.float32),
            "label": np.zeros(128, np.int32),
        }

    monkeypatch.setattr(distillation_setting, "_normalised", few)
    config = run.load_config("overhaul_distillation:cifar100")
    assert_steps(ofd.phases(config))
    drops = config.optimizer.schedule.args.boundaries
    assert [round(step / (50_000 // 128)) for step in drops] == [100, 150]
    # The other variants differ in sizes, which these are made of.
    for variant in ("cifar100_short", "cifar100_depth", "cifar100_width"):
        assert len(ofd.phases(run.load_config(f"overhaul_distillation:{variant}"))) == 2


def test_backbones_have_the_papers_sizes():
    for depth, width, millions in ((28, 4, 5.87), (16, 4, 2.77), (28, 2, 1.47), (16, 2, 0.70)):
        image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        model = WRN(depth, width, 100)
        variables = jax.eval_shape(
            lambda x, m=model: m.init(jax.random.key(0), x, train=False), image
        )
        count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        assert round(count / 1e6, 2) == pytest.approx(millions, abs=0.011)
