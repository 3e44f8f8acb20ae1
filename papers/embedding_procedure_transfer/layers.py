"""The network that turns points of two consecutive taps into affinities, by passing messages."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Params = dict[str, Array]

_einsum = functools.partial(jnp.einsum, precision="highest")


def message_passing_init(key: jax.Array, back_width: int, front_width: int, width: int) -> Params:
    """Parameters and statistics of `message_passing`.

    edge_kernel [front_width, width], message_kernel and gate_kernel [back_width + 1, width], and of
    each of the three a BatchNorm: `<name>_bn_scale`, `_bn_bias` (parameters), `_bn_mean`, `_bn_var`
    (statistics), [width].

    Args:
      key: for the kernels, of the variance 2 / width as in the authors' code.
      back_width, front_width: of the points.
      width: D, of the messages.
    """
    rows = {"edge": front_width, "message": back_width + 1, "gate": back_width + 1}
    init = jax.nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
    params: Params = {}
    for name, each in zip(rows, jax.random.split(key, 3), strict=True):
        params[f"{name}_kernel"] = init(each, (rows[name], width), jnp.float32)
        for part, value in (("scale", 1.0), ("bias", 0.0), ("mean", 0.0), ("var", 1.0)):
            params[f"{name}_bn_{part}"] = jnp.full((width,), value, jnp.float32)
    return params


def message_passing(
    params: Params,
    back: Float[Array, "batch db"],
    front: Float[Array, "batch df"],
    *,
    num_iterations: int = 2,
    train: bool = False,
) -> tuple[Any, ...]:
    """Estimates the affinities at the back tap from the front one's, in few equal steps.

    With e = l2norm(BN(front W_E)), E = D e_i e_j, H_ij = back_i - back_j and h = [H, mean_d E]:

        M = BN(h W_M) sigmoid(BN(h W_G)),  E <- E + M

    num_iterations times. Every pair counts, i = j too. A batch normalises over its B rows for E,
    and over its B^2 pairs for M and G. In float32 at least.

    Args:
      params: see `message_passing_init`.
      back, front: points of the two taps, for the same examples.
      num_iterations: I.
      train: normalise by the batch, not by `params`' statistics.

    Returns:
      (affinity R = mean_d E [B, B], messages [B, B, I D]), and with `train` the new statistics, by
      the names of `params`: of each use 0.1, of the old ones 0.9.

    Raises:
      ValueError: shapes that do not fit, or no iteration.

    Source: Lee, Song, AAAI 2021, the message passing neural network.
    """
    rows = {name: params[f"{name}_kernel"].shape[0] for name in ("edge", "message", "gate")}
    shapes = back.ndim, front.ndim, len(back), front.shape[-1], back.shape[-1] + 1
    if shapes != (2, 2, len(front), rows["edge"], rows["message"]):
        raise ValueError(
            f"message_passing: back {back.shape} and front {front.shape} must be "
            f"[B, {rows['message'] - 1}] and [B, {rows['edge']}] for these params"
        )
    if num_iterations < 1:
        raise ValueError(f"message_passing: num_iterations = {num_iterations}: must be 1 or more")
    wide = jnp.promote_types(jnp.result_type(back, front), jnp.float32)
    back, front = back.astype(wide), front.astype(wide)
    statistics = {name: x for name, x in params.items() if name.endswith(("_bn_mean", "_bn_var"))}

    def dense(name: str, x: Array) -> Array:
        x = _einsum("...c,cd->...d", x, params[f"{name}_kernel"])
        mean, var = params[f"{name}_bn_mean"], params[f"{name}_bn_var"]
        if train:
            axes = tuple(range(x.ndim - 1))
            mean, var = x.mean(axes), x.var(axes)
            for part, value in (("mean", mean), ("var", var)):
                old = statistics[f"{name}_bn_{part}"]
                new = 0.9 * old + 0.1 * jax.lax.stop_gradient(value)
                statistics[f"{name}_bn_{part}"] = new.astype(old.dtype)
        x = (x - mean) * jax.lax.rsqrt(var + 1e-5)
        return x * params[f"{name}_bn_scale"] + params[f"{name}_bn_bias"]

    e = dense("edge", front)
    e = e * jax.lax.rsqrt(jnp.maximum((e**2).sum(-1, keepdims=True), 1e-12))
    edges = e.shape[-1] * e[:, None] * e
    apart = back[:, None] - back
    messages = []
    for _ in range(num_iterations):
        h = jnp.concatenate([apart, edges.mean(-1, keepdims=True)], -1)
        messages.append(dense("message", h) * jax.nn.sigmoid(dense("gate", h)))
        edges = edges + messages[-1]
    out = edges.mean(-1), jnp.concatenate(messages, -1)
    return (*out, statistics) if train else out
