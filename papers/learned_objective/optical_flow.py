"""Dense optical flow: x is a flow field, sought from coarse to fine."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reprise.common import data
from reprise.common.ops.warp import double_flow, halve, warp_bilinear
from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import state
from reprise.common.training.phase import Phase
from reprise.papers.learned_objective import figures, tasks
from reprise.papers.learned_objective.inner import inner_minimize
from reprise.papers.learned_objective.losses import end_point_error
from reprise.papers.learned_objective.models import FlowObjective, smoothness
from reprise.papers.learned_objective.parts import build_phase

ARMS = ("learned", "handmade")


def coarse_to_fine(
    objective: Any, params: Any, first: Any, second: Any, *, levels: int, **inner: Any
) -> list[jax.Array]:
    """The flow at each level of a pyramid, coarsest first; each starts from the one before."""
    pyramid = [(first, second)]
    for _ in range(levels - 1):
        pyramid.append((halve(pyramid[-1][0]), halve(pyramid[-1][1])))
    flows: list[jax.Array] = []
    for one, two in reversed(pyramid):
        x0 = double_flow(flows[-1]) if flows else jnp.zeros((*one.shape[:3], 2))
        flows.append(inner_minimize(objective, params, x0, (one, two), **inner))
    return flows


def horn_schunck(weight: jax.Array, x: jax.Array, context: Any) -> jax.Array:
    """Squared difference of the images plus `weight` times the smoothness of the flow."""
    first, second = context
    data_term = ((first - warp_bilinear(second, x)) ** 2).sum((1, 2, 3))
    return data_term + smoothness(x, weight * jnp.ones(2))


def flow_solver(config: ConfigDict) -> Any:
    """(params, first, second) -> flows of all levels, by the learned objective."""
    m = config.model
    net: Any = FlowObjective(tuple(m.features))

    def objective(params: Any, x: jax.Array, context: Any) -> jax.Array:
        return net.apply({"params": params}, x, context)

    def solve(params: Any, first: Any, second: Any, factor: int = 1) -> list[jax.Array]:
        return coarse_to_fine(
            objective,
            params["net"],
            first,
            second,
            levels=m.levels,
            num_steps=m.num_inner * factor,
            step_size=jax.nn.softplus(params["step_size"]),
            momentum=m.momentum,
            clip=m.clip,
        )

    return solve


def flow_pairs(config: ConfigDict, stream: int, count: int) -> Any:
    """Pairs that no training step draws."""
    key = jax.random.fold_in(jax.random.key(config.seed), stream)
    return tasks.textured_motion(key, count, config.data.size)


def chairs(config: ConfigDict) -> Any:
    """The five FlyingChairs pairs at a quarter of their size, or None where they are not here."""
    if not data.available("flyingchairs_examples", config.data_dir or None)[0]:
        return None
    source = data.load("flyingchairs_examples", "test", data_dir=config.data_dir or None)
    raw = source.arrays()

    def quarter(x: np.ndarray) -> np.ndarray:
        n, h, w, c = x.shape
        return x.reshape(n, h // 4, 4, w // 4, 4, c).mean((2, 4))

    out = {}
    for name, key in (("first", "image0"), ("second", "image1")):
        grey = quarter(raw[key].astype(np.float32).mean(-1, keepdims=True))
        spread = grey.std((1, 2, 3), keepdims=True)
        out[name] = 0.7 * (grey - grey.mean((1, 2, 3), keepdims=True)) / spread
    return out | {"flow": quarter(raw["flow"]) / 4}


def phase(config: ConfigDict) -> Phase:
    m = config.model
    solve = flow_solver(config)
    weights = [0.5**k for k in reversed(range(m.levels))]

    def init(key: jax.Array) -> Any:
        image = jnp.zeros((1, 8, 8, 1))
        net = FlowObjective(tuple(m.features)).init(key, jnp.zeros((1, 8, 8, 2)), (image, image))
        start = float(np.log(np.expm1(m.step_size)))
        return {"net": net["params"], "step_size": jnp.asarray(start)}

    def draw(_: Any, key: jax.Array) -> Any:
        return tasks.textured_motion(key, config.batch_size, config.data.size)

    def loss(params: Any, model_state: Any, pair: Any, key: jax.Array) -> Any:
        value, target = jnp.zeros(()), pair["flow"]
        flows = solve(params, pair["first"], pair["second"])
        for weight, flow in zip(reversed(weights), reversed(flows), strict=True):
            error = end_point_error(flow, target, epsilon=1e-6).mean()
            value = value + weight * error
            target = halve(target) / 2 if weight != weights[0] else target
        final = end_point_error(flows[-1], pair["flow"]).mean()
        return value, (model_state, {"epe": final})

    @functools.partial(jax.jit, static_argnums=2)
    def learned(params: Any, pair: Any, factor: int) -> jax.Array:
        flow = solve(params, pair["first"], pair["second"], factor)[-1]
        return end_point_error(flow, pair["flow"]).mean()

    def evaluate(current: state.TrainState) -> dict[str, float]:
        test, real = flow_pairs(config, 2, config.data.test), chairs(config)
        if m.arm == "learned":
            factor = best_factor(config, learned, current.params)

            def judge(pair: Any) -> float:
                return float(learned(current.params, pair, factor))

        else:
            best = best_handmade(config)

            def judge(pair: Any) -> float:
                flow = handmade_flow(config, best, pair)
                return float(end_point_error(flow, pair["flow"]).mean())

        zero = float(jnp.linalg.norm(test["flow"], axis=-1).mean())
        out = {"epe": judge(test), "predict_zero": zero}
        if real is not None:
            out["chairs_epe"] = judge(real)
            out["chairs_predict_zero"] = float(np.linalg.norm(real["flow"], axis=-1).mean())
        return out

    return build_phase(config, init, loss, draw, None, evaluate)


def best_factor(config: ConfigDict, error: Any, params: Any) -> int:
    """How many times the training's inner steps are best at test, on validation pairs."""
    pairs = flow_pairs(config, 3, config.data.test)
    return min(config.model.test_factors, key=lambda factor: float(error(params, pairs, factor)))


def handmade_flow(config: ConfigDict, setting: tuple[Any, Any, int], pair: Any) -> jax.Array:
    """The flow of `horn_schunck` with (smoothness, step size, steps a level)."""
    weight, step_size, steps = setting
    return coarse_to_fine(
        horn_schunck,
        jnp.asarray(weight),
        pair["first"],
        pair["second"],
        levels=config.model.levels,
        num_steps=steps,
        step_size=step_size,
        momentum=config.model.momentum,
        clip=config.model.clip,
    )[-1]


def best_handmade(config: ConfigDict) -> tuple[float, float, int]:
    """The setting of the hand-crafted objective with the lowest error on validation pairs."""
    pairs = flow_pairs(config, 3, config.data.test)
    m = config.model
    settings = [
        (weight, step_size, m.num_inner * factor)
        for weight in m.handmade_weights
        for step_size in m.handmade_step_sizes
        for factor in m.test_factors
    ]

    @functools.partial(jax.jit, static_argnums=2)  # one program for every weight and step size
    def error(weight: jax.Array, step_size: jax.Array, steps: int) -> jax.Array:
        flow = handmade_flow(config, (weight, step_size, steps), pairs)
        return end_point_error(flow, pairs["flow"]).mean()

    return min(settings, key=lambda setting: float(error(*setting)))


def study(config: ConfigDict) -> Study:
    arms = {"learned": Arm(), "handmade": Arm({"model.arm": "handmade", "num_steps": 0})}

    def claim(results: Results) -> tuple[str, bool]:
        ratio = results["learned"]["epe"] / results["handmade"]["epe"]
        text = (
            "end-point error at least 30 % below the hand-crafted objective's under the same inner "
            f"optimiser and pyramid, on generated motion: worst ratio {ratio.max():.2f}"
        )
        return text, bool((ratio <= 0.7).all())

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        solve, best = flow_solver(config), best_handmade(config)

        def error(params: Any, pairs: Any, factor: int) -> jax.Array:
            flow = solve(params, pairs["first"], pairs["second"], factor)[-1]
            return end_point_error(flow, pairs["flow"]).mean()

        factor = best_factor(config, error, states["learned"][0].params)
        sets = {"generated": flow_pairs(config, 2, 4), "chairs": chairs(config)}
        paths = []
        for name, pairs in sets.items():
            if pairs is not None:
                params = states["learned"][0].params
                found = {
                    "learned": solve(params, pairs["first"], pairs["second"], factor)[-1],
                    "hand-crafted": handmade_flow(config, best, pairs),
                }
                path = directory / f"{config.variant}-{name}.png"
                paths.append(figures.flows(pairs, found, path))
        return paths

    return Study(arms, claim, figures=draw)
