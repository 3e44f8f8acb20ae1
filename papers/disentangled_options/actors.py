"""Many environments that run options, call-and-return, inside one program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from reprise.papers.disentangled_options.environments import Environment
from reprise.papers.disentangled_options.losses import of_option

WINDOW = 100  # the last episodes over which lengths and returns are averaged


class Heads(NamedTuple):
    """What an agent knows of N states.

    Attributes:
      values: Q(s) [N, O].
      terminations: beta(s), probabilities [N, O].
      policy: pytree of parameters of the option policies [N, O, ...].
    """

    values: Float[Array, "batch options"]
    terminations: Float[Array, "batch options"]
    policy: Any


class Actors(NamedTuple):
    """N environments and the options that run in them.

    Attributes:
      state: of the environments, leaves [N, ...].
      option: int32 [N].
      fresh: bool [N], an episode begins: no option runs yet.
      elapsed: int32 [N], steps of the episode.
      score: float32 [N], undiscounted return of the episode so far.
      episodes: int32 [], how many have ended.
      lengths, returns: float32 [WINDOW], of the last episodes that ended.
    """

    state: Any
    option: Int[Array, " envs"]
    fresh: Bool[Array, " envs"]
    elapsed: Int[Array, " envs"]
    score: Float[Array, " envs"]
    episodes: Int[Array, ""]
    lengths: Float[Array, " window"]
    returns: Float[Array, " window"]


class Record(NamedTuple):
    """One step of N environments.

    Attributes:
      observation, next_observation: before and after, the latter before any restart.
      policy: of all options in the state, leaves [N, O, ...].
      option, action, reward: of the step.
      done: the episode ended by itself; a time limit does not count.
      terminated: the option that ran on arrival in the state ended there.
    """

    observation: Any
    next_observation: Any
    policy: Any
    option: Int[Array, " envs"]
    action: Array
    reward: Float[Array, " envs"]
    done: Bool[Array, " envs"]
    terminated: Bool[Array, " envs"]


class Policy(NamedTuple):
    """How actions are drawn from an option policy, as a function of noise.

    Attributes:
      noise: (key, shape) -> noise; the last axis is that of the policy's parameters.
      sample: (policy of the running options, leaves [N, ...], noise [N, ...]) -> actions [N, ...].
      size: A, the length of the noise's last axis.
    """

    noise: Callable[[Array, tuple[int, ...]], Array]
    sample: Callable[[Any, Array], Array]
    size: int


def categorical(num_actions: int, temperature: float) -> Policy:
    """softmax(logits / temperature), by the largest of logits and Gumbel noise."""

    def sample(logits: Float[Array, "envs actions"], noise: Array) -> Int[Array, " envs"]:
        return (logits / temperature + noise).argmax(-1).astype(jnp.int32)

    return Policy(jax.random.gumbel, sample, num_actions)


def gaussian(size: int) -> Policy:
    """Diagonal Gaussians (mean, log_std)."""

    def sample(policy: tuple[Array, Array], noise: Array) -> Float[Array, "envs size"]:
        mean, log_std = policy
        return mean + jnp.exp(log_std) * noise

    return Policy(jax.random.normal, sample, size)


class Chance(NamedTuple):
    """All that is random in steps of N environments, but for the moves; leaves [..., N].

    Drawn for a whole rollout at once: random bits are cheap in bulk and dear one by one.

    Attributes:
      ends, explores, which: uniform, of the choice of options.
      noise: of the actions.
      moves: keys of the environments' steps.
      begun: states in which episodes begin, should one be needed.
    """

    ends: Float[Array, "... envs"]
    explores: Float[Array, "... envs"]
    which: Float[Array, "... envs"]
    noise: Float[Array, "... envs size"]
    moves: Array
    begun: Any


def chances(env: Environment, policy: Policy, key: Array, num_envs: int, num_steps: int) -> Chance:
    """What `num_steps` steps need, leaves [T, N, ...]."""
    uniform, noise, moves, begun = jax.random.split(key, 4)
    shape = (num_steps, num_envs)
    ends, explores, which = jax.random.uniform(uniform, (3, *shape))
    return Chance(
        ends,
        explores,
        which,
        policy.noise(noise, (*shape, policy.size)),
        jax.random.split(moves, shape),
        jax.vmap(jax.vmap(env.reset))(jax.random.split(begun, shape)),
    )


def start(env: Environment, key: Array, num_envs: int) -> Actors:
    """N fresh episodes."""
    return Actors(
        state=jax.vmap(env.reset)(jax.random.split(key, num_envs)),
        option=jnp.zeros(num_envs, jnp.int32),
        fresh=jnp.ones(num_envs, bool),
        elapsed=jnp.zeros(num_envs, jnp.int32),
        score=jnp.zeros(num_envs),
        episodes=jnp.zeros((), jnp.int32),
        lengths=jnp.zeros(WINDOW),
        returns=jnp.zeros(WINDOW),
    )


def choose_options(
    heads: Heads,
    option: Int[Array, " envs"],
    fresh: Bool[Array, " envs"],
    chance: Chance,
    epsilon: Any,
) -> tuple[Int[Array, " envs"], Bool[Array, " envs"]]:
    """Call-and-return: an option runs until it terminates, then the next is taken epsilon-greedily.

    Args:
      heads: in the states arrived at.
      option: that ran on arrival.
      fresh: where none did.
      chance: of this step.
      epsilon: share of random choices.

    Returns:
      (option [N], terminated [N]).
    """
    terminated = fresh | (chance.ends < of_option(heads.terminations, option))
    num_options = heads.values.shape[-1]
    any_option = jnp.minimum((chance.which * num_options).astype(jnp.int32), num_options - 1)
    best = heads.values.argmax(-1).astype(jnp.int32)
    chosen = jnp.where(chance.explores < epsilon, any_option, best)
    return jnp.where(terminated, chosen, option), terminated


def act(
    env: Environment,
    agent: Callable[[Any], Heads],
    policy: Policy,
    actors: Actors,
    chance: Chance,
    *,
    epsilon: Any,
) -> tuple[Actors, Record]:
    """One step of every environment; episodes that end begin again.

    Args:
      env: the environment.
      agent: observations [N, ...] -> heads.
      policy: draws the actions.
      actors: the environments.
      chance: of this step.
      epsilon: of the policy over options.
    """
    observation = jax.vmap(env.observe)(actors.state)
    heads = agent(observation)
    option, terminated = choose_options(heads, actors.option, actors.fresh, chance, epsilon)
    running = jax.tree.map(lambda p: of_option(p, option), heads.policy)
    action = policy.sample(running, chance.noise)
    state, reward, done = jax.vmap(env.step)(actors.state, action, chance.moves)
    following = jax.vmap(env.observe)(state)
    record = Record(observation, following, heads.policy, option, action, reward, done, terminated)

    elapsed, score = actors.elapsed + 1, actors.score + reward
    over = done | (elapsed >= env.time_limit)
    # Episodes that end together take one place each; the others write outside and are dropped.
    place = jnp.where(over, (actors.episodes + jnp.cumsum(over) - 1) % WINDOW, WINDOW)
    after = Actors(
        state=jax.tree.map(
            lambda new, old: jnp.where(over.reshape(-1, *(1,) * (new.ndim - 1)), new, old),
            chance.begun,
            state,
        ),
        option=option,
        fresh=over,
        elapsed=jnp.where(over, 0, elapsed),
        score=jnp.where(over, 0.0, score),
        episodes=actors.episodes + over.sum(dtype=jnp.int32),
        lengths=actors.lengths.at[place].set(elapsed.astype(jnp.float32), mode="drop"),
        returns=actors.returns.at[place].set(score, mode="drop"),
    )
    return after, record


def rollout(
    env: Environment,
    agent: Callable[[Any], Heads],
    policy: Policy,
    actors: Actors,
    key: Array,
    *,
    epsilon: Any,
    num_steps: int,
) -> tuple[Actors, Record]:
    """`act` for `num_steps` steps with one agent; leaves of the record are [T, N, ...]."""

    def body(actors: Actors, chance: Chance) -> tuple[Actors, Record]:
        return act(env, agent, policy, actors, chance, epsilon=epsilon)

    drawn = chances(env, policy, key, len(actors.option), num_steps)
    return jax.lax.scan(body, actors, drawn)


def recent(actors: Actors) -> dict[str, Array]:
    """Mean length and return of the last episodes, 0 before the first has ended."""
    count = jnp.clip(actors.episodes, 1, WINDOW)
    return {"steps": actors.lengths.sum() / count, "return": actors.returns.sum() / count}
