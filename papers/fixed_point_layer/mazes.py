"""Maze reachability: the limit against one and three applications of the same module."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reprise.common import data
from reprise.common.evaluation.over_set import over_set
from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import state
from reprise.common.training.phase import Phase
from reprise.papers.fixed_point_layer import figures, layers, tasks
from reprise.papers.fixed_point_layer.fixed_point import spectral_radius
from reprise.papers.fixed_point_layer.parts import build_layer, build_phase, with_unroll


def maze_solver(config: ConfigDict) -> layers.FixedPoint:
    return build_layer(config, layers.MazeCell(config.model.features))


def phase(config: ConfigDict) -> Phase:
    model = maze_solver(config)
    seeds = np.random.SeedSequence(config.seed).generate_state(3)
    train = tasks.mazes(config.data.train, config.data.size, int(seeds[0]))
    stream = data.stream(data.from_arrays("mazes", train), config.batch_size, seed=config.seed)

    def solve(params: Any, y: Any) -> Any:
        return model.apply({"params": params}, y, jnp.zeros_like(y[..., :1]))

    def init(key: jax.Array) -> Any:
        y = jnp.zeros((1, config.data.size, config.data.size, 2))
        return model.init(key, y, y[..., :1])

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        value, stats = solve(params, batch["y"])
        error = ((value - batch["value"]) ** 2).mean()
        metrics = {"error": error, "iterations": stats.num_iters.astype(jnp.float32)}
        if config.model.radius_penalty:
            radius = spectral_radius(
                model.map(), params["cell"], jax.lax.stop_gradient(value), batch["y"], key, 10
            )
            metrics["radius"] = radius.mean()
            excess = jax.nn.relu(radius - config.model.radius_target)
            error = error + config.model.radius_penalty * (excess**2).mean()
        return error, (model_state, metrics)

    def judge(current: state.TrainState, batch: Any) -> Any:
        value, stats = solve(current.params, batch["y"])
        iterations = jnp.full(len(value), stats.num_iters, jnp.float32)
        error = ((value - batch["value"]) ** 2).mean((1, 2, 3))
        return {"squared": error, "iterations": iterations}

    tests = {
        "": tasks.mazes(config.data.test, config.data.size, int(seeds[1])),
        "large_": tasks.mazes(config.data.test // 3, 2 * config.data.size, int(seeds[2])),
    }
    judges = {prefix: over_set(judge, examples, 100) for prefix, examples in tests.items()}

    def evaluate(current: state.TrainState) -> dict[str, float]:
        out = {}
        for prefix, judged in judges.items():
            values = judged(current)
            out[f"{prefix}rmse"] = float(np.sqrt(values["squared"]))
            out[f"{prefix}iterations"] = values["iterations"]
        return out

    return build_phase(config, init, loss, stream, evaluate)


def study(config: ConfigDict) -> Study:
    arms = {
        "fpi": Arm(),
        "fpi_radius": Arm({"model.radius_penalty": 1.0}),
        "once": Arm({"model.unroll": 1}),
        "three_times": Arm({"model.unroll": 3}),
    }

    def claim(results: Results) -> tuple[str, bool]:
        baseline = np.minimum(results["once"]["rmse"], results["three_times"]["rmse"])
        ratio = results["fpi"]["rmse"] / baseline
        text = (
            "RMSE at most 0.92 of the better of one and three applications in every seed: mean "
            f"ratio {ratio.mean():.2f}, worst {ratio.max():.2f}"
        )
        return text, bool((ratio <= 0.92).all())

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        examples = tasks.mazes(6, 2 * config.data.size, 0)
        models = {
            "fpi": maze_solver(config),
            "once": maze_solver(with_unroll(config, 1)),
        }
        return [figures.mazes(config, models, states, examples, directory)]

    return Study(arms, claim, figures=draw)
