"""What the recipes of the three experiments share."""

from typing import Any

import jax
from ml_collections import ConfigDict

from reprise.common.training import optimizers, state
from reprise.common.training.phase import Phase
from reprise.papers.fixed_point_layer import layers


def build_layer(config: ConfigDict, cell: Any) -> layers.FixedPoint:
    """The fixed-point layer around a cell, as the config says."""
    model = config.model
    return layers.FixedPoint(
        cell=cell, unroll=model.unroll, solver=model.solver, tol=model.tol, max_iter=model.max_iter
    )


def build_phase(
    config: ConfigDict, init: Any, loss: Any, stream: Any, evaluate: Any, **more: Any
) -> Phase:
    """One phase of gradient training; none of it where the config has no steps."""
    tx = optimizers.make(config.optimizer, max(config.num_steps, 1))
    step = state.gradient_step(
        loss,
        tx,
        accumulate=config.accumulate,
        ema_decay=config.ema_decay,
        remat=config.remat,
    )

    def start(key: jax.Array, previous: Any) -> state.TrainState:
        return state.create(init(key)["params"], tx, ema=config.ema_decay > 0)

    return Phase("train", config.num_steps, start, step, stream, evaluate, **more)


def with_unroll(config: ConfigDict, unroll: int) -> ConfigDict:
    """The config of the feed-forward relative."""
    changed = ConfigDict(config.to_dict())
    changed.model.unroll = unroll
    return changed
