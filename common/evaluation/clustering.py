"""How well clusters agree with classes, on the host; the numbers of the clusters do not matter."""

from typing import Any

import numpy as np
from jaxtyping import Int


def clustering_accuracy(labels: Int[Any, " n"], assignment: Int[Any, " n"]) -> float:
    """Share of examples that are right under the best one-to-one match of clusters to classes.

    The match is the Hungarian assignment. Where there are more clusters than classes, the examples
    of the clusters left over are wrong.

    Raises:
      ValueError: the two differ in length, are empty, or hold no integers.
    """
    from scipy.optimize import linear_sum_assignment

    table = contingency(labels, assignment)
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / table.sum())


def contingency(labels: Int[Any, " n"], assignment: Int[Any, " n"]) -> Int[np.ndarray, "c k"]:
    """How many examples of each class are in each cluster: [classes, clusters], those present.

    Raises:
      ValueError: the two differ in length, are empty, or hold no integers.
    """
    labels, assignment = _checked(labels, assignment)
    _, rows = np.unique(labels, return_inverse=True)
    _, columns = np.unique(assignment, return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1), np.int64)
    np.add.at(table, (rows, columns), 1)
    return table


def normalized_mutual_information(labels: Int[Any, " n"], assignment: Int[Any, " n"]) -> float:
    """Mutual information over the arithmetic mean of both entropies, in [0, 1].

    Raises:
      ValueError: see `contingency`.
    """
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(*_checked(labels, assignment)))


def adjusted_mutual_information(labels: Int[Any, " n"], assignment: Int[Any, " n"]) -> float:
    """NMI corrected for chance (arithmetic mean): 0 in expectation for random clusters.

    Raises:
      ValueError: see `contingency`.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(*_checked(labels, assignment)))


def adjusted_rand_index(labels: Int[Any, " n"], assignment: Int[Any, " n"]) -> float:
    """Share of pairs on which both agree, corrected for chance.

    Raises:
      ValueError: see `contingency`.
    """
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(*_checked(labels, assignment)))


def clustering_metrics(labels: Int[Any, " n"], assignment: Int[Any, " n"]) -> dict[str, float]:
    """{"acc", "nmi", "ami", "ari"}: the four functions above.

    Raises:
      ValueError: see `contingency`.
    """
    return {
        "acc": clustering_accuracy(labels, assignment),
        "nmi": normalized_mutual_information(labels, assignment),
        "ami": adjusted_mutual_information(labels, assignment),
        "ari": adjusted_rand_index(labels, assignment),
    }


def modularity(
    edges: Int[Any, "2 e"], assignment: Int[Any, " n"], weights: Any | None = None
) -> float:
    """Share of edges inside clusters minus what is expected from degrees alone: needs no labels.

    Args:
      edges: [2, e], both directions of each edge.
      assignment: [n].
      weights: [e], not negative; default: 1 each.

    Returns:
      The modularity of Newman and Girvan, in [-1/2, 1); 0 for a graph without edges.

    Raises:
      ValueError: edges that are not [2, e], or a node without assignment.
    """
    edges, assignment = np.asarray(edges), np.asarray(assignment)
    if edges.ndim != 2 or edges.shape[0] != 2 or assignment.ndim != 1:
        raise ValueError(
            f"modularity: edges {edges.shape} must be [2, e] and assignment {assignment.shape} [n]"
        )
    if edges.size and edges.max() >= len(assignment):
        raise ValueError(
            f"modularity: node {edges.max()} has no assignment: there are {len(assignment)}"
        )
    weights = np.ones(edges.shape[1]) if weights is None else np.asarray(weights, np.float64)
    total = weights.sum()
    if total == 0:
        return 0.0
    _, cluster = np.unique(assignment, return_inverse=True)
    start, end = cluster[edges[0]], cluster[edges[1]]
    inside = weights[start == end].sum() / total
    share = np.bincount(start, weights) / total
    return float(inside - (share**2).sum())


def _checked(labels: Any, assignment: Any) -> tuple[np.ndarray, np.ndarray]:
    labels, assignment = np.asarray(labels), np.asarray(assignment)
    if labels.ndim != 1 or labels.shape != assignment.shape or not len(labels):
        raise ValueError(
            f"clustering: labels {labels.shape} and assignment {assignment.shape} must be the same "
            "[n], n >= 1"
        )
    for name, value in (("labels", labels), ("assignment", assignment)):
        if not np.issubdtype(value.dtype, np.integer):
            raise ValueError(f"clustering: {name} of dtype {value.dtype} must be integers")
    return labels, assignment
