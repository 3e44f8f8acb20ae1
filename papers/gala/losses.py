"""The costs: features, subspaces, links."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from reprise.common.ops.svd import thin_svd


def feature_reconstruction_loss(
    features: Float[Array, "n channels"], reconstruction: Float[Array, "n channels"]
) -> Float[Array, " n"]:
    """Half the squared error of each node, summed over features: [n].

    Its mean over nodes is L_rec = ||X - Xhat||_F^2 / (2n), as the official code scales it; the
    paper (equation 9) leaves out 1/n.

    Raises:
      ValueError: the two differ in shape, or are no matrices.
    """
    if features.ndim != 2 or features.shape != reconstruction.shape:
        raise ValueError(
            f"feature_reconstruction_loss: features {features.shape} and reconstruction "
            f"{reconstruction.shape} must be the same [n, channels]"
        )
    wide = jnp.promote_types(features.dtype, jnp.float32)
    return 0.5 * ((features.astype(wide) - reconstruction.astype(wide)) ** 2).sum(-1)


def subspace_clustering_cost(
    latent: Float[Array, "n k"], *, mu: float = 1.0, lam: float = 50.0
) -> Float[Array, ""]:
    """min over A of (lam/2) ||H - A H||_F^2 + (mu/2) ||A||_F^2, in closed form: one scalar.

    Its value is (mu lam / 2) tr[(mu I_k + lam H^T H)^(-1) H^T H], from the singular values of H;
    the gradient is exact, and finite for any rank. Batch-level: it looks at all nodes together.
    Bounded by mu k / 2: where lam times the scale of H^T H is far above mu it saturates, and its
    gradient is small. The official code takes a rank-20 SVD with rescaled singular values instead;
    this is the paper's formula (section 3.4).

    Args:
      latent: H, a row a node.
      mu: weight of the affinity's size, above 0.
      lam: weight of the reconstruction, above 0.

    Raises:
      ValueError: latent is no matrix, or mu or lam is not positive.
    """
    _check_latent("subspace_clustering_cost", latent, mu, lam)
    wide = latent.astype(jnp.promote_types(latent.dtype, jnp.float32))
    return 0.5 * mu * _filtered(wide, jnp.asarray(lam / mu, wide.dtype))[0]


_dot = functools.partial(jnp.matmul, precision="highest")


def _thin(latent: Array) -> tuple[Array, Array, Array]:
    """The thin SVD, with singular values that are no more than rounding taken as 0."""
    left, values, right = thin_svd(latent)
    tiny = jnp.finfo(values.dtype).eps * max(latent.shape) ** 0.5
    return left, jnp.where(values > tiny * values[0], values, 0.0), right


@jax.custom_jvp
def _filtered(latent: Array, ratio: Array) -> tuple[Array, Array, Array]:
    """(r tr[W H^T H], H W, H W^2) with W = (I_k + r H^T H)^(-1), r the ratio, of one SVD.

    No system is solved: where r times the scale of H^T H is above the inverse of the rounding
    error, a factorisation of W's inverse fails, or leaves nothing of the gradient's digits.
    """
    left, values, right = _thin(latent)
    weights = 1 / (1 + ratio * values**2)
    once, twice = (_dot(left * (values * weights**power), right) for power in (1, 2))
    return (ratio * values**2 * weights).sum(), once, twice


@_filtered.defjvp
def _filtered_jvp(primals: Any, tangents: Any) -> Any:
    (latent, ratio), (d_latent, d_ratio) = primals, tangents
    share, once, twice = _filtered(latent, ratio)
    weights = jnp.eye(latent.shape[1], dtype=latent.dtype) - ratio * _dot(latent.T, once)  # W
    moved = _dot(d_latent, weights)
    half = _dot(once.T, moved)
    d_weights = -ratio * (half + half.T) - d_ratio * _dot(once.T, once)
    d_share = 2 * ratio * (twice * d_latent).sum() + d_ratio * (once**2).sum()
    d_once = moved + _dot(latent, d_weights)
    d_twice = _dot(d_once, weights) + _dot(once, d_weights)
    return (share, once, twice), (d_share, d_once, d_twice)


@jax.custom_jvp
def _affinity(latent: Array, ratio: Array) -> Array:
    left, values, _ = _thin(latent)
    return _dot(left * (ratio * values**2 / (1 + ratio * values**2)), left.T)


@_affinity.defjvp
def _affinity_jvp(primals: Any, tangents: Any) -> Any:
    (latent, ratio), (d_latent, d_ratio) = primals, tangents
    affinity, once = _affinity(latent, ratio), _filtered(latent, ratio)[1]
    half = ratio * _dot(d_latent - _dot(affinity, d_latent), once.T)
    return affinity, half + half.T + d_ratio * _dot(once, once.T)


def latent_affinity(
    latent: Float[Array, "n k"], *, mu: float = 1.0, lam: float = 50.0, rank: int | None = None
) -> Float[Array, "n n"]:
    """A_H = lam H (mu I_k + lam H^T H)^(-1) H^T, the affinity at the minimum of the SCC: [n, n].

    Symmetric, positive semi-definite, eigenvalues below 1; entries may be negative.

    Args:
      latent: H, a row a node.
      mu, lam: see `subspace_clustering_cost`.
      rank: keep only so many of the largest singular values of H, as the official code does with
        20; None keeps all.

    Raises:
      ValueError: latent is no matrix, mu or lam is not positive, or rank is not in 1..min(n, k).
    """
    _check_latent("latent_affinity", latent, mu, lam)
    wide = latent.astype(jnp.promote_types(latent.dtype, jnp.float32))
    if rank is None:
        return _affinity(wide, jnp.asarray(lam / mu, wide.dtype))
    if not 1 <= rank <= min(latent.shape):
        raise ValueError(f"latent_affinity: rank = {rank}: must be in 1..{min(latent.shape)}")
    left, values, _ = jnp.linalg.svd(wide, full_matrices=False)
    left, values = left[:, :rank], values[:rank]
    return (left * (lam * values**2 / (mu + lam * values**2))) @ left.T


def link_reconstruction_loss(
    latent: Float[Array, "n k"],
    adjacency: Float[Array, "n n"],
    *,
    pos_weight: float | None = None,
) -> Float[Array, ""]:
    """Weighted cross-entropy of sigmoid(H H^T) against A + I: one scalar, over all pairs.

    With E non-zeros in A + I, links weigh `pos_weight` = (n^2 - E) / E and everything is scaled by
    n^2 / (2 (n^2 - E)), so that links and non-links weigh the same (the convention of GAE; the
    paper's own weights are not known). Batch-level. Dense; `edge_link_reconstruction_loss` needs
    no adjacency matrix.

    Args:
      latent: H, a row a node.
      adjacency: symmetric, non-zero where there is a link IN TRAINING; its diagonal does not count.
      pos_weight: weight of a link; None: as above.

    Raises:
      ValueError: shapes that do not fit.
    """
    n = len(latent)
    if latent.ndim != 2 or adjacency.shape != (n, n):
        raise ValueError(
            f"link_reconstruction_loss: latent {latent.shape} must be [n, k] and adjacency "
            f"{adjacency.shape} [n, n]"
        )
    wide = jnp.promote_types(latent.dtype, jnp.float32)
    linked = (adjacency != 0) | jnp.eye(n, dtype=bool)
    logits = latent.astype(wide) @ latent.astype(wide).T
    count = linked.sum()
    weight, norm = _link_weights(n, count, wide, pos_weight)
    each = jnp.where(linked, weight * jax.nn.softplus(-logits), jax.nn.softplus(logits))
    return norm * each.mean()


def edge_link_reconstruction_loss(
    latent: Float[Array, "n k"],
    edges: Int[Array, "2 e"],
    *,
    pos_weight: float | None = None,
    block: int | None = None,
) -> Float[Array, ""]:
    """`link_reconstruction_loss` of a graph given by its edges, without an adjacency matrix.

    Logits are taken `block` rows at a time and recomputed in the backward pass, so that memory
    grows with block x n.

    Args:
      latent: H, a row a node.
      edges: [2, e], both directions of each edge, each once, no self loops (`clean_edges`).
      pos_weight: see `link_reconstruction_loss`.
      block: rows at a time; None: all up to 4096 nodes, which is twice as fast, else 512.

    Raises:
      ValueError: shapes that do not fit.
    """
    if latent.ndim != 2 or edges.ndim != 2 or edges.shape[0] != 2:
        raise ValueError(
            f"edge_link_reconstruction_loss: latent {latent.shape} must be [n, k] and edges "
            f"{edges.shape} [2, e]"
        )
    n = len(latent)
    wide = latent.astype(jnp.promote_types(latent.dtype, jnp.float32))
    weight, norm = _link_weights(n, jnp.asarray(n + edges.shape[1]), wide.dtype, pos_weight)

    @jax.checkpoint
    def as_if_unlinked(row: Array) -> Array:
        return jax.nn.softplus(wide @ row).sum()

    if block is None and n <= 4096:
        total = jax.nn.softplus(wide @ wide.T).sum()
    else:
        total = jax.lax.map(as_if_unlinked, wide, batch_size=min(block or 512, n)).sum()
    own = (wide**2).sum(1)
    linked = jnp.concatenate([own, (wide[edges[0]] * wide[edges[1]]).sum(1)])
    total += (weight * jax.nn.softplus(-linked) - jax.nn.softplus(linked)).sum()
    return norm * total / n**2


def _link_weights(
    n: int, count: Array, dtype: jnp.dtype, pos_weight: float | None
) -> tuple[Array, Array]:
    """(weight of a link, scale of the mean); a complete graph has no non-links to weigh against."""
    linked, pairs = count.astype(dtype), float(n) ** 2
    unlinked = pairs - linked
    some = unlinked > 0
    norm = jnp.where(some, pairs / (2 * jnp.where(some, unlinked, 1.0)), 1.0)
    weight = jnp.where(some, unlinked / linked, 1.0) if pos_weight is None else pos_weight
    return jnp.asarray(weight, dtype), norm


def _check_latent(function: str, latent: Array, mu: float, lam: float) -> None:
    if latent.ndim != 2:
        raise ValueError(f"{function}: latent {latent.shape} must be [n, k]")
    for name, value in (("mu", mu), ("lam", lam)):
        if not isinstance(value, jax.core.Tracer) and not value > 0:
            raise ValueError(f"{function}: {name} = {value}: must be above 0")
