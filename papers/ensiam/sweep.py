"""Training under several settings at once: learning rates and strengths of augmentation.

All settings of a method run in one program, one after another in a step, on the same batches and
from the same initial weights.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reprise.common.training.phase import Phase
from reprise.papers.ensiam import judging, tasks, training


def settings(config: ConfigDict) -> dict[str, tuple[float, float]]:
    """name -> (learning rate, strength): each rate at the config's strength, and the other way."""
    rate, strength = config.optimizer.learning_rate, config.data.strength
    out = {f"lr_{r:g}": (r, strength) for r in config.sweep.learning_rates}
    return out | {
        f"strength_{s:g}": (rate, s) for s in config.sweep.strengths if s != strength or not out
    }


def phase(config: ConfigDict) -> Phase:
    """One phase; its state has a leading axis of settings, its metrics a setting in their names."""
    model, start, step = training.build(config)
    names = settings(config)
    rates, strengths = (
        np.asarray(column, np.float32) for column in zip(*names.values(), strict=True)
    )

    def init(key: jax.Array, previous: Any) -> Any:
        return jax.vmap(start, (None, 0, 0))(key, jnp.asarray(rates), jnp.asarray(strengths))

    def step_all(state: Any, batch: Any, key: jax.Array) -> Any:
        state, metrics = jax.lax.map(lambda one: step(one, batch, key), state)
        return state, {
            "loss": metrics["loss"].mean(),
            "collapse_std": metrics["collapse_std"].min(),
            "nonfinite": metrics["nonfinite"].max(),
        }

    judge = judging.evaluator(config, model)

    def evaluate(state: Any) -> dict[str, float]:
        out: dict[str, float] = {}
        for i, name in enumerate(names):
            found = judge(jax.tree.map(lambda x: x[i], state))  # noqa: B023 (used at once)
            out |= {f"{metric}_{name}": found[metric] for metric in ("knn", "collapse_std")}
        values = [out[f"knn_{name}"] for name in names]
        return out | {"knn_mean": float(np.mean(values)), "knn_range": max(values) - min(values)}

    return Phase("train", config.num_steps, init, step_all, tasks.stream(config), evaluate)
