"""Metrics over a whole data set: every example once, whatever its size and the devices'."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from reprise.common.training import sharding

PerExample = Callable[[Any, Any], Mapping[str, jax.Array]]


def over_set(
    per_example: PerExample, examples: Any, batch_size: int
) -> Callable[[Any], dict[str, float]]:
    """Builds an `evaluate(state)` that averages per-example values over a data set.

    The last batch is padded with the first example and masked; so is a batch that does not divide
    by the devices. Sums are kept in float64 on the host.

    Args:
      per_example: (state, batch) -> {name: [B]}. It must not mix examples of a batch.
      examples: pytree of numpy arrays with one leading axis, or a sequence of dicts of them (a
        `Source`). On several hosts each holds all of it.
      batch_size: examples at a time, over all devices.

    Returns:
      evaluate(state) -> {name: mean over the examples}.

    Raises:
      ValueError: the set is empty.
    """
    is_tree = not hasattr(examples, "arrays")
    count = len(jax.tree.leaves(examples)[0]) if is_tree else len(examples)
    if count == 0:
        raise ValueError("over_set: no examples to evaluate on")

    def rows(index: np.ndarray) -> Any:
        if is_tree:
            return jax.tree.map(lambda x: np.asarray(x)[index], examples)
        return jax.tree.map(lambda *xs: np.stack(xs), *(examples[int(i)] for i in index))

    @jax.jit
    def sums(state: Any, batch: Any, mask: jax.Array) -> dict[str, jax.Array]:
        values = per_example(state, batch)
        return {
            # where, not a product: a padded row may be anything, NaN included.
            name: jnp.where(mask, value.astype(jnp.float32), 0.0).sum()
            for name, value in values.items()
        }

    def evaluate(state: Any) -> dict[str, float]:
        mesh = jax.sharding.get_mesh()
        devices = 1 if mesh.empty else mesh.size
        size = -(-min(batch_size, count) // devices) * devices
        hosts, host = jax.process_count(), jax.process_index()
        total: dict[str, float] = {}
        for start in range(0, count, size):
            index = np.arange(start, start + size)
            mask = index < count
            # This host's rows of the batch: a contiguous share, as the sharding lays them out.
            own = slice(host * size // hosts, (host + 1) * size // hosts)
            batch = (rows(np.where(mask, index, 0)[own]), mask[own])
            if not mesh.empty:
                batch = sharding.put(batch, sharding.batched(mesh))
            for name, value in jax.device_get(sums(state, *batch)).items():
                total[name] = total.get(name, 0.0) + float(value)
        return {name: value / count for name, value in total.items()}

    return evaluate
