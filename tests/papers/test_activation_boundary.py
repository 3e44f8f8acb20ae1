"""Activation boundaries: the original's numbers, what the maths promises, and the recipe."""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from building import stepped
from jax.test_util import check_grads

from reprise.common import config as configs
from reprise.common.training import run
from reprise.papers.activation_boundary import (
    activation_boundary_loss,
    activation_mismatch,
    centered_logit_loss,
    kd_kl_divergence,
    multilayer_activation_boundary_loss,
)
from reprise.papers.activation_boundary import recipe as ab

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "activation_boundary.npz")
S, T = GOLDEN["student_features"], GOLDEN["teacher_features"]
RNG = np.random.default_rng(0)


def test_golden_values_and_gradient():
    np.testing.assert_allclose(activation_boundary_loss(S, T, 1.0), GOLDEN["expected"], rtol=1e-5)
    slope = jax.grad(lambda s: activation_boundary_loss(s, T).sum())(S)
    np.testing.assert_allclose(slope, GOLDEN["grad_student_features"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(activation_mismatch(S, T), GOLDEN["expected_mismatch"], rtol=1e-6)


def test_zero_beyond_the_margin_and_for_the_teacher():
    t = jnp.array([[0.1, -0.1, 0.0]])
    right = jnp.array([[1.0, -1.0, -1.0]])
    assert activation_boundary_loss(right, t)[0] == 0
    assert activation_mismatch(right, t)[0] == 0
    # A teacher's response of exactly 0 counts as off.
    assert activation_mismatch(jnp.array([[0.0, 0.0, 0.5]]), t)[0] == pytest.approx(2 / 3)
    slope = jax.grad(lambda t: activation_boundary_loss(jnp.zeros_like(t), t).sum())(t)
    np.testing.assert_array_equal(slope, 0.0)


def test_only_the_side_of_the_teacher_counts():
    np.testing.assert_array_equal(
        activation_boundary_loss(S, T), activation_boundary_loss(S, 100 * np.sign(T))
    )


def test_layers_weigh_by_powers_of_two():
    each = [activation_boundary_loss(S, T), activation_boundary_loss(2 * S, T)]
    both = multilayer_activation_boundary_loss([S, 2 * S], [T, T], scale=0.5)
    np.testing.assert_allclose(both, 0.5 * (each[0] / 2 + each[1]), rtol=1e-6)


def test_centred_logits_ignore_a_common_shift():
    v, u = RNG.normal(size=(2, 3, 5)).astype(np.float32)
    np.testing.assert_allclose(
        centered_logit_loss(v + 3, u - 2), centered_logit_loss(v, u), rtol=1e-4
    )
    np.testing.assert_allclose(centered_logit_loss(u + 1, u), 0.0, atol=1e-9)
    difference = (u - u.mean(-1, keepdims=True)) - (v - v.mean(-1, keepdims=True))
    np.testing.assert_allclose(centered_logit_loss(v, u), 10 * (difference**2).mean(-1), rtol=1e-5)


def test_gradients_in_float64_and_finite_in_bfloat16():
    with jax.enable_x64(True):
        s, t = RNG.normal(size=(2, 2, 3, 4))
        check_grads(lambda s: activation_boundary_loss(s, t), (s,), 1, modes=["rev"])
        assert activation_boundary_loss(s, t).dtype == jnp.float64
        v, u = RNG.normal(size=(2, 2, 6))
        check_grads(lambda v: centered_logit_loss(v, u), (v,), 1, modes=["rev"])
    low = activation_boundary_loss(S.astype(jnp.bfloat16), T.astype(jnp.bfloat16))
    assert low.dtype == jnp.float32 and np.isfinite(low).all()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 5, 6, 7\).*connector"):
        activation_boundary_loss(S[..., :7], T)
    with pytest.raises(ValueError, match="2 student_features and 1"):
        multilayer_activation_boundary_loss([S, S], [T])
    with pytest.raises(ValueError, match=r"\[B, K\]"):
        centered_logit_loss(S, T)
    with pytest.raises(ValueError, match=r"\[B, K\]"):
        kd_kl_divergence(S, T)


def tiny(tmp_path, **fields):
    config = run.load_config("activation_boundary")
    few = {
        "model.teacher": "cnn-4",
        "model.student": "cnn-2",
        "teacher.num_steps": 1,
        "init.num_steps": 2,
        "num_steps": 4,
        "steps_per_dispatch": 1,
        "cache_dir": str(tmp_path / "cache"),
        "compilation_cache": "",
        "optimizer.schedule.args.boundaries": (2, 3),
        "teacher.optimizer.schedule.args.boundaries": (1,),
    }
    return configs.apply_overrides(config, {**few, **fields})


def test_recipe_trains_resumes_and_shares_its_teacher(tmp_path, caplog):
    config = tiny(tmp_path, **{"checkpoint.every": 2})
    done = run.run(config, tmp_path / "whole")
    assert 0 <= done.metrics[0]["accuracy"] <= 1
    rows = [row for row in done.history if row["kind"] == "eval"]
    assert [row["phase"] for row in rows] == ["teacher", "init", "student"]
    assert 0 < rows[1]["mismatch"] < 1
    # Cut off in the last phase, and continued.
    folder = tmp_path / "whole" / "checkpoints" / "2-student"
    shutil.rmtree(folder / "4")
    (folder / "4.json").unlink()
    with caplog.at_level("INFO", "reprise"):
        again = run.run(config, tmp_path / "whole")
    assert "phase teacher: taken from" in caplog.text and "continues at step 2" in caplog.text
    assert jax.tree.all(jax.tree.map(np.array_equal, done.state.params, again.state.params))


def test_every_arm_of_the_study_builds(tmp_path):
    study = ab.study(run.load_config("activation_boundary"))
    assert study.arms["kd"].overrides["num_steps"] == 300
    teacher = stepped(ab.phases(tiny(tmp_path))[:1])
    for name in ("fitnet_init", "kd", "ce"):
        config = configs.apply_overrides(tiny(tmp_path), study.arms[name].overrides)
        stepped(ab.phases(config)[1:], teacher)


def test_the_first_phase_alone_is_judged(tmp_path):
    fields = {"model.method": "fitnet", "model.stop_after_init": True, "teacher.num_steps": 0}
    done = run.run(tiny(tmp_path, **fields, **{"init.num_steps": 1}))
    assert 0 <= done.metrics[0]["accuracy"] <= 1 and 0 < done.metrics[0]["mismatch"] < 1


def test_the_papers_variants_build(monkeypatch):
    from reprise.common.training import distillation_setting

    def few(name, split, data_dir):
        return {
            "image": np.zeros((128, 32, 32, 3), np.float32),
            "label": np.zeros(128, np.int32),
        }

    monkeypatch.setattr(distillation_setting, "_normalised", few)
    config = run.load_config("activation_boundary:cifar10")
    stepped(ab.phases(config))
    # The other one differs in its epochs alone.
    ten = run.load_config("activation_boundary:cifar10_ten")
    assert ten.num_steps == 10 * config.num_steps and len(ab.phases(ten)) == 3
