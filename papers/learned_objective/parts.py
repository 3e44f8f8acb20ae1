"""What the recipes of both experiments share."""

from typing import Any

import jax
from ml_collections import ConfigDict

from reprise.common.training import optimizers, state
from reprise.common.training.phase import Phase


def build_phase(config: ConfigDict, init: Any, loss: Any, batches: Any, evaluate: Any) -> Phase:
    """One phase of gradient training; none of it where the config has no steps."""
    tx = optimizers.make(config.optimizer, max(config.num_steps, 1))

    def start(key: jax.Array, previous: Any) -> state.TrainState:
        return state.create(init(key), tx)

    step = state.gradient_step(loss, tx, accumulate=config.accumulate, remat=config.remat)
    return Phase(
        "train",
        config.num_steps,
        start,
        step,
        batches,
        evaluate,
        examples_per_step=config.batch_size,
    )
