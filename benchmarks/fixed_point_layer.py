"""The fixed-point layer against jaxopt, optimistix and torchdeq.

    python benchmarks/fixed_point_layer.py

Needs the extra `[bench]`. Maps: the golden one, a wider one, FPI_GD of Bibtex size, a
convolutional cell. Tolerances mean something else in every library, so each solver is given the
loosest one at which its gradient is within 1e-5 of the limit's in float64, and is timed there;
evaluations of the map are counted at one and the same nominal tolerance. Times are medians of calls
taken in turns in one process. A peer that fails on a map is left out of it, by name. Writes
results/benchmarks/fixed_point_layer.json.
"""

import contextlib
import statistics
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from reprise.common.ops.conv import conv_same
from reprise.common.studies import benchmark
from reprise.papers.fixed_point_layer import fixed_point, gradient_step_map

warnings.filterwarnings("ignore")

TOL = 1e-10  # squared relative step; the others take its root, an absolute or relative step
TOLERANCES = tuple(10.0**-k for k in range(6, 15))
GRAD_ERROR = 1e-5  # relative, that every solver is brought to before it is timed
CAP = 200


def golden_map():
    d = np.load(Path(__file__).resolve().parents[1] / "tests/goldens/fixed_point_layer.npz")
    params = tuple(jnp.asarray(d[k]) for k in ("W", "U", "b"))
    return params, jnp.asarray(d["y"]), jnp.zeros((5, 16))


def wide_map(batch=64, size=256):
    keys = jax.random.split(jax.random.key(0), 3)
    w = jax.random.normal(keys[0], (size, size))
    w = 0.9 * w / jnp.linalg.norm(w, 2)
    u = jax.random.normal(keys[1], (size, size)) / size**0.5
    y = jax.random.normal(keys[2], (batch, size))
    return (w, u, jnp.zeros(size)), y, jnp.zeros((batch, size))


def tanh(params, x, y):
    w, u, b = params
    return jnp.tanh(x @ w + y @ u + b)


def energy_map(batch=80, labels=159, units=512, inputs=1836):
    keys = jax.random.split(jax.random.key(1), 3)
    bound = 1 / (inputs + labels) ** 0.5
    w = jax.random.uniform(keys[0], (labels, units), minval=-bound, maxval=bound)
    projected = jax.random.normal(keys[1], (batch, units))

    def energy(w, x, y):
        hidden = jax.nn.relu(jax.nn.sigmoid(x) @ w + y)
        # The quadratic keeps the Hessian away from 0, so that the limit exists for every solver.
        return (hidden**2).mean(-1) + 0.02 * (x**2).sum(-1)

    return gradient_step_map(energy, 20.0), w, projected, jnp.zeros((batch, labels))


def conv_map(batch=8, size=24, channels=16):
    keys = jax.random.split(jax.random.key(2), 2)
    kernel = jax.random.normal(keys[0], (3, 3, channels, channels)) * 0.045
    y = jax.random.normal(keys[1], (batch, size, size, channels))

    def cell(kernel, x, y):
        dims = ("NHWC", "HWIO", "NHWC")
        moved = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims)
        return jnp.tanh(moved + y)

    return cell, kernel, y, jnp.zeros_like(y)


def conv_same_map(kernel, x, y):
    return jnp.tanh(conv_same(x, kernel) + y)


# Each entry: (g, x0, tol) -> (params, y) -> solution.


def ours(solver):
    def build(g, x0, tol):
        return lambda params, y: fixed_point(
            g, params, y, x0, solver=solver, tol=tol, max_iter=CAP
        )[0]

    return build


def with_jaxopt(kind):
    def build(g, x0, tol):
        import jaxopt

        def f(x, params, y):
            return g(params, x, y)

        options = dict(maxiter=CAP, implicit_diff=True)
        # jaxopt stops at an absolute norm of the whole batch's step.
        options["tol"] = tol**0.5 * float(jnp.linalg.norm(jnp.ones_like(x0))) * 0.3
        if kind == "anderson":
            solver = jaxopt.AndersonAcceleration(f, history_size=5, ridge=1e-5, **options)
        else:
            solver = jaxopt.FixedPointIteration(f, **options)
        return lambda params, y: solver.run(x0, params, y).params

    return build


def with_optimistix(adjoint):
    def build(g, x0, tol):
        import lineax
        import optimistix

        step = tol**0.5
        solver = optimistix.FixedPointIteration(rtol=step, atol=step * 1e-2)
        options = {}
        if adjoint == "gmres":
            linear = lineax.GMRES(step, step, restart=40, stagnation_iters=40)
            options["adjoint"] = optimistix.ImplicitAdjoint(linear)

        def solve(params, y):
            found = optimistix.fixed_point(
                lambda x, args: g(args[0], x, args[1]),
                solver,
                x0,
                (params, y),
                max_steps=CAP,
                throw=False,
                **options,
            )
            return found.value

        return solve

    return build


def evaluations(build, g, params, y, x0):
    """How often the map is evaluated forward, counted by a callback in the map."""
    count = [0]

    def bump():
        count[0] += 1

    def counted(params, x, y):
        jax.debug.callback(bump)
        return g(params, x, y)

    jax.block_until_ready(jax.jit(build(counted, x0, TOL))(params, y))
    jax.effects_barrier()
    return count[0]


def measure(calls, repeats=15):
    """Median seconds of each call, taken in turns."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def reference(g, params, y, x0):
    """(x*, gradient of sum(x*^2) to y) in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), (params, y, x0))
        params, y, x0 = wide

        def solve(y):
            options = dict(solver="anderson", tol=1e-24, max_iter=2000)
            return fixed_point(g, params, y, x0, **options)[0]

        x, pull = jax.vjp(solve, y)
        return np.asarray(x), np.asarray(pull(2 * x)[0])


def loosest(at):
    """(tol, at(tol)) of the loosest tolerance with an error of GRAD_ERROR, or near its best one.

    A solver that stalls above GRAD_ERROR must not be timed while it iterates up to its cap.
    """
    tried = {}
    for tol in TOLERANCES:
        tried[tol] = at(tol)
        if tried[tol][0] <= GRAD_ERROR:
            return tol, tried[tol]
    best = min(found for found, *_ in tried.values())
    tol = next(tol for tol, (found, *_) in tried.items() if found <= 1.1 * best)
    return tol, tried[tol]


def compare(label, g, params, y, x0, torch_map=None):
    builders = {
        "ours picard": ours("picard"),
        "ours anderson": ours("anderson"),
        "ours broyden": ours("broyden"),
        "jaxopt picard": with_jaxopt("picard"),
        "jaxopt anderson": with_jaxopt("anderson"),
        "optimistix gmres": with_optimistix("gmres"),
    }
    if x0.size // len(x0) <= 64:
        builders["optimistix dense"] = with_optimistix("dense")
    _, slope64 = reference(g, params, y, x0)
    scale = np.linalg.norm(slope64)

    def error(slope):
        return float(np.linalg.norm(np.asarray(slope) - slope64) / scale)

    forward, gradient, rows = {}, {}, {}
    for name, build in builders.items():
        try:

            def at(tol, build=build):
                solve = build(g, x0, tol)
                grad = jax.jit(jax.grad(lambda p, y: (solve(p, y) ** 2).sum(), (0, 1)))
                return error(grad(params, y)[1]), solve, grad

            tol, (found, solve, grad) = loosest(at)
        except (jax.errors.JaxRuntimeError, NotImplementedError, TypeError) as failure:
            print(f"{label}: {name} fails: {str(failure).splitlines()[0]}")
            continue
        run = jax.jit(solve)
        forward[name] = lambda run=run: jax.block_until_ready(run(params, y))
        gradient[name] = lambda grad=grad: jax.block_until_ready(grad(params, y))
        memory = grad.lower(params, y).compile().memory_analysis()
        rows[name] = {
            "tol": tol,
            "grad_error": found,
            "g_evals": evaluations(build, g, params, y, x0),
            "temp_kib": memory.temp_size_in_bytes / 1024,
        }
    if torch_map is not None:
        forward["torchdeq"], gradient["torchdeq"], rows["torchdeq"] = with_torchdeq(
            torch_map, params, y, x0, error
        )
    forward, gradient = measure(forward), measure(gradient)
    out = {}
    for name, row in rows.items():
        out[f"{label}: {name}"] = {
            "forward_ms": forward[name] * 1e3,
            "gradient_ms": gradient[name] * 1e3,
            **row,
        }
    ours_names = [name for name in rows if name.startswith("ours")]
    jax_names = [name for name in rows if name.startswith(("jaxopt", "optimistix"))]
    best = min(ours_names, key=lambda n: gradient[n])
    summary = {
        "gradient / best JAX peer": gradient[best] / min(gradient[n] for n in jax_names),
        "g_evals - best peer's": min(rows[n]["g_evals"] for n in ours_names)
        - min(row["g_evals"] for n, row in rows.items() if not n.startswith("ours")),
    }
    if "torchdeq" in rows:
        summary["gradient / torchdeq"] = gradient[best] / gradient["torchdeq"]
    out[f"{label}: ratios, {best}"] = summary
    return out


def with_torchdeq(torch_map, params, y, x0, error):
    import torch
    import torchdeq

    f, tensors = torch_map(params)
    count = [0]
    start = torch.from_numpy(np.asarray(x0).copy())
    inputs = torch.from_numpy(np.asarray(y).copy()).requires_grad_()

    def step(x):
        count[0] += 1
        return f(x, inputs)

    def build(tol):
        deq = torchdeq.get_deq(
            f_solver="anderson",
            b_solver="anderson",
            f_max_iter=CAP,
            b_max_iter=CAP,
            f_tol=tol**0.5,
            b_tol=tol**0.5,
            f_stop_mode="rel",
            b_stop_mode="rel",
            ift=True,
            kwargs={"f_solver": {"m": 5}, "b_solver": {"m": 5}},
        )

        def run():
            with torch.no_grad():
                return deq(step, start)[0][-1]

        def grad():
            for tensor in (*tensors, inputs):
                tensor.grad = None
            deq.train()
            (deq(step, start)[0][-1] ** 2).sum().backward()
            deq.eval()
            return inputs.grad

        deq.eval()
        return run, grad

    build(TOL)[0]()
    evals = count[0]

    def at(tol):
        run, grad = build(tol)
        return error(grad().numpy()), run, grad

    tol, (found, run, grad) = loosest(at)
    return run, grad, {"tol": tol, "grad_error": found, "g_evals": evals, "temp_kib": None}


def torch_tanh(params):
    import torch

    w, u, b = (torch.from_numpy(np.asarray(p).copy()).requires_grad_() for p in params)
    return (lambda x, y: torch.tanh(x @ w + y @ u + b)), (w, u, b)


def torch_conv(kernel):
    import torch

    # torch wants NCHW; the transposition of x and y is part of neither side's time.
    k = torch.from_numpy(np.asarray(kernel).transpose(3, 2, 0, 1).copy()).requires_grad_()

    def f(x, y):
        moved = torch.nn.functional.conv2d(x.permute(0, 3, 1, 2), k, padding=1)
        return torch.tanh(moved.permute(0, 2, 3, 1) + y)

    return f, (k,)


def torch_energy(w):
    import torch

    w = torch.from_numpy(np.asarray(w).copy()).requires_grad_()

    def f(x, y):
        # The gradient of the energy by hand, as a PyTorch user writes it for speed.
        s = torch.sigmoid(x)
        hidden = torch.relu(s @ w + y)
        slope = (2 / w.shape[1]) * (hidden @ w.T) * s * (1 - s) + 0.04 * x
        return x - 20.0 * slope

    return f, (w,)


def memory_ratio():
    """Temporary memory at a cap of 1000 over that at 10."""
    params, y, x0 = wide_map()

    def temporary(max_iter):
        def loss(params, y):
            return fixed_point(tanh, params, y, x0, tol=0.0, max_iter=max_iter)[0].sum()

        compiled = jax.jit(jax.grad(loss, (0, 1))).lower(params, y).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    return temporary(1000) / temporary(10)


def main():
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(2)
    rows = {"memory, 1000 / 10 iterations": {"ratio": memory_ratio()}}
    rows |= compare("golden", tanh, *golden_map(), torch_tanh)
    rows |= compare("wide", tanh, *wide_map(), torch_tanh)
    g, *arrays = energy_map()
    rows |= compare("FPI_GD", g, *arrays, torch_energy)
    g, *arrays = conv_map()
    rows |= compare("conv", g, *arrays, torch_conv)
    # The suite's own convolution, whose gradient is fast inside loops; it has no forward mode,
    # which some peers ask for.
    rows |= compare("conv_same", conv_same_map, *arrays, torch_conv)
    benchmark.write("fixed_point_layer", rows)


if __name__ == "__main__":
    main()
