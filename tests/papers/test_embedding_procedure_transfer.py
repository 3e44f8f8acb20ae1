"""IEP: the original's numbers, what the maths promises, and the recipe."""

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
from reprise.papers import embedding_procedure_transfer as iep
from reprise.papers.embedding_procedure_transfer import recipe

GOLDEN = np.load(Path(__file__).parents[1] / "goldens" / "embedding_procedure_transfer.npz")
PARAMS = {k.removeprefix("params_"): GOLDEN[k] for k in GOLDEN if k.startswith("params_")}
PAIR = [GOLDEN[f"{who}_{at}"] for who in ("student", "teacher") for at in ("back", "front")]
RNG = np.random.default_rng(0)
losses = jax.jit(iep.embedding_procedure_losses, static_argnames="num_iterations")
passing = jax.jit(iep.message_passing, static_argnames=("num_iterations", "train"))
plane = jax.jit(iep.sphere_to_plane)
vectors = jax.jit(iep.stacked_pca_vectors)
update = jax.jit(iep.incremental_pca_update)
batch_pca = jax.jit(iep.batch_pca)


def near(got, expected, rtol=1e-4):
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


def unit(*shape):
    x = RNG.normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_golden_messages_and_losses():
    for who, (back, front) in (("student", PAIR[:2]), ("teacher", PAIR[2:])):
        affinity, messages = passing(PARAMS, back, front)
        near(affinity, GOLDEN[f"expected_{who}_affinity"])
    near(messages, GOLDEN["expected_teacher_messages"])
    true = iep.cosine_affinity(GOLDEN["teacher_back"])
    near(true, GOLDEN["expected_true_affinity"])
    near(iep.affinity_kl(true, affinity).sum(), GOLDEN["expected_estimation_loss"])
    np.testing.assert_allclose(losses(PARAMS, *PAIR), GOLDEN["expected"], rtol=1e-4)


def test_golden_gradients():
    slopes = jax.jit(jax.grad(lambda *pair: sum(losses(PARAMS, *pair)), range(4)))(*PAIR)
    near(slopes[0], GOLDEN["grad_student_back"], 1e-3)
    near(slopes[1], GOLDEN["grad_student_front"], 1e-3)
    # None to the teacher, nor to the frozen networks.
    assert all((slope == 0).all() for slope in slopes[2:])
    to_params = jax.jit(jax.grad(lambda params: sum(losses(params, *PAIR))))(PARAMS)
    assert all((slope == 0).all() for slope in to_params.values())


def test_golden_plane_and_pca():
    x = GOLDEN["sphere_x"]
    points, pull = jax.vjp(plane, x)
    near(points, GOLDEN["expected_plane"])
    near(pull(GOLDEN["sphere_cotangent"])[0], GOLDEN["grad_sphere_x"], 1e-3)
    names = ("mean", "singular_values", "components")
    new = update({name: GOLDEN[f"pca_{name}"] for name in names}, GOLDEN["pca_batch"])
    for name in names:
        near(new[name], GOLDEN[f"expected_pca_{name}"])


def test_the_plane_touches_the_sphere():
    c = np.full((1, 9), 1 / 3, np.float32)
    points = plane(np.concatenate([unit(4, 9), c]))
    np.testing.assert_allclose(points @ c[0], 0, atol=1e-5)
    np.testing.assert_allclose(points[-1], 0, atol=1e-6)
    # At c, where the arc cosine has no slope, and opposite to it, where the plane has no point.
    slope = jax.jit(jax.grad(lambda x: plane(x).sum()))(np.concatenate([c, -c]))
    assert np.isfinite(slope).all() and np.isfinite(plane(-c)).all()


def test_the_students_vector_follows_the_teachers_pixels():
    teacher = RNG.normal(size=(3, 2, 3, 4)).astype(np.float32)
    ours, theirs = vectors(teacher, teacher)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)  # the sign of u belongs to that of v
    assert (theirs.max(-1) + theirs.min(-1) >= 0).all()
    np.testing.assert_allclose(jnp.linalg.norm(theirs, axis=-1), 1, rtol=1e-5)
    turned, _ = vectors(-2 * teacher, teacher)
    np.testing.assert_allclose(turned, -theirs, atol=1e-5)
    # Zeros have no direction: no vector, no NaN, and nothing for the teacher.
    student = jnp.asarray(teacher).at[0].set(0.0)
    value = lambda s, t: plane(vectors(s, t)[0]).sum()  # noqa: E731
    both = jax.jit(jax.grad(value, (0, 1)))(student, jnp.asarray(teacher).at[1].set(0.0))
    assert np.isfinite(both[0]).all() and (both[1] == 0).all()


def test_incremental_pca_settles_on_the_axes():
    scales = np.array([3, 2, 0.1, 0.1, 0.1, 0.1], np.float32)
    state = iep.incremental_pca_init(6)
    assert (iep.incremental_pca_project(state, unit(2, 6)) == 0).all()  # used before the update
    batches = [1 + scales * RNG.normal(size=(40, 6)).astype(np.float32) for _ in range(20)]
    state = update(state, batches[0])
    alone = batch_pca(batches[0])
    # The first batch: its own axes, and a tenth of the mean missing.
    np.testing.assert_allclose(state["components"], alone["components"], atol=1e-5)
    np.testing.assert_allclose(state["mean"], 0.9 * alone["mean"], rtol=1e-5)
    for x in batches[1:]:
        state = update(state, x)
    np.testing.assert_allclose(np.abs(state["components"][:2, :2]), np.eye(2), atol=0.1)
    np.testing.assert_allclose(state["components"].T @ state["components"], np.eye(3), atol=1e-5)
    assert (state["singular_values"] > alone["singular_values"]).all()
    few = batch_pca(unit(2, 8))
    assert few["components"].shape == (8, 4) and few["singular_values"].shape == (1, 4)


def test_messages_of_a_batch():
    """The order of examples carries over; in training the batch normalises and is remembered."""
    back, front = PAIR[:2]
    order = np.array([3, 1, 0, 2, 6, 5, 4])
    affinity, messages = passing(PARAMS, back, front)
    moved = passing(PARAMS, back[order], front[order])
    near(moved[0], affinity[order][:, order])
    near(moved[1], messages[order][:, order])
    once = passing(PARAMS, back, front, num_iterations=1)
    np.testing.assert_allclose(once[1], messages[..., :8], rtol=1e-5, atol=1e-6)
    *_, new = passing(PARAMS, back, front, train=True)
    assert set(new) == {k for k in PARAMS if k.endswith(("mean", "var"))}
    edge = front @ PARAMS["edge_kernel"]
    near(new["edge_bn_mean"], 0.9 * PARAMS["edge_bn_mean"] + 0.1 * edge.mean(0))
    near(new["edge_bn_var"], 0.9 * PARAMS["edge_bn_var"] + 0.1 * edge.var(0))
    # Statistics of this very batch make training and inference the same.
    fixed = dict(PARAMS)
    for _ in range(150):
        fixed.update(passing(fixed, back, front, num_iterations=1, train=True)[2])
    trained = passing(fixed, back, front, num_iterations=1, train=True)[0]
    near(passing(fixed, back, front, num_iterations=1)[0], trained, 1e-3)


def test_points_of_zero_and_the_teacher_itself():
    """Before the first update of the axes every point is 0; equal points have nothing to learn."""
    params = iep.message_passing_init(jax.random.key(0), 4, 3, 4)
    zeros = jnp.zeros((5, 4)), jnp.zeros((5, 3))

    def estimate(params):
        affinity, _, new = passing(params, *zeros, train=True)
        return iep.affinity_kl(iep.cosine_affinity(zeros[0]), affinity).sum(), new

    (value, _), slopes = jax.jit(jax.value_and_grad(estimate, has_aux=True))(params)
    assert np.isfinite(value) and all(np.isfinite(s).all() for s in slopes.values())
    np.testing.assert_allclose(losses(PARAMS, *PAIR[2:], *PAIR[2:]), 0, atol=1e-6)


def test_gradients_in_float64_and_finite_in_bfloat16():
    with jax.enable_x64(True):
        pair = [x.astype(np.float64) for x in PAIR]
        check_grads(
            jax.jit(lambda *ours: iep.embedding_procedure_losses(PARAMS, *ours, *pair[2:])),
            pair[:2],
            1,
            modes=["rev"],
        )
        maps = RNG.normal(size=(2, 2, 2, 2, 4))

        def point(s):
            return plane(iep.stacked_pca_vectors(s, maps[1])[0])

        check_grads(jax.jit(point), (maps[0],), 1, modes=["rev"])
        assert losses(PARAMS, *pair)[0].dtype == jnp.float64
    low = [jnp.asarray(x, jnp.bfloat16) for x in PAIR]
    value, slope = jax.jit(jax.value_and_grad(lambda x: sum(losses(PARAMS, x, *low[1:]))))(low[0])
    assert value.dtype == jnp.float32 and np.isfinite(value)
    assert slope.dtype == jnp.bfloat16 and jnp.isfinite(slope).all()


def test_black_box_estimation_is_the_equation():
    """Attention heads carry the front points to the back, beside a graph of the messages."""
    back, front = PAIR[2:]
    messages = np.asarray(passing(PARAMS, back, front)[1])
    heads, width, batch = 3, 7, len(back)  # D = (6 + 8) // 2
    net = iep.black_box_init(jax.random.key(0), 8, 6, heads)
    assert net["output_kernel"].shape == ((heads + 1) * width, 8)
    mask = RNG.integers(0, 2, (heads + 1, batch, 1)).astype(np.float32)

    def loss(net, *given):
        return iep.black_box_estimation_loss(net, *given, mask, num_heads=heads)

    got, new = jax.jit(loss)(net, back, front, messages)

    def normalised(name, x):
        x = x @ np.asarray(net[f"{name}_kernel"], np.float64)
        near(new[f"{name}_bn_mean"], 0.1 * x.mean(0)) if name != "value" else None
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)

    sender = normalised("sender", back).reshape(batch, width, heads)
    receiver = normalised("receiver", front).reshape(batch, width, heads)
    graph = np.exp(np.einsum("ida,jda->aij", sender, receiver))
    graph /= graph.sum(-1, keepdims=True)
    graph = np.concatenate([graph, 2 * messages.mean(-1)[None]]) * mask
    moved = np.einsum("aij,jd->iad", graph, np.maximum(normalised("value", front), 0))
    out = moved.reshape(batch, -1) @ np.asarray(net["output_kernel"], np.float64)
    out /= np.linalg.norm(out, axis=-1, keepdims=True)
    near(got, 1 - (out * back).sum(-1), 1e-3)
    slopes = jax.jit(jax.grad(lambda *a: loss(*a)[0].sum(), (1, 2, 3)))(net, back, front, messages)
    assert all((slope == 0).all() for slope in slopes)


def test_black_box_knowledge():
    """0 for the teacher itself; teacher and heads get no gradient, the student a true one."""
    net = iep.black_box_init(jax.random.key(0), 8, 6, 3)
    heads = jax.jit(lambda net, *pair: iep.black_box_knowledge_loss(net, *pair, num_heads=3).sum())
    np.testing.assert_allclose(heads(net, *PAIR[2:], *PAIR[2:]), 0, atol=1e-6)
    slopes = jax.jit(jax.grad(heads, range(5)))(net, *PAIR)
    assert all((slope == 0).all() for slope in jax.tree.leaves((slopes[0], slopes[3:])))
    with jax.enable_x64(True):
        pair = [x.astype(np.float64) for x in PAIR]
        check_grads(lambda *ours: heads(net, *ours, *pair[2:]), pair[:2], 1, modes=["rev"])
    with pytest.raises(ValueError, match="sender_kernel"):
        iep.black_box_knowledge_loss(net, *PAIR, num_heads=4)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(2, 3, 3, 4\).*same \[B, H, W, C\]"):
        iep.stacked_pca_vectors(jnp.zeros((2, 3, 3, 4)), jnp.zeros((2, 3, 3, 5)))
    with pytest.raises(ValueError, match="channels = 5"):
        iep.incremental_pca_init(5)
    with pytest.raises(ValueError, match=r"\(2, 5\).*\(1, 4\)"):
        iep.incremental_pca_project(iep.incremental_pca_init(4), jnp.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"back \(7, 6\)"):
        passing(PARAMS, PAIR[1], PAIR[0])
    with pytest.raises(ValueError, match="num_iterations = 0"):
        passing(PARAMS, *PAIR[:2], num_iterations=0)
    with pytest.raises(ValueError, match=r"same \[B, B\]"):
        iep.interim_knowledge_loss(jnp.zeros((2, 2)), jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"\[B, B, I D\]"):
        iep.alteration_knowledge_loss(jnp.zeros((2, 2, 4)), jnp.zeros((2, 2, 8)))
    with pytest.raises(ValueError, match="student_front"):
        iep.embedding_procedure_losses(PARAMS, PAIR[0], PAIR[1][:3], *PAIR[2:])


EIGHT = """
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from reprise.papers import embedding_procedure_transfer as iep
rng = np.random.default_rng(0)
params = iep.message_passing_init(jax.random.key(0), 3, 2, 3)
pair = [rng.normal(size=(16, n)).astype(np.float32) for n in (3, 2, 3, 2)]

@jax.jit
def f(pair):
    grad = jax.value_and_grad(lambda p: sum(iep.embedding_procedure_losses(params, *p)))(pair)
    pca = iep.incremental_pca_update(iep.incremental_pca_init(2), pair[1])
    return grad, iep.message_passing(params, *pair[:2], train=True), pca

one = f(pair)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
many = f(jax.device_put(pair, NamedSharding(mesh, P("data"))))
for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many)):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
print("same")
"""


def test_eight_devices_give_what_one_gives(monkeypatch):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    monkeypatch.setenv("XLA_FLAGS", flags)
    done = subprocess.run([sys.executable, "-c", EIGHT], capture_output=True, text=True)
    assert done.stdout.strip() == "same", done.stderr


def tiny(tmp_path, **fields):
    config = run.load_config("embedding_procedure_transfer")
    few = {
        "model.teacher": "pooled-4-1",
        "model.student": "pooled-4-1",
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


def test_recipe_trains_resumes_and_draws(tmp_path, caplog):
    from reprise.papers.embedding_procedure_transfer import figures

    config = tiny(tmp_path, **{"checkpoint.every": 2, "model.terms": recipe.TERMS})
    done = run.run(config, tmp_path / "whole")
    assert 0 <= done.metrics[0]["accuracy"] <= 1
    extra = jax.device_get(done.state.model_state.extra)
    assert all((pca["singular_values"] > 0).all() for pca in extra["pca"].values())
    networks = extra["networks"]
    assert all((net["gate_bn_var"] != 1).all() for net in networks["passing"].values())
    assert all((net["sender_bn_var"] != 1).all() for net in networks["attention"].values())
    folder = tmp_path / "whole" / "checkpoints" / "2-student"
    shutil.rmtree(folder / "4")
    (folder / "4.json").unlink()
    with caplog.at_level("INFO", "reprise"):
        again = run.run(config, tmp_path / "whole")
    assert "phase teacher: taken from" in caplog.text and "continues at step 2" in caplog.text
    assert jax.tree.all(jax.tree.map(np.array_equal, done.state.params, again.state.params))
    states = {"iep": [done.state], "ce": [done.state]}
    assert figures.procedure(config, states, tmp_path).stat().st_size > 10_000


def test_every_arm_of_the_study_builds(tmp_path):
    study = recipe.study(run.load_config("embedding_procedure_transfer"))
    parts = ["interim", "alteration", "black_box", "with_black_box", "batch_pca"]
    assert list(study.arms) == ["iep", *parts, "ce", "kd_svd"]
    for arm in study.arms.values():
        stepped(recipe.phases(tiny(tmp_path, **arm.overrides)))
    with pytest.raises(ValueError, match=r"config.model.method = 'spca'"):
        recipe.phases(tiny(tmp_path, **{"model.method": "spca"}))
    with pytest.raises(ValueError, match="some of interim, alteration, black_box"):
        recipe.phases(tiny(tmp_path, **{"model.terms": ("final",)}))


def few_images(name, split, data_dir):
    return {"image": np.zeros((128, 32, 32, 3), np.float32), "label": np.zeros(128, np.int32)}


def test_the_papers_variants_build(monkeypatch):
    monkeypatch.setattr(distillation_setting, "_normalised", few_images)
    stepped(recipe.phases(run.load_config("embedding_procedure_transfer:cifar100")))
    # The other one differs in its number of examples, so of steps, alone.
    few = run.load_config("embedding_procedure_transfer:cifar100_tenth")
    assert few.data.count == 5_000 and few.num_steps == 100 * (5_000 // 128)
    assert len(recipe.phases(few)) == 3


def test_any_setting_with_equal_maps(tmp_path):
    """Wide ResNets without a pool: the labelled batch is what transfers."""
    images = {"image": np.zeros((16, 16, 16, 3), np.float32), "label": np.zeros(16, np.int32)}
    setting = distillation.Setting(WRN(16, 1), WRN(10, 1), images, images, {"": images})
    config = tiny(tmp_path)
    teacher_config = configs.apply_overrides(config, {"teacher.batch_size": 8}).teacher
    teacher = distillation.teacher_phase(setting, teacher_config, {})
    stepped([teacher, *recipe.method(setting, config)])
    with pytest.raises(ValueError, match="same pixels and channels"):
        recipe.method(setting._replace(student=WRN(10, 2)), config)
