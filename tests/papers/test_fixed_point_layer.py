"""papers/fixed_point_layer: golden, properties, gradients, devices, recipes."""

import os
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from reprise.common.training import run
from reprise.papers.fixed_point_layer import (
    FPIGD,
    FPINN,
    MLP,
    Denoiser,
    FixedPoint,
    anderson_step,
    binary_cross_entropy,
    fixed_point,
    gradient_step_map,
    multilabel_f1,
    neumann_vjp,
    spectral_radius,
    tasks,
)
from reprise.papers.fixed_point_layer.layers import conv_norm
from reprise.papers.fixed_point_layer.solvers import solve_spd

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = dict(np.load(ROOT / "tests/goldens/fixed_point_layer.npz"))
SOLVERS = ("picard", "anderson", "broyden")


def g(params, x, y):
    w, u, b = params
    return jnp.tanh(x @ w + y @ u + b)


def golden(dtype):
    a = {key: jnp.asarray(value, dtype) for key, value in GOLDEN.items()}
    return (a["W"], a["U"], a["b"]), a["y"], a["x0"], a["cotangent"]


def compare_with_golden(dtype, tol, atol, solver, differentiation):
    params, y, x0, cotangent = golden(dtype)
    options = dict(solver=solver, tol=tol, max_iter=200, differentiation=differentiation)

    def loss(params, y):
        x, stats = fixed_point(g, params, y, x0, **options)
        return (x * cotangent).sum(), (x, stats)

    (_, (x, stats)), (d_params, d_y) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(
        params, y
    )
    assert stats.converged.all() and stats.residual.shape == (5,)
    found = dict(zip(("grad_W", "grad_U", "grad_b"), d_params, strict=True))
    for name, value in (found | {"expected": x, "grad_y": d_y}).items():
        np.testing.assert_allclose(value, GOLDEN[name], atol=atol, rtol=0, err_msg=name)

    def squared(params, y):
        return (jax.grad(lambda y: loss(params, y)[0])(y) ** 2).sum()

    (d2_w, *_), d2_y = jax.jit(jax.grad(squared, (0, 1)))(params, y)
    np.testing.assert_allclose(d2_w, GOLDEN["grad2_W"], atol=3 * atol, rtol=0)
    np.testing.assert_allclose(d2_y, GOLDEN["grad2_y"], atol=3 * atol, rtol=0)


@pytest.mark.parametrize("differentiation", ["implicit", "root"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_golden_float32(solver, differentiation):
    compare_with_golden(jnp.float32, 1e-13, 1e-5, solver, differentiation)


@pytest.mark.parametrize("solver", SOLVERS)
def test_golden_float64(solver):
    with jax.enable_x64(True):
        compare_with_golden(jnp.float64, 1e-26, 1e-9, solver, "implicit")


def test_root_gives_forward_mode_that_agrees_with_reverse():
    with jax.enable_x64(True):
        params, y, x0, v = golden(jnp.float64)

        def solve(y):
            return fixed_point(g, params, y, x0, tol=1e-26, max_iter=200, differentiation="root")[0]

        t = jnp.ones_like(y)
        _, out = jax.jvp(solve, (y,), (t,))
        _, pull = jax.vjp(solve, y)
        np.testing.assert_allclose((out * v).sum(), (pull(v)[0] * t).sum(), rtol=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradients_in_float64(solver):
    with jax.enable_x64(True):
        params, y, x0, _ = golden(jnp.float64)

        def loss(params, y):
            x, _ = fixed_point(g, params, y, x0, solver=solver, tol=1e-26, max_iter=200)
            return (x**2).sum()

        check_grads(loss, (params, y), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)
        # The numerical second derivative itself is good to about 1e-5.
        check_grads(loss, (params, y), order=2, modes=["rev"], atol=1e-5, rtol=1e-5)


def test_the_gradient_is_the_dense_implicit_one():
    params, y, x0, v = golden(jnp.float32)
    x, pull = jax.vjp(lambda y: fixed_point(g, params, y, x0, tol=1e-13, max_iter=200)[0], y)
    for row in range(5):
        j_x = np.asarray(jax.jacobian(lambda x: g(params, x, y[row]))(x[row]), np.float64)
        j_y = np.asarray(jax.jacobian(lambda y: g(params, x[row], y))(y[row]), np.float64)
        dense = j_y.T @ np.linalg.solve(np.eye(16) - j_x.T, np.asarray(v[row], np.float64))
        np.testing.assert_allclose(pull(v)[0][row], dense, atol=1e-6)


@pytest.mark.parametrize("differentiation", ["implicit", "root"])
def test_the_gradient_scales_with_the_loss_however_small(differentiation):
    params, y, x0, v = golden(jnp.float32)
    options = dict(tol=1e-12, max_iter=200, differentiation=differentiation)
    _, pull = jax.vjp(lambda y: fixed_point(g, params, y, x0, **options)[0], y)
    pull = jax.jit(pull)
    (expected,) = pull(v)
    for scale in (1e-18, 1e-28):
        np.testing.assert_allclose(pull(scale * v)[0] / scale, expected, rtol=2e-5, atol=1e-6)
    # A row of zeros stays one, beside rows of very different sizes.
    sizes = jnp.array([0.0, 1e-20, 1.0, 1e20, 0.0])[:, None]
    found = pull(sizes * v)[0]
    assert float(jnp.abs(found[jnp.array([0, 4])]).max()) == 0
    np.testing.assert_allclose(found[1:4] / sizes[1:4], expected[1:4], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_fixed_point_does_not_depend_on_the_start_nor_on_damping(solver):
    params, y, x0, _ = golden(jnp.float32)

    def solve(x0, damping=1.0):
        out = fixed_point(g, params, y, x0, solver=solver, tol=1e-13, max_iter=200, damping=damping)
        return out[0]

    np.testing.assert_allclose(solve(x0), solve(x0 + 3.0), atol=2e-6)
    np.testing.assert_allclose(solve(x0), solve(x0, 0.6), atol=2e-6)
    assert float(jnp.abs(jax.grad(lambda x: solve(x).sum())(x0)).max()) == 0


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_example_does_not_depend_on_its_batch_mates(solver):
    params, y, x0, v = golden(jnp.float32)
    y = y * jnp.array([0.0, 0.1, 1.0, 3.0, 10.0])[:, None]  # very different speeds

    def both(y, x0, v):
        out, pull = jax.vjp(
            lambda y: fixed_point(g, params, y, x0, solver=solver, tol=1e-9, max_iter=200), y
        )
        return *out, pull((v, jax.tree.map(jnp.zeros_like, out[1])))[0]

    def loss(y, x0, v):
        x, stats = fixed_point(g, params, y, x0, solver=solver, tol=1e-9, max_iter=200)
        return (x * v).sum(), (x, stats.residual)

    slope, (x, residual) = jax.grad(loss, has_aux=True)(y, x0, v)
    for i in range(5):
        row = slice(i, i + 1)
        one_slope, (one_x, one_residual) = jax.grad(loss, has_aux=True)(y[row], x0[row], v[row])
        np.testing.assert_allclose(x[row], one_x, atol=1e-6)
        np.testing.assert_allclose(slope[row], one_slope, atol=1e-5)
        np.testing.assert_allclose(residual[row], one_residual, rtol=0.3, atol=1e-12)


def test_the_whole_batch_stops_together_where_asked_as_in_the_official_code():
    params, y, x0, _ = golden(jnp.float32)
    x, n = np.asarray(x0, np.float64), 0
    while True:  # the official rule: squared norms over the whole array
        after = np.tanh(x @ GOLDEN["W"] + GOLDEN["y"] @ GOLDEN["U"] + GOLDEN["b"])
        residual = ((after - x) ** 2).sum() / ((x**2).sum() + 1e-30)
        x, n = after, n + 1
        if residual <= 1e-6:
            break
    found, stats = fixed_point(g, params, y, x0, tol=1e-6, per_example=False)
    assert int(stats.num_iters) == n
    np.testing.assert_allclose(found, x, atol=1e-6)
    np.testing.assert_allclose(stats.residual, residual, rtol=1e-2)


def test_accelerated_solvers_need_fewer_evaluations():
    # A slow linear contraction: radius 0.95.
    w = 0.95 * jnp.linalg.qr(jax.random.normal(jax.random.key(0), (12, 12)))[0]
    w = 0.5 * (w + w.T)
    y = jax.random.normal(jax.random.key(1), (3, 12))
    counts = {
        solver: int(
            fixed_point(lambda w, x, y: x @ w + y, w, y, y, solver=solver, max_iter=500, tol=1e-10)[
                1
            ].num_iters
        )
        for solver in SOLVERS
    }
    assert counts["anderson"] < 0.5 * counts["picard"]
    assert counts["broyden"] < 0.7 * counts["picard"]


def test_the_cap_is_hard_and_convergence_is_told():
    params, y, x0, _ = golden(jnp.float32)
    _, stats = fixed_point(g, params, y, x0, tol=1e-13, max_iter=3)
    assert int(stats.num_iters) == 3 and not stats.converged.any()
    _, stats = fixed_point(g, params, y, x0, tol=1e9, max_iter=3)
    assert int(stats.num_iters) == 1 and stats.converged.all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_divergence_is_told_and_stays_finite(solver):
    def square(a, x, y):
        return a * x**2 + y

    y = jnp.array([[0.1], [5.0]])  # x = x^2 + 0.1 has a root, x = x^2 + 5 has none

    def loss(a):
        x, stats = fixed_point(square, a, y, y, solver=solver, max_iter=60)
        return x[0].sum(), (x, stats)

    slope, (x, stats) = jax.grad(loss, has_aux=True)(jnp.float32(1.0))
    assert np.isfinite(x).all() and np.isfinite(slope)
    assert stats.converged.tolist() == [True, False]
    root = float(x[0, 0])
    np.testing.assert_allclose(root**2 + 0.1, root, atol=1e-5)
    np.testing.assert_allclose(slope, root**2 / (1 - 2 * root), rtol=1e-3)


def test_a_batch_without_examples_stays_one():
    params, y, x0, _ = golden(jnp.float32)

    def loss(params):
        x, stats = fixed_point(g, params, y[:0], x0[:0])
        return x.sum(), (x, stats.num_iters)

    slope, (x, num_iters) = jax.grad(loss, has_aux=True)(params)
    assert x.shape == (0, 16) and int(num_iters) == 0
    assert all((leaf == 0).all() for leaf in slope)


def test_trees_of_different_shapes():
    def both(params, x, y):
        a, b = x["a"], x["b"]
        return {
            "a": 0.3 * jnp.tanh(a + b.mean((1, 2))[:, None]) + y[0],
            "b": 0.2 * jnp.sin(b * params + a[:, :1, None]) + y[1][:, None, None],
        }

    y = (jnp.ones((4, 3)), jnp.arange(4.0))
    x0 = {"a": jnp.zeros((4, 3)), "b": jnp.zeros((4, 2, 5))}

    def loss(params, y):
        x, _ = fixed_point(both, params, y, x0, solver="anderson", tol=1e-12)
        return (x["a"] ** 2).sum() + x["b"].sum()

    x, stats = fixed_point(both, jnp.float32(0.7), y, x0, solver="anderson", tol=1e-12)
    again = both(jnp.float32(0.7), x, y)
    for key in x0:
        assert x[key].shape == x0[key].shape
        np.testing.assert_allclose(x[key], again[key], atol=1e-5)
    check_grads(loss, (jnp.float32(0.7), y), order=1, modes=["rev"], atol=2e-2, rtol=2e-2)


def test_values_that_the_map_closes_over_get_their_gradient():
    params, y, x0, _ = golden(jnp.float32)

    def closing(scale):
        out, _ = fixed_point(lambda p, x, y: g(p, x, y) * scale, params, y, x0, tol=1e-12)
        return out.sum()

    def explicit(scale):
        def scaled(p, x, y):
            return g(p[0], x, y) * p[1]

        return fixed_point(scaled, (params, scale), y, x0, tol=1e-12)[0].sum()

    slope = jax.jit(jax.grad(closing))(0.9)
    assert abs(float(slope)) > 1
    np.testing.assert_allclose(slope, jax.grad(explicit)(0.9), rtol=1e-5)


def test_jit_and_vmap_agree_with_the_plain_call():
    params, y, x0, _ = golden(jnp.float32)

    def slope(y, x0):
        return jax.grad(lambda y: fixed_point(g, params, y, x0, tol=1e-12)[0].sum())(y)

    plain = slope(y, x0)
    np.testing.assert_allclose(jax.jit(slope)(y, x0), plain, atol=1e-6)
    stacked = jax.vmap(slope)(jnp.stack([y, 2 * y]), jnp.stack([x0, x0]))
    np.testing.assert_allclose(stacked[0], plain, atol=1e-5)
    np.testing.assert_allclose(stacked[1], slope(2 * y, x0), atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS)
def test_bfloat16_stays_finite_and_near(solver):
    params, y, x0, v = golden(jnp.bfloat16)

    def loss(params, y):
        x, stats = fixed_point(g, params, y, x0, solver=solver, tol=1e-4, max_iter=30)
        return (x * v).sum(), x

    slope, x = jax.grad(loss, (0, 1), has_aux=True)(params, y)
    assert x.dtype == jnp.bfloat16
    np.testing.assert_allclose(x.astype(np.float32), GOLDEN["expected"], atol=0.05)
    assert all(np.isfinite(leaf.astype(np.float32)).all() for leaf in jax.tree.leaves(slope))


@pytest.mark.parametrize(("solver", "most"), [("picard", 1.05), ("anderson", 1.05)])
def test_memory_does_not_grow_with_the_iterations(solver, most):
    params, y, x0, _ = golden(jnp.float32)

    def temporary(max_iter):
        def loss(params, y):
            out, _ = fixed_point(g, params, y, x0, solver=solver, tol=0.0, max_iter=max_iter)
            return out.sum()

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, y).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(1000) <= most * temporary(10)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from reprise.papers.fixed_point_layer import fixed_point
d = np.load("tests/goldens/fixed_point_layer.npz")
mesh = Mesh(np.array(jax.devices()), ("data",))
W, U, b = (jnp.asarray(d[k]) for k in ("W", "U", "b"))
y = jnp.concatenate([jnp.asarray(d["y"][:4])] * 2) * jnp.linspace(0, 3, 8)[:, None]
x0 = jnp.zeros((8, 16))

def g(w, x, y):  # a collective inside: a device that stops earlier would deadlock the others
    mean = jax.lax.pmean((0 * x).sum(), "data") if sharded else 0.0
    return jnp.tanh(x @ w + y @ U + b) + mean

def solve(w, y, x0, axis):
    x, stats = fixed_point(g, w, y, x0, solver=solver, tol=1e-12, axis_name=axis)
    return x, stats.num_iters[None]

for solver in ("picard", "anderson"):
    sharded = False
    plain, _ = solve(W, y, x0, None)
    slope = jax.grad(lambda w: (solve(w, y, x0, None)[0] ** 2).sum())(W)
    sharded = True
    spread = jax.jit(jax.shard_map(
        lambda w, y, x0: solve(w, y, x0, "data"), mesh=mesh,
        in_specs=(P(), P("data"), P("data")), out_specs=(P("data"), P("data")), check_vma=False))
    x, counts = spread(W, y, x0)
    assert len(set(np.asarray(counts).tolist())) == 1, counts
    np.testing.assert_allclose(x, plain, atol=1e-6)
    found = jax.grad(lambda w: (spread(w, y, x0)[0] ** 2).sum())(W)
    np.testing.assert_allclose(found, slope, atol=1e-4)
print("ok")
"""


def test_shard_map_with_an_axis_name_agrees_on_when_to_stop():
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "ok", done.stderr[-3000:]


def test_gradient_steps_find_the_minimum_and_their_jacobian_is_symmetric():
    def energy(a, x, y):
        return (0.5 * x**2 * a + 0.1 * x**4).sum(-1) - (x * y).sum(-1)

    step = gradient_step_map(energy, 0.3)
    a, y = jnp.array([0.5, 1.0, 2.0]), jax.random.normal(jax.random.key(0), (4, 3))
    x, stats = fixed_point(step, a, y, jnp.zeros_like(y), tol=1e-13, max_iter=500)
    assert stats.converged.all()
    np.testing.assert_allclose(jax.grad(lambda x: energy(a, x, y).sum())(x), 0, atol=1e-5)
    # J^T c = c - alpha Hess c, and the step does not depend on the batch size.
    c = jax.random.normal(jax.random.key(1), x.shape)
    _, pull = jax.vjp(lambda x: step(a, x, y), x)
    hessian = a + 1.2 * x**2
    np.testing.assert_allclose(pull(c)[0], c - 0.3 * hessian * c, atol=1e-5)
    np.testing.assert_allclose(step(a, x[:1], y[:1]), step(a, x, y)[:1], atol=1e-6)
    slope = jax.grad(lambda y: fixed_point(step, a, y, y, tol=1e-13, max_iter=500)[0].sum())(y)
    np.testing.assert_allclose(slope, 1 / hessian, rtol=1e-3)


def test_neumann_is_the_linear_solve():
    m = 0.4 * jax.random.orthogonal(jax.random.key(0), 6)
    v = jax.random.normal(jax.random.key(1), (3, 6))
    c = neumann_vjp(lambda c: c @ m, v, tol=1e-14)
    np.testing.assert_allclose(c @ (jnp.eye(6) - m), v, atol=1e-5)


def test_anderson_step_is_the_formula():
    rng = np.random.default_rng(0)
    x, gx = rng.normal(size=(2, 4, 9)).astype(np.float32)
    f = gx - x
    d, dx, dg = (np.diff(h, axis=0).T for h in (f, x, gx))
    gram = d.T @ d
    eps = 1e-3 * np.trace(gram) / 3 + 1e-30
    gamma = np.linalg.solve(gram + eps * np.eye(3), d.T @ f[-1])
    for beta in (1.0, 0.4):
        expected = (1 - beta) * (x[-1] - dx @ gamma) + beta * (gx[-1] - dg @ gamma)
        np.testing.assert_allclose(anderson_step(x, gx, 1e-3, beta), expected, atol=1e-5)
    np.testing.assert_allclose(
        anderson_step(x[:1], gx[:1], 1e-3, 0.4), 0.6 * x[0] + 0.4 * gx[0], atol=1e-6
    )
    with pytest.raises(ValueError, match="must be the same"):
        anderson_step(x, gx[:2])


def test_small_systems_are_solved():
    a = jax.random.normal(jax.random.key(0), (7, 4, 4))
    a = a @ a.mT + 0.1 * jnp.eye(4)
    b = jax.random.normal(jax.random.key(1), (7, 4))
    np.testing.assert_allclose(
        solve_spd(a, b), jnp.linalg.solve(a, b[..., None])[..., 0], rtol=2e-3, atol=1e-4
    )


def test_spectral_radius_of_a_known_jacobian():
    q = jax.random.orthogonal(jax.random.key(0), 5)
    m = q @ jnp.diag(jnp.array([0.9, 0.3, 0.2, 0.1, 0.0])) @ q.T
    x = jnp.zeros((3, 5))
    scale = jnp.array([1.0, 0.5, 0.0])[:, None]
    found = spectral_radius(lambda m, x, y: y * (x @ m), m, x, scale, jax.random.key(1), 40)
    np.testing.assert_allclose(found, [0.9, 0.45, 0.0], atol=1e-4)
    slope = jax.grad(
        lambda s: spectral_radius(
            lambda m, x, y: s * y * (x @ m), m, x, scale, jax.random.key(1), 40
        ).sum()
    )(1.0)
    np.testing.assert_allclose(slope, 1.35, atol=1e-3)


def test_norm_of_a_convolution():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 2, 4))

    def conv(x):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims)

    x = jnp.zeros((1, 14, 14, 2))
    matrix = jax.jacobian(conv)(x).reshape(14 * 14 * 4, -1)
    true = np.linalg.norm(matrix, 2)
    np.testing.assert_allclose(conv_norm(kernel, 60, 16), true, rtol=0.05)
    check_grads(lambda k: conv_norm(k, 60), (kernel,), order=1, modes=["rev"], atol=0.1, rtol=0.1)


def test_f1_is_counted_per_example():
    probabilities = jnp.array([[0.9, 0.2, 0.5], [0.1, 0.1, 0.1], [0.1, 0.1, 0.1], [0.9, 0.1, 0.1]])
    labels = jnp.array([[1.0, 1, 0], [0, 0, 0], [0, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(
        multilabel_f1(probabilities, labels), [2 / 3, 1.0, 0.0, 1.0], rtol=1e-6
    )
    with pytest.raises(ValueError, match="must be the same"):
        multilabel_f1(probabilities, labels[:2])


def test_cross_entropy_of_probabilities_is_finite_at_0_and_1():
    p = jnp.array([[0.0, 1.0, 0.3], [1.0, 0.0, 0.3]])
    t = jnp.array([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    expected = [-np.log(0.3) / 3, (200 - np.log(0.7)) / 3]
    np.testing.assert_allclose(binary_cross_entropy(p, t), expected, rtol=1e-6)
    assert np.isfinite(jax.grad(lambda p: binary_cross_entropy(p, t).sum())(p)).all()


def test_the_papers_parameter_counts():
    y = jax.ShapeDtypeStruct((2, 1836), jnp.float32)

    def count(model):
        shapes = jax.eval_shape(model.init, jax.random.key(0), y)
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))

    assert count(FPINN()) == 1_293_159
    assert count(FPIGD()) == 1995 * 512 + 512
    assert count(MLP(600, 159)) == 1836 * 600 + 600 + 600 * 159 + 159


def test_the_gradient_form_takes_its_step_size_second_and_above_0():
    model = FPIGD(8, 0.5, 4)
    assert (model.features, model.step_size, model.num_labels) == (8, 0.5, 4)
    y = jax.ShapeDtypeStruct((2, 6), jnp.float32)
    x, _ = jax.eval_shape(lambda y: model.init_with_output(jax.random.key(0), y)[0], y)
    assert x.shape == (2, 4)
    with pytest.raises(ValueError, match=r"FPIGD: step_size = 0\.0: must be above 0"):
        jax.eval_shape(FPIGD(8, 0.0, 4).init, jax.random.key(0), y)


def test_projecting_the_input_outside_the_iteration_changes_nothing():
    model = FPINN(features=7, num_labels=5, tol=1e-12)
    y = jax.random.normal(jax.random.key(0), (3, 11))
    variables = model.init(jax.random.key(1), y)
    x, _ = model.apply(variables, y)
    p = variables["params"]
    cell = p["cell"]
    w = jnp.concatenate([p["input"]["kernel"], cell["hidden"]["kernel"]])
    hidden = nn.relu(jnp.concatenate([y, x], -1) @ w + p["input"]["bias"])
    again = nn.sigmoid(hidden @ cell["out"]["kernel"] + cell["out"]["bias"])
    np.testing.assert_allclose(x, again, atol=1e-5)


def test_unrolling_is_the_map_applied_that_often():
    model = FixedPoint(nn.Dense(3), unroll=0)

    class Cell(nn.Module):
        @nn.compact
        def __call__(self, x, y):
            return 0.3 * nn.Dense(3, name="d")(x) + y

    y = jax.random.normal(jax.random.key(0), (2, 3))
    limit = FixedPoint(Cell(), tol=1e-13)
    variables = limit.init(jax.random.key(1), y, jnp.zeros_like(y))
    for k in (1, 3):
        x = jnp.zeros_like(y)
        for _ in range(k):
            x = limit.map()(variables["params"]["cell"], x, y)
        found, stats = FixedPoint(Cell(), unroll=k).apply(variables, y, jnp.zeros_like(y))
        np.testing.assert_allclose(found, x, atol=1e-6)
        assert int(stats.num_iters) == k
    assert model.unroll == 0


def test_the_denoiser_contracts_where_its_bound_is_below_1():
    model = Denoiser(features=8, contraction=0.9, tol=1e-10, max_iter=200)
    y = jax.random.normal(jax.random.key(0), (2, 12, 12, 1))
    variables = model.init(jax.random.key(1), y)
    bound = model.bind(variables)
    _, taps = bound(y)
    radius = spectral_radius(
        bound.fixed_point.map(),
        variables["params"]["fixed_point"]["cell"],
        taps["x"],
        taps["y"],
        jax.random.key(2),
    )
    assert (radius < 0.9).all() and taps["stats"].converged.all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(solver="newton"), "solver = 'newton': allowed are picard, anderson, broyden"),
        (dict(backward_solver="cg"), "backward_solver = 'cg'"),
        (dict(differentiation="unrolled"), "differentiation = 'unrolled': allowed are implicit"),
        (dict(max_iter=0), "max_iter = 0"),
        (dict(damping=0.0), r"damping = 0.0: must be in \(0, 1\]"),
    ],
)
def test_wrong_options_are_named(change, message):
    params, y, x0, _ = golden(jnp.float32)
    with pytest.raises(ValueError, match=message):
        fixed_point(g, params, y, x0, **change)


def test_wrong_shapes_are_named():
    params, y, x0, _ = golden(jnp.float32)
    with pytest.raises(
        ValueError, match=r"g returns \(5, 16\), which must look like x0: \(5, 15\)"
    ):
        fixed_point(lambda p, x, y: g(params, jnp.pad(x, ((0, 0), (0, 1))), y), (), y, x0[:, :15])
    with pytest.raises(ValueError, match="one common batch axis"):
        fixed_point(lambda p, x, y: x, (), y, {"a": x0, "b": x0[:2]})
    with pytest.raises(ValueError, match="must be floating, got int32"):
        fixed_point(lambda p, x, y: x, (), y, jnp.zeros((5, 2), jnp.int32))


def test_mazes_hold_their_equation():
    maze = tasks.mazes(20, 6, 3)
    free, source = maze["y"][..., 0], maze["y"][..., 1]
    value = maze["value"][..., 0]
    assert (source.sum((1, 2)) == 1).all() and (source <= free).all()
    assert (value[source == 1] == 1).all() and (value[free == 0] == 0).all()
    padded = np.pad(value, ((0, 0), (1, 1), (1, 1)))
    shifts = [padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]]
    np.testing.assert_allclose(value, free * np.maximum(source, 0.9 * np.max(shifts, 0)), atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 9, 3), (9, 5, 3), (7, 20, 1)])
def test_photographs_smaller_than_a_crop_are_enlarged(shape):
    image = np.full(shape, 51, np.uint8)
    patch = tasks.crop(8, 1)({"image": image}, np.random.default_rng(0))["clean"]
    grid = tasks.grid_of_crops([{"image": image}], 8, 1, 4)
    assert patch.shape == (8, 8, 1) and grid.shape == (4, 8, 8, 1)
    np.testing.assert_allclose(patch, 0.2, atol=1e-6)
    np.testing.assert_allclose(grid, 0.2, atol=1e-6)


@pytest.mark.parametrize(("field", "value", "most"), [("patch", 428, 427), ("test_crop", 301, 300)])
def test_crops_larger_than_the_embedded_photographs_are_named(field, value, most):
    config = run.load_config("fixed_point_layer:denoise")
    config.data[field] = value
    with pytest.raises(ValueError, match=f"config.data.{field} = {value}: must be at most {most}"):
        run.recipe(config).phases(config)


@pytest.mark.parametrize(
    ("variant", "field", "value", "message"),
    [
        ("maze", "model.task", "typo", "allowed are denoise, maze, bibtex"),
        ("maze", "precision", "bfloat16", "mazes run in float32"),
        ("bibtex_nn", "model.form", "typo", "allowed are nn, gd, mlp"),
    ],
)
def test_wrong_fields_are_named(variant, field, value, message):
    from reprise.common import config as configs

    config = configs.apply_overrides(
        run.load_config(f"fixed_point_layer:{variant}"), {field: value}
    )
    for build in (run.recipe(config).phases, run.recipe(config).study):
        with pytest.raises(ValueError, match=f"config.{field} = '{value}': {message}"):
            build(config)


def test_a_run_without_steps_is_only_judged():
    from reprise.common import config as configs

    config = configs.apply_overrides(run.load_config("fixed_point_layer:denoise"), {"num_steps": 0})
    (phase,) = run.recipe(config).phases(config)
    assert phase.num_steps == 0 and phase.evaluate is not None


TINY = {
    "denoise": {"data.patch": 8, "data.test_crop": 16, "model.features": 4},
    "maze": {"data.train": 32, "data.test": 6, "data.size": 4, "model.features": 4},
}


@pytest.mark.parametrize("variant", TINY)
@pytest.mark.parametrize("unroll", [0, 1])
def test_recipes_train_evaluate_checkpoint_and_resume(variant, unroll, tmp_path):
    from reprise.common import config as configs

    small = {
        "num_steps": 4,
        "batch_size": 8,
        "checkpoint.every": 2,
        "log.every": 1,
        "cache_dir": "",
    }
    config = configs.apply_overrides(
        run.load_config(f"fixed_point_layer:{variant}"),
        small | {"compilation_cache": "", "model.unroll": unroll} | TINY[variant],
    )
    whole = run.run(config, tmp_path)
    assert all(np.isfinite(v) for v in whole.metrics[0].values())
    # Without its last checkpoint the run continues from the middle to the same numbers.
    import shutil

    before = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints" / "0-train" / "4")
    assert run.run(config, tmp_path).metrics == whole.metrics
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("variant", ["bibtex_nn", "bibtex_gd", "imagenet", "denoise", "maze"])
def test_every_variant_builds_its_real_model(variant, monkeypatch):
    from reprise.common.training import program, sharding

    if variant.startswith("bibtex"):
        rows = {
            "features": np.zeros((488, 1836), np.float32),
            "labels": np.zeros((488, 159), np.float32),
        }
        monkeypatch.setattr(tasks, "bibtex", lambda split, data_dir: rows)
    config = run.load_config(f"fixed_point_layer:{variant}")
    (phase,) = run.recipe(config).phases(config)
    built = program.build(phase, sharding.make_mesh(config.mesh, jax.devices()[:1]))
    assert "loss" in built.metrics
