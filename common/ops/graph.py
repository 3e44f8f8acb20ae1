"""Graph operators, sparse and dense.

A sparse operator is a diagonal and a list of weighted edges; `propagate` multiplies it, or a dense
matrix, with the rows of a feature matrix. Nothing of size n x n is formed on the sparse path.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class SparseOperator(NamedTuple):
    """The matrix M with M[i, i] = diagonal[i] and M[edges[0], edges[1]] += weights.

    A pytree of arrays: it passes through jit, vmap and the loop like any other batch.

    Attributes:
      diagonal: [n].
      edges: [2, e], rows and columns. An undirected edge is there in both directions.
      weights: [e].
    """

    diagonal: Float[Array, " n"]
    edges: Int[Array, "2 e"]
    weights: Float[Array, " e"]


Operator = SparseOperator | Float[Array, "n n"]


def clean_edges(
    edges: Int[np.ndarray, "2 e"], num_nodes: int, weights: Float[np.ndarray, " e"] | None = None
) -> tuple[Int[np.ndarray, "2 e2"], Float[np.ndarray, " e2"]]:
    """Makes an edge list symmetric and simple: both directions once, no self loops, by row.

    On the host (numpy): the number of edges that stay depends on the values. A pair that occurs
    more than once, in either direction, counts once, with its largest weight. No edges at all is
    a graph too.

    Args:
      edges: [2, e] node numbers in any order, directed or not.
      num_nodes: n; nodes without an edge are allowed.
      weights: [e], not negative; default: 1 each. An edge of weight 0 is dropped.

    Returns:
      edges [2, e2] int32 sorted by row, weights [e2] float32.

    Raises:
      ValueError: a wrong shape, no nodes, a node number outside 0..n-1, or a weight that is
        negative or not finite; the first offending edge is named.
    """
    edges = np.asarray(edges)
    if edges.ndim != 2 or edges.shape[0] != 2:
        raise ValueError(f"clean_edges: edges {edges.shape} must be [2, e]")
    if num_nodes < 1:
        raise ValueError(f"clean_edges: num_nodes = {num_nodes}: must be 1 or more")
    if edges.size and not np.issubdtype(edges.dtype, np.integer):
        raise ValueError(f"clean_edges: edges of dtype {edges.dtype} must be integers")
    count = edges.shape[1]
    weights = np.ones(count, np.float32) if weights is None else np.asarray(weights, np.float32)
    if weights.shape != (count,):
        raise ValueError(f"clean_edges: weights {weights.shape} must be [e] = ({count},)")
    outside = ((edges < 0) | (edges >= num_nodes)).any(0)
    if outside.any():
        bad = int(outside.argmax())
        pair = edges[:, bad].tolist()
        raise ValueError(f"clean_edges: edge {bad} = {pair}: nodes must be in 0..{num_nodes - 1}")
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        bad = int(wrong.argmax())
        raise ValueError(
            f"clean_edges: weight {bad} = {weights[bad]}: weights must be finite and not negative"
        )
    low, high = edges.min(0), edges.max(0)
    keep = (low != high) & (weights > 0)
    pair = low[keep].astype(np.int64) * num_nodes + high[keep]
    unique, where = np.unique(pair, return_inverse=True)
    largest = np.zeros(len(unique), np.float32)
    np.maximum.at(largest, where, weights[keep])
    low, high = unique // num_nodes, unique % num_nodes
    both = np.stack([np.concatenate([low, high]), np.concatenate([high, low])])
    order = np.lexsort((both[1], both[0]))
    return both[:, order].astype(np.int32), np.concatenate([largest, largest])[order]


def check_features(features: Float[np.ndarray, "n channels"]) -> None:
    """Refuses features that are no finite matrix; on the host.

    Raises:
      ValueError: a wrong rank, no rows, or a value that is not finite; its place is named.
    """
    features = np.asarray(features)
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(f"check_features: features {features.shape} must be [n, channels], n >= 1")
    finite = np.isfinite(features)
    if not finite.all():
        node, channel = np.argwhere(~finite)[0].tolist()
        raise ValueError(
            f"check_features: node {node}, channel {channel} = {features[node, channel]}; "
            f"{(~finite).sum()} values of {features.size} are not finite"
        )


def degrees(
    edges: Int[Array, "2 e"], weights: Float[Array, " e"], num_nodes: int
) -> Float[Array, " n"]:
    """Sum of the weights of each node's edges; self loops do not count.

    Raises:
      ValueError: shapes that do not fit.
    """
    _check_edges("degrees", edges, weights)
    return jax.ops.segment_sum(_without_loops(edges, weights), edges[0], num_nodes)


def normalized_operator(
    edges: Int[Array, "2 e"],
    weights: Float[Array, " e"],
    num_nodes: int,
    *,
    self_loop: float = 1.0,
    edge_sign: float = 1.0,
    side: str = "both",
) -> SparseOperator:
    """(D + c I)^(-1/2) (s A + c I) (D + c I)^(-1/2), sparse.

    D is the degree of A. Self loops in the list do not count: the operator brings its own. With
    c = 0 the row of an isolated node is 0.

    Args:
      edges: [2, e], both directions of each edge, each once (see `clean_edges`).
      weights: [e], not negative.
      num_nodes: n.
      self_loop: c >= 0, weight of the self loops.
      edge_sign: s.
      side: "both", or "row" for the random walk (D + c I)^(-1) (s A + c I).

    Raises:
      ValueError: shapes that do not fit, or another `side`.
    """
    _check_edges("normalized_operator", edges, weights)
    weights = _without_loops(edges, weights)
    total = jax.ops.segment_sum(weights, edges[0], num_nodes) + self_loop
    left, right = _scales(total, side)
    rows, columns = edges
    scaled = edge_sign * left[rows] * weights * right[columns]
    return SparseOperator(self_loop * left * right, edges, scaled)


def dense_normalized_operator(
    adjacency: Float[Array, "n n"],
    *,
    self_loop: float = 1.0,
    edge_sign: float = 1.0,
    side: str = "both",
) -> Float[Array, "n n"]:
    """The dense twin of `normalized_operator`; the diagonal of `adjacency` does not count.

    Raises:
      ValueError: an adjacency that is not square, or another `side`.
    """
    if adjacency.ndim != 2 or adjacency.shape[0] != adjacency.shape[1]:
        raise ValueError(f"dense_normalized_operator: adjacency {adjacency.shape} must be [n, n]")
    wide = adjacency.astype(jnp.promote_types(adjacency.dtype, jnp.float32))
    identity = jnp.eye(len(wide), dtype=wide.dtype)
    wide = wide * (1 - identity)
    left, right = _scales(wide.sum(1) + self_loop, side)
    return left[:, None] * (edge_sign * wide + self_loop * identity) * right


def dense(operator: Operator) -> Float[Array, "n n"]:
    """The matrix of an operator, for small graphs."""
    if not isinstance(operator, SparseOperator):
        return operator
    rows, columns = operator.edges
    return jnp.diag(operator.diagonal).at[rows, columns].add(operator.weights)


def propagate(operator: Operator, values: Float[Array, "n channels"]) -> Float[Array, "n channels"]:
    """The product of an operator, sparse or dense, with the rows of `values`.

    Sums are in float32 at least; the result has the dtype of `values`.

    Raises:
      ValueError: shapes that do not fit.
    """
    nodes = (operator.diagonal if isinstance(operator, SparseOperator) else operator).shape[-1]
    if values.ndim != 2 or len(values) != nodes:
        raise ValueError(
            f"propagate: values {values.shape} must be [n, channels] with the operator's {nodes} "
            "nodes"
        )
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    if not isinstance(operator, SparseOperator):
        product = jnp.matmul(operator.astype(values.dtype), values, preferred_element_type=dtype)
        return product.astype(values.dtype)
    wide = values.astype(dtype)
    rows, columns = operator.edges
    moved = operator.weights.astype(dtype)[:, None] * wide[columns]
    out = operator.diagonal.astype(dtype)[:, None] * wide
    return (out + jax.ops.segment_sum(moved, rows, nodes)).astype(values.dtype)


def row_sums(operator: Operator) -> Float[Array, " n"]:
    """The operator times a vector of ones."""
    if not isinstance(operator, SparseOperator):
        return operator.sum(1)
    nodes = len(operator.diagonal)
    return operator.diagonal + jax.ops.segment_sum(operator.weights, operator.edges[0], nodes)


def _check_edges(function: str, edges: Array, weights: Array) -> None:
    if edges.ndim != 2 or edges.shape[0] != 2 or weights.shape != edges.shape[1:]:
        raise ValueError(
            f"{function}: edges {edges.shape} must be [2, e] and weights {weights.shape} [e]"
        )


def _without_loops(edges: Array, weights: Array) -> Float[Array, " e"]:
    wide = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
    return jnp.where(edges[0] == edges[1], 0.0, wide)


def _scales(total: Array, side: str) -> tuple[Array, Array]:
    """What multiplies rows and columns; 0 where there is no weight at all."""
    if side not in ("both", "row"):
        raise ValueError(f"side = {side!r}: allowed are both, row")
    known = total > 0
    safe = jnp.where(known, total, 1.0)
    if side == "row":
        return jnp.where(known, 1 / safe, 0.0), jnp.ones_like(total)
    scale = jnp.where(known, 1 / jnp.sqrt(safe), 0.0)
    return scale, scale
