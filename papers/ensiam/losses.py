"""The losses: EnSiam's ensemble target and SimSiam's single-view targets."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.dtypes import wide

Views = Float[Array, "views batch d"]


def _check(name: str, predictions: Array, projections: Array) -> None:
    if projections.ndim != 3 or predictions.shape != projections.shape or len(projections) < 2:
        raise ValueError(
            f"{name}: predictions {predictions.shape} and projections {projections.shape} must be "
            "the same [K, B, d], K >= 2 views"
        )


def unit(x: Float[Array, "... d"], eps: float = 1e-8) -> Float[Array, "... d"]:
    """x / max(|x|, eps), in float32 or wider; the gradient at 0 is finite."""
    x = wide(x)
    return x / jnp.sqrt(jnp.maximum((x**2).sum(-1, keepdims=True), eps**2))


def ensemble_target(
    projections: Views, *, normalize_members: bool = False
) -> Float[Array, "batch d"]:
    """zbar, the mean of the K views' projections: [B, d], float32 or wider.

    Not differentiated: the gradient is stopped at the mean. Han and Lee, "EnSiam" (2023).

    Args:
      projections: z_k = f(x_k), [K, B, d].
      normalize_members: scale every z_k to unit length first. The paper leaves it open; behind a
        BatchNorm without affine the norms are nearly equal, and so are the two choices.

    Raises:
      ValueError: projections are no [K, B, d].
    """
    if projections.ndim != 3 or not len(projections):
        raise ValueError(f"ensemble_target: projections {projections.shape} must be [K, B, d]")
    members = unit(projections) if normalize_members else wide(projections)
    return jax.lax.stop_gradient(members.mean(0))


def ensiam_loss(
    predictions: Views,
    projections: Views,
    *,
    normalize_members: bool = False,
    eps: float = 1e-8,
) -> Float[Array, " batch"]:
    """EnSiam: every view predicts the mean of all K, [B], in [-1, 1].

        L = -(1/K) sum_k <p_k, sg(zbar)> / (max(|p_k|, eps) max(|zbar|, eps))

    Projections get no gradient here; through p_k = h(z_k) they do. A view's own z_k is part of the
    target. Han and Lee, "EnSiam: Self-Supervised Learning With Ensemble Representations" (2023).

    Args:
      predictions: p_k, [K, B, d].
      projections: z_k, [K, B, d].
      normalize_members: see `ensemble_target`.
      eps: smallest norm that is divided by.

    Raises:
      ValueError: shapes that differ or are no [K, B, d], K >= 2.
    """
    _check("ensiam_loss", predictions, projections)
    target = ensemble_target(projections, normalize_members=normalize_members)
    return -(unit(predictions, eps) * unit(target, eps)).sum(-1).mean(0)


def simsiam_pairwise_loss(
    predictions: Views, projections: Views, *, eps: float = 1e-8
) -> Float[Array, " batch"]:
    """SimSiam: every view predicts each of the others, [B], in [-1, 1].

        L = -(1/(K (K - 1))) sum_k sum_{l != k} cos(p_k, sg(z_l))

    K = 2 is SimSiam (Chen and He, CVPR 2021, equation 2), K > 2 the baseline "SimSiam K-aug".

    Args:
      predictions: p_k, [K, B, d].
      projections: z_k, [K, B, d]; no gradient.
      eps: smallest norm that is divided by.

    Raises:
      ValueError: shapes that differ or are no [K, B, d], K >= 2.
    """
    _check("simsiam_pairwise_loss", predictions, projections)
    target = jax.lax.stop_gradient(unit(projections, eps))
    others = target.sum(0) - target  # the sum over l != k, in K terms instead of K^2
    count = len(target)
    return -(unit(predictions, eps) * others).sum(-1).sum(0) / (count * (count - 1))


def target_variance(targets: Float[Array, "redraws batch d"]) -> Float[Array, " batch"]:
    """Variance of unit-length targets over redrawn views: mean over redraws of |t - mean t|^2, [B].

    What the ensemble is for: with K independent views it is about 1 / K of one view's.

    Args:
      targets: one target an image and redraw, of any length.

    Raises:
      ValueError: targets are no [R, B, d].
    """
    if targets.ndim != 3:
        raise ValueError(f"target_variance: targets {targets.shape} must be [R, B, d]")
    t = unit(targets)
    return ((t - t.mean(0)) ** 2).sum(-1).mean(0)
