"""Four rooms with tables: option-critic, the regulariser, and a goal that moves."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from reprise.common.studies.study import Study
from reprise.common.training.phase import Phase
from reprise.papers.disentangled_options import actors, claims, figures
from reprise.papers.disentangled_options.environments import (
    GOAL,
    MOVED_GOALS,
    NUM_CELLS,
    Environment,
    fourrooms,
)
from reprise.papers.disentangled_options.indicators import option_indicators
from reprise.papers.disentangled_options.losses import (
    hellinger_regularizer,
    intra_option_policy_loss,
    of_option,
    option_value_target,
    termination_loss,
)


class Tables(NamedTuple):
    """What is learned, one row a cell.

    Attributes:
      values: Q(s, w) [S, O].
      action_values: Q_U(s, w, a) [S, O, A].
      logits: of the option policies [S, O, A].
      terminations: logits of beta(s, w) [S, O].
    """

    values: Float[Array, "states options"]
    action_values: Float[Array, "states options actions"]
    logits: Float[Array, "states options actions"]
    terminations: Float[Array, "states options"]


class State(NamedTuple):
    """Of the phase.

    Attributes:
      tables: what is learned.
      actors: the environments.
      moved_goal: int32 [], where the goal moves.
      step: int32 [], calls of the phase's step.
      visits: float32 [S, O], steps of each option in each cell since the goal moved.
      curves: name -> float32 [num_steps], one entry a call of the step.
    """

    tables: Tables
    actors: actors.Actors
    moved_goal: Int[Array, ""]
    step: Int[Array, ""]
    visits: Float[Array, "states options"]
    curves: dict[str, Float[Array, " steps"]]


CURVES = ("steps", "hellinger", "information", "hellinger_all", "information_all")


def start(key: Array, m: Any, num_steps: int) -> State:
    """Empty tables, small noise in the policies' logits, fresh episodes."""
    noise, goal, episodes = jax.random.split(key, 3)
    pairs = jnp.zeros((NUM_CELLS, m.num_options))
    triples = jnp.zeros((NUM_CELLS, m.num_options, 4))
    logits = m.logits_std * jax.random.normal(noise, triples.shape)
    return State(
        tables=Tables(pairs, triples, logits, pairs),
        actors=actors.start(fourrooms(GOAL, m.slip_mode), episodes, m.num_envs),
        moved_goal=jax.random.choice(goal, jnp.asarray(MOVED_GOALS, jnp.int32)),
        step=jnp.zeros((), jnp.int32),
        visits=jnp.zeros((NUM_CELLS, m.num_options)),
        curves={name: jnp.zeros(num_steps) for name in CURVES},
    )


def agent(tables: Tables, cells: Int[Array, " envs"]) -> actors.Heads:
    terminations = jax.nn.sigmoid(tables.terminations[cells])
    return actors.Heads(tables.values[cells], terminations, tables.logits[cells])


def learn(tables: Tables, record: actors.Record, m: Any) -> Tables:
    """One update from one step of N environments: critic, then policies, then terminations.

    Environments in the same cell share one update, the mean of theirs.
    """
    s, following, w = record.observation, record.next_observation, record.option
    shares, next_shares = (
        1 / jnp.zeros(NUM_CELLS).at[cells].add(1.0)[cells] for cells in (s, following)
    )

    def rows(share: Array, update: Array) -> Array:
        return share.reshape(-1, *(1,) * (update.ndim - 1)) * update

    beta = jax.nn.sigmoid(tables.terminations[following])
    target = option_value_target(
        record.reward, record.done, tables.values[following], beta, w, discount=m.discount
    )
    values = tables.values.at[s, w].add(
        shares * m.value_rate * (target - of_option(tables.values[s], w))
    )
    taken = tables.action_values[s, w, record.action]
    action_values = tables.action_values.at[s, w, record.action].add(
        shares * m.value_rate * (target - taken)
    )

    def policy_loss(logits: Array) -> Array:
        advantage = action_values[s, w, record.action] - values[s, w]
        loss = intra_option_policy_loss(
            logits,
            w,
            record.action,
            advantage,
            entropy_weight=m.entropy_weight,
            temperature=m.temperature,
        )
        return (
            loss - m.regularizer * hellinger_regularizer(logits, temperature=m.temperature)
        ).sum()

    def end_loss(logits: Array) -> Array:
        return termination_loss(
            jax.nn.sigmoid(logits),
            values[following],
            w,
            record.done,
            termination_reg=m.termination_reg,
        ).sum()

    policy_slope = jax.grad(policy_loss)(tables.logits[s])
    end_slope = jax.grad(end_loss)(tables.terminations[following])
    return Tables(
        values,
        action_values,
        tables.logits.at[s].add(-m.policy_rate * rows(shares, policy_slope)),
        tables.terminations.at[following].add(-m.termination_rate * rows(next_shares, end_slope)),
    )


def train(state: State, key: Array, m: Any) -> tuple[State, dict[str, Array]]:
    """`m.unroll` steps of every environment, each followed by an update."""
    moved = state.step * m.unroll * m.num_envs >= m.goal_moves_after
    env = fourrooms(jnp.where(moved, state.moved_goal, GOAL), m.slip_mode)
    policy = actors.categorical(4, m.temperature)

    def body(carry: Any, chance: actors.Chance) -> Any:
        tables, environments = carry
        environments, record = actors.act(
            env, lambda s: agent(tables, s), policy, environments, chance, epsilon=m.epsilon
        )
        return (learn(tables, record, m), environments), record

    drawn = actors.chances(env, policy, key, m.num_envs, m.unroll)
    (tables, environments), record = jax.lax.scan(body, (state.tables, state.actors), drawn)
    visited = option_indicators(
        record.policy, record.option, record.terminated, temperature=m.temperature
    )
    all_cells = _over_cells(tables, m)
    now = {
        "steps": actors.recent(environments)["steps"],
        **{name: visited[name] for name in ("hellinger", "information")},
        **{f"{name}_all": all_cells[name] for name in ("hellinger", "information")},
    }
    already = (state.step - 1) * m.unroll * m.num_envs >= m.goal_moves_after
    fresh = jnp.where(already, state.visits, 0.0)
    after = State(
        tables,
        environments,
        state.moved_goal,
        state.step + 1,
        fresh.at[record.observation, record.option].add(1.0),
        {name: state.curves[name].at[state.step].set(now[name]) for name in CURVES},
    )
    metrics = {**now, "reward": record.reward.mean(), "duration": visited["duration"]}
    return after, metrics


def _over_cells(tables: Tables, m: Any) -> dict[str, Array]:
    """The indicators of the policies over all cells, visited or not."""
    unused = jnp.zeros(NUM_CELLS, jnp.int32)
    return option_indicators(tables.logits, unused, unused, temperature=m.temperature)


def measure(state: State, key: Array, m: Any) -> dict[str, Array]:
    """Steps and policies at the end of each goal, and the indicators of a rollout without learning.

    `steps` is the mean length of the last 100 episodes; `_moved` is after the goal has moved. The
    rollout has the moved goal, where there is one.
    """
    last = state.step - 1
    before = jnp.minimum(m.goal_moves_after // (m.unroll * m.num_envs) - 1, last)
    found: dict[str, Array] = {}
    for name in ("steps", "hellinger_all", "information_all"):
        found |= {name: state.curves[name][before], f"{name}_moved": state.curves[name][last]}
    goal = jnp.where(before < last, state.moved_goal, GOAL)
    env: Environment = fourrooms(goal, m.slip_mode)
    begin, run = jax.random.split(key)
    _, record = actors.rollout(
        env,
        lambda s: agent(state.tables, s),
        actors.categorical(4, m.temperature),
        actors.start(env, begin, m.test_envs),
        run,
        epsilon=m.epsilon,
        num_steps=m.test_steps,
    )
    indicators = option_indicators(
        record.policy, record.option, record.terminated, temperature=m.temperature
    )
    shares = ("hellinger", "symmetric_kl", "information", "usage_entropy")
    uses = ("termination", "switch_rate", "duration")
    return found | {name: indicators[name] for name in (*shares, *uses)}


_measure = jax.jit(measure, static_argnames="m")


def phase(config: ConfigDict) -> Phase:
    m = claims.frozen(config)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)

    def step(state: State, batch: None, key: Array) -> tuple[State, dict[str, Array]]:
        return train(state, key, m)

    def evaluate(state: State) -> dict[str, float]:
        return {name: float(value) for name, value in _measure(state, key, m).items()}

    return Phase(
        "train",
        config.num_steps,
        lambda key, previous: start(key, m, config.num_steps),
        step,
        evaluate=evaluate,
        examples_per_step=m.unroll * m.num_envs,
    )


def study(config: ConfigDict) -> Study:
    def draw(config: ConfigDict, results: Any, states: Any, directory: Path) -> list[Path]:
        return [
            figures.curves(config, states, directory),
            figures.indicators(config, results, directory),
            figures.rooms(config, states, directory),
        ]

    return Study(claims.arms(), claims.four_rooms, figures=draw)
