"""How multi-label predictions are judged."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def multilabel_f1(
    probabilities: Float[Array, "batch labels"],
    labels: Float[Array, "batch labels"],
    threshold: float = 0.5,
) -> Float[Array, " batch"]:
    """F1 of each example: 2 |both| / (|predicted| + |true|) = 2 TP / (2 TP + FP + FN).

    Jeon, Lee, Choi (2021), multi-label classification.

    Args:
      probabilities: predicted, in [0, 1].
      labels: 0 or 1.
      threshold: a label is predicted where its probability is above this; at exactly 0.5 it is
        not, as the official code's rounding has it (round(0.5) = 0).

    Returns:
      [B] float32. 1 where nothing is true and nothing predicted (the official code gives NaN).

    Raises:
      ValueError: the shapes differ or are not [B, L].
    """
    if probabilities.ndim != 2 or probabilities.shape != labels.shape:
        raise ValueError(
            f"multilabel_f1: probabilities {probabilities.shape} and labels {labels.shape} must "
            "be the same [B, L]"
        )
    predicted = (probabilities > threshold).astype(jnp.float32)
    true = labels.astype(jnp.float32)
    both = (predicted * true).sum(-1)
    either = predicted.sum(-1) + true.sum(-1)
    return jnp.where(either > 0, 2 * both / jnp.maximum(either, 1.0), 1.0)


def binary_cross_entropy(
    probabilities: Float[Array, "batch labels"], labels: Float[Array, "batch labels"]
) -> Float[Array, " batch"]:
    """Mean over labels of -t log p - (1 - t) log(1 - p), each logarithm at least -100.

    For a fixed point that is itself a probability; on logits use
    `optax.sigmoid_binary_cross_entropy`. The clamp is PyTorch's, which the official code uses: a
    probability of exactly 0 or 1 on the wrong side costs 100 and has no gradient.

    Raises:
      ValueError: the shapes differ or are not [B, L].
    """
    if probabilities.ndim != 2 or probabilities.shape != labels.shape:
        raise ValueError(
            f"binary_cross_entropy: probabilities {probabilities.shape} and labels "
            f"{labels.shape} must be the same [B, L]"
        )
    p = probabilities.astype(jnp.float32)
    t = labels.astype(jnp.float32)

    def log(x: Float[Array, "batch labels"]) -> Float[Array, "batch labels"]:
        tiny = 1e-37
        return jnp.where(x > tiny, jnp.maximum(jnp.log(jnp.where(x > tiny, x, 1.0)), -100), -100.0)

    return -(t * log(p) + (1 - t) * log(1 - p)).mean(-1)
