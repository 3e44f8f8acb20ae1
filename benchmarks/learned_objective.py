"""The replayed gradient of an inner process against unrolling and implicit differentiation.

    python benchmarks/learned_objective.py

Needs the extra `[bench]`. Value and gradient of an objective network's inner process of T = 10, 100
and 1000 steps: time (median of calls in turns) and compiled temporary memory. Writes
results/benchmarks/learned_objective.json.
"""

import math
import statistics
import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from reprise.common.studies import benchmark
from reprise.papers.learned_objective import ObjectiveMLP, inner_minimize

warnings.filterwarnings("ignore")

ALPHA = 0.3


def problem(batch=64, size=8, context=16):
    model = ObjectiveMLP((64, 64, 32))
    keys = jax.random.split(jax.random.key(0), 3)
    z, target = (
        jax.random.normal(keys[0], (batch, context)),
        jax.random.normal(keys[1], (batch, size)),
    )
    x0 = jnp.zeros((batch, size))
    params = model.init(keys[2], x0, z)

    def objective(params, x, z):
        # The quadratic makes the minimum unique, for the implicit peers.
        return model.apply(params, x, z) + 0.5 * (x**2).sum(-1)

    return objective, params, x0, z, target


def replayed(objective, x0, steps, **options):
    return lambda p, z: inner_minimize(
        objective, p, x0, z, num_steps=steps, step_size=ALPHA, **options
    )


def unrolled(objective, x0, steps, checkpoint):
    def solve(p, z):
        def body(x, _):
            return x - ALPHA * jax.grad(lambda x: objective(p, x, z).sum())(x), None

        body = jax.checkpoint(body) if checkpoint else body
        return jax.lax.scan(body, x0, None, length=steps)[0]

    return solve


def with_jaxopt(objective, x0, steps):
    import jaxopt

    def total(x, p, z):
        return objective(p, x, z).sum()

    solver = jaxopt.GradientDescent(
        total, maxiter=steps, stepsize=ALPHA, acceleration=False, tol=0.0, implicit_diff=True
    )
    return lambda p, z: solver.run(x0, p, z).params


def with_optimistix(objective, x0, steps):
    import lineax
    import optimistix

    solver = optimistix.FixedPointIteration(rtol=0.0, atol=0.0)
    adjoint = optimistix.ImplicitAdjoint(lineax.GMRES(1e-5, 1e-5, restart=40, stagnation_iters=40))

    def step(x, args):
        p, z = args
        return x - ALPHA * jax.grad(lambda x: objective(p, x, z).sum())(x)

    def solve(p, z):
        found = optimistix.fixed_point(
            step, solver, x0, (p, z), max_steps=steps, throw=False, adjoint=adjoint
        )
        return found.value

    return solve


def measure(calls, repeats=9):
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    objective, params, x0, z, target = problem()
    rows = {}
    for steps in (10, 100, 1000):
        solvers = {
            "ours": replayed(objective, x0, steps),
            "ours, sqrt(T) kept": replayed(objective, x0, steps, checkpoint=True),
            "ours, implicit": replayed(objective, x0, steps, mode="implicit"),
            "unrolled scan": unrolled(objective, x0, steps, False),
            "unrolled scan, jax.checkpoint": unrolled(objective, x0, steps, True),
            "jaxopt implicit": with_jaxopt(objective, x0, steps),
            "optimistix implicit": with_optimistix(objective, x0, steps),
        }
        calls, memory, slopes = {}, {}, {}
        for name, solve in solvers.items():
            loss = jax.jit(
                jax.value_and_grad(lambda p, z, solve=solve: ((solve(p, z) - target) ** 2).sum())
            )
            try:
                slopes[name] = jax.device_get(loss(params, z)[1])
            except jax.errors.JaxRuntimeError as error:
                print(f"T = {steps}: {name} fails: {str(error).splitlines()[0]}")
                continue
            calls[name] = lambda loss=loss: jax.block_until_ready(loss(params, z))
            memory[name] = loss.lower(params, z).compile().memory_analysis().temp_size_in_bytes
        exact = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(slopes["unrolled scan"])])
        seconds = measure(calls)
        for name in calls:
            flat = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(slopes[name])])
            rows[f"T = {steps}: {name}"] = {
                "ms": seconds[name] * 1e3,
                "time / unrolled": seconds[name] / seconds["unrolled scan"],
                "memory_kib": memory[name] / 1024,
                "memory / unrolled": memory[name] / memory["unrolled scan"],
                "gradient error": float(np.linalg.norm(flat - exact) / np.linalg.norm(exact)),
            }
    assert all(math.isfinite(v) for row in rows.values() for v in row.values())
    benchmark.write("learned_objective", rows)


if __name__ == "__main__":
    main()
