"""The attention heads of one pair of taps and the estimator that trains them, as functions.

Parameters of a pair are a dict: `sender_`, `receiver_` and `value_` each with `kernel`, `bn_scale`,
`bn_bias`, `bn_mean` and `bn_var`; `output_kernel` and `output_bias`. A head's width is
D = (Df + Db) // 2 for front and back taps of Df and Db channels.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.dtypes import wide

EPSILON, DECAY = 1e-5, 0.9  # of BatchNorm
Params = Mapping[str, Array]


def init_params(
    key: jax.Array,
    front_channels: int,
    back_channels: int,
    num_heads: int = 8,
    num_given: int = 0,
) -> dict[str, Array]:
    """Parameters and running statistics of one pair, He initialised by fan-out.

    With num_given the estimator has room for that many graphs from elsewhere.
    """
    width = (front_channels + back_channels) // 2
    sizes = {
        "sender": (back_channels, width * num_heads),
        "receiver": (front_channels, width * num_heads),
        "value": (front_channels, width),
        "output": ((num_heads + num_given) * width, back_channels),
    }
    init = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    params: dict[str, Array] = {}
    for (name, size), k in zip(sizes.items(), jax.random.split(key, len(sizes)), strict=True):
        params[f"{name}_kernel"] = init(k, size, jnp.float32)
        if name == "output":
            params["output_bias"] = jnp.zeros(back_channels)
            continue
        for part, fill in (("scale", 1.0), ("bias", 0.0), ("mean", 0.0), ("var", 1.0)):
            params[f"{name}_bn_{part}"] = jnp.full(size[1], fill, jnp.float32)
    return params


def split_statistics(params: Params) -> tuple[dict[str, Array], dict[str, Array]]:
    """(what a gradient trains, running statistics)."""
    ends = ("_bn_mean", "_bn_var")
    statistics = {k: v for k, v in params.items() if k.endswith(ends)}
    return {k: v for k, v in params.items() if k not in statistics}, statistics


def _normalised(
    params: Params, name: str, x: Array, train: bool, axis_name: str | None
) -> tuple[Array, dict[str, Array]]:
    """BatchNorm of x [B, features], and its new running statistics where it trains."""
    mean, var = (wide(params[f"{name}_bn_{part}"]) for part in ("mean", "var"))
    new: dict[str, Array] = {}
    if train:
        before = {"mean": mean, "var": var}
        mean = x.mean(0)
        mean = mean if axis_name is None else jax.lax.pmean(mean, axis_name)
        var = ((x - mean) ** 2).mean(0)
        var = var if axis_name is None else jax.lax.pmean(var, axis_name)
        now = {"mean": mean, "var": var}
        new = {
            f"{name}_bn_{part}": DECAY * old + (1 - DECAY) * jax.lax.stop_gradient(now[part])
            for part, old in before.items()
        }
    scale, bias = (wide(params[f"{name}_bn_{part}"]) for part in ("scale", "bias"))
    return (x - mean) * jax.lax.rsqrt(var + EPSILON) * scale + bias, new


def attention_logits(
    params: Params,
    back: Float[Array, "batch db"],
    front: Float[Array, "batch df"],
    *,
    num_heads: int = 8,
    train: bool = False,
    axis_name: str | None = None,
) -> Any:
    """S[a, i, j] = sum_d s[i, d, a] r[j, d, a]: how example i of the back tap attends to j's front.

    s and r are linear maps of the vectors followed by BatchNorm, without activation or scaling; the
    head is the fastest index of their features.

    Args:
      params: of the pair; see the module.
      back, front: a vector an example, of the back and of the front tap.
      num_heads: A.
      train: normalise by the batch, else by the running statistics.
      axis_name: inside `shard_map`, the axis over which the batch is split: rows are then this
        device's examples, columns and BatchNorm the whole batch's. None: the graph of the arrays
        as they are, which under `jit` is that of the global batch.

    Returns:
      [A, B, B] (columns: the whole batch), float32 at least; with `train` a pair of it and the new
      running statistics by name.

    Raises:
      ValueError: vectors or kernels that do not fit.

    Source: Lee, Song, BMVC 2019, the attention head network.
    """
    if back.ndim != 2 or front.ndim != 2 or len(back) != len(front):
        raise ValueError(
            f"attention_logits: back {back.shape} and front {front.shape} must be [B, Db] and "
            "[B, Df] with the same B"
        )
    kernels = {name: params[f"{name}_kernel"] for name in ("sender", "receiver")}
    shapes = [k.shape for k in kernels.values()]
    if [s[0] for s in shapes] != [back.shape[1], front.shape[1]] or shapes[0][1] % num_heads:
        raise ValueError(
            f"attention_logits: sender_kernel {shapes[0]} and receiver_kernel {shapes[1]} must be "
            f"[{back.shape[1]}, D A] and [{front.shape[1]}, D A] with A = {num_heads} heads"
        )
    features, statistics = {}, {}
    for name, x in (("sender", back), ("receiver", front)):
        mapped = jnp.matmul(wide(x), wide(kernels[name]), precision="highest")
        mapped, new = _normalised(params, name, mapped, train, axis_name)
        features[name] = mapped.reshape(len(x), -1, num_heads)
        statistics.update(new)
    receiver = features["receiver"]
    if axis_name is not None:
        receiver = jax.lax.all_gather(receiver, axis_name, tiled=True)
    logits = jnp.einsum("ida,jda->aij", features["sender"], receiver, precision="highest")
    return (logits, statistics) if train else logits


def sample_head_mask(key: jax.Array, num_heads: int, batch: int) -> Float[Array, "heads batch 1"]:
    """1 for the heads that an example keeps, 0 for those it drops: about half, never all or none.

    A head stays where its normal number is above the mean of the example's; a single head stays.
    """
    if num_heads == 1:
        return jnp.ones((1, batch, 1))
    drawn = jax.random.normal(key, (num_heads, batch, 1))
    return (drawn > drawn.mean(0)).astype(jnp.float32)


def estimate_back_vectors(
    params: Params,
    front: Float[Array, "batch df"],
    logits: Float[Array, "heads batch batch"],
    keep_mask: Float[Array, "heads batch 1"],
    *,
    given: Float[Array, "extra batch batch"] | None = None,
    train: bool = True,
) -> Float[Array, "batch db"]:
    """The back vectors as the graph carries the front vectors there: [B, Db], of length 1.

    softmax over j of the logits, heads dropped without rescaling, times relu(BN(front W_0)), the
    heads side by side, one linear layer.

    Args:
      params: of the pair; its `value_` and `output_` parts.
      front: teacher's vectors of the front tap.
      logits: S of the teacher, [A, B, B].
      keep_mask: of `sample_head_mask`, for the heads and then the given graphs.
      given: graphs from elsewhere, used as they are, without softmax, after the heads.
      train: BatchNorm by the batch, else by its running statistics (which nothing here updates: the
        estimator lives in the first phase alone).

    Raises:
      ValueError: shapes that do not fit.

    Source: Lee, Song, BMVC 2019, the estimator.
    """
    batch = len(front)
    given = jnp.zeros((0, batch, batch)) if given is None else wide(given)
    square = all(x.ndim == 3 and x.shape[1:] == (batch, batch) for x in (logits, given))
    if not square or keep_mask.shape != (len(logits) + len(given), batch, 1):
        raise ValueError(
            f"estimate_back_vectors: logits {logits.shape}, given {given.shape} and keep_mask "
            f"{keep_mask.shape} must be [A, {batch}, {batch}], [G, {batch}, {batch}] and "
            f"[A + G, {batch}, 1] for front {front.shape}"
        )
    graph = jnp.concatenate([jax.nn.softmax(wide(logits), -1), given]) * keep_mask
    value = jnp.matmul(wide(front), wide(params["value_kernel"]), precision="highest")
    value = jax.nn.relu(_normalised(params, "value", value, train, None)[0])
    moved = jnp.einsum("aij,jd->iad", graph, value, precision="highest").reshape(batch, -1)
    out = jnp.matmul(moved, wide(params["output_kernel"]), precision="highest")
    return l2_normalize(out + params["output_bias"])


def l2_normalize(x: Float[Array, "batch c"]) -> Float[Array, "batch c"]:
    """x / sqrt(max(sum x^2, 1e-12)), along the last axis."""
    return x * jax.lax.rsqrt(jnp.maximum((x**2).sum(-1, keepdims=True), 1e-12))
