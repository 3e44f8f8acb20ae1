"""MHGD: the original's numbers, what the maths promises, and the recipe."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import stepped
from jax.test_util import check_grads

from reprise.common import config as configs
from reprise.common.models.wrn import WRN
from reprise.common.training import distillation, distillation_setting, run
from reprise.papers.multi_head_graph_distillation import (
    attention_graph_loss,
    attention_logits,
    estimate_back_vectors,
    multi_head_graph_distillation_loss,
    principal_vectors,
    sample_head_mask,
    vector_estimation_loss,
)
from reprise.papers.multi_head_graph_distillation import recipe as mhgd

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "multi_head_graph_distillation.npz")
HEADS = int(GOLDEN["num_heads"])
PARAMS = {name[len("params_") :]: GOLDEN[name] for name in GOLDEN if name.startswith("params_")}
S, T = ([GOLDEN[f"{who}_{end}"] for end in ("front", "back")] for who in ("student", "teacher"))


@jax.jit
def value_and_slopes(params, s, t):
    def loss(params, s, t):
        return multi_head_graph_distillation_loss([params], s, t, num_heads=HEADS)

    return jax.value_and_grad(loss, (0, 1, 2))(params, s, t)


def test_golden_loss_and_gradient_to_the_student_alone():
    value, (to_params, to_s, to_t) = value_and_slopes(PARAMS, S, T)
    np.testing.assert_allclose(value, GOLDEN["expected"], rtol=1e-4)
    for slope, end in zip(to_s, ("front", "back"), strict=True):
        expected = GOLDEN[f"grad_student_{end}"]
        np.testing.assert_allclose(slope, expected, atol=1e-3 * np.abs(expected).max())
    assert all((g == 0).all() for g in jax.tree.leaves((to_params, to_t)))


def test_golden_logits_and_estimator():
    for who, of in (("student", S), ("teacher", T)):
        logits = attention_logits(PARAMS, of[1], of[0], num_heads=HEADS)
        np.testing.assert_allclose(logits, GOLDEN[f"expected_{who}_logits"], rtol=1e-4, atol=1e-5)
    logits, statistics = attention_logits(PARAMS, T[1], T[0], num_heads=HEADS, train=True)
    estimate = estimate_back_vectors(PARAMS, T[0], logits, GOLDEN["head_keep_mask"])
    np.testing.assert_allclose(estimate, GOLDEN["expected_estimate"], rtol=1e-4, atol=1e-6)
    loss = vector_estimation_loss(estimate, T[1]).mean()
    np.testing.assert_allclose(loss, GOLDEN["expected_estimator_loss"], rtol=1e-4)
    mapped = T[1] @ PARAMS["sender_kernel"]
    mean = 0.9 * PARAMS["sender_bn_mean"] + 0.1 * mapped.mean(0)
    np.testing.assert_allclose(statistics["sender_bn_mean"], mean, rtol=1e-4, atol=1e-6)
    assert set(statistics) == {
        f"{a}_bn_{b}" for a in ("sender", "receiver") for b in ("mean", "var")
    }


def test_rows_are_divergences_of_the_student_from_the_teacher():
    s, t = (np.random.default_rng(i).normal(size=(2, 3, 3)).astype(np.float32) for i in (0, 1))

    def rows(x):
        e = np.exp(np.tanh(x))
        return e / e.sum(-1, keepdims=True)

    expected = (rows(s) * np.log(rows(s) / rows(t))).sum((0, 2))
    np.testing.assert_allclose(attention_graph_loss(s, t), expected, rtol=1e-5)
    np.testing.assert_allclose(attention_graph_loss(t, t), 0, atol=1e-6)
    # tanh bounds what one logit can do.
    far = attention_graph_loss(1e6 * s, -1e6 * s)
    assert np.isfinite(far).all() and (far < 2 * 2 * 2).all()


def test_order_of_the_batch_does_not_matter():
    turned = [[x[::-1] for x in of] for of in (S, T)]
    value, (_, slopes, _) = value_and_slopes(PARAMS, S, T)
    other, (_, turned_slopes, _) = value_and_slopes(PARAMS, *turned)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    np.testing.assert_allclose(turned_slopes[0][::-1], slopes[0], rtol=1e-3, atol=1e-4)


def test_a_student_like_the_teacher_has_its_vectors():
    rng = np.random.default_rng(3)
    teacher = [
        np.abs(rng.normal(size=(4, n, n, c))).astype(np.float32) for n, c in ((4, 3), (2, 6))
    ]
    ours, theirs = jax.jit(principal_vectors)([-2 * t for t in teacher], teacher)
    for s, t, tap in zip(ours, theirs, teacher, strict=True):
        np.testing.assert_allclose(s, t, atol=1e-4)
        np.testing.assert_allclose(jnp.linalg.norm(t, axis=1), 1, rtol=1e-5)
        assert t.shape == (4, tap.shape[-1]) and (t.max(1) + t.min(1) >= 0).all()


def test_masks_keep_about_half_of_the_heads_and_never_none():
    keep = sample_head_mask(jax.random.key(0), 8, 200)
    assert keep.shape == (8, 200, 1) and set(np.unique(keep)) == {0.0, 1.0}
    kept = np.asarray(keep.sum(0))
    assert kept.min() >= 1 and kept.max() <= 7 and abs(kept.mean() - 4) < 0.3
    assert (sample_head_mask(jax.random.key(0), 1, 5) == 1).all()


def test_gradients_in_float64_and_finite_in_bfloat16():
    with jax.enable_x64(True):
        wide = {k: v.astype(np.float64) for k, v in PARAMS.items()}
        s, t = ([x.astype(np.float64) for x in of] for of in (S, T))
        loss = jax.jit(lambda s: multi_head_graph_distillation_loss([wide], s, t, num_heads=HEADS))
        check_grads(loss, (s,), 1, modes=["rev"])
        assert loss(s).dtype == jnp.float64
    low = [[x.astype(jnp.bfloat16) for x in of] for of in (S, T)]
    value, (_, slopes, _) = value_and_slopes(PARAMS, *low)
    assert value.dtype == jnp.float32 and np.isfinite(value)
    assert all(jnp.isfinite(g).all() for g in slopes)
    # Equal vectors: no norm or BatchNorm divides by 0.
    same = [np.ones_like(x) for x in T]
    logits, _ = attention_logits(PARAMS, same[1], same[0], num_heads=HEADS, train=True)
    assert np.isfinite(logits).all()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"back \(8, 20\) and front \(4, 12\)"):
        attention_logits(PARAMS, T[1], T[0][:4], num_heads=HEADS)
    with pytest.raises(ValueError, match="A = 7 heads"):
        attention_logits(PARAMS, T[1], T[0], num_heads=7)
    with pytest.raises(ValueError, match=r"keep_mask \(4, 8\)"):
        estimate_back_vectors(PARAMS, T[0], jnp.zeros((4, 8, 8)), jnp.zeros((4, 8)))
    with pytest.raises(ValueError, match=r"\[A, B, B\]"):
        attention_graph_loss(jnp.zeros((2, 2)), jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="1 params_per_pair need one more"):
        multi_head_graph_distillation_loss([PARAMS], S[:1], T[:1])
    with pytest.raises(ValueError, match="same batch and channels"):
        principal_vectors([jnp.zeros((2, 3, 3, 4))], [jnp.zeros((2, 3, 3, 5))])
    with pytest.raises(ValueError, match=r"\[B, Db\]"):
        vector_estimation_loss(T[1], T[0])


EIGHT = """
import functools, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from reprise.papers.multi_head_graph_distillation import *
rng = np.random.default_rng(0)
params = init_params(jax.random.key(0), 4, 6, 2)
front, back = (rng.normal(size=(16, c)).astype(np.float32) for c in (4, 6))
loss = lambda s, t: multi_head_graph_distillation_loss([params], s, t, num_heads=2)
f = jax.jit(jax.value_and_grad(loss))
one = f([front, back], [back[:, :4], front[:, [0, 1, 2, 3, 0, 1]]])
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
split = NamedSharding(mesh, P("data"))
args = jax.device_put(([front, back], [back[:, :4], front[:, [0, 1, 2, 3, 0, 1]]]), split)
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(f(*args))):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
# The same graph inside shard_map, and its BatchNorm's statistics.
graph = functools.partial(attention_logits, num_heads=2, train=True)
whole, statistics = jax.jit(graph)(params, back, front)
apart = jax.jit(jax.shard_map(
    functools.partial(graph, axis_name="data"), mesh=mesh, in_specs=(P(), P("data"), P("data")),
    out_specs=(P(None, "data"), P())))
rows, same = apart(params, back, front)
np.testing.assert_allclose(rows, whole, rtol=1e-4, atol=1e-4)
for name in statistics:
    np.testing.assert_allclose(same[name], statistics[name], rtol=1e-4, atol=1e-5)
print("same")
"""


def test_eight_devices_give_what_one_gives(monkeypatch):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    monkeypatch.setenv("XLA_FLAGS", flags)
    done = subprocess.run([sys.executable, "-c", EIGHT], capture_output=True, text=True)
    assert done.stdout.strip() == "same", done.stderr


def tiny(tmp_path, **fields):
    config = run.load_config("multi_head_graph_distillation")
    few = {
        "model.teacher": "pooled-2-1",
        "model.student": "pooled-2-1",
        "model.num_heads": 2,
        "batch_size": 8,
        "init.batch_size": 8,
        "teacher.num_steps": 0,
        "init.num_steps": 1,
        "num_steps": 4,
        "steps_per_dispatch": 1,
        "cache_dir": str(tmp_path / "cache"),
        "compilation_cache": "",
        "optimizer.schedule.args.boundaries": (2, 3),
    }
    return configs.apply_overrides(config, {**few, **fields})


def test_recipe_trains_and_resumes(tmp_path, caplog):
    config = tiny(tmp_path, **{"checkpoint.every": 2})
    done = run.run(config, tmp_path / "whole")
    assert 0 <= done.metrics[0]["accuracy"] <= 1 and done.metrics[0]["graph_kl"] > 0
    folder = tmp_path / "whole" / "checkpoints" / "2-student"
    shutil.rmtree(folder / "4")
    (folder / "4.json").unlink()
    with caplog.at_level("INFO", "reprise"):
        again = run.run(config, tmp_path / "whole")
    assert "phase teacher: taken from" in caplog.text and "continues at step 2" in caplog.text
    assert jax.tree.all(jax.tree.map(np.array_equal, done.state, again.state))


def test_the_first_phase_trains_the_heads_and_leaves_the_student(tmp_path):
    teacher, attention, student = mhgd.phases(tiny(tmp_path))
    start = jax.jit(lambda key: attention.init(key, teacher.init(key, None)))
    before = start(jax.random.key(0))
    after, metrics = jax.jit(attention.step)(before, attention.batches, jax.random.key(2))
    before, after = jax.device_get((before, after))
    same = jax.tree.map(np.array_equal, before.params["student"], after.params["student"])
    assert jax.tree.all(same) and 0 < metrics["estimator_1"] < 2
    assert jax.tree.all(
        jax.tree.map(np.array_equal, before.model_state.stats, after.model_state.stats)
    )
    moved = jax.tree.map(lambda a, b: (a != b).any(), before.params["extra"], after.params["extra"])
    assert jax.tree.all(moved)
    given = jax.device_get(jax.jit(student.init)(jax.random.key(3), after))
    for pair, trained in zip(given.model_state.extra, after.params["extra"], strict=True):
        np.testing.assert_array_equal(pair["value_kernel"], trained["value_kernel"])
        assert (pair["sender_bn_mean"] != 0).any() and set(pair) > set(trained)
    with pytest.raises(ValueError, match=r"init.optimizer.l2 = 0.1: must be 0"):
        mhgd.phases(tiny(tmp_path, **{"init.optimizer.l2": 0.1}))


def test_every_arm_of_the_study_builds(tmp_path):
    study = mhgd.study(run.load_config("multi_head_graph_distillation:cifar100"))
    assert list(study.arms) == ["mhgd", "ce", "kd_svd"]
    assert set(mhgd.study(tiny(tmp_path)).arms) == {"mhgd", "ce", "ce_pool"}
    teacher = stepped(mhgd.phases(tiny(tmp_path))[:1])
    for method in ("ce", "kd_svd"):
        stepped(mhgd.phases(tiny(tmp_path, **{"model.method": method}))[1:], teacher)
    with pytest.raises(ValueError, match=r"config.model.method = 'graph'"):
        mhgd.phases(tiny(tmp_path, **{"model.method": "graph"}))


def test_the_papers_variant_builds(monkeypatch):
    def few(name, split, data_dir):
        return {"image": np.zeros((128, 32, 32, 3), np.float32), "label": np.zeros(128, np.int32)}

    monkeypatch.setattr(distillation_setting, "_normalised", few)
    stepped(mhgd.phases(run.load_config("multi_head_graph_distillation:cifar100")))


def test_any_setting_with_equal_channels(tmp_path):
    """Wide ResNets without a pool: the labelled batch is what transfers."""
    images = {"image": np.zeros((16, 16, 16, 3), np.float32), "label": np.zeros(16, np.int32)}
    setting = distillation.Setting(WRN(16, 1), WRN(10, 1), images, images, {"": images})
    config = tiny(tmp_path, **{"teacher.batch_size": 8})
    teacher = distillation.teacher_phase(setting, config.teacher, {})
    stepped([teacher, *mhgd.method(setting, config)])
    with pytest.raises(ValueError, match="same channels"):
        mhgd.method(setting._replace(student=WRN(10, 2)), config)
