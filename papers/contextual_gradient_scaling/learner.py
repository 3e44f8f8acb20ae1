"""The network and the inner loop that a config asks for."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from reprise.papers.contextual_gradient_scaling import tasks
from reprise.papers.contextual_gradient_scaling.inner import Trace, adapt, cross_entropy
from reprise.papers.contextual_gradient_scaling.models import ConvNet
from reprise.papers.contextual_gradient_scaling.scaling import init_generator

METHODS = ("cxgrad", "maml", "anil")
HEAD = ("linear",)


class Judged(NamedTuple):
    """One task, before and after adaptation.

    Attributes:
      loss, accuracy: on the query set, after.
      trace: of the inner loop.
      before, after: last convolutional features of the query set [n, D].
    """

    loss: Array
    accuracy: Array
    trace: Trace
    before: Array
    after: Array


def network(config: ConfigDict) -> ConvNet:
    dtype = jnp.bfloat16 if config.precision == "bfloat16" else None
    net: Any = ConvNet(config.data.ways, tuple(config.model.filters), dtype)
    return net


def init(config: ConfigDict, image: Any, key: Array) -> dict[str, Any]:
    """The meta-parameters: {"net"} and for CxGrad {"generator"}.

    Args:
      image: one image, or its shape and dtype.
    """
    net = network(config)
    for_net, for_generator = jax.random.split(key)
    params: dict[str, Any] = {
        "net": net.init(for_net, jnp.zeros((1, *image.shape), jnp.float32))["params"]
    }
    if config.model.method == "cxgrad":
        params["generator"] = init_generator(
            for_generator,
            context_size=config.model.context_size,
            num_scales=len(config.model.filters),
        )
    return params


def judge(config: ConfigDict, params: Any, task: Any, *, training: bool) -> Judged:
    """Adapts to one task and judges it on the task's queries; vmap over tasks."""
    m, net = config.model, network(config)

    def features(params: Any, images: Array) -> tuple[Array, Array]:
        logits, taps = net.apply({"params": params}, images)
        return logits, taps[f"block{len(m.filters) - 1}"].reshape(len(images), -1)

    support = tasks.prepared(config, task["support_images"], training=training)
    query = tasks.prepared(config, task["query_images"], training=training)
    adapted, trace = adapt(
        lambda params, images: features(params, images)[0],
        params["net"],
        support,
        task["support_labels"],
        generator=params.get("generator"),
        num_steps=m.num_steps,
        inner_learning_rate=m.inner_learning_rate,
        context_learning_rate=m.context_learning_rate,
        scaled_paths=net.scaled_paths(),
        second_order=m.second_order and training,
        adapted_paths=HEAD if m.method == "anil" else None,
        checkpoint=m.checkpoint and training,
    )
    logits, after = features(adapted, query)
    loss = cross_entropy(logits, task["query_labels"]).mean()
    accuracy = (logits.argmax(-1) == task["query_labels"]).astype(jnp.float32).mean()
    before = features(params["net"], query)[1]
    return Judged(loss, accuracy, trace, before, after)
