"""papers/disentangled_options: golden, properties, gradients, environments, devices, recipes."""

import itertools
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.test_util import check_grads

from reprise.common import config as configs
from reprise.common.training import run
from reprise.papers.disentangled_options import (
    OptionNetwork,
    actors,
    breakout_reset,
    breakout_step,
    claims,
    environments,
    fourrooms_reset,
    fourrooms_step,
    gaussian_hellinger_distance,
    gaussian_hellinger_regularizer,
    gaussian_intra_option_policy_loss,
    gaussian_option_indicators,
    hellinger_distance,
    hellinger_regularizer,
    intra_option_policy_loss,
    option_critic_value_loss,
    option_indicators,
    option_value_target,
    point_mass_step,
    tabular,
    termination_loss,
)

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = dict(np.load(ROOT / "tests/goldens/disentangled_options.npz"))
FUNCTIONS = {
    "option_value_target": option_value_target,
    "option_critic_value_loss": option_critic_value_loss,
    "termination_loss": termination_loss,
}


def normal(seed, *shape, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def golden_arguments(name, dtype):
    """The arguments of a function, and what it should return."""
    found = {}
    for key, value in GOLDEN.items():
        if key.startswith(f"{name}__"):
            array = value if value.dtype.kind == "i" else jnp.asarray(value, dtype)
            found[key.split("__")[1]] = float(value) if value.ndim == 0 else jnp.asarray(array)
    return found, found.pop("expected")


def compare_with_golden(dtype, rtol, atol):
    def total(logits):
        each = hellinger_regularizer(
            logits, temperature=float(GOLDEN["temperature"]), epsilon=float(GOLDEN["epsilon"])
        )
        return each.sum(), each

    logits = jnp.asarray(GOLDEN["option_logits"], dtype)
    (_, each), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(logits)
    np.testing.assert_allclose(each, GOLDEN["expected"], rtol=rtol, atol=atol)
    np.testing.assert_allclose(slope, GOLDEN["grad_option_logits"], rtol=rtol, atol=atol)
    for name, function in FUNCTIONS.items():
        arguments, expected = golden_arguments(name, dtype)
        np.testing.assert_allclose(function(**arguments), expected, rtol=rtol, atol=atol)


def test_golden_float32():
    compare_with_golden(jnp.float32, 1e-4, 1e-5)


def test_golden_float64():
    with jax.enable_x64(True):
        # The golden is stored in float32.
        compare_with_golden(jnp.float64, 1e-5, 1e-6)


def test_distance_is_that_of_the_definition():
    p_logits, q_logits = normal(0, 7, 5), 3 * normal(1, 7, 5)
    p, q = (np.asarray(jax.nn.softmax(x), np.float64) for x in (p_logits, q_logits))
    expected = np.sqrt(1 - np.sqrt(p * q).sum(-1))
    np.testing.assert_allclose(hellinger_distance(p_logits, q_logits), expected, atol=1e-5)
    squared = hellinger_distance(p_logits, q_logits, squared=True)
    np.testing.assert_allclose(squared, expected**2, atol=1e-6)


def test_distance_is_a_metric_between_0_and_1():
    p, q, r = (3 * normal(seed, 50, 4) for seed in range(3))
    distance = jax.jit(hellinger_distance, static_argnames="temperature")
    pq, qr, pr = (distance(*pair) for pair in ((p, q), (q, r), (p, r)))
    np.testing.assert_array_equal(pq, distance(q, p))
    assert (pr <= pq + qr + 1e-6).all() and (pq >= 0).all() and (pq <= 1 + 1e-6).all()
    np.testing.assert_allclose(distance(p, p + 5.0), 0.0, atol=1e-3)
    np.testing.assert_allclose(distance(p, q, temperature=0.5), distance(2 * p, 2 * q), rtol=1e-5)
    apart = hellinger_distance(jnp.array([100.0, 0.0, 0.0]), jnp.array([0.0, 100.0, 0.0]))
    np.testing.assert_allclose(apart, 1.0, atol=2e-6)  # 1 less sqrt(epsilon)


def test_regularizer_is_the_mean_over_pairs_in_any_order():
    logits = 2 * normal(0, 3, 4, 6)
    i, j = np.array(list(itertools.combinations(range(4), 2))).T
    regularizer = jax.jit(hellinger_regularizer, static_argnames="temperature")
    found = regularizer(logits)
    expected = jax.jit(hellinger_distance)(logits[:, i], logits[:, j]).mean(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    moved = logits + np.random.default_rng(1).normal(size=(3, 4, 1))
    for same in (logits[:, [2, 0, 3, 1]], logits[..., ::-1], moved):
        np.testing.assert_allclose(regularizer(same), found, rtol=1e-5)
    np.testing.assert_allclose(regularizer(logits, temperature=4.0), regularizer(logits / 4))


@pytest.mark.parametrize("logits", [jnp.zeros((2, 3, 4)), jnp.full((2, 3, 4), 1e4)])
def test_identical_policies_have_no_distance_and_no_gradient(logits):
    value, slope = jax.jit(jax.value_and_grad(lambda x: hellinger_regularizer(x).sum()))(logits)
    assert float(value) == 0.0 and (np.asarray(slope) == 0.0).all()
    mean = logits[..., :2]
    gradient = jax.value_and_grad(lambda m, s: gaussian_hellinger_regularizer(m, s).sum(), (0, 1))
    value, slopes = jax.jit(gradient)(mean, 0 * mean)
    assert float(value) == 0.0 and all((np.asarray(s) == 0.0).all() for s in slopes)


def test_subtracting_it_from_a_loss_drives_policies_apart():
    logits = 0.01 * normal(0, 2, 4, 5)
    before = hellinger_regularizer(logits)
    slope = jax.jit(jax.grad(lambda x: -hellinger_regularizer(x).sum()))
    for _ in range(50):
        logits = logits - slope(logits)
    assert (hellinger_regularizer(logits) > 10 * before).all()
    # Every option is moved, not one of them alone.
    assert (np.abs(slope(logits)).max(-1) > 0).all()


def test_gaussian_distance_is_that_of_the_integral():
    m1, l1, m2, l2 = 0.3, math.log(0.7), -0.5, math.log(1.6)
    x = np.linspace(-30, 30, 200_001)
    p, q = (scipy.stats.norm.pdf(x, m, math.exp(l)) for m, l in ((m1, l1), (m2, l2)))
    overlap = np.trapezoid(np.sqrt(p * q), x)
    arguments = [jnp.array([value]) for value in (m1, l1, m2, l2)]
    found = gaussian_hellinger_distance(*arguments)
    np.testing.assert_allclose(found, math.sqrt(1 - overlap), rtol=1e-5)
    # Independent dimensions multiply their overlaps.
    twice = gaussian_hellinger_distance(*(jnp.tile(a, 2) for a in arguments))
    np.testing.assert_allclose(twice, math.sqrt(1 - overlap**2), rtol=1e-5)


def test_gaussian_distance_keeps_its_digits_and_its_limits():
    zero = jnp.zeros(1)
    # H^2 = m^2 / 8 to first order; 1 - BC itself would be 0 in float32.
    near = gaussian_hellinger_distance(zero, zero, zero + 1e-4, zero)
    np.testing.assert_allclose(near, 1e-4 / math.sqrt(8), rtol=0.05)
    near = gaussian_hellinger_distance(zero, zero, zero, zero + 1e-3)
    np.testing.assert_allclose(near, 1e-3 / 2, rtol=0.01)

    def total(m, l):
        return gaussian_hellinger_distance(zero, zero, m, l).sum()

    gradient = jax.jit(jax.value_and_grad(total, (0, 1)))
    for far in ((100.0, 0.0), (0.0, 30.0), (0.0, -30.0)):
        value, slopes = gradient(zero + far[0], zero + far[1])
        np.testing.assert_allclose(value, 1.0, atol=1e-5)
        assert all(np.isfinite(s).all() for s in slopes)
    narrow = jax.jit(
        jax.value_and_grad(lambda m, l: gaussian_hellinger_distance(zero, l, m, l).sum(), (0, 1))
    )
    for log_std in (-44.0, -50.0, -100.0):
        for mean, expected in ((0.0, 0.0), (1.0, 1.0)):
            value, slopes = narrow(zero + mean, zero + log_std)
            np.testing.assert_allclose(value, expected, atol=1e-5)
            assert all(np.isfinite(s).all() for s in slopes)


def test_gaussian_regularizer_is_the_mean_over_pairs():
    mean, log_std = normal(0, 3, 3, 2), 0.3 * normal(1, 3, 3, 2)
    i, j = np.array(list(itertools.combinations(range(3), 2))).T
    distance = jax.jit(gaussian_hellinger_distance)
    each = distance(mean[:, i], log_std[:, i], mean[:, j], log_std[:, j])
    found = jax.jit(gaussian_hellinger_regularizer)(mean, log_std)
    np.testing.assert_allclose(found, each.mean(-1), rtol=1e-6)


def test_gaussian_policy_loss_is_scipys_density():
    mean, log_std, action = normal(0, 4, 3, 2), 0.3 * normal(1, 4, 3, 2), normal(2, 4, 2)
    option, advantage = jnp.array([0, 2, 1, 1]), normal(3, 4)
    found = gaussian_intra_option_policy_loss(
        mean, log_std, option, action, advantage, entropy_weight=0.1
    )
    rows = np.arange(4)
    own = scipy.stats.norm(mean[rows, option], np.exp(log_std[rows, option]))
    expected = -own.logpdf(action).sum(-1) * advantage - 0.1 * own.entropy().sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_target_special_cases():
    reward, done = jnp.array([1.0, 1.0, 1.0]), jnp.array([True, False, False])
    values = jnp.array([[1.0, 3.0]] * 3)
    beta = jnp.array([[0.0, 0.5], [0.0, 0.5], [1.0, 0.5]])
    option = jnp.zeros(3, jnp.int32)
    found = option_value_target(reward, done, values, beta, option, discount=0.5)
    # The end; the option goes on; it ends and the best one follows.
    np.testing.assert_allclose(found, [1.0, 1.5, 2.5])
    slope = jax.grad(
        lambda v: option_value_target(reward, done, v, beta, option, discount=0.5).sum()
    )(values)
    assert (np.asarray(slope) == 0).all()


def test_termination_grows_where_another_option_is_better():
    beta, values = jnp.full((3, 2), 0.5), jnp.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    option, done = jnp.zeros(3, jnp.int32), jnp.array([False, False, True])

    def total(beta, values, reg):
        return termination_loss(beta, values, option, done, termination_reg=reg).sum()

    slope, value_slope = jax.grad(total, (0, 1))(beta, values, 0.0)
    # Better one elsewhere: grow. The best one itself: stay. A terminal transition: nothing.
    np.testing.assert_allclose(slope, [[-1, 0], [0, 0], [0, 0]])
    assert (np.asarray(value_slope) == 0).all()
    np.testing.assert_allclose(jax.grad(total)(beta, values, 0.3)[:2, 0], [-0.7, 0.3], rtol=1e-6)


def test_policy_loss_has_the_score_functions_gradient():
    logits, advantage = normal(0, 3, 2, 4), normal(1, 3)
    option, action = jnp.array([0, 1, 0]), jnp.array([3, 0, 2])

    def total(logits, advantage, weight):
        return intra_option_policy_loss(
            logits, option, action, advantage, entropy_weight=weight, temperature=0.5
        ).sum()

    gradient = jax.jit(jax.grad(total, (0, 1)))
    slope, none = gradient(logits, advantage, 0.0)
    rows = np.arange(3)
    own = np.asarray(jax.nn.softmax(logits[rows, option] / 0.5))
    expected = -(np.eye(4)[action] - own) * np.asarray(advantage)[:, None] / 0.5
    np.testing.assert_allclose(slope[rows, option], expected, rtol=1e-4, atol=1e-6)
    assert (np.asarray(slope[rows, 1 - option]) == 0).all() and (np.asarray(none) == 0).all()
    flatter = logits - 0.1 * gradient(logits, 0 * advantage, 1.0)[0]
    entropy = scipy.stats.entropy(jax.nn.softmax(flatter[rows, option] / 0.5), axis=-1)
    assert (entropy > scipy.stats.entropy(own, axis=-1)).all()


def test_actions_that_an_option_does_not_have_count_for_nothing():
    logits = normal(0, 3, 2, 4)
    masked = jnp.concatenate([logits, jnp.full((3, 2, 1), -jnp.inf)], -1)
    option, action = jnp.array([0, 1, 0]), jnp.array([3, 0, 2])

    @jax.jit
    def total(logits):
        each = intra_option_policy_loss(
            logits, option, action, jnp.ones(3), entropy_weight=0.1, temperature=0.5
        )
        return each.sum() + hellinger_regularizer(logits).sum()

    (value, slope), (found, masked_slope) = map(jax.value_and_grad(total), (logits, masked))
    np.testing.assert_allclose(found, value, rtol=1e-6)
    np.testing.assert_allclose(masked_slope[..., :4], slope, atol=1e-6)
    assert (np.asarray(masked_slope[..., 4]) == 0).all()
    measure = jax.jit(option_indicators)
    for name, expected in measure(logits, option, option).items():
        np.testing.assert_allclose(measure(masked, option, option)[name], expected, rtol=1e-5)
    one_alone = measure(masked.at[:, 0, 4].set(0.0), option, option)
    assert one_alone["symmetric_kl"] == np.inf and np.isfinite(one_alone["information"])


def test_the_guard_may_be_traced_and_keeps_the_precision():
    logits = normal(0, 2, 3)
    traced = jax.jit(lambda x, epsilon: hellinger_distance(x, 2 * x, epsilon=epsilon))
    expected = hellinger_distance(logits, 2 * logits, epsilon=1e-6)
    np.testing.assert_allclose(traced(logits, 1e-6), expected, rtol=1e-5)
    with jax.enable_x64(True):
        assert hellinger_distance(logits, logits).dtype == jnp.float32


def test_value_loss_trains_the_running_option_alone():
    values, option, target = normal(0, 3, 2), jnp.array([0, 1, 1]), normal(1, 3)
    slope, none = jax.grad(lambda v, y: option_critic_value_loss(v, option, y).sum(), (0, 1))(
        values, target
    )
    rows = np.arange(3)
    np.testing.assert_allclose(slope[rows, option], values[rows, option] - target, rtol=1e-6)
    assert (np.asarray(slope[rows, 1 - option]) == 0).all() and (np.asarray(none) == 0).all()


def test_gradients_in_float64():
    with jax.enable_x64(True):
        logits, mean, log_std = (normal(s, 2, 3, 4, dtype=jnp.float64) for s in range(3))
        values, advantage = normal(3, 2, 3, dtype=jnp.float64), jnp.array([0.7, -0.4])
        option, action, done = jnp.array([0, 2]), jnp.array([3, 1]), jnp.array([0.0, 1.0])

        @jax.jit
        def each(logits, mean, log_std, values):
            beta = jax.nn.sigmoid(values)
            return (
                hellinger_regularizer(logits, temperature=0.7),
                gaussian_hellinger_regularizer(mean, log_std),
                # Nearly the same widths take another branch.
                gaussian_hellinger_regularizer(mean, 0.1 * log_std),
                intra_option_policy_loss(
                    logits, option, action, advantage, entropy_weight=0.1, temperature=0.7
                ),
                gaussian_intra_option_policy_loss(
                    mean, log_std, option, logits[:, 0] * 0 + 0.3, advantage, entropy_weight=0.1
                ),
                option_critic_value_loss(values, option, advantage),
                termination_loss(beta, jnp.ones((2, 3)), option, done, termination_reg=0.1),
            )

        arguments = (logits, mean, log_std, values)
        check_grads(each, arguments, 1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_bfloat16_stays_finite():
    logits = normal(0, 4, 3, 5, dtype=jnp.bfloat16).at[0].set(0).at[1].mul(100)
    option = jnp.array([0, 1, 2, 0])
    advantage = normal(1, 4, dtype=jnp.bfloat16)

    def total(logits):
        mean, log_std = logits[..., :2], 0.1 * logits[..., 2:4]
        each = intra_option_policy_loss(
            logits, option, option, advantage, entropy_weight=0.1, temperature=1.0
        )
        each -= hellinger_regularizer(logits) + gaussian_hellinger_regularizer(mean, log_std)
        beta = jax.nn.sigmoid(mean[..., 0])
        each += termination_loss(beta, beta, option, 0 * advantage, termination_reg=0.1)
        target = option_value_target(advantage, 0 * advantage, beta, beta, option, discount=0.9)
        return (each + option_critic_value_loss(beta, option, target)).sum()

    value, slope = jax.jit(jax.value_and_grad(total))(logits)
    assert value.dtype == jnp.float32 and np.isfinite(value)
    assert np.isfinite(slope.astype(np.float32)).all()


def test_indicators_of_options_with_nothing_in_common():
    logits = jnp.broadcast_to(100 * jnp.eye(2), (6, 1, 2, 2))
    trace = jnp.array([0, 0, 0, 1, 1, 0])[:, None]
    ends = jnp.array([1, 0, 1, 1, 0, 1])[:, None]
    found = jax.jit(option_indicators)(logits, trace, ends)
    expected = {
        "hellinger": 1.0,
        "information": math.log(2),
        "symmetric_kl": 100.0,
        "usage_0": 4 / 6,
        "usage_1": 2 / 6,
        "usage_entropy": scipy.stats.entropy([4, 2]),
        "termination": 4 / 6,
        "switch_rate": 2 / 5,
        "duration": 6 / 4,
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_indicators_do_not_depend_on_the_options_names():
    logits, trace = (
        normal(0, 7, 2, 3, 4),
        jnp.asarray(np.random.default_rng(1).integers(3, size=(7, 2))),
    )
    ends = jnp.zeros((7, 2))
    order = jnp.array([2, 0, 1])
    measure = jax.jit(option_indicators)
    renamed = measure(logits[..., order, :], jnp.argsort(order)[trace], ends)
    for name, value in measure(logits, trace, ends).items():
        if name[:7] not in ("usage_0", "usage_1", "usage_2"):
            np.testing.assert_allclose(renamed[name], value, rtol=1e-5, err_msg=name)
    probs = np.asarray(jax.nn.softmax(logits), np.float64)
    mixture = scipy.stats.entropy(probs.mean(-2), axis=-1).mean()
    information = mixture - scipy.stats.entropy(probs, axis=-1).mean()
    np.testing.assert_allclose(renamed["information"], information, rtol=1e-5)
    same = measure(0 * logits, trace, ends)
    np.testing.assert_allclose(same["information"], 0.0, atol=1e-6)
    assert float(same["duration"]) == 7.0


def test_indicators_of_gaussian_options():
    mean = jnp.broadcast_to(jnp.array([[0.0], [1.0]]), (3, 2, 1))
    trace, key = jnp.zeros(3, jnp.int32), jax.random.key(0)
    measure = jax.jit(gaussian_option_indicators, static_argnames="samples")
    near = measure(mean, 0 * mean, trace, trace, key, samples=4000)
    np.testing.assert_allclose(near["symmetric_kl"], 0.5, rtol=1e-5)
    np.testing.assert_allclose(near["hellinger"], math.sqrt(1 - math.exp(-1 / 8)), rtol=1e-5)
    x = np.linspace(-12, 12, 20_001)
    p, q = scipy.stats.norm.pdf(x), scipy.stats.norm.pdf(x, 1)
    half = np.trapezoid(p * np.log(2 * p / (p + q)), x)
    np.testing.assert_allclose(near["information"], half, atol=0.02)
    far = measure(100 * mean, 0 * mean, trace, trace, key)
    np.testing.assert_allclose(far["information"], math.log(2), rtol=1e-5)


def place(row, column):
    cells = environments.fourrooms_cells().tolist()
    return cells.index([row, column])


def test_the_four_rooms_have_their_walls_and_doors():
    assert environments.NUM_CELLS == 104
    assert environments.fourrooms_cells()[62].tolist() == [7, 9]
    key = jax.random.key(0)

    def go(state, action):
        return int(fourrooms_step(jnp.int32(state), jnp.int32(action), key, 62, slip=0.0)[0])

    corner, door = place(1, 1), place(3, 6)
    assert [go(corner, a) for a in range(4)] == [corner, place(2, 1), corner, place(1, 2)]
    assert [go(door, a) for a in range(4)] == [door, door, place(3, 5), place(3, 7)]
    everywhere = jnp.arange(104)
    for action, back in ((0, 1), (1, 0), (2, 3), (3, 2)):
        there = fourrooms_step(everywhere, jnp.full(104, action), key, 62, slip=0.0)[0]
        again = fourrooms_step(there, jnp.full(104, back), key, 62, slip=0.0)[0]
        assert there.dtype == jnp.int32
        assert ((again == everywhere) | (there == everywhere)).all()


@pytest.mark.parametrize("mode", environments.SLIP_MODES)
def test_moves_slip_as_often_as_they_should(mode):
    count = 30_000
    state = jnp.full(count, place(2, 3))  # all four neighbours are free
    keys = jax.random.split(jax.random.key(1), count)

    @jax.jit
    def move(state, action):
        def one(state, action, key):
            return fourrooms_step(state, action, key, 62, slip_mode=mode)[0]

        return jax.vmap(one)(state, action, keys)

    up, found = jnp.zeros(count, jnp.int32), np.zeros(104)
    np.add.at(found, np.asarray(move(state, up)), 1 / count)
    expected = np.zeros(104)
    expected[place(1, 3)] += 2 / 3
    if mode == "replace":
        around = [(1, 3), (3, 3), (2, 2), (2, 4)]
    else:
        around = [(2, 3), (1, 2), (1, 4)]  # of the new cell, which lies at the wall
    for cell in around:
        expected[place(*cell)] += 1 / 3 / len(around)
    np.testing.assert_allclose(found, expected, atol=0.015)
    # A move into a wall stays, and does not slip.
    wall = jnp.full(count, place(1, 3))
    np.testing.assert_array_equal(move(wall, up), wall)


def test_the_goal_ends_an_episode_and_none_begins_there():
    key, above = jax.random.key(0), place(6, 9)
    state, reward, done = fourrooms_step(jnp.int32(above), jnp.int32(1), key, 62, slip=0.0)
    assert (int(state), float(reward), bool(done)) == (62, 1.0, True)
    _, reward, done = fourrooms_step(jnp.int32(above), jnp.int32(1), key, jnp.int32(5), slip=0.0)
    assert (float(reward), bool(done)) == (0.0, False)
    starts = jax.vmap(fourrooms_reset, (0, None))(jax.random.split(key, 5000), 62)
    assert set(np.asarray(starts).tolist()) == set(range(104)) - {62}
    with pytest.raises(ValueError, match="slip_mode = 'text': allowed are replace, reference"):
        fourrooms_step(jnp.int32(0), jnp.int32(0), key, 62, slip_mode="text")


def test_the_point_mass_stops_at_walls_and_at_its_goal():
    goal = jnp.array([0.7, 0.7])
    still = environments.PointMass(jnp.array([-0.98, 0.0]), jnp.array([-0.1, 0.0]), goal)
    after, reward, done = point_mass_step(still, jnp.array([-9.0, 9.0]), jax.random.key(0))
    assert float(after.position[0]) == -1.0 and float(after.velocity[0]) == 0.0
    np.testing.assert_allclose(after.velocity[1], 0.05, atol=0.04)
    assert not done and float(reward) < 0
    there = still._replace(position=goal, velocity=jnp.zeros(2))
    _, reward, done = point_mass_step(there, jnp.zeros(2), jax.random.key(0))
    assert done and float(reward) > 0.98


def test_breakout_follows_its_rules():
    key, stay = jax.random.key(0), jnp.int32(0)
    step = jax.jit(breakout_step)
    state = breakout_reset(key)
    start = environments.Breakout(
        jnp.array([3, 0]), jnp.array([3, 0]), jnp.array([1, 1]), jnp.int32(5), state.bricks, False
    )
    state, rewards = jax.tree.map(jnp.asarray, start), []
    for _ in range(11):
        state, reward, done = step(state, stay, key)
        rewards.append(float(reward))
    # Down to the paddle in five steps, back up in its own column, and through the lowest brick.
    assert not done and sum(rewards) == 1.0
    assert int(state.bricks.sum()) == 29 and bool(state.struck)
    # Without the paddle the sixth step ends the episode.
    state = jax.tree.map(jnp.asarray, start._replace(paddle=jnp.int32(0)))
    ends = []
    for _ in range(6):
        state, _, done = step(state, stay, key)
        ends.append(bool(done))
    assert ends == [False] * 5 + [True]
    # Whoever follows the ball misses it only where it is reflected by a side wall at the bottom.
    state, total = breakout_reset(key), 0.0
    for _ in range(60):
        column = int(state.ball[1]) - int(state.paddle)
        state, reward, done = step(state, jnp.int32(2 * (column > 0) + (column < 0)), key)
        total += float(reward)
        assert int(state.ball.min()) >= 0 and int(state.ball.max()) <= 9
    assert total > 0 and int(state.bricks.sum()) == 30 - total
    picture = environments.breakout().observe(state)
    np.testing.assert_allclose(picture.sum((0, 1)), [1, 1, 1, 30 - total])


def countdown(limit):
    """Never ends by itself; the state counts the steps of the episode."""
    return environments.Environment(
        lambda key: jnp.int32(0),
        lambda state, action, key: (state + 1, jnp.float32(1), jnp.bool_(False)),
        lambda state: state,
        limit,
    )


def test_a_time_limit_restarts_and_bootstraps():
    env, policy = countdown(3), actors.categorical(2, 1.0)

    def agent(observation):
        zeros = jnp.zeros((len(observation), 2))
        return actors.Heads(zeros, zeros, jnp.zeros((len(observation), 2, 2)))

    begun = actors.start(env, jax.random.key(0), 2)
    go = jax.jit(
        lambda begun, key: actors.rollout(env, agent, policy, begun, key, epsilon=0.0, num_steps=7)
    )
    after, record = go(begun, jax.random.key(1))
    np.testing.assert_array_equal(record.observation[:, 0], [0, 1, 2, 0, 1, 2, 0])
    np.testing.assert_array_equal(record.next_observation[:, 0], [1, 2, 3, 1, 2, 3, 1])
    np.testing.assert_array_equal(record.terminated[:, 0], [1, 0, 0, 1, 0, 0, 1])
    assert not record.done.any()
    assert int(after.episodes) == 4 and float(actors.recent(after)["steps"]) == 3.0
    assert float(actors.recent(after)["return"]) == 3.0
    np.testing.assert_array_equal(after.elapsed, [1, 1])


def test_options_run_until_they_terminate():
    heads = actors.Heads(
        jnp.array([[0.0, 1.0]] * 4), jnp.array([[0.5, 0.5]] * 4), jnp.zeros((4, 2, 2))
    )
    chance = actors.Chance(
        ends=jnp.array([0.4, 0.6, 0.6, 0.4]),
        explores=jnp.array([0.5, 0.5, 0.5, 0.05]),
        which=jnp.array([0.1, 0.1, 0.1, 0.1]),
        noise=None,
        moves=None,
        begun=None,
    )
    fresh = jnp.array([False, False, True, False])
    option, ended = actors.choose_options(heads, jnp.zeros(4, jnp.int32), fresh, chance, 0.1)
    # Ends and takes the best; runs on; an episode begins; ends and explores.
    np.testing.assert_array_equal(option, [1, 0, 1, 0])
    np.testing.assert_array_equal(ended, [True, False, True, True])


def table_model(**fields):
    config = run.load_config("disentangled_options:fourrooms")
    return claims.frozen(
        configs.apply_overrides(config, {f"model.{k}": v for k, v in fields.items()})
    )


def test_one_tabular_update_is_that_of_the_formulas():
    m = table_model(regularizer=0.0)
    tables = tabular.Tables(
        normal(0, 104, 4), normal(1, 104, 4, 4), normal(2, 104, 4, 4), normal(3, 104, 4)
    )
    s, s2, w, a, r = 10, 20, 2, 3, 0.5
    record = actors.Record(
        *(jnp.array([v]) for v in (s, s2)),
        None,
        *(jnp.array([v]) for v in (w, a)),
        jnp.array([r]),
        jnp.array([False]),
        None,
    )
    learn = jax.jit(tabular.learn, static_argnums=2)
    found = learn(tables, record, m)
    q, u, logits, ends = (np.asarray(t, np.float64) for t in tables)
    beta = 1 / (1 + np.exp(-ends[s2, w]))
    target = r + 0.99 * ((1 - beta) * q[s2, w] + beta * q[s2].max())
    q[s, w] += 0.5 * (target - q[s, w])
    u[s, w, a] += 0.5 * (target - u[s, w, a])
    pi = np.exp(logits[s, w]) / np.exp(logits[s, w]).sum()
    logits[s, w] += 0.25 * (np.eye(4)[a] - pi) * (u[s, w, a] - q[s, w])
    ends[s2, w] -= 0.25 * beta * (1 - beta) * (q[s2, w] - q[s2].max())
    for name, expected in zip(tables._fields, (q, u, logits, ends), strict=True):
        np.testing.assert_allclose(
            getattr(found, name), expected, rtol=1e-5, atol=1e-6, err_msg=name
        )
    # Environments in the same place share one update; the regulariser moves every option there.
    three = jax.tree.map(lambda x: jnp.repeat(x, 3, 0), record)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        learn(tables, three, m),
        found,
    )
    apart = learn(tables, record, table_model(regularizer=0.05)).logits - found.logits
    assert (np.abs(apart[s]).max(-1) > 0).all() and (np.delete(apart, s, 0) == 0).all()


def test_the_distance_grows_in_training():
    m = table_model(regularizer=1.0, unroll=300)

    @jax.jit
    def curve(key):
        def body(state, key):
            return tabular.train(state, key, m)[0], None

        begun = tabular.start(key, m, 2)
        return jax.lax.scan(body, begun, jax.random.split(key))[0].curves["hellinger"]

    found = np.asarray(curve(jax.random.key(0)))
    assert found[1] > 1.5 * found[0] > 0


def test_visits_are_counted_since_the_goal_moved():
    m = table_model(unroll=2, num_envs=3, goal_moves_after=12)

    @jax.jit
    def visits(key):
        def body(state, key):
            after = tabular.train(state, key, m)[0]
            return after, after.visits.sum()

        return jax.lax.scan(body, tabular.start(key, m, 4), jax.random.split(key, 4))[1]

    # The first two calls have the first goal; of these the last one is shown.
    np.testing.assert_array_equal(visits(jax.random.key(0)), [6, 6, 6, 12])


def test_the_network_keeps_other_heads_out_of_its_trunk():
    x = normal(0, 3, 6)
    net = OptionNetwork(3, 2, gaussian=True)
    params = jax.jit(net.init)(jax.random.key(0), x)["params"]

    def distance(params, net):
        (_, terminations, (mean, log_std)), taps = net.apply({"params": params}, x)
        assert taps["features"].shape == (3, 64) and terminations.shape == (3, 3)
        return gaussian_hellinger_regularizer(mean, log_std).sum()

    gradient = jax.jit(jax.grad(distance), static_argnums=1)
    slopes = gradient(params, net)
    touched = {name for name, s in slopes.items() if np.abs(s["kernel"]).max() > 0}
    assert touched == {"policy", "log_std"}
    slopes = gradient(params, OptionNetwork(3, 2, gaussian=True, stop_features=False))
    assert np.abs(slopes["dense0"]["kernel"]).max() > 0
    board = OptionNetwork(8, 3, channels=(4,), widths=(8,), dtype=jnp.bfloat16)
    picture = jnp.ones((2, 10, 10, 4))
    (values, _, logits), _ = jax.eval_shape(board.init_with_output, jax.random.key(0), picture)[0]
    assert values.dtype == logits.dtype == jnp.float32 and logits.shape == (2, 8, 3)


def everything(logits, mean, option, reward):
    """All losses of a batch, for the comparison of devices."""
    beta = jax.nn.sigmoid(mean[..., 0])
    target = option_value_target(reward, 0 * reward, beta, beta, option, discount=0.9)
    each = intra_option_policy_loss(
        logits, option, option, target, entropy_weight=0.1, temperature=1.0
    )
    each += option_critic_value_loss(beta, option, target)
    each += termination_loss(beta, beta, option, 0 * reward, termination_reg=0.1)
    return (
        each - hellinger_regularizer(logits) - gaussian_hellinger_regularizer(mean, mean)
    ).mean()


def batch_of_eight():
    option = jnp.asarray(np.arange(8) % 3)
    return normal(0, 8, 3, 4), normal(1, 8, 3, 2), option, normal(2, 8)


def test_vmap_agrees_with_batches():
    logits, mean, option, reward = batch_of_eight()
    whole = jax.jit(everything)(logits, mean, option, reward)
    one = jax.jit(jax.vmap(lambda *row: everything(*(x[None] for x in row))))
    each = one(logits, mean, option, reward)
    np.testing.assert_allclose(each.mean(), whole, rtol=1e-5)


def test_8_devices_give_what_1_gives():
    code = """
import sys; sys.path.insert(0, "tests/papers")
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P, AxisType
import test_disentangled_options as t
batch = t.batch_of_eight()
losses = jax.jit(jax.value_and_grad(t.everything, (0, 1)))
plain = losses(*batch)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
spread = jax.device_put(batch, NamedSharding(mesh, P("data")))
found = losses(*spread)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, plain)
print("ok")
"""
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout.strip() == "ok", done.stderr[-2000:]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: hellinger_distance(x, x[:1]), "p_logits .* and q_logits .* must be the same"),
        (lambda x: hellinger_regularizer(x), r"option_logits \(2, 3\) must be \[B, O, A\]"),
        (lambda x: hellinger_regularizer(x[:, None]), "with O >= 2"),
        (
            lambda x: gaussian_hellinger_distance(x, x, x, x[0]),
            r"gaussian_hellinger_distance: .*log_std2 \(3,\) must be the same",
        ),
        (lambda x: gaussian_hellinger_regularizer(x, x), "gaussian_hellinger_regularizer"),
        (
            lambda x: option_critic_value_loss(x, x[:, 0], x[0]),
            r"option_critic_value_loss: .*target \(3,\) must be \[B\]",
        ),
        (
            lambda x: option_value_target(x, x[:, 0], x, x, x[:, 0], discount=0.9),
            r"option_value_target: reward \(2, 3\) must be \[B\]",
        ),
        (
            lambda x: termination_loss(x, x[:, :2], x[:, 0], x[:, 0], termination_reg=0.0),
            r"option_values \(2, 2\) must be \[B, O\]",
        ),
        (
            lambda x: option_indicators(x[None], x[0], x[0]),
            r"option_indicators: .*option_trace \(3,\)",
        ),
    ],
)
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((2, 3)))


NETWORK = {"model.num_envs": 4, "model.unroll": 3, "model.test_envs": 4, "model.test_steps": 9}
TINY = {
    "fourrooms": {"model.unroll": 30, "model.goal_moves_after": 60, "model.test_steps": 20},
    "pointmass": NETWORK | {"model.widths": (8,)},
}
BOARD = NETWORK | {"model.widths": (8,), "model.channels": (4,)}


def test_a_board_trains():
    config = configs.apply_overrides(
        run.load_config("disentangled_options:breakout"),
        {"num_steps": 2, "cache_dir": "", "compilation_cache": ""} | BOARD,
    )
    metrics = run.run(config).metrics[0]
    assert all(np.isfinite(v) for v in metrics.values()) and "hellinger" in metrics


@pytest.mark.parametrize("variant", TINY)
def test_recipes_train_evaluate_checkpoint_and_resume(variant, tmp_path):
    small = {"num_steps": 4, "checkpoint.every": 2, "log.every": 1, "cache_dir": ""}
    config = configs.apply_overrides(
        run.load_config(f"disentangled_options:{variant}"),
        small | {"compilation_cache": "", "steps_per_dispatch": 2} | TINY[variant],
    )
    seeds = (0, 1) if variant == "fourrooms" else (0,)
    whole = run.run(config, tmp_path, seeds=seeds)
    assert all(np.isfinite(v) for metrics in whole.metrics for v in metrics.values())
    before = (tmp_path / "metrics.jsonl").read_bytes()
    shutil.rmtree(tmp_path / "checkpoints" / "0-train" / "4")
    assert run.run(config, tmp_path, seeds=seeds).metrics == whole.metrics
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("variant", ["fourrooms", "fourrooms_reference", "pointmass", "breakout"])
def test_every_variant_builds_its_real_model(variant):
    from reprise.common.training import program, sharding

    config = run.load_config(f"disentangled_options:{variant}")
    (phase,) = run.recipe(config).phases(config)
    built = program.build(phase, sharding.make_mesh(config.mesh, jax.devices()[:1]))
    assert "hellinger" in built.metrics
    study = run.recipe(config).study(config)
    assert set(study.arms) == {"lambda 0", "lambda 0.01", "lambda 0.05", "lambda 0.2"}
