"""How different options are, and how they are used: statistics over visited states."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Real

from reprise.common.ops.dtypes import wide
from reprise.papers.disentangled_options.gaussian import (
    gaussian_hellinger_regularizer,
    gaussian_log_prob,
)
from reprise.papers.disentangled_options.losses import hellinger_regularizer, pairs

Trace = Int[Array, "time ..."]


def option_indicators(
    option_logits: Float[Array, "time ... options actions"],
    option_trace: Trace,
    terminations: Real[Array, "time ..."],
    *,
    temperature: float = 1.0,
) -> dict[str, Float[Array, ""]]:
    """What a rollout says about its options, averaged over its states: scalars, in nats.

    - `hellinger`: mean Hellinger distance of pairs of option policies,
    - `symmetric_kl`: mean over pairs of (KL(p, q) + KL(q, p)) / 2, infinite where one of two
      options alone has an action,
    - `information`: I(option; action | state) = H(mean_w pi_w) - mean_w H(pi_w), w uniform,
    - `usage_0`, ...: share of the steps in which an option ran; `usage_entropy`: their entropy,
    - `termination`: mean of terminations,
    - `switch_rate`: share of the steps in which another option runs than in the step before,
    - `duration`: steps from one termination to the next.

    Args:
      option_logits: logits of all options in every visited state, [T, ..., O, A], time first.
        -inf: an action that an option does not have.
      option_trace: the option that ran, [T, ...].
      terminations: 1 where the option that ran on arrival in the state ended there, or the
        probability of it; an episode's start counts as an end, [T, ...].
      temperature: of the softmax.

    Raises:
      ValueError: shapes that do not fit.
    """
    _check("option_indicators", option_logits, option_trace, terminations)
    num_options = option_logits.shape[-2]
    logits = wide(option_logits).reshape(-1, *option_logits.shape[-2:])
    log_probs = jax.nn.log_softmax(logits / temperature)
    probs = jnp.exp(log_probs)
    i, j = pairs(num_options)
    apart = probs[:, i] - probs[:, j]
    divergence = jnp.where(apart == 0, 0, apart * (log_probs[:, i] - log_probs[:, j])).sum(-1)
    log_mixture = jax.nn.logsumexp(log_probs, 1, keepdims=True) - math.log(num_options)
    return {
        "hellinger": hellinger_regularizer(logits, temperature=temperature).mean(),
        "symmetric_kl": 0.5 * divergence.mean(),
        "information": jnp.where(probs > 0, probs * (log_probs - log_mixture), 0).sum(-1).mean(),
        **usage_indicators(option_trace, terminations, num_options),
    }


def gaussian_option_indicators(
    mean: Float[Array, "time ... options size"],
    log_std: Float[Array, "time ... options size"],
    option_trace: Trace,
    terminations: Real[Array, "time ..."],
    key: Array,
    *,
    samples: int = 16,
) -> dict[str, Float[Array, ""]]:
    """`option_indicators` of diagonal Gaussian policies.

    `information` has no closed form; it is estimated from samples of every option in every state.

    Args:
      mean, log_std: [T, ..., O, D], time first.
      option_trace, terminations: [T, ...].
      key: of the samples.
      samples: how many an option and state.

    Raises:
      ValueError: shapes that do not fit.
    """
    _check("gaussian_option_indicators", mean, option_trace, terminations)
    if mean.shape != log_std.shape:
        raise ValueError(
            f"gaussian_option_indicators: mean {mean.shape} and log_std {log_std.shape} must be "
            "the same [T, ..., O, D]"
        )
    num_options = mean.shape[-2]
    m, l = (wide(x).reshape(-1, *mean.shape[-2:]) for x in (mean, log_std))
    i, j = pairs(num_options)
    variance, apart = jnp.exp(2 * l), (m[:, i] - m[:, j]) ** 2
    # The logarithms of the widths cancel in the sum of both directions.
    both = (variance[:, i] + apart) / variance[:, j] + (variance[:, j] + apart) / variance[:, i]
    divergence = 0.25 * (both - 2).sum(-1)
    x = m + jnp.exp(l) * jax.random.normal(key, (samples, *m.shape))
    log_probs = gaussian_log_prob(m[:, None], l[:, None], x[..., None, :])
    own = jnp.diagonal(log_probs, axis1=-2, axis2=-1)
    log_mixture = jax.nn.logsumexp(log_probs, -1) - math.log(num_options)
    return {
        "hellinger": gaussian_hellinger_regularizer(m, l).mean(),
        "symmetric_kl": divergence.mean(),
        "information": (own - log_mixture).mean(),
        **usage_indicators(option_trace, terminations, num_options),
    }


def usage_indicators(
    option_trace: Trace, terminations: Real[Array, "time ..."], num_options: int
) -> dict[str, Float[Array, ""]]:
    """The entries of `option_indicators` that the policies have no part in."""
    usage = jax.nn.one_hot(option_trace, num_options).reshape(-1, num_options).mean(0)
    log_usage = jnp.log(jnp.where(usage > 0, usage, 1.0))
    ends = wide(terminations)
    switched = (option_trace[1:] != option_trace[:-1]).astype(jnp.float32)
    executions = option_trace[0].size + ends[1:].sum()
    return {
        **{f"usage_{w}": usage[w] for w in range(num_options)},
        "usage_entropy": -(usage * log_usage).sum(),
        "termination": ends.mean(),
        "switch_rate": switched.sum() / max(switched.size, 1),
        "duration": option_trace.size / executions,
    }


def _check(name: str, policy: Array, option_trace: Array, terminations: Array) -> None:
    shape = jnp.shape(option_trace)
    right = len(shape) >= 1 and jnp.shape(policy)[:-2] == shape == jnp.shape(terminations)
    if not right or jnp.shape(policy)[-2] < 2:
        raise ValueError(
            f"{name}: policies {jnp.shape(policy)} must be [T, ..., O, A] with O >= 2, "
            f"option_trace {shape} and terminations {jnp.shape(terminations)} [T, ...]"
        )
