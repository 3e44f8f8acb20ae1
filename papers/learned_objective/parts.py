"""What the recipes of both experiments share."""

from typing import Any

import jax
from ml_collections import ConfigDict

from reprise.common.training import optimizers, state
from reprise.common.training.phase import Phase


def build_phase(
    config: ConfigDict, init: Any, loss: Any, draw: Any, resident: Any, evaluate: Any
) -> Phase:
    """One phase of gradient training; none of it where the config has no steps.

    Args:
      draw: (resident, key) -> the batch of a step, of `config.batch_size` examples. Microbatches
        are parts of it.
      resident: what it draws from; None where it generates.
    """
    tx = optimizers.make(config.optimizer, max(config.num_steps, 1))

    def start(key: jax.Array, previous: Any) -> state.TrainState:
        return state.create(init(key), tx, ema=config.ema_decay > 0)

    update = state.gradient_step(
        loss,
        tx,
        accumulate=config.accumulate,
        ema_decay=config.ema_decay,
        remat=config.remat,
    )

    def step(current: state.TrainState, resident: Any, key: jax.Array) -> Any:
        return update(current, draw(resident, key), key)

    return Phase(
        "train",
        config.num_steps,
        start,
        step,
        resident,
        evaluate,
        examples_per_step=config.batch_size,
    )
