"""How well scores tell links from non-links, on the host."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int


def link_prediction_metrics(
    positive: Float[Any, " p"], negative: Float[Any, " q"]
) -> dict[str, float]:
    """{"auc", "ap"}: area under the ROC curve and average precision.

    Args:
      positive: scores of held-out links; only their order matters.
      negative: scores of pairs without a link.

    Raises:
      ValueError: either is empty or no vector, or a score is not finite.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    positive, negative = np.asarray(positive, np.float64), np.asarray(negative, np.float64)
    for name, value in (("positive", positive), ("negative", negative)):
        if value.ndim != 1 or not len(value):
            raise ValueError(f"link_prediction_metrics: {name} {value.shape} must be [>= 1]")
        finite = np.isfinite(value)
        if not finite.all():
            raise ValueError(
                f"link_prediction_metrics: {(~finite).sum()} of {len(value)} {name} scores are not "
                "finite"
            )
    truth = np.concatenate([np.ones(len(positive), int), np.zeros(len(negative), int)])
    scores = np.concatenate([positive, negative])
    return {
        "auc": float(roc_auc_score(truth, scores)),
        "ap": float(average_precision_score(truth, scores)),
    }


def pair_scores(latent: Float[Any, "n k"], pairs: Int[Any, "2 m"]) -> Float[np.ndarray, " m"]:
    """Inner product of the two rows of each pair, in float64.

    Raises:
      ValueError: shapes that do not fit, or a node number outside 0..n-1; its pair is named.
    """
    latent, pairs = np.asarray(latent, np.float64), np.asarray(pairs)
    if latent.ndim != 2 or pairs.ndim != 2 or pairs.shape[0] != 2:
        raise ValueError(
            f"pair_scores: latent {latent.shape} must be [n, k] and pairs {pairs.shape} [2, m]"
        )
    outside = ((pairs < 0) | (pairs >= len(latent))).any(0)
    if outside.any():
        bad = int(outside.argmax())
        raise ValueError(
            f"pair_scores: pair {bad} = {pairs[:, bad].tolist()}: nodes must be in "
            f"0..{len(latent) - 1}"
        )
    return (latent[pairs[0]] * latent[pairs[1]]).sum(1)
