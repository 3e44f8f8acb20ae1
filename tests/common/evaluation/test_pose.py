"""common/evaluation/pose: against numpy, mirrors, alignment, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from reprise.common.evaluation.pose import mpjpe, normalized_error


def by_hand(name, pred, target, mask, reflection, align):
    """One example and one sign of the depth at a time."""

    def one(pred, target, seen):
        pred, target = pred[seen], target[seen]
        if align:
            here, there = pred.mean(0), target.mean(0)
            turn, _ = Rotation.align_vectors(target - there, pred - here)
            pred = turn.apply(pred - here) + there
        if name == "mpjpe":
            return np.linalg.norm(pred - target, axis=1).mean()
        return np.linalg.norm(pred - target) / np.linalg.norm(target)

    both = np.array(
        [
            [one(p * [1, 1, sign], t, m) for p, t, m in zip(pred, target, mask, strict=True)]
            for sign in (1, -1)
        ]
    )
    if reflection == "none":
        return both[0]
    return both.min(0) if reflection == "per_example" else both[np.argmin(both.mean(1))]


@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("reflection", ["none", "per_example", "global"])
def test_errors_are_those_of_numpy(reflection, align):
    rng = np.random.default_rng(0)
    pred, target = rng.normal(size=(2, 6, 8, 3))
    pred[:2] = target[:2] * [1, 1, -1] + 0.1
    mask = rng.uniform(size=(6, 8)) > 0.3
    for name, function in (("mpjpe", mpjpe), ("normalized_error", normalized_error)):
        for seen in (mask, np.ones_like(mask)):
            expected = by_hand(name, pred, target, seen, reflection, align)
            hidden = np.where(seen[..., None], pred, np.nan)
            found = function(
                hidden,
                target,
                mask=None if seen.all() else seen,
                reflection=reflection,
                align=align,
            )
            np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6, err_msg=name)


def test_gradients_are_finite_at_a_perfect_prediction():
    target = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    for function in (mpjpe, normalized_error):
        for options in ({}, {"reflection": "per_example"}, {"align": True}):
            slope = jax.jit(jax.grad(lambda x: function(x, target, **options).sum()))(target)
            assert np.isfinite(slope).all()
    half = mpjpe(target.astype(jnp.bfloat16), target)
    assert half.dtype == jnp.float32 and float(half.max()) < 0.02


@pytest.mark.parametrize("function", [mpjpe, normalized_error])
def test_a_prediction_that_is_not_finite_has_no_error(function):
    target = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 3)), jnp.float32)
    error = function(target.at[1, 2, 0].set(jnp.nan), target, reflection="per_example")
    np.testing.assert_array_equal(error, [0, np.nan])


def test_weights_count_alike_in_difference_and_scale():
    target = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    found = normalized_error(1.5 * target, target, mask=np.full((2, 5), 0.25))
    np.testing.assert_allclose(found, 0.5, rtol=1e-5)


def test_empty_examples_and_wrong_input():
    x = np.ones((2, 4, 3))
    np.testing.assert_allclose(mpjpe(x, 2 * x, mask=np.zeros((2, 4))), 0)
    with pytest.raises(ValueError, match=r"mpjpe: pred \(2, 4, 3\) and target \(1, 4, 3\)"):
        mpjpe(x, x[:1])
    with pytest.raises(ValueError, match=r"mask \(4,\) must be \(2, 4\)"):
        normalized_error(x, x, mask=np.ones(4))
    with pytest.raises(
        ValueError, match="reflection = 'both': allowed are none, per_example, glob"
    ):
        mpjpe(x, x, reflection="both")
