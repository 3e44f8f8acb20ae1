"""The graphs that the layers see: smoothing for the encoder, sharpening for the decoder."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from reprise.common.ops.graph import (
    SparseOperator,
    dense_normalized_operator,
    normalized_operator,
)


def smoothing_operator(adjacency: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """S = (D + I)^(-1/2) (A + I) (D + I)^(-1/2), dense: one step of Laplacian smoothing.

    A smoothing step is x - gamma L x with L = I - D^(-1/2) A D^(-1/2); with gamma = 1 and a self
    loop at each node it is S x. Eigenvalues are in (-1, 1].

    Args:
      adjacency: symmetric, not negative. Its diagonal does not count. A node without edges keeps
        its features.

    Raises:
      ValueError: not a square matrix. Values are not checked (`clean_edges` does on the host).
    """
    return dense_normalized_operator(adjacency, self_loop=1.0)


def sharpening_operator(adjacency: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """P = (D + 2I)^(-1/2) (2I - A) (D + 2I)^(-1/2), dense: the mirror image of smoothing.

    A sharpening step is x + gamma L x; with gamma = 1 its matrix 2I - D^(-1/2) A D^(-1/2) has
    eigenvalues in [1, 3] and grows without bound when stacked. Read as a SIGNED graph, with
    negative edges, self loops of 2 and degrees that sum ABSOLUTE weights (D + 2), it becomes P,
    with eigenvalues in [-1, 1] (paper, section 3.3). The row sum of 2I - A would not do as a
    degree: it can be 0 or negative.

    Args:
      adjacency: symmetric, not negative. Its diagonal does not count. A node without edges keeps
        its features.

    Raises:
      ValueError: not a square matrix. Values are not checked (`clean_edges` does on the host).
    """
    return dense_normalized_operator(adjacency, self_loop=2.0, edge_sign=-1.0)


def edge_smoothing_weights(
    edges: Int[Array, "2 e"], weights: Float[Array, " e"], n: int
) -> SparseOperator:
    """`smoothing_operator` of a graph given by its edges; nothing of size n x n is formed.

    Args:
      edges: [2, e], both directions of each edge, each once (`clean_edges` makes it so). Self
        loops do not count; an edge given twice counts twice.
      weights: [e], not negative.
      n: number of nodes.

    Raises:
      ValueError: shapes that do not fit.
    """
    return normalized_operator(edges, weights, n, self_loop=1.0)


def edge_sharpening_weights(
    edges: Int[Array, "2 e"], weights: Float[Array, " e"], n: int
) -> SparseOperator:
    """`sharpening_operator` of a graph given by its edges; see `edge_smoothing_weights`."""
    return normalized_operator(edges, weights, n, self_loop=2.0, edge_sign=-1.0)


def knn_affinity(
    features: Float[Array, "n channels"], k: int = 20, weight: float = 0.36787944117144233
) -> Float[Array, "n n"]:
    """A = G + G^T, where G[i, j] = weight for the k nearest neighbours j of i, itself excluded.

    Mutual neighbours get twice the weight; the default is exp(-1) (the official code's graph of
    images). Distances are Euclidean, in float32. Not differentiable. [n, n]: for tens of thousands
    of rows use `knn_edges`.

    Raises:
      ValueError: features that are no matrix, or k outside 1..n-1.
    """
    rows, columns = knn_pairs(features, k)
    n = len(features)
    graph = jnp.zeros((n, n), jnp.float32).at[rows, columns].set(weight)
    return graph + graph.T


@functools.partial(jax.jit, static_argnames=("k", "block"))
def knn_pairs(
    features: Float[Array, "n channels"], k: int, *, block: int = 1000
) -> tuple[Int[Array, " nk"], Int[Array, " nk"]]:
    """(node, neighbour) of the k nearest of each row, itself excluded: [n k] each.

    Distances are taken for `block` rows at a time.

    Raises:
      ValueError: features that are no matrix, or k outside 1..n-1.
    """
    if features.ndim != 2:
        raise ValueError(f"knn_pairs: features {features.shape} must be [n, channels]")
    n = len(features)
    if not 1 <= k < n:
        raise ValueError(f"knn_pairs: k = {k}: must be in 1..{n - 1} for {n} rows")
    wide = jnp.asarray(features, jnp.promote_types(features.dtype, jnp.float32))
    # Distances cancel where rows lie far from the origin. Not the mean: integers, and with them
    # equal distances, stay exact.
    wide = wide - jnp.median(wide, axis=0)
    squares = (wide**2).sum(1)

    def nearest(row: Array) -> Int[Array, " k"]:
        # |x - y|^2 without |x|^2, which is the same for all y.
        cross = jnp.matmul(wide, wide[row], precision="highest")
        distance = (squares - 2 * cross).at[row].set(jnp.inf)
        return jax.lax.top_k(-distance, k)[1]

    columns = jax.lax.map(nearest, jnp.arange(n), batch_size=min(block, n))
    return jnp.repeat(jnp.arange(n), k), columns.reshape(-1)


def knn_edges(
    features: Float[Array, "n channels"], k: int = 20, weight: float = 0.36787944117144233
) -> tuple[Int[Array, "2 e"], Float[Array, " e"]]:
    """The edges of `knn_affinity`: (edges [2, 2 n k], weights [2 n k]).

    A mutual pair is listed twice in each direction, which sums to twice the weight; do not pass
    the list through `clean_edges`, which would count it once.

    Raises:
      ValueError: see `knn_pairs`.
    """
    rows, columns = knn_pairs(features, k)
    edges = jnp.stack([jnp.concatenate([rows, columns]), jnp.concatenate([columns, rows])])
    return edges, jnp.full(edges.shape[1], weight, jnp.float32)
