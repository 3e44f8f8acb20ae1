"""papers/learned_objective: golden, properties, gradients, memory, devices, recipes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from reprise.common import config as configs
from reprise.common.evaluation.flow import color_wheel, flow_to_color
from reprise.common.ops.warp import double_flow, halve
from reprise.common.training import run
from reprise.papers.learned_objective import (
    FlowObjective,
    ObjectiveMLP,
    end_point_error,
    inner_minimize,
    learned_objective_loss,
    tasks,
    warp_bilinear,
    warp_linear_1d,
)

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = dict(np.load(ROOT / "tests/goldens/learned_objective.npz"))
WEIGHTS = ("W1", "b1", "W2", "b2", "w3")


def f(p, x, z):
    h = jax.nn.softplus(jnp.concatenate([x, z], -1) @ p["W1"] + p["b1"])
    return jax.nn.softplus(h @ p["W2"] + p["b2"]) @ p["w3"]


def golden(dtype=jnp.float32):
    a = {key: jnp.asarray(value, dtype) for key, value in GOLDEN.items()}
    return {key: a[key] for key in WEIGHTS}, a["x0"], a["context"], a["target"]


def plain(params, x0, z, steps, alpha, momentum=0.0, clip=None):
    """The process by lax.scan, differentiated by JAX itself."""

    def body(carry, _):
        x, v = carry
        v = momentum * v + jax.grad(lambda x: f(params, x, z).sum())(x)
        x = x - alpha * (v if clip is None else jnp.clip(v, -clip, clip))
        return (x, v), x

    (x, _), xs = jax.lax.scan(body, (x0, jnp.zeros_like(x0)), None, length=steps)
    return x, xs


def compare_with_golden(dtype, tolerance):
    params, x0, z, target = golden(dtype)

    def loss(params, x0, z):
        each = learned_objective_loss(f, params, x0, z, target, num_steps=10, step_size=0.2)
        return each.sum(), each

    (_, each), (d_params, d_x0, d_z) = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(
        params, x0, z
    )
    x, trajectory = inner_minimize(
        f, params, x0, z, num_steps=10, step_size=0.2, return_trajectory=True
    )
    found = {f"grad_{key}": value for key, value in d_params.items()}
    found |= {"grad_x0": d_x0, "grad_context": d_z, "expected": each}
    found |= {"solution": x, "trajectory": trajectory}
    for name, value in found.items():
        scale = np.abs(GOLDEN[name]).max()
        np.testing.assert_allclose(value, GOLDEN[name], atol=tolerance * scale, err_msg=name)


def test_golden_float32():
    compare_with_golden(jnp.float32, 1e-5)


def test_golden_float64():
    with jax.enable_x64(True):
        compare_with_golden(jnp.float64, 1e-12)


@pytest.mark.parametrize("clip", [None, 0.15])
@pytest.mark.parametrize("momentum", [0.0, 0.7])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_replayed_gradient_is_that_of_plain_unrolling(momentum, clip, checkpoint):
    with jax.enable_x64(True):
        params, x0, z, target = golden(jnp.float64)

        def ours(params, x0, z, alpha):
            x = inner_minimize(
                f,
                params,
                x0,
                z,
                num_steps=11,
                step_size=alpha,
                momentum=momentum,
                clip=clip,
                checkpoint=checkpoint,
            )
            return ((x - target) ** 2).sum()

        def reference(params, x0, z, alpha):
            return ((plain(params, x0, z, 11, alpha, momentum, clip)[0] - target) ** 2).sum()

        args = (params, x0, z, jnp.asarray(0.3))
        found = jax.value_and_grad(ours, (0, 1, 2, 3))(*args)
        expected = jax.value_and_grad(reference, (0, 1, 2, 3))(*args)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected
        )


def test_the_trajectory_is_differentiable_too():
    params, x0, z, _ = golden()

    def ours(params):
        _, xs = inner_minimize(f, params, x0, z, num_steps=5, step_size=0.3, return_trajectory=True)
        return (xs**2).sum()

    def reference(params):
        xs = plain(params, x0, z, 5, 0.3)[1]
        return (xs**2).sum() + (x0**2).sum()

    expected = jax.grad(reference)(params)
    for key, value in jax.grad(ours)(params).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-4, atol=1e-5)


def test_gradients_in_float64_and_second_order():
    with jax.enable_x64(True):
        params, x0, z, target = golden(jnp.float64)

        def loss(w, x0, z, alpha):
            p = params | {"W1": w}
            return learned_objective_loss(
                f, p, x0, z, target, num_steps=4, step_size=alpha, momentum=0.5
            ).sum()

        args = (params["W1"], x0, z, jnp.asarray(0.3))
        check_grads(loss, args, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)
        check_grads(loss, args, order=2, modes=["rev"], atol=1e-4, rtol=1e-4)


def test_truncation_detaches_what_came_before():
    params, x0, z, target = golden()

    def loss(params, x0, k):
        return learned_objective_loss(
            f, params, x0, z, target, num_steps=8, step_size=0.3, mode="truncated", truncate=k
        ).sum()

    def reference(params, k):
        start = jax.lax.stop_gradient(plain(params, x0, z, 8 - k, 0.3)[0])
        return ((plain(params, start, z, k, 0.3)[0] - target) ** 2).sum()

    for k in (1, 3, 8):
        assert float(loss(params, x0, k)) == pytest.approx(float(reference(params, k)), rel=1e-5)
        found, expected = jax.grad(loss)(params, x0, k), jax.grad(reference)(params, k)
        for key in WEIGHTS:
            np.testing.assert_allclose(found[key], expected[key], rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(jax.grad(loss, 1)(params, x0, 3)).max()) == 0


def test_implicit_equals_unrolled_at_convergence():
    params, x0, z, target = golden()

    def convex(p, x, z):
        return f(p, x, z) + 0.5 * (x**2).sum(-1)

    def loss(params, z, mode):
        return learned_objective_loss(
            convex, params, x0, z, target, num_steps=400, step_size=0.2, mode=mode
        ).sum()

    unrolled = jax.grad(loss, (0, 1))(params, z, "unrolled")
    implicit = jax.grad(loss, (0, 1))(params, z, "implicit")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max())),
        implicit,
        unrolled,
    )


@pytest.mark.parametrize("options", [{}, {"clip": 0.1}, {"momentum": 0.7}, {"num_steps": 0}])
def test_every_mode_gives_the_same_values(options):
    params, x0, z, _ = golden()

    def solve(mode):
        kept = dict(num_steps=3, step_size=0.3, return_trajectory=True) | options
        return inner_minimize(f, params, x0, z, mode=mode, truncate=2, **kept)

    expected = solve("unrolled")
    jax.tree.map(np.testing.assert_array_equal, solve("implicit"), expected)
    if options.get("num_steps") != 0:
        for found, wanted in zip(solve("truncated"), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_an_example_that_has_arrived_stands_still_and_does_not_hold_up_others():
    params, x0, z, _ = golden()

    def convex(p, x, z):
        return f(p, x, z) + 0.5 * (x**2).sum(-1)

    def solve(params, x0, z, tol):
        return inner_minimize(convex, params, x0, z, num_steps=300, step_size=0.3, tol=tol)

    x = solve(params, x0, z, 1e-4)
    np.testing.assert_allclose(x, solve(params, x0, z, 0.0), atol=1e-2)
    alone = jnp.concatenate([solve(params, x0[i : i + 1], z[i : i + 1], 1e-4) for i in range(6)])
    np.testing.assert_allclose(x, alone, atol=1e-6)

    def by_hand(params):  # the same stopping rule, written out and differentiated by JAX
        x, active = x0, jnp.ones(6, bool)
        for _ in range(40):
            after = x - 0.3 * jax.grad(lambda x: convex(params, x, z).sum())(x)
            after = jnp.where(active[:, None], after, x)
            active &= jnp.abs(after - x).max(-1) > 1e-2
            x = after
        return (x**2).sum()

    found = jax.grad(lambda p: (solve(p, x0, z, 1e-2) ** 2).sum())(params)
    expected = jax.grad(by_hand)(params)
    for key in WEIGHTS:
        np.testing.assert_allclose(found[key], expected[key], rtol=2e-3, atol=1e-5)


def test_closed_over_values_integer_context_and_trees():
    params, x0, z, _ = golden()
    choice = jnp.arange(6) % 2

    def objective(scale):
        def value(p, x, context):
            z, choice = context
            return scale * f(p, x["a"], z) * (1.0 + choice) + (x["b"] ** 2).sum(-1)

        return value

    start = {"a": x0, "b": jnp.ones((6, 2))}

    def loss(scale, params):
        x = inner_minimize(objective(scale), params, start, (z, choice), num_steps=5, step_size=0.1)
        return (x["a"] ** 2).sum() + x["b"].sum()

    check_grads(
        lambda s: loss(s, params), (jnp.float32(0.8),), 1, modes=["rev"], atol=2e-2, rtol=2e-2
    )
    np.testing.assert_allclose(loss(0.0, params) - (x0**2).sum(), 12 * 0.8**5, rtol=1e-4)


def test_jit_vmap_and_batches_agree():
    params, x0, z, target = golden()

    def loss(x0, z, target):
        return learned_objective_loss(f, params, x0, z, target, num_steps=6, step_size=0.2)

    each = loss(x0, z, target)
    np.testing.assert_allclose(jax.jit(loss)(x0, z, target), each, rtol=1e-5)
    one = jax.vmap(lambda *a: loss(*(v[None] for v in a))[0])(x0, z, target)
    np.testing.assert_allclose(one, each, rtol=1e-5)
    cross = jax.jacobian(lambda x0: loss(x0, z, target))(x0)
    for i in range(6):
        assert float(jnp.abs(jnp.delete(cross[i], i, 0)).max()) == 0


def test_a_batch_without_examples_has_no_losses():
    params, *rows = golden()
    rows = [row[:0] for row in rows]
    assert learned_objective_loss(f, params, *rows, num_steps=2, step_size=0.2).shape == (0,)
    assert inner_minimize(f, params, *rows[:2], num_steps=2, step_size=0.2, tol=0.1).shape == (0, 4)


def test_bfloat16_stays_finite():
    params, x0, z, target = golden(jnp.bfloat16)
    loss, slope = jax.value_and_grad(
        lambda p: learned_objective_loss(f, p, x0, z, target, num_steps=5, step_size=0.2).sum()
    )(params)
    assert loss.dtype == jnp.float32
    assert all(np.isfinite(v.astype(np.float32)).all() for v in slope.values())


def test_memory_holds_iterates_not_activations():
    model = ObjectiveMLP((256, 256, 32))
    x0, z = jnp.zeros((64, 4)), jnp.ones((64, 8))
    params = model.init(jax.random.key(0), x0, z)

    def objective(p, x, z):
        return model.apply(p, x, z)

    def temporary(loss):
        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def ours(steps):
        return temporary(
            lambda p: inner_minimize(objective, p, x0, z, num_steps=steps, step_size=0.1).sum()
        )

    def unrolled(steps):
        def loss(p):
            def body(x, _):
                return x - 0.1 * jax.grad(lambda x: objective(p, x, z).sum())(x), None

            return jax.lax.scan(body, x0, None, length=steps)[0].sum()

        return temporary(loss)

    iterates = 990 * x0.size * 4
    assert ours(1000) - ours(10) <= 3 * iterates
    assert unrolled(1000) - unrolled(10) > 50 * iterates


def test_8_devices_give_what_1_gives():
    code = """
import sys; sys.path.insert(0, "tests/papers")
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P, AxisType
import test_learned_objective as t
params, x0, z, target = t.golden()
x0, z, target = (jnp.concatenate([a, a])[:8] for a in (x0, z, target))
def loss(p, x0, z, target):
    return t.learned_objective_loss(t.f, p, x0, z, target, num_steps=6, step_size=0.2).mean()
plain = jax.value_and_grad(loss)(params, x0, z, target)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
spread = jax.device_put((x0, z, target), NamedSharding(mesh, P("data")))
found = jax.jit(jax.value_and_grad(loss))(params, *spread)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, plain)
print("ok")
"""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "ok", done.stderr[-2000:]


@given(st.integers(0, 1000))
@settings(max_examples=8, deadline=None)
def test_bilinear_warp_is_scipys(seed):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(2, 7, 9, 3)).astype(np.float32)
    flow = rng.uniform(-12, 12, (2, 7, 9, 2)).astype(np.float32)
    found = warp_bilinear(image, flow)
    rows, columns = np.mgrid[:7, :9]
    for b in range(2):
        where = [rows + flow[b, ..., 1], columns + flow[b, ..., 0]]
        where = [np.clip(w, 0, n - 1) for w, n in zip(where, (7, 9), strict=True)]
        for c in range(3):
            expected = scipy.ndimage.map_coordinates(image[b, ..., c], where, order=1)
            np.testing.assert_allclose(found[b, ..., c], expected, atol=1e-5)


def test_warps_have_the_right_slope_and_sign():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[None, None, :, None], (1, 6, 8, 1))
    flow = jnp.zeros((1, 6, 8, 2)).at[..., 0].set(0.5)
    np.testing.assert_allclose(warp_bilinear(ramp, flow)[0, :, :7, 0], ramp[0, :, :7, 0] + 0.5)
    slope = jax.grad(lambda f: warp_bilinear(ramp, f).sum())(flow)
    np.testing.assert_allclose(slope[0, :, :7, 0], 1.0)
    np.testing.assert_allclose(slope[..., 1], 0.0)
    still = jax.grad(lambda f: warp_bilinear(ramp, f).sum())(jnp.zeros_like(flow))
    np.testing.assert_allclose(still[0, 0, :, 0], [0.5, 1, 1, 1, 1, 1, 1, 0.5])
    signal = jnp.arange(10.0)[None] ** 2
    np.testing.assert_allclose(warp_linear_1d(signal, jnp.array([2.0]))[0, :8], signal[0, 2:])
    np.testing.assert_allclose(warp_linear_1d(signal, jnp.array([-20.0]))[0], 0.0)
    with pytest.raises(ValueError, match="warp_bilinear: image"):
        warp_bilinear(ramp, flow[..., :1])
    with pytest.raises(ValueError, match="warp_linear_1d"):
        warp_linear_1d(signal, jnp.zeros(3))


def test_pyramid_steps():
    flow = jnp.ones((1, 4, 4, 2))
    np.testing.assert_allclose(double_flow(flow), 2 * jnp.ones((1, 8, 8, 2)))
    np.testing.assert_allclose(halve(jnp.ones((1, 4, 6, 1))), jnp.ones((1, 2, 3, 1)))
    with pytest.raises(ValueError, match="must be even"):
        halve(jnp.ones((1, 5, 6, 1)))


def test_end_point_error():
    flow, target = jnp.zeros((2, 2, 2, 2)), jnp.zeros((2, 2, 2, 2)).at[0, 0, 0].set((3.0, 4.0))
    np.testing.assert_allclose(end_point_error(flow, target), [1.25, 0.0])
    mask = jnp.zeros((2, 2, 2)).at[0, 0].set(1.0)
    np.testing.assert_allclose(end_point_error(flow, target, mask), [2.5, 0.0])
    slope = jax.grad(lambda f: end_point_error(f, target).sum())(flow)
    assert np.isfinite(slope).all() and slope[1].tolist() == np.zeros((2, 2, 2)).tolist()
    with pytest.raises(ValueError, match="must be the same"):
        end_point_error(flow, target[:1])


def test_the_flow_objective_is_lowest_at_the_true_flow():
    pair = tasks.textured_motion(jax.random.key(0), 4, 16)
    model = FlowObjective((8, 8, 4))
    images = (pair["first"], pair["first"])
    params = model.init(jax.random.key(1), pair["flow"], images)
    same = FlowObjective(8).init(jax.random.key(1), pair["flow"], images)["params"]
    assert same["conv2"]["kernel"].shape == (1, 1, 8, 8)
    still = model.apply(params, jnp.zeros_like(pair["flow"]), images)
    moved = model.apply(params, jnp.ones_like(pair["flow"]), images)
    assert still.shape == (4,) and (still < moved).all()


def test_generated_motion_explains_the_second_image():
    pair = tasks.textured_motion(jax.random.key(0), 8, 24)

    def match(a, b):
        a, b = (v - v.mean((1, 2), keepdims=True) for v in (a, b))
        return float((a * b).sum() / jnp.sqrt((a**2).sum() * (b**2).sum()))

    warped = warp_bilinear(pair["second"], pair["flow"])
    assert match(pair["first"], warped) > 0.85 > match(pair["first"], pair["second"]) + 0.15


def test_colours_of_flow():
    assert color_wheel().shape == (55, 3)
    still = flow_to_color(np.zeros((2, 2, 2)), 1.0)
    np.testing.assert_allclose(still, 1.0)
    field = np.zeros((1, 3, 2))
    field[0, :2, 0] = 1, -1
    field[0, 2] = np.nan
    picture = flow_to_color(field)
    assert (picture[0, 0] != picture[0, 1]).any() and (picture[0, 2] == 0).all()
    with pytest.raises(ValueError, match="flow_to_color"):
        flow_to_color(np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(mode="exact"), "mode = 'exact': allowed are unrolled, implicit, truncated"),
        (dict(mode="truncated"), "truncate = None: must be in 1..num_steps"),
        (dict(mode="truncated", truncate=9), "truncate = 9"),
        (dict(num_steps=-1), "num_steps = -1"),
        (dict(clip=0.0), "clip = 0.0"),
        (dict(checkpoint=True, tol=0.1), "checkpoint works without tol"),
        (dict(checkpoint=True, mode="implicit"), "checkpoint works .* mode = 'implicit'"),
    ],
)
def test_wrong_options_are_named(change, message):
    params, x0, z, _ = golden()
    with pytest.raises(ValueError, match=message):
        inner_minimize(f, params, x0, z, **(dict(num_steps=3, step_size=0.1) | change))


def test_wrong_shapes_are_named():
    params, x0, z, target = golden()
    with pytest.raises(ValueError, match=r"one scalar an example: got \(\)"):
        inner_minimize(lambda p, x, z: f(p, x, z).sum(), params, x0, z, num_steps=1, step_size=0.1)
    with pytest.raises(ValueError, match="must be like x0"):
        learned_objective_loss(f, params, x0, z, target[:2], num_steps=1, step_size=0.1)


TINY = {
    "registration": {"model.num_inner": 2},
    "registration_300": {"model.num_inner": 2},
    "flow": {"model.num_inner": 2, "data.size": 8, "data.test": 4, "model.features": (4, 4, 2)},
}


@pytest.mark.parametrize("variant", TINY)
def test_recipes_train_evaluate_checkpoint_and_resume(variant, tmp_path):
    small = {
        "num_steps": 4,
        "batch_size": 8,
        "checkpoint.every": 2,
        "log.every": 1,
        "cache_dir": "",
    }
    config = configs.apply_overrides(
        run.load_config(f"learned_objective:{variant}"),
        small | {"compilation_cache": "", "steps_per_dispatch": 2} | TINY[variant],
    )
    whole = run.run(config, tmp_path)
    assert all(np.isfinite(v) for v in whole.metrics[0].values())
    before = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints" / "0-train" / "4")
    assert run.run(config, tmp_path).metrics == whole.metrics
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("variant", "field", "value", "message"),
    [
        ("registration", "model.task", "typo", "allowed are registration, flow"),
        ("registration", "model.arm", "handmade", "allowed are learned, ssd, znssd, regression"),
        ("flow", "model.arm", "typo", "allowed are learned, handmade"),
        ("flow", "precision", "bfloat16", "runs in float32"),
    ],
)
def test_wrong_fields_are_named(variant, field, value, message):
    config = configs.apply_overrides(
        run.load_config(f"learned_objective:{variant}"), {field: value}
    )
    for build in (run.recipe(config).phases, run.recipe(config).study):
        with pytest.raises(ValueError, match=f"config.{field} = '{value}': .*{message}"):
            build(config)


def test_microbatches_are_parts_of_the_batch_of_one():
    found = []
    for accumulate in (1, 2):
        change = {"accumulate": accumulate, "data.pairs": 12, "batch_size": 8, "ema_decay": 0.5}
        config = configs.apply_overrides(
            run.load_config("learned_objective:registration_300"), change | {"model.num_inner": 1}
        )
        (phase,) = run.recipe(config).phases(config)
        state = phase.init(jax.random.key(0), None)
        found.append(jax.jit(phase.step)(state, phase.batches, jax.random.key(1)))
    (_, metrics), (parts, metrics_of_parts) = found
    np.testing.assert_allclose(metrics_of_parts["loss"], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics_of_parts["grad_norm"], metrics["grad_norm"], rtol=1e-4)
    # And the average of the parameters is kept.
    expected = jax.tree.map(lambda a, b: (a + b) / 2, state.params, parts.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parts.ema, expected)


@pytest.mark.parametrize("variant", ["registration", "registration_300", "flow", "flow_medium"])
def test_every_variant_builds_its_real_model(variant):
    from reprise.common.training import program, sharding

    config = run.load_config(f"learned_objective:{variant}")
    (phase,) = run.recipe(config).phases(config)
    built = program.build(phase, sharding.make_mesh(config.mesh, jax.devices()[:1]))
    assert "loss" in built.metrics
