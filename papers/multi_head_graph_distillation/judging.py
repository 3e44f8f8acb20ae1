"""How close a student's attention graphs come to its teacher's on test images."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from reprise.common.ops.svd import canonicalize_sign, truncated_svd
from reprise.common.training import distillation
from reprise.common.training.distillation import Setting
from reprise.papers.multi_head_graph_distillation import layers, losses

BATCHES = 11  # test batches at most: graphs depend on how many examples they have


def teacher_vectors(
    features: Sequence[Float[Array, "batch _ _ _"]],
) -> list[Float[Array, "batch _"]]:
    """The teacher's side of `principal_vectors`, without a student."""
    flat = [x.reshape(len(x), -1, x.shape[-1]) for x in features]
    return [canonicalize_sign(truncated_svd(x, 1)[1])[..., 0] for x in flat]


def vectors_of(
    setting: Setting, taps: Sequence[str], current: Any, image: jax.Array
) -> tuple[list[jax.Array], list[jax.Array]]:
    """`principal_vectors` of (student, teacher) in inference mode, at a state of the student."""
    carried = current.model_state
    variables = {"params": current.params["student"], "batch_stats": carried.stats}
    _, ours = setting.student.apply(variables, image, train=False)
    _, theirs = distillation.run_teacher(setting, carried, image)
    return losses.principal_vectors([ours[n] for n in taps], [theirs[n] for n in taps])


def test_batches(setting: Setting, batch_size: int) -> np.ndarray:
    """[batches, batch_size, H, W, C] of the test images."""
    image = setting.evaluation[""]["image"]
    size = min(batch_size, len(image))
    count = min(BATCHES, len(image) // size)
    return np.asarray(image[: count * size]).reshape(count, size, *image.shape[1:])


def likeness(
    setting: Setting, taps: Sequence[str], num_heads: int, batch_size: int
) -> Callable[[Any], dict[str, float]]:
    """evaluate(state): whether graphs are alike, or the student's only flat.

    `flat_kl`: the distance to the teacher of graphs without any preference, `correlation`: of the
    student's log shares with the teacher's over all heads, rows and pairs of taps; both means over
    test batches.
    """

    @jax.jit
    def measure(current: Any, image: jax.Array) -> dict[str, jax.Array]:
        ours, theirs = vectors_of(setting, taps, current, image)
        flat, logs = jnp.zeros(()), []
        for i, params in enumerate(current.model_state.extra):
            pair = [
                layers.attention_logits(params, of[i + 1], of[i], num_heads=num_heads)
                for of in (ours, theirs)
            ]
            flat += losses.attention_graph_loss(jnp.zeros_like(pair[1]), pair[1]).sum()
            logs.append([jax.nn.log_softmax(jnp.tanh(logits), -1).ravel() for logits in pair])
        s, t = (jnp.concatenate(each) for each in zip(*logs, strict=True))
        return {"flat_kl": flat, "correlation": jnp.corrcoef(s, t)[0, 1]}

    batches = test_batches(setting, batch_size)

    def evaluate(current: Any) -> dict[str, float]:
        each = [jax.device_get(measure(current, batch)) for batch in batches]
        return {name: float(np.mean([m[name] for m in each])) for name in each[0]}

    return evaluate


def graphs(
    setting: Setting, taps: Sequence[str], num_heads: int, batch_size: int
) -> Callable[[Any], dict[str, float]]:
    """evaluate(state) with the attention networks in `Carried.extra`: means over test batches.

    `graph_kl`: `multi_head_graph_distillation_loss` of the student. `estimator_i`: what the
    estimator of pair i loses on the teacher's vectors with all heads, `mean_vector_i`: what their
    mean direction loses.
    """
    batches = test_batches(setting, batch_size)

    @jax.jit
    def measure(current: Any, image: jax.Array) -> dict[str, jax.Array]:
        ours, theirs = vectors_of(setting, taps, current, image)
        pairs = current.model_state.extra
        out = {
            "graph_kl": losses.multi_head_graph_distillation_loss(
                pairs, ours, theirs, num_heads=num_heads
            )
        }
        for i, params in enumerate(pairs):
            front, back = theirs[i], theirs[i + 1]
            logits, _ = layers.attention_logits(
                params, back, front, num_heads=num_heads, train=True
            )
            keep = jnp.ones((num_heads, len(image), 1))
            estimate = layers.estimate_back_vectors(params, front, logits, keep)
            mean = jnp.broadcast_to(back.mean(0), back.shape)
            loss = losses.vector_estimation_loss
            out[f"estimator_{i + 1}"] = loss(estimate, back).mean()
            out[f"mean_vector_{i + 1}"] = loss(mean, back).mean()
        return out

    def evaluate(current: Any) -> dict[str, float]:
        each = [jax.device_get(measure(current, batch)) for batch in batches]
        return {name: float(np.mean([m[name] for m in each])) for name in each[0]}

    return evaluate
