"""Phases as shapes: what tests build where training would take long."""

import jax


def stepped(phases, previous=None):
    """Every phase's state and step, by shapes alone; the state after the first phase."""
    first = None
    for phase in phases:
        state = jax.eval_shape(phase.init, jax.random.key(0), previous)
        after, _ = jax.eval_shape(phase.step, state, phase.batches, jax.random.key(0))
        assert jax.tree.structure(after) == jax.tree.structure(state)
        first = first or state
        previous = state
    return first
