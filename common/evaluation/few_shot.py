"""Accuracy over many few-shot tasks, with its 95 % interval."""

import math
from collections.abc import Callable
from typing import Any

import jax

from reprise.common.evaluation.over_set import over_set


def over_episodes(
    accuracy: Callable[[Any, Any], jax.Array], episodes: Any, batch_size: int
) -> Callable[[Any], dict[str, float]]:
    """Builds an `evaluate(state)` of mean accuracy and half its 95 % interval over tasks.

    The interval is 1.96 s / sqrt(n), s the standard deviation (n - 1) of the n tasks' accuracies:
    tasks are the independent draws, the queries of one task are not.

    Args:
      accuracy: (state, tasks) -> accuracy of each task [T]. It must not mix tasks.
      episodes: pytree of arrays [n, ...], or a sequence of tasks; see `over_set`.
      batch_size: tasks at a time, over all devices.

    Returns:
      evaluate(state) -> {"accuracy", "accuracy_ci95"}; the interval of a single task is infinite.

    Raises:
      ValueError: there is no task.
    """
    leaves = jax.tree.leaves(episodes)
    count = len(episodes) if hasattr(episodes, "arrays") else len(leaves[0])

    def moments(state: Any, batch: Any) -> dict[str, jax.Array]:
        each = accuracy(state, batch)
        return {"accuracy": each, "square": each**2}

    evaluate = over_set(moments, episodes, batch_size)

    def with_interval(state: Any) -> dict[str, float]:
        found = evaluate(state)
        mean = found["accuracy"]
        half = math.inf
        if count > 1:
            variance = max(found["square"] - mean**2, 0.0) * count / (count - 1)
            half = 1.96 * math.sqrt(variance / count)
        return {"accuracy": mean, "accuracy_ci95": half}

    return with_interval
