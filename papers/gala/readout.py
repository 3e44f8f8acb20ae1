"""Latents -> clusters, without labels; and which of several clusterings to believe."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from reprise.common.ops.kmeans import kmeans
from reprise.papers.gala.losses import latent_affinity

READOUTS = ("kmeans_l2", "kmeans_raw", "spectral_l2", "spectral_raw")


def unit_rows(latent: Float[Array, "n k"]) -> Float[Array, "n k"]:
    """Each row divided by its norm; a row of zeros stays."""
    norm = jnp.linalg.norm(latent, axis=1, keepdims=True)
    return latent / jnp.where(norm > 0, norm, 1.0)


def spectral_assignment(
    affinity: Float[np.ndarray, "n n"], num_clusters: int, key: Array
) -> Int[np.ndarray, " n"]:
    """Normalised spectral clustering (Shi, Malik, 2000) with a given affinity; on the host.

    Negative entries count as 0; the diagonal counts as it is, where scikit-learn's spectral
    clustering of a precomputed affinity gives what a diagonal of 0 would. A node without affinity
    to any other says nothing: it joins the largest cluster.

    Raises:
      ValueError: an affinity that is not square, or not finite.
    """
    from scipy.linalg import eigh
    from scipy.sparse.linalg import eigsh

    affinity = np.asarray(affinity, np.float32)
    if affinity.ndim != 2 or affinity.shape[0] != affinity.shape[1]:
        raise ValueError(f"spectral_assignment: affinity {affinity.shape} must be [n, n]")
    _check_finite("spectral_assignment: affinity", affinity)
    positive = np.maximum(affinity, 0)
    known = positive.sum(1) > np.diag(positive)
    count = int(known.sum())
    if count <= num_clusters:
        return np.where(known, np.cumsum(known) - 1, 0)
    positive = positive[np.ix_(known, known)]
    scale = 1 / np.sqrt(positive.sum(1))
    positive *= scale[:, None] * scale
    if count <= 500:  # Lanczos may miss a copy of a repeated eigenvalue
        _, vectors = eigh(positive, subset_by_index=(count - num_clusters, count - 1))
    else:
        start = np.random.default_rng(0).standard_normal(count).astype(np.float32)
        _, vectors = eigsh(positive, k=num_clusters, which="LA", v0=start, tol=1e-4)
    points = jnp.asarray(vectors * scale[:, None])
    found = np.asarray(kmeans(key, points, num_clusters, num_restarts=10).assignments)
    out = np.full(len(known), np.bincount(found).argmax())
    out[known] = found
    return out


def read_out(
    name: str,
    latent: Float[Array, "n k"],
    num_clusters: int,
    key: Array,
    *,
    restarts: int = 20,
    mu: float = 1.0,
    lam: float = 50.0,
    rank: int | None = None,
) -> Int[np.ndarray, " n"]:
    """Clusters the rows of a latent.

    Args:
      name: "kmeans_l2", "kmeans_raw", "spectral_l2" or "spectral_raw": k-means, or spectral
        clustering with `latent_affinity`; of rows of unit norm, or as they are.
      latent: [n, k].
      num_clusters: how many.
      key: of k-means.
      restarts: of k-means.
      mu, lam, rank: of the affinity.

    Raises:
      ValueError: another name, or a latent or affinity that is not finite.
    """
    if name not in READOUTS:
        raise ValueError(f"read_out: {name!r}: allowed are {', '.join(READOUTS)}")
    _check_finite(f"read_out: {name}: latent", latent)
    method, _, rows = name.partition("_")
    points = unit_rows(latent) if rows == "l2" else jnp.asarray(latent)
    if method == "kmeans":
        return np.asarray(kmeans(key, points, num_clusters, num_restarts=restarts).assignments)
    affinity = jax.jit(latent_affinity, static_argnames="rank")(points, mu=mu, lam=lam, rank=rank)
    return spectral_assignment(np.asarray(affinity), num_clusters, key)


def _check_finite(what: str, matrix: Float[Any, "n _"]) -> None:
    values = np.asarray(matrix, np.float32)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise ValueError(
            f"{what} has {len(bad)} of {values.size} values that are not finite, the first in row "
            f"{bad[0, 0]}"
        )


def most_modular(modularities: Mapping[str, float]) -> str:
    """The rule that fixes epoch and read-out without labels: the clusters of highest modularity."""
    return max(modularities, key=lambda name: modularities[name])
