"""The step built from a loss."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from reprise.common.training import state


def quadratic(params, model_state, batch, key):
    value = ((params["w"] - batch) ** 2).mean()
    return value, ({"count": model_state["count"] + 1}, {"mean": batch.mean()})


def start(tx, **kwargs):
    return state.create({"w": jnp.ones(3)}, tx, {"count": jnp.zeros(())}, **kwargs)


def test_the_step_is_the_optimisers():
    tx = optax.sgd(0.5)
    batch = jnp.array([[2.0, 3.0, 4.0]])
    after, metrics = state.gradient_step(quadratic, tx)(start(tx), batch, jax.random.key(0))
    np.testing.assert_allclose(after.params["w"], 1 + 0.5 * 2 / 3 * np.array([1.0, 2.0, 3.0]))
    assert int(after.step) == 1 and float(after.model_state["count"]) == 1
    assert set(metrics) == {"mean", "loss", "grad_norm", "nonfinite"}


def test_microbatches_average_to_the_whole_batch():
    tx = optax.sgd(0.5)
    batch = jax.random.normal(jax.random.key(1), (8, 3))
    whole, metrics = state.gradient_step(quadratic, tx)(start(tx), batch, jax.random.key(0))
    step = state.gradient_step(quadratic, tx, accumulate=4)
    split, split_metrics = step(start(tx), batch, jax.random.key(0))
    np.testing.assert_allclose(split.params["w"], whole.params["w"], rtol=1e-6)
    np.testing.assert_allclose(split_metrics["loss"], metrics["loss"], rtol=1e-6)
    assert float(split.model_state["count"]) == 4


def test_every_microbatch_has_rows_of_the_whole_batch():
    seen = []

    def loss(params, model_state, batch, key):
        seen.append(batch)
        return (params["w"].sum() * batch).mean(), (model_state, {})

    tx = optax.sgd(0.1)
    step = state.gradient_step(loss, tx, accumulate=2)
    with jax.disable_jit():
        step(start(tx), jnp.arange(4.0), jax.random.key(0))
    np.testing.assert_array_equal(np.stack(seen), [[0.0, 2.0], [1.0, 3.0]])


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_non_finite_gradient_moves_nothing(bad):
    tx = optax.adam(0.1)
    before = start(tx, ema=True)
    step = state.gradient_step(quadratic, tx, ema_decay=0.9)
    after, metrics = step(before, jnp.array([[bad, 0.0, 0.0]]), jax.random.key(0))
    for name in ("params", "model_state", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, name), getattr(before, name))
    assert after.nonfinite.tolist() == [1, 1] and int(metrics["nonfinite"]) == 1
    good, _ = step(after, jnp.ones((1, 3)) * 2, jax.random.key(0))
    assert good.nonfinite.tolist() == [0, 1] and int(good.step) == 2


def test_ema_is_the_exponential_average():
    tx = optax.sgd(0.5)
    step = state.gradient_step(quadratic, tx, ema_decay=0.75)
    before = start(tx, ema=True)
    after, _ = step(before, jnp.ones((1, 3)) * 4, jax.random.key(0))
    expected = 0.75 * before.params["w"] + 0.25 * after.params["w"]
    np.testing.assert_allclose(after.ema["w"], expected)
