"""1-D registration: x is one shift an example."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from reprise.common.ops.warp import warp_linear_1d
from reprise.common.studies.study import Arm, Results, Study
from reprise.common.training import state
from reprise.common.training.phase import Phase
from reprise.papers.learned_objective import figures, tasks
from reprise.papers.learned_objective.inner import inner_minimize
from reprise.papers.learned_objective.losses import learned_objective_loss
from reprise.papers.learned_objective.models import ObjectiveMLP
from reprise.papers.learned_objective.parts import build_phase

ARMS = ("learned", "ssd", "znssd", "regression")


def _ssd(params: Any, x: jax.Array, pair: Any) -> jax.Array:
    """Mean squared difference, by somebody who does not know of gain, bias and ramp."""
    return ((pair["first"] - warp_linear_1d(pair["second"], x)) ** 2).mean(-1)


def _znssd(params: Any, x: jax.Array, pair: Any) -> jax.Array:
    """The same of standardised signals, by somebody who knows of gain and bias."""

    def standard(s: jax.Array) -> jax.Array:
        s = s - s.mean(-1, keepdims=True)
        return s / jnp.sqrt((s**2).mean(-1, keepdims=True) + 1e-6)

    moved = warp_linear_1d(pair["second"], x)
    return ((standard(pair["first"]) - standard(moved)) ** 2).mean(-1)


class _Regression(nn.Module):
    """The shift at once: the objective's widths, and one output."""

    widths: tuple[int, ...] = (64, 64, 32)

    @nn.compact
    def __call__(self, pair: Any) -> jax.Array:
        h = jnp.concatenate([pair["first"], pair["second"]], -1)
        for i, width in enumerate(self.widths):
            h = nn.softplus(nn.Dense(width, name=f"dense{i}")(h))
        return nn.Dense(1, name="out")(h)[:, 0]


def phase(config: ConfigDict) -> Phase:
    m = config.model
    net: Any = ObjectiveMLP()
    regression: Any = _Regression()
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1), 3)
    validation = tasks.registration(keys[0], 300)
    test = tasks.registration(keys[1], 1000)
    few = tasks.registration(keys[2], config.data.pairs) if config.data.pairs else None

    def learned(params: Any, x: jax.Array, pair: Any) -> jax.Array:
        return net.apply({"params": params}, pair["first"], warp_linear_1d(pair["second"], x))

    def descend(objective: Any, params: Any, pair: Any, steps: int, alpha: float) -> jax.Array:
        return inner_minimize(
            objective,
            params,
            jnp.zeros_like(pair["shift"]),
            {"first": pair["first"], "second": pair["second"]},
            num_steps=steps,
            step_size=alpha,
            clip=m.clip,
        )

    def init(key: jax.Array) -> Any:
        pair = jax.tree.map(lambda s: s[:1], test)
        if m.arm == "regression":
            return regression.init(key, pair)["params"]
        return net.init(key, pair["first"], pair["second"])["params"]

    def draw(resident: Any, key: jax.Array) -> Any:
        if resident is None:
            return tasks.registration(key, config.batch_size)
        chosen = jax.random.randint(key, (config.batch_size,), 0, config.data.pairs)
        return jax.tree.map(lambda s: s[chosen], resident)

    def loss(params: Any, model_state: Any, pair: Any, key: jax.Array) -> Any:
        if m.arm == "regression":
            value = (regression.apply({"params": params}, pair) - pair["shift"]) ** 2
        else:
            value = learned_objective_loss(
                learned,
                params,
                jnp.zeros_like(pair["shift"]),
                {"first": pair["first"], "second": pair["second"]},
                pair["shift"],
                num_steps=m.num_inner,
                step_size=m.step_size,
                clip=m.clip,
            )
        return value.mean(), (model_state, {})

    @jax.jit
    def learned_errors(params: Any) -> Any:
        if m.arm == "regression":
            return {"error": jnp.abs(regression.apply({"params": params}, test) - test["shift"])}
        return {
            f"error{name}": jnp.abs(
                descend(learned, params, test, steps, m.step_size) - test["shift"]
            )
            for name, steps in (("", m.num_inner), ("_2T", 2 * m.num_inner))
        }

    def handmade_errors() -> Any:
        objective = {"ssd": _ssd, "znssd": _znssd}[m.arm]

        def error(pair: Any, alpha: float) -> jax.Array:
            return jnp.abs(descend(objective, {}, pair, 50, alpha) - pair["shift"])

        best = min(m.step_sizes, key=lambda alpha: float(error(validation, alpha).mean()))
        return {"error": error(test, best), "step_size": jnp.asarray(best)}

    def evaluate(current: state.TrainState) -> dict[str, float]:
        trained = m.arm in ("learned", "regression")
        errors = learned_errors(current.params) if trained else handmade_errors()
        errors["predict_zero"] = jnp.abs(test["shift"])
        return {name: float(value.mean()) for name, value in errors.items()}

    return build_phase(config, init, loss, draw, few, evaluate)


def study(config: ConfigDict) -> Study:
    arms = {
        "learned": Arm(),
        "ssd": Arm({"model.arm": "ssd", "num_steps": 0}),
        "znssd": Arm({"model.arm": "znssd", "num_steps": 0}),
        "regression": Arm({"model.arm": "regression", "num_steps": 2 * config.num_steps}),
    }

    def claim(results: Results) -> tuple[str, bool]:
        ours = results["learned"]
        if config.data.pairs:
            ratio = ours["error"] / results["regression"]["error"]
            text = f"from {config.data.pairs} pairs below 0.8 of regression's error in every seed"
            return f"{text}: worst {ratio.max():.2f}", bool((ratio < 0.8).all())
        ratio = ours["error"] / results["ssd"]["error"]
        longer = ours["error_2T"] / ours["error"]
        text = (
            f"below 0.6 of SSD's error in every seed: worst {ratio.max():.2f}; twice the steps at "
            f"test do not hurt: worst ratio {longer.max():.2f}. Honest limits: standardising by "
            f"hand (ZNSSD) gives {results['znssd']['error'].mean():.3f}, and with unlimited data "
            f"plain regression {results['regression']['error'].mean():.3f}, against "
            f"{ours['error'].mean():.3f}"
        )
        return text, bool((ratio < 0.6).all() and (longer <= 1.05).all())

    def draw(config: ConfigDict, results: Results, states: Any, directory: Path) -> list[Path]:
        return [figures.errors(config, results, directory)]

    return Study(arms, claim, figures=draw)
