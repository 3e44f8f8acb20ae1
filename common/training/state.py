"""The state of gradient training, and the step built from a loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.interpreters import ad

Loss = Callable[..., tuple[Any, tuple[Any, dict[str, jax.Array]]]]
Combine = Callable[[dict[str, Any], jax.Array], Any]  # (gradient of each term, step) -> gradient


class TrainState(NamedTuple):
    """State of a phase that follows a gradient.

    Attributes:
      step: int32 [], updates tried so far.
      params: what the optimiser moves.
      model_state: mutable collections that are no parameters (BatchNorm statistics); may be {}.
      opt_state: the optimiser's.
      ema: exponential moving average of params, or () where it is off. What the loop hands to
        `evaluate` and `figures` has it as its `params`; the next phase gets both.
      nonfinite: int32 [2], updates skipped because the gradient was not finite: in a row, in all.
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    ema: Any
    nonfinite: jax.Array


def create(
    params: Any, tx: optax.GradientTransformation, model_state: Any = None, *, ema: bool = False
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state={} if model_state is None else model_state,
        opt_state=tx.init(params),
        # A copy: the loop donates the state, and two entries must not share one buffer.
        ema=jax.tree.map(jnp.copy, params) if ema else (),
        nonfinite=jnp.zeros((2,), jnp.int32),
    )


def averaged(current: Any) -> Any:
    """The state as it is judged: with the average of its parameters, where it keeps one.

    BatchNorm's statistics in `model_state` are those of the last step. States of other kinds are
    returned as they are.
    """
    if isinstance(current, TrainState) and jax.tree.leaves(current.ema):
        return current._replace(params=current.ema)
    return current


def gradient_step(
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    ema_decay: float = 0.0,
    remat: bool = False,
    combine: Combine | None = None,
) -> Callable[[TrainState, Any, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds a phase's `step` from a loss.

    The update is skipped where the loss or the gradient is not finite: parameters, statistics,
    optimiser and EMA stay as they were, and `nonfinite` counts it.

    Args:
      loss: (params, model_state, batch, key) -> (scalar, (new model_state, {name: scalar})). With
        `combine`, {term: scalar} instead of the scalar.
      tx: the optimiser.
      accumulate: microbatches a step. The batch's leading axis must divide by it; gradients and
        metrics are averaged, model_state passes from one to the next, each has a key of its own.
      ema_decay: fraction of the average kept each step; 0 turns it off.
      remat: recompute the loss's activations in the backward pass instead of keeping them.
      combine: ({term: gradient}, steps so far) -> the gradient to follow, for methods that clip or
        weigh the gradients of their terms. The forward pass is shared; each term costs a backward
        pass of its own. The reported `loss` is the sum of the terms.

    Returns:
      step(state, batch, key) -> (state, metrics). Metrics are the loss's, with `loss`,
      `grad_norm` (before clipping) and `nonfinite` (skips in a row).
    """
    if remat:
        loss = jax.checkpoint(loss)
    together = jax.value_and_grad(loss, has_aux=True)

    def apart(params: Any, *rest: Any) -> Any:
        terms, pull, aux = jax.vjp(lambda p: loss(p, *rest), params, has_aux=True)
        # Symbolic zeros: no term's gradient passes through what belongs to another alone.
        zeros = {name: ad.Zero(jax.typeof(value)) for name, value in terms.items()}
        each = {name: pull({**zeros, name: jnp.ones_like(terms[name])})[0] for name in terms}
        return (sum(terms.values()), aux), each

    gradient = together if combine is None else apart

    def microbatched(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        if accumulate == 1:
            return gradient(params, model_state, batch, key)

        # [B, ...] -> [accumulate, B / accumulate, ...] with strided rows, so that a batch sharded
        # over devices stays where it is: every microbatch takes rows from every device.
        def split(x: jax.Array) -> jax.Array:
            return jnp.swapaxes(x.reshape(-1, accumulate, *x.shape[1:]), 0, 1)

        def body(model_state: Any, xs: Any) -> Any:
            (value, (model_state, metrics)), grads = gradient(params, model_state, *xs)
            return model_state, (value, metrics, grads)

        keys = jax.random.split(key, accumulate)
        model_state, out = jax.lax.scan(body, model_state, (jax.tree.map(split, batch), keys))
        value, metrics, grads = jax.tree.map(lambda x: x.mean(0), out)
        return (value, (model_state, metrics)), grads

    def step(
        state: TrainState, batch: Any, key: jax.Array
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        (value, (model_state, metrics)), grads = microbatched(
            state.params, state.model_state, batch, key
        )
        if combine is not None:
            grads = combine(grads, state.step)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema_decay:
            ema = optax.incremental_update(params, ema, 1.0 - ema_decay)
        moved = (params, model_state, opt_state, ema)
        stayed = (state.params, state.model_state, state.opt_state, state.ema)
        moved = jax.tree.map(lambda new, old: jnp.where(finite, new, old), moved, stayed)
        bad = (~finite).astype(jnp.int32)
        nonfinite = jnp.stack([(state.nonfinite[0] + 1) * bad, state.nonfinite[1] + bad])
        params, model_state, opt_state, ema = moved
        new = TrainState(state.step + 1, params, model_state, opt_state, ema, nonfinite)
        return new, {**metrics, "loss": value, "grad_norm": norm, "nonfinite": nonfinite[0]}

    return step
