"""Boundary supporting samples: the original's numbers, what the maths promises, and the recipe."""

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

from reprise.common import config as configs
from reprise.common.training import run
from reprise.papers.boundary_supporting_samples import (
    boundary_similarity,
    boundary_supporting_samples,
    bss_loss_weights,
    sample_target_class,
    select_base_samples,
    soft_cross_entropy,
    spirals,
    target_class_from_uniform,
)
from reprise.papers.boundary_supporting_samples import recipe as bss

ROOT = Path(__file__).parents[2]
GOLDEN = dict(np.load(ROOT / "tests" / "goldens" / "boundary_supporting_samples.npz"))
IMAGES, TARGET = GOLDEN["images"], GOLDEN["target_class"]
RNG = np.random.default_rng(0)


def network(x):
    flat = x.reshape(len(x), -1)
    return jnp.tanh(flat @ GOLDEN["w1"] + GOLDEN["b1"]) @ GOLDEN["w2"] + GOLDEN["b2"]


@jax.jit
def walk(images, target):
    return boundary_supporting_samples(network, images, target)


def test_golden_walk():
    walked = walk(IMAGES, TARGET)
    np.testing.assert_allclose(walked, GOLDEN["expected"], atol=2e-5)
    np.testing.assert_allclose(
        network(walked), GOLDEN["expected_adversarial_logits"], rtol=1e-4, atol=2e-5
    )
    crossed = network(walked).argmax(-1) != network(IMAGES).argmax(-1)
    np.testing.assert_array_equal(crossed, GOLDEN["expected_crossed"])


def test_golden_choice_of_samples_and_classes():
    logits = GOLDEN["expected_logits"]
    found = target_class_from_uniform(logits, GOLDEN["uniform"])
    np.testing.assert_array_equal(found, GOLDEN["expected_target_class"])
    names = ("sel_student_logits", "sel_teacher_logits", "sel_labels")
    rows, mask, score = select_base_samples(*(GOLDEN[name] for name in names), 3)
    expected = GOLDEN["sel_expected_score"]
    np.testing.assert_allclose(score, expected, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(rows, np.argsort(-expected)[:3])
    assert mask.all()


def test_golden_soft_cross_entropy_and_its_gradient():
    args = GOLDEN["kd_student_logits"], GOLDEN["kd_teacher_logits"], 3.0
    np.testing.assert_allclose(soft_cross_entropy(*args), GOLDEN["kd_expected"], rtol=1e-6)
    ours, theirs = jax.jit(jax.grad(lambda *a: soft_cross_entropy(*a).sum(), (0, 1)))(*args)
    np.testing.assert_allclose(ours, GOLDEN["kd_grad_student_logits"], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(theirs, 0.0)


def test_a_linear_boundary_is_reached_from_the_right_side():
    # Two classes split at x = 0: the gap is 2 |x|, each step takes 2 eta of it.
    def plane(x):
        return jnp.concatenate([x[:, 0, 0, :1], -x[:, 0, 0, :1]], -1)

    x = jnp.asarray([0.5, 2.0, -1.0])[:, None, None, None] * jnp.ones((3, 1, 1, 2))
    target = jnp.asarray([1, 1, 0])
    near = boundary_supporting_samples(plane, x, target, step_size=0.3, num_steps=4)
    np.testing.assert_allclose(near[..., 0], x[..., 0] * 0.4**4, atol=1e-3)
    np.testing.assert_array_equal(near[..., 1], x[..., 1])  # no slope, no move
    # A step too long lands beyond, and the sample stays where it crossed.
    far = boundary_supporting_samples(plane, x, target, step_size=0.7, num_steps=9)
    np.testing.assert_allclose(far[..., 0], -0.4 * x[..., 0], atol=1e-3)


def test_the_walk_is_of_each_sample_alone_and_stays_in_range():
    alone = boundary_supporting_samples(network, IMAGES[2:3], TARGET[2:3])
    np.testing.assert_allclose(alone, walk(IMAGES, TARGET)[2:3], atol=1e-5)
    narrow = boundary_supporting_samples(network, IMAGES, TARGET, clip_min=-0.5, clip_max=0.7)
    assert narrow.min() >= -0.5 and narrow.max() <= np.float32(0.7)
    unmoved = boundary_supporting_samples(network, IMAGES, TARGET, num_steps=0)
    np.testing.assert_array_equal(unmoved, IMAGES)


def test_a_saturated_teacher_moves_nothing_and_makes_no_nan():
    def flat(x):
        return jnp.zeros((len(x), 10)).at[:, 3].set(9.0) + 0.0 * x.sum()

    np.testing.assert_array_equal(
        boundary_supporting_samples(flat, IMAGES, TARGET), np.clip(IMAGES, -2.5, 2.5)
    )


def test_no_gradient_passes_to_images_or_teacher():
    def total(images, scale):
        return boundary_supporting_samples(lambda x: scale * network(x), images, TARGET).sum()

    for slope in jax.jit(jax.grad(total, (0, 1)))(IMAGES, 1.0):
        np.testing.assert_array_equal(slope, 0.0)


def test_selection_takes_what_both_have_right_and_repeats_it():
    teacher = 4 * np.eye(4)[[0, 1, 2, 3, 0]]
    student = np.eye(4)[[0, 1, 2, 2, 1]] * np.array([1.0, 3.0, 2.0, 1.0, 1.0])[:, None]
    labels = np.array([0, 1, 2, 3, 0])
    rows, mask, score = select_base_samples(student, teacher, labels, 5)
    # The student is least like the teacher at 0, most at 1; it is wrong at 3 and 4.
    assert rows.tolist() == [0, 2, 1, 0, 2]
    assert mask.tolist() == [True, True, True, False, False]
    assert (np.asarray(score)[3:] == -1).all()
    fewest = select_base_samples(student, teacher, labels, 2)
    assert fewest[0].tolist() == [0, 2] and fewest[1].all()
    nothing = select_base_samples(student, teacher, (labels + 1) % 4, 3)
    assert not nothing[1].any() and (np.asarray(nothing[2]) == -1).all()


def test_target_classes_follow_the_teachers_probabilities():
    logits = jnp.log(jnp.asarray([0.5, 0.3, 0.15, 0.05]))
    keys = jax.random.key(1)
    drawn = np.asarray(sample_target_class(jnp.tile(logits, (20_000, 1)), keys))
    share = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(share, [0.0, 0.6, 0.3, 0.1], atol=0.015)
    # Where the others underflow: the runner-up.
    sure = jnp.asarray([[900.0, 1.0, 2.0, 0.0]])
    assert target_class_from_uniform(sure, jnp.asarray([0.9])).tolist() == [2]


def test_weights_over_the_epochs():
    alpha, beta = bss_loss_weights(jnp.asarray([0.0, 40.0, 60.0, 80.0]), 80)
    np.testing.assert_allclose(alpha, [4.0, 2.5, 1.75, 1.0], rtol=1e-6)
    np.testing.assert_allclose(beta, [2.0, 2 / 3, 0.0, 0.0], rtol=1e-6, atol=1e-7)


def test_likeness_of_boundaries():
    a, b = RNG.normal(size=(2, 5, 4, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(boundary_similarity(a, a), 1.0, rtol=1e-6)
    magnitude, angle = boundary_similarity(a, -2 * a)
    np.testing.assert_allclose(magnitude, 0.5, rtol=1e-6)
    np.testing.assert_allclose(angle, -1.0, rtol=1e-6)
    np.testing.assert_array_equal(boundary_similarity(a, b), boundary_similarity(b, a))
    still = np.zeros_like(a)
    assert np.array_equal(boundary_similarity(still, a), np.zeros((2, 5)))
    slope = jax.jit(jax.grad(lambda x: sum(boundary_similarity(x, a)).sum()))(still)
    assert np.isfinite(slope).all()


def test_gradients_in_float64_and_finite_in_bfloat16():
    with jax.enable_x64(True):
        a, b = RNG.normal(size=(2, 3, 4))
        check_grads(jax.jit(boundary_similarity), (a, b), 1, modes=["rev"])
        check_grads(jax.jit(lambda s: soft_cross_entropy(s, b)), (a,), 1, modes=["rev"])
        x = IMAGES.astype(np.float64)
        walked = walk(x, TARGET)
        assert walked.dtype == jnp.float64
        np.testing.assert_allclose(walked, GOLDEN["expected"], atol=2e-5)
    low = walk(IMAGES.astype(jnp.bfloat16), TARGET)
    assert low.dtype == jnp.bfloat16 and np.isfinite(low.astype(np.float32)).all()
    logits = GOLDEN["kd_student_logits"].astype(jnp.bfloat16)
    assert np.isfinite(soft_cross_entropy(logits, 300 * logits)).all()
    assert np.isfinite(select_base_samples(logits, 300 * logits, TARGET, 4)[2]).all()


def test_wrong_arguments_are_refused():
    z = np.zeros((4, 3), np.float32)
    with pytest.raises(ValueError, match=r"num_samples = 5.*1\.\.4"):
        select_base_samples(z, z, np.zeros(4, int), 5)
    with pytest.raises(ValueError, match=r"labels \(3,\)"):
        select_base_samples(z, z, np.zeros(3, int), 2)
    with pytest.raises(ValueError, match="two classes"):
        target_class_from_uniform(z[:, :1], np.zeros(4))
    with pytest.raises(ValueError, match=r"uniform \(2,\)"):
        target_class_from_uniform(z, np.zeros(2))
    with pytest.raises(ValueError, match=r"target_class \(2,\)"):
        boundary_supporting_samples(network, IMAGES, TARGET[:2])
    with pytest.raises(ValueError, match="below clip_max"):
        boundary_supporting_samples(network, IMAGES, TARGET, clip_min=1.0, clip_max=1.0)
    with pytest.raises(ValueError, match="perturbation_b"):
        boundary_similarity(z, z[:2])
    with pytest.raises(ValueError, match="num_epochs = 0"):
        bss_loss_weights(1, 0)


def test_8_devices_give_what_1_gives():
    code = """
import sys; sys.path.insert(0, "tests/papers")
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P, AxisType
import test_boundary_supporting_samples as t
def both(images, labels):
    logits = t.network(images)
    rows, mask, score = t.select_base_samples(0.5 * logits, logits, labels, 6)
    target = t.sample_target_class(logits, jax.random.key(0))
    near = t.boundary_supporting_samples(t.network, images[rows], target[rows], num_steps=3)
    return rows, mask, score, target, near
images = jnp.asarray(t.IMAGES[:8])
labels = t.network(images).argmax(-1).at[1].set(0)
both = jax.jit(both)
plain = both(images, labels)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
found = both(*jax.device_put((images, labels), NamedSharding(mesh, P("data"))))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, plain)
print("ok")
"""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "ok", done.stderr[-2000:]


def test_points_lie_on_three_arms():
    teacher, student, test = spirals.generate(3)
    assert [len(s["label"]) for s in (teacher, student, test)] == [2000, 30, 3000]
    assert teacher["image"].shape == (2000, 1, 1, 2)
    length = np.linalg.norm(teacher["image"].reshape(-1, 2), axis=-1)
    assert length.min() >= 0.3 and length.max() <= 2.0
    again = spirals.generate(3)[1]
    np.testing.assert_array_equal(again["image"], student["image"])
    assert spirals.grid(5).shape == (25, 1, 1, 2)


def tiny(tmp_path, variant="spiral", **fields):
    config = run.load_config(f"boundary_supporting_samples:{variant}")
    few = {
        "teacher.num_steps": 4,
        "num_steps": 4,
        "steps_per_dispatch": 1,
        "model.num_walk": 2,
        "model.similarity_images": 6,
        "cache_dir": str(tmp_path / "cache"),
        "compilation_cache": "",
    }
    return configs.apply_overrides(config, {**few, **fields})


def test_recipe_trains_resumes_and_shares_its_teacher(tmp_path, caplog):
    config = tiny(tmp_path, **{"checkpoint.every": 2, "log.every": 1})
    done = run.run(config, tmp_path)
    assert set(done.metrics[0]) == {"accuracy", "agreement", "mag_similarity", "ang_similarity"}
    assert all(np.isfinite(v) for v in done.metrics[0].values())
    rows = [r for r in done.history if r["phase"] == "student" and r["kind"] == "train"]
    # Four steps are four epochs of the thirty points: beta is 0 from the third on.
    assert [r["bss"] > 0 for r in rows] == [True, True, False, False]
    shutil.rmtree(tmp_path / "checkpoints" / "1-student" / "4")
    (tmp_path / "checkpoints" / "1-student" / "4.json").unlink()
    with caplog.at_level("INFO", "reprise"):
        again = run.run(config, tmp_path)
    assert "phase teacher: taken from" in caplog.text and "continues at step 2" in caplog.text
    assert jax.tree.all(jax.tree.map(np.array_equal, done.state.params, again.state.params))


def built(phases):
    """Every phase's state and step by their shapes, without data or compilation."""
    previous = None
    for phase in phases:
        state = jax.eval_shape(phase.init, jax.random.key(0), previous)
        after, _ = jax.eval_shape(phase.step, state, phase.batches, jax.random.key(0))
        assert jax.tree.structure(after) == jax.tree.structure(state)
        previous = state


@pytest.mark.parametrize("method", ["bss", "random", "kd", "ce"])
def test_every_arm_of_the_digits_builds(method, tmp_path):
    built(bss.phases(tiny(tmp_path, "digits", **{"model.method": method})))


def test_an_unknown_method_is_refused(tmp_path):
    with pytest.raises(ValueError, match="allowed are bss, random, kd, ce"):
        bss.phases(tiny(tmp_path, **{"model.method": "fgsm"}))


def test_the_papers_variant_builds(monkeypatch):
    from reprise.common.training import distillation_setting

    def few(name, split, data_dir):
        shape = (256, 32, 32, 3)
        return {"image": np.zeros(shape, np.float32), "label": np.zeros(256, np.int32)}

    monkeypatch.setattr(distillation_setting, "_normalised", few)
    built(bss.phases(run.load_config("boundary_supporting_samples:cifar10")))
