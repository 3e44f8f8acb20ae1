"""Graphs for recipes: loading, generating, and splitting their edges. On the host (numpy)."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from reprise.common.data.sources import load
from reprise.common.ops.graph import check_features, clean_edges


class Graph(NamedTuple):
    """Nodes with features and classes, and undirected edges in both directions, each once.

    Attributes:
      features: [n, channels] float32.
      edges: [2, e] int32, sorted by row, no self loops.
      weights: [e] float32, above 0.
      labels: [n] int32, for judging; -1 where unknown.
    """

    features: Float[np.ndarray, "n channels"]
    edges: Int[np.ndarray, "2 e"]
    weights: Float[np.ndarray, " e"]
    labels: Int[np.ndarray, " n"]


def make_graph(
    features: Any, edges: Any, labels: Any | None = None, weights: Any | None = None
) -> Graph:
    """A checked graph of raw arrays: edges made simple and symmetric, see `clean_edges`.

    Isolated nodes and graphs without edges are fine.

    Raises:
      ValueError: features that are not finite or no matrix, edges out of range, wrong weights, or
        labels of another length; each is named.
    """
    check_features(features)
    features = np.asarray(features, np.float32)
    count = len(features)
    edges, weights = clean_edges(edges, count, weights)
    labels = np.full(count, -1) if labels is None else np.asarray(labels)
    if labels.shape != (count,):
        raise ValueError(f"make_graph: labels {labels.shape} must be [n] = ({count},)")
    return Graph(features, edges, weights, labels.astype(np.int32))


def load_graph(name: str, data_dir: str | Path | None = None) -> Graph:
    """A graph of the catalog, as it comes: binary features stay as they are.

    Raises:
      MissingData: it is not prepared; the message names the command that does.
      ValueError: a graph without features (Pubmed's are not in the suite's original files).
    """
    example = load(name, "full", data_dir=data_dir or None)[0]
    if "features" not in example:
        raise ValueError(f"data set {name} has no features here; graphs with features are needed")
    return make_graph(example["features"], example["edges"].T, example["labels"])


def planted_graph(
    seed: int,
    *,
    num_classes: int = 4,
    nodes_per_class: int = 60,
    inside: float = 0.10,
    between: float = 0.02,
    channels: int = 100,
    present: float = 0.05,
    typical: float = 0.15,
) -> Graph:
    """An attributed stochastic block model with binary features.

    Exactly a share `inside` of the pairs of one class are linked and `between` of the others, so
    that every seed gives as many edges. Each class has its own share of the channels, on with
    probability `typical`; all others are on with probability `present`.

    Raises:
      ValueError: a probability outside [0, 1], or fewer channels than classes.
    """
    for name, value in dict(
        inside=inside, between=between, present=present, typical=typical
    ).items():
        if not 0 <= value <= 1:
            raise ValueError(f"planted_graph: {name} = {value}: must be in [0, 1]")
    if channels < num_classes:
        raise ValueError(f"planted_graph: {channels} channels for {num_classes} classes")
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), nodes_per_class)
    count = len(labels)
    pairs = np.stack(np.triu_indices(count, 1))
    alike = labels[pairs[0]] == labels[pairs[1]]
    drawn = [
        rng.choice(np.flatnonzero(of_kind), round(share * of_kind.sum()), replace=False)
        for of_kind, share in ((alike, inside), (~alike, between))
    ]
    edges = pairs[:, np.concatenate(drawn)]
    own = np.arange(channels) * num_classes // channels == labels[:, None]
    features = rng.random((count, channels)) < np.where(own, typical, present)
    return make_graph(features.astype(np.float32), edges, labels)


class EdgeSplit(NamedTuple):
    """A graph's edges split for link prediction, with as many non-edges beside the held-out ones.

    Attributes:
      train: [2, 2 t], both directions, sorted by row: what operators may be built from.
      train_weights: [2 t].
      validation, test: [2, .], each held-out edge once.
      validation_negative, test_negative: pairs that are no edges of the WHOLE graph.
    """

    train: Int[np.ndarray, "2 e"]
    train_weights: Float[np.ndarray, " e"]
    validation: Int[np.ndarray, "2 v"]
    test: Int[np.ndarray, "2 s"]
    validation_negative: Int[np.ndarray, "2 v"]
    test_negative: Int[np.ndarray, "2 s"]


def split_edges(
    edges: Int[np.ndarray, "2 e"],
    weights: Float[np.ndarray, " e"],
    num_nodes: int,
    *,
    seed: int,
    validation: float = 0.05,
    test: float = 0.10,
) -> EdgeSplit:
    """Holds out edges for link prediction; the rest is for training.

    Args:
      edges: [2, e], clean (`clean_edges`): both directions of each edge, each once.
      weights: [e].
      num_nodes: n.
      seed: of the split and of the non-edges.
      validation, test: shares of the undirected edges; each is rounded down.

    Raises:
      ValueError: shares that leave nothing to train on or hold nothing out, edges that are not in
        both directions, or too few non-edges.
    """
    forward = edges[0] < edges[1]
    pairs, own = edges[:, forward], weights[forward]
    if 2 * pairs.shape[1] != edges.shape[1]:
        raise ValueError("split_edges: edges must hold both directions of each, and no self loops")
    count = pairs.shape[1]
    held = int(count * validation), int(count * test)
    if min(held) < 1 or sum(held) >= count:
        raise ValueError(
            f"split_edges: validation = {validation}, test = {test} of {count} edges hold out "
            f"{held[0]} and {held[1]}: each must be 1 or more and leave some to train on"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(count)
    parts = np.split(order, [held[0], sum(held)])
    train, train_weights = clean_edges(pairs[:, parts[2]], num_nodes, own[parts[2]])
    negative = sample_non_edges(edges, num_nodes, sum(held), rng)
    return EdgeSplit(
        train,
        train_weights,
        pairs[:, parts[0]],
        pairs[:, parts[1]],
        negative[:, : held[0]],
        negative[:, held[0] :],
    )


def sample_non_edges(
    edges: Int[np.ndarray, "2 e"], num_nodes: int, count: int, rng: np.random.Generator
) -> Int[np.ndarray, "2 count"]:
    """Different pairs i < j without an edge, drawn uniformly.

    Raises:
      ValueError: the graph has fewer non-edges than `count`.
    """
    low, high = edges.min(0).astype(np.int64), edges.max(0)
    known = np.unique(low * num_nodes + high)
    free = num_nodes * (num_nodes - 1) // 2 - len(known)
    if count > free:
        raise ValueError(f"sample_non_edges: {count} asked for, the graph has {free}")
    found = np.zeros(0, np.int64)
    while len(found) < count:
        drawn = rng.integers(0, num_nodes, (2, 2 * (count - len(found)) + 16))
        drawn = drawn[:, drawn[0] != drawn[1]]
        code = drawn.min(0) * num_nodes + drawn.max(0)
        code = np.concatenate([found, code[~np.isin(code, known)]])
        _, first = np.unique(code, return_index=True)
        found = code[np.sort(first)][:count]
    return np.stack([found // num_nodes, found % num_nodes]).astype(np.int32)


def has_edge(
    edges: Int[np.ndarray, "2 e"], pairs: Int[np.ndarray, "2 m"]
) -> Bool[np.ndarray, " m"]:
    """Whether each pair is an edge, in either direction."""
    size = int(max(edges.max(initial=0), pairs.max(initial=0))) + 1

    def code(values: np.ndarray) -> np.ndarray:
        return values.min(0).astype(np.int64) * size + values.max(0)

    return np.isin(code(pairs), code(edges))
