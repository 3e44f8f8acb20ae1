"""Option-critic with a network, on the point mass (Gaussian policies) and on boards."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from reprise.common.studies.study import Study
from reprise.common.training import optimizers, state
from reprise.common.training.phase import Phase
from reprise.papers.disentangled_options import actors, claims, environments, figures
from reprise.papers.disentangled_options.gaussian import (
    gaussian_hellinger_regularizer,
    gaussian_intra_option_policy_loss,
)
from reprise.papers.disentangled_options.indicators import (
    gaussian_option_indicators,
    option_indicators,
)
from reprise.papers.disentangled_options.losses import (
    hellinger_regularizer,
    intra_option_policy_loss,
    of_option,
    option_critic_value_loss,
    option_value_target,
    termination_loss,
)
from reprise.papers.disentangled_options.models import OptionNetwork


class State(NamedTuple):
    """Of the phase: the network's (its model_state is the target network), the environments."""

    learner: state.TrainState
    actors: actors.Actors


class Task(NamedTuple):
    """An environment with the kind of policy that acts in it.

    Attributes:
      regularizer: policies [B, O, ...] -> [B].
      policy_loss: (policies, option, action, advantage) -> [B].
      indicators: (policies [T, N, O, ...], trace, terminations, key) -> scalars.
    """

    env: environments.Environment
    policy: actors.Policy
    regularizer: Callable[[Any], Array]
    policy_loss: Callable[[Any, Array, Array, Array], Array]
    indicators: Callable[[Any, Array, Array, Array], dict[str, Array]]


def task(m: Any) -> Task:
    """The config's environment: "pointmass" or "breakout"."""
    if m.task == "pointmass":

        def gaussian_loss(policy: Any, option: Array, action: Array, advantage: Array) -> Array:
            mean, log_std = policy
            return gaussian_intra_option_policy_loss(
                mean, log_std, option, action, advantage, entropy_weight=m.entropy_weight
            )

        return Task(
            environments.point_mass(),
            actors.gaussian(2),
            lambda policy: gaussian_hellinger_regularizer(*policy),
            gaussian_loss,
            lambda policy, *trace: gaussian_option_indicators(*policy, *trace),
        )

    def discrete_loss(logits: Any, option: Array, action: Array, advantage: Array) -> Array:
        return intra_option_policy_loss(
            logits,
            option,
            action,
            advantage,
            entropy_weight=m.entropy_weight,
            temperature=m.temperature,
        )

    return Task(
        environments.breakout(),
        actors.categorical(3, m.temperature),
        lambda logits: hellinger_regularizer(logits, temperature=m.temperature),
        discrete_loss,
        lambda logits, trace, ends, key: option_indicators(
            logits, trace, ends, temperature=m.temperature
        ),
    )


def network(m: Any, precision: str) -> Any:
    return OptionNetwork(
        m.num_options,
        task(m).policy.size,
        channels=m.channels,
        widths=m.widths,
        gaussian=m.task == "pointmass",
        dtype=jnp.dtype(precision),
    )


def heads(net: Any, params: Any, observation: Array) -> actors.Heads:
    return actors.Heads(*net.apply({"params": params}, observation)[0])


def losses(
    net: Any, of: Task, m: Any, params: Any, target_params: Any, record: actors.Record
) -> dict[str, Array]:
    """The means of option-critic's three losses and of the regulariser over steps [B, ...]."""
    now = heads(net, params, record.observation)
    following = heads(net, params, record.next_observation)
    target = option_value_target(
        record.reward,
        record.done,
        heads(net, target_params, record.next_observation).values,
        following.terminations,
        record.option,
        discount=m.discount,
    )
    advantage = target - of_option(now.values, record.option)
    each = {
        "value_loss": option_critic_value_loss(now.values, record.option, target),
        "policy_loss": of.policy_loss(now.policy, record.option, record.action, advantage),
        "termination_loss": termination_loss(
            following.terminations,
            following.values,
            record.option,
            record.done,
            termination_reg=m.termination_reg,
        ),
        "hellinger": of.regularizer(now.policy),
    }
    return {name: value.mean() for name, value in each.items()}


def measure(params: Any, key: Array, m: Any, precision: str) -> dict[str, Array]:
    """Return and indicators of a rollout without learning and without random options."""
    of, net = task(m), network(m, precision)
    begin, run, draw = jax.random.split(key, 3)
    environments, record = actors.rollout(
        of.env,
        lambda observation: heads(net, params, observation),
        of.policy,
        actors.start(of.env, begin, m.test_envs),
        run,
        epsilon=0.0,
        num_steps=m.test_steps,
    )
    indicators = of.indicators(record.policy, record.option, record.terminated, draw)
    shown = {name: value for name, value in indicators.items() if not name.startswith("usage_")}
    return shown | actors.recent(environments) | {"usage_entropy": indicators["usage_entropy"]}


_measure = jax.jit(measure, static_argnames=("m", "precision"))


def phase(config: ConfigDict) -> Phase:
    m = claims.frozen(config)
    of, net = task(m), network(m, config.precision)
    tx = optimizers.make(config.optimizer, config.num_steps)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)

    def init(key: Array, previous: None) -> State:
        weights, episodes = jax.random.split(key)
        environments = actors.start(of.env, episodes, m.num_envs)
        observation = jax.vmap(of.env.observe)(environments.state)
        params = net.init(weights, observation)["params"]
        # A copy: the state is donated, and two entries must not share one buffer.
        return State(state.create(params, tx, jax.tree.map(jnp.copy, params)), environments)

    def loss(params: Any, target_params: Any, record: actors.Record, key: Array) -> Any:
        found = losses(net, of, m, params, target_params, record)
        total = found["value_loss"] + found["policy_loss"] + found["termination_loss"]
        return total - m.regularizer * found["hellinger"], (target_params, found)

    update = state.gradient_step(loss, tx, accumulate=config.accumulate, remat=config.remat)

    def step(current: State, batch: None, key: Array) -> tuple[State, dict[str, Array]]:
        learner, environments = current
        done = learner.step / max(m.epsilon_steps, 1)
        epsilon = m.epsilon + (m.epsilon_start - m.epsilon) * jnp.maximum(0.0, 1.0 - done)
        environments, record = actors.rollout(
            of.env,
            lambda observation: heads(net, learner.params, observation),
            of.policy,
            environments,
            key,
            epsilon=epsilon,
            num_steps=m.unroll,
        )
        record = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), record)
        learner, metrics = update(learner, record, key)
        refresh = learner.step % m.target_every == 0
        target = jax.tree.map(
            lambda new, old: jnp.where(refresh, new, old), learner.params, learner.model_state
        )
        metrics = {**metrics, **actors.recent(environments), "epsilon": epsilon}
        return State(learner._replace(model_state=target), environments), metrics

    def evaluate(current: State) -> dict[str, float]:
        found = _measure(current.learner.params, key, m, config.precision)
        return {name: float(value) for name, value in found.items()}

    return Phase(
        "train",
        config.num_steps,
        init,
        step,
        evaluate=evaluate,
        examples_per_step=m.unroll * m.num_envs,
    )


def _grid() -> np.ndarray:
    """Positions of the point mass that are drawn: [P, 2]."""
    line = np.linspace(-0.95, 0.95, 9)
    return np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)


def _at_rest(config: ConfigDict, current: State) -> dict[str, np.ndarray]:
    """What the options do to a mass at rest on the grid, with the last goal."""
    grid = _grid()
    still, goal = np.zeros_like(grid), np.broadcast_to(environments.GOALS[-1], grid.shape)
    observation = jnp.asarray(np.concatenate([grid, still, goal], -1), jnp.float32)
    net = network(claims.frozen(config), config.precision)
    found = heads(net, current.learner.params, observation)
    mean, log_std = found.policy
    return {
        "mean": np.asarray(mean),
        "best": np.asarray(found.values.argmax(-1)),
        "distance": np.asarray(gaussian_hellinger_regularizer(mean, log_std)),
    }


def study(config: ConfigDict) -> Study:
    """Boards are held to the four rooms' factor of two; Gaussian options start too far apart."""

    def draw(config: ConfigDict, results: Any, states: Any, directory: Path) -> list[Path]:
        made = [figures.indicators(config, results, directory)]
        if config.model.task == "pointmass":
            found = {
                arm: _at_rest(config, states[arm][0]) for arm in (claims.BASELINE, claims.METHOD)
            }
            made.append(figures.forces(config, _grid(), found, directory))
        return made

    factor = 1.0 if config.model.task == "pointmass" else 2.0
    claim = functools.partial(claims.with_return, factor=factor)
    return Study(claims.arms(), claim, figures=draw)
