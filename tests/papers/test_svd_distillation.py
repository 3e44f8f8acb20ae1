"""KD-SVD: the original's numbers, what the maths promises, and the recipe."""

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
from reprise.papers.svd_distillation import rbf_relation, svd_distillation_loss
from reprise.papers.svd_distillation import recipe as kd_svd

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "svd_distillation.npz")
S, T = ([GOLDEN[f"{who}_features_{i}"] for i in range(3)] for who in ("student", "teacher"))


@jax.jit
def values_and_slopes(s, t):
    """Each example's loss and the gradient of their sum, for student and teacher."""

    def total(s, t):
        each = svd_distillation_loss(s, t)
        return each.sum(), each

    (_, each), slopes = jax.value_and_grad(total, (0, 1), has_aux=True)(s, t)
    return each, *slopes


def loss(s, t):
    return values_and_slopes(s, t)[0]


def test_golden_values_and_gradient():
    assert [GOLDEN[name] for name in ("num_vectors", "num_extra", "beta")] == [1, 3, 8]
    each, slopes, to_teacher = values_and_slopes(S, T)
    np.testing.assert_allclose(each, GOLDEN["expected"], rtol=1e-4)
    for i, slope in enumerate(slopes):
        expected = GOLDEN[f"grad_student_features_{i}"]
        np.testing.assert_allclose(slope, expected, atol=1e-3 * np.abs(expected).max())
    assert all((slope == 0).all() for slope in to_teacher)


def test_relation_is_one_kernel_a_rank():
    front = np.random.default_rng(0).normal(size=(2, 3, 2)).astype(np.float32)
    back = np.random.default_rng(1).normal(size=(2, 4, 2)).astype(np.float32)
    out = rbf_relation(front, back, 2.0)
    assert out.shape == (2, 4, 3, 2)
    expected = np.exp(-((back[1, 3, 0] - front[1, 2, 0]) ** 2) / 2)
    np.testing.assert_allclose(out[1, 3, 2, 0], expected, rtol=1e-6)


def test_only_directions_of_the_student_count():
    """Its scale, its pixels' order and its signs do not; each example stands for itself."""
    each = loss(S, T)
    moved = [3 * s[:, ::-1] * np.array([1, -1, 2]).reshape(3, 1, 1, 1) for s in S]
    np.testing.assert_allclose(loss([m.astype(np.float32) for m in moved], T), each, rtol=1e-3)
    np.testing.assert_allclose(loss(T, T), 0, atol=1e-8)
    np.testing.assert_allclose(loss([s[::-1] for s in S], [t[::-1] for t in T]), each[::-1])
    np.testing.assert_allclose(loss(S, [5 * t for t in T]), each, rtol=1e-4)


def test_vectors_and_other_sizes():
    """A tap may be a vector, and its maps may have other sizes in student and teacher."""
    vector, other = S[2][:, 0, 0], T[2][:, 1, 1]
    got = jax.jit(svd_distillation_loss)([S[1], vector], [T[1][:, :2], other])
    assert got.shape == (3,) and np.isfinite(got).all()


def test_no_gradient_from_maps_of_zeros():
    zeros = [s * np.array([1, 0, 1], np.float32).reshape(3, 1, 1, 1) for s in S]
    each, slopes, _ = values_and_slopes(zeros, T)
    assert np.isfinite(each).all()
    assert all(np.isfinite(g).all() and (g[1] == 0).all() and (g[0] != 0).any() for g in slopes)
    assert np.isfinite(loss(S, [np.zeros_like(t) for t in T])).all()


def test_gradients_in_float64_and_finite_in_bfloat16():
    with jax.enable_x64(True):
        s, t = ([x[:1].astype(np.float64) for x in of[1:]] for of in (S, T))
        whole = jax.jit(lambda s: svd_distillation_loss(s, t, num_vectors=2))
        check_grads(whole, (s,), 1, modes=["rev"])
        assert whole(s).dtype == jnp.float64
    s, t = ([x.astype(jnp.bfloat16) for x in of[1:]] for of in (S, T))
    each, slopes, _ = values_and_slopes(s, t)
    assert each.dtype == jnp.float32 and np.isfinite(each).all()
    assert all(g.dtype == jnp.bfloat16 and jnp.isfinite(g).all() for g in slopes)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="1 student_features and 1 teacher"):
        svd_distillation_loss(S[:1], T[:1])
    with pytest.raises(ValueError, match=r"\(3, 6, 6, 9\).*same batch and channels"):
        svd_distillation_loss([S[0][..., :9], S[1]], T[:2])
    with pytest.raises(ValueError, match="same B and K"):
        rbf_relation(jnp.zeros((2, 3, 1)), jnp.zeros((2, 4, 2)))
    with pytest.raises(ValueError, match="num_vectors = 0"):
        svd_distillation_loss(S, T, num_vectors=0)


EIGHT = """
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from reprise.papers.svd_distillation import svd_distillation_loss
rng = np.random.default_rng(0)
make = lambda: [rng.normal(size=(8, n, n, c)).astype(np.float32) for n, c in ((4, 3), (2, 5))]
s, t = make(), make()
f = jax.jit(jax.value_and_grad(lambda s, t: svd_distillation_loss(s, t).sum()))
one = f(s, t)
split = NamedSharding(jax.make_mesh((8,), ("data",)), P("data"))
many = f(*jax.device_put((s, t), split))
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
print("same")
"""


def test_eight_devices_give_what_one_gives(monkeypatch):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    monkeypatch.setenv("XLA_FLAGS", flags)
    done = subprocess.run([sys.executable, "-c", EIGHT], capture_output=True, text=True)
    assert done.stdout.strip() == "same", done.stderr


def tiny(tmp_path, **fields):
    config = run.load_config("svd_distillation")
    few = {
        "model.teacher": "pooled-2-1",
        "model.student": "pooled-2-1",
        "batch_size": 8,
        "init.batch_size": 8,
        "teacher.num_steps": 0,
        "init.num_steps": 2,
        "num_steps": 4,
        "steps_per_dispatch": 1,
        "cache_dir": str(tmp_path / "cache"),
        "compilation_cache": "",
        "optimizer.schedule.args.boundaries": (2, 3),
    }
    return configs.apply_overrides(config, {**few, **fields})


def test_recipe_trains_resumes_and_shares_its_teacher(tmp_path, caplog):
    config = tiny(tmp_path, **{"checkpoint.every": 2})
    done = run.run(config, tmp_path / "whole")
    assert 0 <= done.metrics[0]["accuracy"] <= 1 and done.metrics[0]["relation_distance"] > 0
    folder = tmp_path / "whole" / "checkpoints" / "1-student"
    shutil.rmtree(folder / "4")
    (folder / "4.json").unlink()
    with caplog.at_level("INFO", "reprise"):
        again = run.run(config, tmp_path / "whole")
    assert "phase teacher: taken from" in caplog.text and "continues at step 2" in caplog.text
    assert jax.tree.all(jax.tree.map(np.array_equal, done.state.params, again.state.params))


def test_every_arm_of_the_study_builds(tmp_path):
    study = kd_svd.study(run.load_config("svd_distillation"))
    assert {"kd_svd", "ce", "ce_pool", "fsp", "fsp_clipped"} < set(study.arms)
    teacher = stepped(kd_svd.phases(tiny(tmp_path))[:1])
    for name in ("ce_pool", "fsp", "fsp_clipped"):
        stepped(kd_svd.phases(tiny(tmp_path, **study.arms[name].overrides))[1:], teacher)
    with pytest.raises(ValueError, match=r"config.model.method = 'svd'"):
        kd_svd.phases(tiny(tmp_path, **{"model.method": "svd"}))


def few_images(name, split, data_dir):
    return {"image": np.zeros((128, 32, 32, 3), np.float32), "label": np.zeros(128, np.int32)}


def test_the_papers_variant_builds(monkeypatch):
    monkeypatch.setattr(distillation_setting, "_normalised", few_images)
    stepped(kd_svd.phases(run.load_config("svd_distillation:cifar100")))


def test_any_setting_with_equal_channels(tmp_path):
    """Wide ResNets without a pool: the labelled batch is what transfers."""
    images = {"image": np.zeros((16, 16, 16, 3), np.float32), "label": np.zeros(16, np.int32)}
    setting = distillation.Setting(WRN(16, 1), WRN(10, 1), images, images, {"": images})
    config = tiny(tmp_path)
    teacher_config = configs.apply_overrides(config, {"teacher.batch_size": 8}).teacher
    teacher = distillation.teacher_phase(setting, teacher_config, {})
    stepped([teacher, *kd_svd.method(setting, config)])
    narrow = setting._replace(student=WRN(10, 2))
    with pytest.raises(ValueError, match="same channels"):
        kd_svd.method(narrow, config)
