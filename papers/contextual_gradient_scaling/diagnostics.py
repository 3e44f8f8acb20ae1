"""The mechanism, measured: how much each layer moves in the inner loop."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from reprise.common.ops.dtypes import wide
from reprise.papers.contextual_gradient_scaling import learner, tasks


def linear_cka(x: Float[Array, "n d"], y: Float[Array, "n e"]) -> Float[Array, ""]:
    """Linear centred kernel alignment of two sets of features of the same n examples, in [0, 1].

    ||Y^T X||^2 / (||X^T X|| ||Y^T Y||) on centred features (Kornblith et al., 2019), by n x n Gram
    matrices in float32. Invariant to rotations and to one common scale.

    Raises:
      ValueError: not the same number of examples.
    """
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ValueError(f"linear_cka: {x.shape} and {y.shape} must be [n, d] and [n, e]")

    def gram(values: Array) -> Array:
        centred = wide(values)
        centred = centred - centred.mean(0)
        return centred @ centred.T

    one, two = gram(x), gram(y)
    norms = jnp.sqrt((one**2).sum() * (two**2).sum())
    return (one * two).sum() / jnp.maximum(norms, 1e-30)


class Layers(NamedTuple):
    """Means over tasks and inner steps.

    Attributes:
      names: of the layers, the head last.
      gradients: norm of each kernel's gradient.
      changes: norm of each kernel's update over that of the kernel.
      representation: 1 - linear CKA of the last convolutional features before and after.
      gammas: mean of each layer's last scale, and its standard deviation over tasks; empty where
        there are none.
    """

    names: list[str]
    gradients: np.ndarray
    changes: np.ndarray
    representation: float
    gammas: np.ndarray


def layers(config: ConfigDict) -> Callable[[Any], Layers]:
    """Builds a function of meta-trained parameters: how the layers move on validation tasks."""
    names = [f"conv{i}" for i in range(len(config.model.filters))] + ["linear"]

    def one(params: Any, task: Any) -> Any:
        found = learner.judge(config, params, task, training=False)
        trace = found.trace
        representation = 1 - linear_cka(found.before, found.after)
        return trace.gradient_norms, trace.relative_changes, representation, trace.gammas

    @jax.jit
    def run(params: Any, batch: Any) -> Any:
        # Few tasks at a time: the features of all would not fit into a small machine.
        return jax.lax.map(lambda task: one(params, task), batch, batch_size=5)

    def mean_of(table: Any, name: str) -> float:
        return float(table[f"{name}/kernel"].mean()) if f"{name}/kernel" in table else 0.0

    def measure(params: Any) -> Layers:
        batch = tasks.first(config, "validation", config.data.diagnosed)
        gradients, changes, representation, gammas = jax.device_get(run(params, batch))
        scales = np.zeros((2, 0))
        if gammas is not None:
            last = np.asarray(gammas, np.float64)[:, -1]
            scales = np.stack([last.mean(0), last.std(0)])
        return Layers(
            names,
            np.asarray([mean_of(gradients, name) for name in names]),
            np.asarray([mean_of(changes, name) for name in names]),
            float(representation.mean()),
            scales,
        )

    return measure
