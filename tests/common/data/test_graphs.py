"""Graphs on the host: making, generating, splitting."""

import numpy as np
import pytest

from reprise.common.data.graphs import (
    has_edge,
    load_graph,
    make_graph,
    planted_graph,
    sample_non_edges,
    split_edges,
)


def as_pairs(edges):
    return {tuple(sorted(pair)) for pair in edges.T.tolist()}


def test_a_split_shares_no_edge_and_no_negative_is_one():
    graph = planted_graph(0)
    count = graph.edges.shape[1] // 2
    split = split_edges(graph.edges, graph.weights, 240, seed=1)
    parts = [as_pairs(e) for e in (split.train, split.validation, split.test)]
    assert len(parts[1]) == int(0.05 * count) and len(parts[2]) == int(0.1 * count)
    assert sum(map(len, parts)) == len(set.union(*parts)) == count
    assert set.union(*parts) == as_pairs(graph.edges)
    negative = as_pairs(split.validation_negative) | as_pairs(split.test_negative)
    assert len(negative) == len(parts[1]) + len(parts[2])
    assert not negative & as_pairs(graph.edges)
    assert (split.train[:, np.lexsort(split.train[::-1])] == split.train).all()
    assert as_pairs(split.train[::-1]) == parts[0] and split.train.shape[1] == 2 * len(parts[0])


def test_a_split_is_a_function_of_its_seed():
    graph = planted_graph(0)
    one, same, other = (split_edges(graph.edges, graph.weights, 240, seed=s) for s in (1, 1, 2))
    assert all((a == b).all() for a, b in zip(one, same, strict=True))
    assert as_pairs(one.test) != as_pairs(other.test)
    assert [a.shape for a in one] == [b.shape for b in other]


def test_non_edges_can_be_drawn_to_the_last():
    edges = np.array([[0, 1], [1, 0]])
    found = sample_non_edges(edges, 4, 5, np.random.default_rng(0))
    assert as_pairs(found) == {(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
    assert has_edge(edges, np.array([[1, 2], [0, 3]])).tolist() == [True, False]
    with pytest.raises(ValueError, match="6 asked for, the graph has 5"):
        sample_non_edges(edges, 4, 6, np.random.default_rng(0))


def test_planted_graphs_have_their_shares_of_edges():
    one, other = planted_graph(0), planted_graph(1)
    assert one.edges.shape == other.edges.shape and (one.edges != other.edges).any()
    alike = one.labels[one.edges[0]] == one.labels[one.edges[1]]
    assert alike.sum() == 2 * round(0.1 * 4 * 60 * 59 / 2)
    assert set(np.unique(one.features)) == {0, 1} and one.features.shape == (240, 100)
    with pytest.raises(ValueError, match=r"inside = 1.5: must be in \[0, 1\]"):
        planted_graph(0, inside=1.5)


def test_the_karate_club_is_bundled():
    graph = load_graph("karate")
    assert graph.features.shape == (34, 34) and graph.edges.shape == (2, 2 * 78)
    assert np.bincount(graph.labels).tolist() == [17, 17]
    degree = np.bincount(graph.edges[0])
    assert degree.argmax() == 33 and degree.max() == 17 and degree[0] == 16


def test_what_is_no_graph_is_refused():
    features = np.ones((3, 2))
    graph = make_graph(features, np.zeros((2, 0), int))
    assert graph.edges.shape == (2, 0) and graph.labels.tolist() == [-1, -1, -1]
    with pytest.raises(ValueError, match="channel 0 = nan"):
        make_graph(features * np.nan, np.zeros((2, 0), int))
    with pytest.raises(ValueError, match=r"labels \(2,\) must be \[n\] = \(3,\)"):
        make_graph(features, np.zeros((2, 0), int), [0, 1])
    with pytest.raises(ValueError, match=r"edge 0 = \[0, 3\]"):
        make_graph(features, np.array([[0], [3]]))
    with pytest.raises(ValueError, match="hold out 0 and 0"):
        split_edges(np.array([[0, 1], [1, 0]]), np.ones(2), 3, seed=0)
