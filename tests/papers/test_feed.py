"""FEED: factor transfer's numbers, what the maths promises, and the recipes."""

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
from reprise.common.training import distillation_setting, run
from reprise.papers.feed import (
    Paraphraser,
    Translator,
    factor_distance,
    feed_loss,
    reconstruction_loss,
    training,
)
from reprise.papers.feed import recipe as feed

ROOT = Path(__file__).parents[2]
GOLDEN = np.load(ROOT / "tests" / "goldens" / "feed.npz")
G, F = GOLDEN["student_factors"], GOLDEN["teacher_factors"]
RNG = np.random.default_rng(0)
KEY = jax.random.key(0)

# Compiled whole: one after another their operations take longer to compile than to test.
distance, loss = jax.jit(factor_distance), jax.jit(feed_loss, static_argnums=2)


def test_golden_values_and_gradient():
    np.testing.assert_allclose(loss(G, F), GOLDEN["expected"], rtol=1e-5)
    slope = jax.jit(jax.grad(lambda g: feed_loss(g, F).sum()))(G)
    np.testing.assert_allclose(slope, GOLDEN["grad_student_factors"], rtol=1e-5, atol=1e-8)


def test_only_the_direction_of_a_factor_counts():
    scale = np.array([1e-3, 1.0, 7.0, 1e3], np.float32).reshape(4, 1, 1, 1)
    np.testing.assert_allclose(distance(scale * G[0], F[0]), distance(G[0], F[0]), rtol=1e-5)
    np.testing.assert_allclose(distance(2 * F[0], F[0]), 0, atol=1e-7)
    # The whole of h, w, K is one vector: its length is shared, not one a channel or pixel.
    flat = distance(G[0].reshape(4, -1), F[0].reshape(4, -1))
    np.testing.assert_allclose(distance(G[0], F[0]), flat, rtol=1e-6)


def test_unrelated_factors_are_one_over_root_d_apart():
    g, f = RNG.normal(size=(2, 64, 512)).astype(np.float32)
    # The mean of |N(0, 2)|.
    np.testing.assert_allclose(distance(g, f).mean() * 512**0.5, 2 / np.pi**0.5, rtol=0.03)


def test_factors_of_zeros_have_gradients_of_zeros():
    slope_of = jax.jit(jax.value_and_grad(lambda g: factor_distance(g, F[0]).sum()))
    value, slope = slope_of(jnp.zeros(F[0].shape))
    assert np.isfinite(value)
    np.testing.assert_array_equal(slope, 0.0)
    assert np.isfinite(distance(G[0], np.zeros_like(F[0]))).all()


def test_teachers_are_summed_or_averaged_and_may_differ_in_shape():
    each = np.stack([distance(g, f) for g, f in zip(G, F, strict=True)])
    np.testing.assert_allclose(loss(G, F), each.sum(0), rtol=1e-6)
    np.testing.assert_allclose(loss(G, F, "mean"), each.mean(0), rtol=1e-6)
    np.testing.assert_allclose(loss(G[:1], F[:1]), each[0], rtol=1e-6)
    ragged = loss([G[0], G[1, ..., :2]], [F[0], F[1, ..., :2]])
    expected = each[0] + distance(G[1, ..., :2], F[1, ..., :2])
    np.testing.assert_allclose(ragged, expected, rtol=1e-6)


def test_no_gradient_to_the_teachers():
    def both(f):
        return (feed_loss(G, f).sum() + reconstruction_loss(f[0], G[0]).sum()).astype(jnp.float32)

    assert not np.asarray(jax.jit(jax.grad(both))(F)).any()


def test_reconstruction_is_the_mean_absolute_error():
    np.testing.assert_allclose(
        reconstruction_loss(F[0], G[0]), abs(F[0] - G[0]).mean((1, 2, 3)), rtol=1e-6
    )


def test_gradients_in_float64_and_finite_in_bfloat16():
    with jax.enable_x64(True):
        g, f = RNG.normal(size=(2, 2, 3, 2, 4))
        both = jax.jit(lambda g: (feed_loss(g, f), reconstruction_loss(f[0], g[0])))
        check_grads(both, (g,), 1, modes=["rev"])
        assert all(x.dtype == jnp.float64 for x in both(g))
    low = loss(*(x.astype(jnp.bfloat16) for x in (G, F)))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, GOLDEN["expected"], rtol=0.02)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"student_factor \(4, 4, 5, 5\)"):
        factor_distance(G[0, ..., :5], F[0])
    with pytest.raises(ValueError, match="2 student_factors and 3 teacher_factors"):
        feed_loss(G[:2], F)
    with pytest.raises(ValueError, match="teacher_reduction = 'max': allowed are sum, mean"):
        feed_loss(G, F, "max")
    with pytest.raises(ValueError, match="reconstruction_loss"):
        reconstruction_loss(F[0], F[0, 0])
    with pytest.raises(ValueError, match=r"features \(4, 6\)"):
        Translator(3).init(KEY, G[0, :, 0, 0])
    with pytest.raises(ValueError, match="channels = None"):
        Paraphraser(3).init(KEY, G[0], method="decode")


def test_paraphraser_codes_and_decodes():
    module, x = Paraphraser(features=3), F[0]

    @jax.jit
    def everything(x):
        out, variables = module.init_with_output(KEY, x)
        factor = module.apply(variables, x, method="encode")
        again = module.apply(variables, factor, method="decode")
        own = {"params": variables["params"]["encoder"]}
        return out, variables, factor, again, Translator(3).apply(own, x)

    out, variables, factor, again, translated = jax.device_get(everything(x))
    assert out.shape == x.shape and factor.shape == (*x.shape[:-1], 3)
    np.testing.assert_allclose(again, out, rtol=1e-5, atol=1e-6)
    shapes = jax.tree.map(jnp.shape, variables["params"])
    kernels = {part: [shapes[part][f"conv{i}"]["kernel"][2:] for i in range(3)] for part in shapes}
    assert kernels == {
        "encoder": [(6, 6), (6, 3), (3, 3)],
        "decoder": [(3, 3), (3, 6), (6, 6)],
    }
    for layer in variables["params"]["encoder"].values():
        bound = (9 * layer["kernel"].shape[2]) ** -0.5
        assert 0.8 * bound < abs(layer["kernel"]).max() <= bound
        assert abs(layer["bias"]).max() <= bound
    # The last activation leaks, too: some outputs are negative.
    assert (out < 0).any()
    np.testing.assert_allclose(translated, factor, rtol=1e-5)


def test_8_devices_give_what_1_gives():
    code = """
import sys; sys.path.insert(0, "tests/papers")
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import test_feed as t
loss = jax.jit(jax.value_and_grad(lambda g, f: t.feed_loss(g, f).mean()))
g, f = jnp.tile(t.G, (1, 2, 1, 1, 1)), jnp.tile(t.F, (1, 2, 1, 1, 1))
plain = loss(g, f)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
found = loss(*jax.device_put((g, f), NamedSharding(mesh, P(None, "data"))))
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), found, plain)
print("ok", jax.device_count())
"""
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "ok 8", done.stderr[-2000:]


def tiny(tmp_path, **fields):
    config = run.load_config("feed")
    few = {
        "model.teacher": "cnn-4",
        "model.student": "cnn-2",
        "model.num_teachers": 2,
        "model.generations": 1,
        "teacher.num_steps": 0,
        "init.num_steps": 2,
        "num_steps": 4,
        "steps_per_dispatch": 1,
        "cache_dir": str(tmp_path / "cache"),
        "compilation_cache": "",
        "optimizer.schedule.args.boundaries": (2, 3),
    }
    return configs.apply_overrides(config, {**few, **fields})


def test_recipe_trains_resumes_and_keeps_teachers_and_paraphrasers(tmp_path, caplog):
    config = configs.apply_overrides(tiny(tmp_path), {"checkpoint.every": 2})
    done = run.run(config, tmp_path / "run")
    rows = [row for row in done.history if row["kind"] == "eval"]
    assert [row["phase"] for row in rows] == ["teacher", "paraphrasers", "student"]
    assert done.metrics[0].keys() == {
        "accuracy",
        "rebuilt_from_student",
        "rebuilt_from_teachers",
    }
    # What a student's test images are rebuilt from is what the paraphrasers were judged by.
    assert rows[2]["rebuilt_from_teachers"] == pytest.approx(rows[1]["reconstruction"], rel=1e-4)
    carried = done.state.model_state
    assert {len(leaf) for leaf in jax.tree.leaves((carried.teacher, carried.extra))} == {2}
    heads = carried.teacher["params"]["head"]["kernel"]
    assert not np.allclose(heads[0], heads[1])
    # Cut off in the last phase, and continued.
    folder = tmp_path / "run" / "checkpoints" / "2-student"
    shutil.rmtree(folder / "4")
    (folder / "4.json").unlink()
    with caplog.at_level("INFO", "reprise"):
        again = run.run(config, tmp_path / "run")
    assert "phase teacher: taken from" in caplog.text and "continues at step 2" in caplog.text
    assert jax.tree.all(jax.tree.map(np.array_equal, done.state.params, again.state.params))


def shapes_of(phases, previous=None):
    """Final state of each phase, by shapes alone; each step returns the state it takes."""
    found = []
    for phase in phases:
        state = jax.eval_shape(phase.init, KEY, previous)
        after, _ = jax.eval_shape(phase.step, state, phase.batches, KEY)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        found.append(state)
        previous = state
    return found


def test_every_arm_of_the_study_builds(tmp_path):
    study = feed.study(run.load_config("feed"))
    setting = distillation_setting.build(tiny(tmp_path), num_teachers=2)
    teacher = distillation_setting.teacher_phase(setting, tiny(tmp_path))
    before = jax.eval_shape(teacher.init, KEY, None)
    assert study.arms["ft_total"].overrides["model.beta"] == pytest.approx(300)
    translators = {}
    for name in ("pfeed", "ft", "shared", "sfeed", "kd", "ce"):
        arm = study.arms[name]
        config = configs.apply_overrides(tiny(tmp_path), arm.overrides)
        states = shapes_of(feed.method(setting, config), before)
        leaves = jax.tree.leaves(states[-1].params["extra"])
        translators[name] = {len(leaf) for leaf in leaves}
        if name == "sfeed":
            # Every generation is taught by a network of its own kind.
            params = states[-1].params["student"]
            taught = states[-1].model_state.teacher["params"]
            assert jax.tree.map(jnp.shape, taught) == jax.tree.map(jnp.shape, params)
    assert translators == {
        "pfeed": {2},
        "ft": {1},
        "shared": {1},
        "sfeed": {1},
        "kd": set(),
        "ce": set(),
    }
    with pytest.raises(ValueError, match=r"config\.model\.method = 'at'"):
        feed.phases(tiny(tmp_path, **{"model.method": "at"}))
    with pytest.raises(ValueError, match="use_teachers = 3: there are 2 teachers"):
        feed.phases(tiny(tmp_path, **{"model.use_teachers": 3}))
    level = {"ce": 0.85, "sfeed": 0.86, "ft": 0.88, "ft_total": 0.88}
    results = {arm: {"accuracy": np.full(2, level.get(arm, 0.9))} for arm in study.arms}
    text, holds = study.claim(results)
    assert holds and "above CE alone: +3.0" in text
    results["ft_total"]["accuracy"] += 0.02
    assert not study.claim(results)[1]


def test_the_first_teachers_are_taken():
    stacked = {"params": {"w": np.arange(6).reshape(3, 2)}, "batch_stats": {}}
    assert training.first_teachers(stacked, 3, 3)["params"]["w"].shape == (3, 2)
    assert training.first_teachers(stacked, 2, 3)["params"]["w"].tolist() == [[0, 1], [2, 3]]
    assert training.first_teachers(stacked, 1, 3)["params"]["w"].tolist() == [0, 1]


def test_the_papers_variants_build(monkeypatch):
    def few(name, split, data_dir):
        return {
            "image": np.zeros((128, 32, 32, 3), np.float32),
            "label": np.zeros(128, np.int32),
        }

    monkeypatch.setattr(distillation_setting, "_normalised", few)
    config = run.load_config("feed:cifar100_small")
    last = shapes_of(feed.phases(config))[-1]
    # Half of the 128 channels that a wide residual network ends with, for each of five teachers.
    assert last.params["extra"]["conv1"]["kernel"].shape == (5, 3, 3, 128, 64)
    assert last.model_state.extra["encoder"]["conv1"]["kernel"].shape == (5, 3, 3, 128, 64)
    drops = config.optimizer.schedule.args.boundaries
    assert [round(step / (50_000 // 128)) for step in drops] == [82, 123]
    # The other one differs in sizes, which this is made of.
    assert len(feed.phases(run.load_config("feed:cifar100"))) == 3
