"""The Hellinger distance between option policies, and the losses of option-critic.

Symbols: s state, w one of O options, a one of A actions, pi_w(a|s) the policy of an option,
beta_w(s) its probability to terminate in s, Q_w(s) its value.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from reprise.common.ops.dtypes import wide


def of_option(values: Float[Array, "batch options ..."], option: Int[Array, " batch"]) -> Array:
    """The entry of each example's option: [B, ...]."""
    index = option.reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.take_along_axis(values, index, 1)[:, 0]


def pairs(num_options: int) -> tuple[np.ndarray, np.ndarray]:
    """Both options of every pair i < j."""
    return np.triu_indices(num_options, 1)


def root(squared: Array, epsilon: float | Array) -> Array:
    """sqrt(H^2), guarded: value and gradient are 0 where H^2 is 0."""
    guard = jnp.asarray(epsilon, squared.dtype)
    return jnp.sqrt(squared + guard) - jnp.sqrt(guard)


def check_batch(name: str, arrays: dict[str, tuple[Array, int]]) -> None:
    """Every array has its rank and all have one batch size; those of rank 2 have the same shape."""
    shapes = {key: jnp.shape(array) for key, (array, _) in arrays.items()}
    right = all(len(shapes[key]) == rank for key, (_, rank) in arrays.items())
    matrices = {shapes[key] for key, (_, rank) in arrays.items() if rank == 2}
    if not right or len({shape[0] for shape in shapes.values()}) != 1 or len(matrices) > 1:
        letters = {1: "[B]", 2: "[B, O]", 3: "[B, O, A]"}
        expected = ", ".join(
            f"{key} {shapes[key]} must be {letters[rank]}" for key, (_, rank) in arrays.items()
        )
        raise ValueError(f"{name}: {expected}")


def hellinger_distance(
    p_logits: Float[Array, "... actions"],
    q_logits: Float[Array, "... actions"],
    *,
    temperature: float = 1.0,
    epsilon: float | Array = 1e-12,
    squared: bool = False,
) -> Float[Array, "..."]:
    """Hellinger distance of two categorical distributions, in [0, 1]: [...].

    H^2 = 0.5 sum_a (sqrt p_a - sqrt q_a)^2 = 1 - sum_a sqrt(p_a q_a), and
    H = sqrt(H^2 + epsilon) - sqrt(epsilon), so that value and gradient are 0 for identical ones.
    Computed in float32 or wider. Hyun, Choi, Kwak (2019).

    Args:
      p_logits, q_logits: [..., A]; the distributions are softmax(logits / temperature).
      temperature: of the softmax.
      epsilon: guards the square root at 0.
      squared: return H^2 instead.

    Raises:
      ValueError: the shapes differ.
    """
    if jnp.ndim(p_logits) < 1 or jnp.shape(p_logits) != jnp.shape(q_logits):
        raise ValueError(
            f"hellinger_distance: p_logits {jnp.shape(p_logits)} and q_logits "
            f"{jnp.shape(q_logits)} must be the same [..., A]"
        )
    p, q = (_root_probs(logits, temperature) for logits in (p_logits, q_logits))
    square = 0.5 * ((p - q) ** 2).sum(-1)
    return square if squared else root(square, epsilon)


def _root_probs(logits: Array, temperature: float) -> Array:
    return jnp.exp(0.5 * jax.nn.log_softmax(wide(logits) / temperature))


def hellinger_regularizer(
    option_logits: Float[Array, "batch options actions"],
    *,
    temperature: float = 1.0,
    epsilon: float | Array = 1e-12,
) -> Float[Array, " batch"]:
    """Mean Hellinger distance of all pairs of option policies, to be SUBTRACTED from a loss: [B].

    R(s) = 2 / (O (O - 1)) sum_{i < j} H(pi_i(.|s), pi_j(.|s)). The gradient flows to every option,
    not only to the one that runs; it is 0 where all policies are identical. Hyun, Choi, Kwak
    (2019).

    Args:
      option_logits: [B, O, A], on visited states.
      temperature, epsilon: see `hellinger_distance`.

    Raises:
      ValueError: not [B, O, A], or fewer than two options.
    """
    if jnp.ndim(option_logits) != 3 or option_logits.shape[1] < 2:
        raise ValueError(
            f"hellinger_regularizer: option_logits {jnp.shape(option_logits)} must be [B, O, A] "
            "with O >= 2"
        )
    i, j = pairs(option_logits.shape[1])
    roots = _root_probs(option_logits, temperature)
    square = 0.5 * ((roots[:, i] - roots[:, j]) ** 2).sum(-1)
    return root(square, epsilon).mean(-1)


def option_value_target(
    reward: Float[Array, " batch"],
    done: Float[Array, " batch"] | Bool[Array, " batch"],
    next_option_values: Float[Array, "batch options"],
    next_termination_probs: Float[Array, "batch options"],
    option: Int[Array, " batch"],
    *,
    discount: float,
) -> Float[Array, " batch"]:
    """One-step target of the running option's value; no gradient flows through it: [B].

    y = r + discount (1 - done) [(1 - beta_w(s')) Q_w(s') + beta_w(s') max_w' Q_w'(s')]
    Bacon, Harb, Precup (2017), with the target network's Q where there is one.

    Args:
      reward: [B].
      done: [B], 1 at a terminal transition. A time limit is none: it bootstraps.
      next_option_values: Q(s') [B, O].
      next_termination_probs: beta(s') [B, O].
      option: w, the one that ran, [B].
      discount: gamma.

    Raises:
      ValueError: shapes that do not fit.
    """
    check_batch(
        "option_value_target",
        {
            "reward": (reward, 1),
            "done": (done, 1),
            "next_option_values": (next_option_values, 2),
            "next_termination_probs": (next_termination_probs, 2),
            "option": (option, 1),
        },
    )
    values = wide(next_option_values)
    beta = wide(of_option(next_termination_probs, option))
    arrival = (1 - beta) * of_option(values, option) + beta * values.max(-1)
    target = wide(reward) + discount * (1 - wide(done)) * arrival
    return jax.lax.stop_gradient(target)


def option_critic_value_loss(
    option_values: Float[Array, "batch options"],
    option: Int[Array, " batch"],
    target: Float[Array, " batch"],
) -> Float[Array, " batch"]:
    """0.5 (Q_w(s) - y)^2; the target gets no gradient: [B]. Bacon, Harb, Precup (2017).

    Raises:
      ValueError: shapes that do not fit.
    """
    check_batch(
        "option_critic_value_loss",
        {"option_values": (option_values, 2), "option": (option, 1), "target": (target, 1)},
    )
    error = wide(of_option(option_values, option)) - jax.lax.stop_gradient(wide(target))
    return 0.5 * error**2


def intra_option_policy_loss(
    option_logits: Float[Array, "batch options actions"],
    option: Int[Array, " batch"],
    action: Int[Array, " batch"],
    advantage: Float[Array, " batch"],
    *,
    entropy_weight: float,
    temperature: float,
) -> Float[Array, " batch"]:
    """-log pi_w(a|s) A - entropy_weight H(pi_w(.|s)): [B]. Bacon, Harb, Precup (2017).

    Args:
      option_logits: [B, O, A]; pi_w = softmax(logits_w / temperature). -inf: an action
        that an option does not have.
      option, action: w and a, [B].
      advantage: A, y - Q_w(s) or Q_U(s, w, a) - Q_w(s), [B]; gets no gradient.
      entropy_weight: of the entropy bonus.
      temperature: of the softmax.

    Raises:
      ValueError: shapes that do not fit.
    """
    check_batch(
        "intra_option_policy_loss",
        {
            "option_logits": (option_logits, 3),
            "option": (option, 1),
            "action": (action, 1),
            "advantage": (advantage, 1),
        },
    )
    log_probs = jax.nn.log_softmax(wide(of_option(option_logits, option)) / temperature)
    probs = jnp.exp(log_probs)
    entropy = -(probs * jnp.where(probs > 0, log_probs, 0)).sum(-1)
    taken = of_option(log_probs, action)
    return -taken * jax.lax.stop_gradient(wide(advantage)) - entropy_weight * entropy


def termination_loss(
    termination_probs: Float[Array, "batch options"],
    option_values: Float[Array, "batch options"],
    option: Int[Array, " batch"],
    done: Float[Array, " batch"] | Bool[Array, " batch"],
    *,
    termination_reg: float,
) -> Float[Array, " batch"]:
    """beta_w(s') (Q_w(s') - max_w' Q_w'(s') + termination_reg) (1 - done): [B].

    An option learns to end where another is better. Evaluated in s', the state in which the option
    may end; the values get no gradient. Bacon, Harb, Precup (2017).

    Args:
      termination_probs: beta(s') [B, O].
      option_values: Q(s') [B, O].
      option: w, [B].
      done: [B], 1 at a terminal transition: nothing is left to end.
      termination_reg: xi >= 0, makes options longer.

    Raises:
      ValueError: shapes that do not fit.
    """
    check_batch(
        "termination_loss",
        {
            "termination_probs": (termination_probs, 2),
            "option_values": (option_values, 2),
            "option": (option, 1),
            "done": (done, 1),
        },
    )
    values = jax.lax.stop_gradient(wide(option_values))
    advantage = of_option(values, option) - values.max(-1) + termination_reg
    return wide(of_option(termination_probs, option)) * advantage * (1 - wide(done))
