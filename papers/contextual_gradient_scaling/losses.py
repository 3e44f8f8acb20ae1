"""The outer losses: one value a task, vmap over tasks for a meta-batch."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Array, Float, Int

from reprise.papers.contextual_gradient_scaling.inner import (
    ApplyFn,
    Params,
    Rate,
    cross_entropy,
    cxgrad_adapt,
    maml_adapt,
)
from reprise.papers.contextual_gradient_scaling.scaling import Generator


def cxgrad_query_loss(
    apply_fn: ApplyFn,
    params: Params,
    generator: Generator,
    support_images: Float[Array, "n ..."],
    support_labels: Int[Array, " n"],
    query_images: Float[Array, "m ..."],
    query_labels: Int[Array, " m"],
    *,
    num_steps: int = 5,
    inner_learning_rate: Rate = 0.01,
    context_learning_rate: float = 1.0,
    context_size: int = 100,
    scaled_paths: Sequence[Any],
    second_order: bool = True,
    adapted_paths: Sequence[Any] | None = None,
    checkpoint: bool = False,
) -> Float[Array, ""]:
    """Mean cross-entropy on the query set after `cxgrad_adapt`, whose arguments and errors it has.

    No scaling between the last update and the query pass. A scalar: it is defined on a whole task,
    as normalisation sees the whole query set.
    """
    adapted, _ = cxgrad_adapt(
        apply_fn,
        params,
        generator,
        support_images,
        support_labels,
        num_steps=num_steps,
        inner_learning_rate=inner_learning_rate,
        context_learning_rate=context_learning_rate,
        context_size=context_size,
        scaled_paths=scaled_paths,
        second_order=second_order,
        adapted_paths=adapted_paths,
        checkpoint=checkpoint,
    )
    return cross_entropy(apply_fn(adapted, query_images), query_labels).mean()


def maml_query_loss(
    apply_fn: ApplyFn,
    params: Params,
    support_images: Float[Array, "n ..."],
    support_labels: Int[Array, " n"],
    query_images: Float[Array, "m ..."],
    query_labels: Int[Array, " m"],
    *,
    num_steps: int = 5,
    inner_learning_rate: Rate = 0.01,
    second_order: bool = True,
    adapted_paths: Sequence[Any] | None = None,
    checkpoint: bool = False,
) -> Float[Array, ""]:
    """Mean cross-entropy on the query set after `maml_adapt`, whose arguments and errors it has."""
    adapted = maml_adapt(
        apply_fn,
        params,
        support_images,
        support_labels,
        num_steps=num_steps,
        inner_learning_rate=inner_learning_rate,
        second_order=second_order,
        adapted_paths=adapted_paths,
        checkpoint=checkpoint,
    )
    return cross_entropy(apply_fn(adapted, query_images), query_labels).mean()
