"""Accuracy over tasks and its interval are those of the textbook."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from reprise.common import data
from reprise.common.evaluation.few_shot import over_episodes


def hits(state, batch):
    return (batch["x"] > state).mean(-1)


@pytest.mark.parametrize("batch_size", [4, 30])
def test_mean_and_interval_over_tasks(batch_size):
    x = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    each = (x > 0.2).mean(-1)
    expected = {"accuracy": each.mean(), "accuracy_ci95": 1.96 * each.std(ddof=1) / math.sqrt(30)}
    found = over_episodes(hits, {"x": x}, batch_size)(jnp.float32(0.2))
    assert found == pytest.approx(expected, rel=1e-5)
    source = data.generated("tasks", lambda i: {"x": x[i]}, 30)
    assert over_episodes(hits, source, batch_size)(jnp.float32(0.2)) == pytest.approx(found)


def test_equal_tasks_have_no_interval_and_one_task_an_infinite_one():
    found = over_episodes(hits, {"x": np.ones((7, 3))}, 3)(0.0)
    assert found == {"accuracy": 1.0, "accuracy_ci95": 0.0}
    assert over_episodes(hits, {"x": np.ones((1, 3))}, 3)(0.0)["accuracy_ci95"] == math.inf
    with pytest.raises(ValueError, match="no examples"):
        over_episodes(hits, {"x": np.ones((0, 3))}, 3)
