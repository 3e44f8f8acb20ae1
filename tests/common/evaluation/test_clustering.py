"""Agreement of clusters with classes."""

import itertools

import numpy as np
import pytest

from reprise.common.evaluation.clustering import (
    clustering_accuracy,
    clustering_metrics,
    contingency,
    modularity,
)

LABELS = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 2])
FOUND = np.array([5, 5, 7, 7, 7, 7, 0, 0, 5, 0])


def test_accuracy_is_the_best_of_all_matchings():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels, found = rng.integers(0, 4, (2, 30))
        best = max(
            np.mean(np.array(order)[found] == labels) for order in itertools.permutations(range(4))
        )
        assert clustering_accuracy(labels, found) == pytest.approx(best)


def test_numbers_of_clusters_do_not_matter():
    whole = clustering_metrics(LABELS, FOUND)
    renamed = clustering_metrics(LABELS + 3, np.choose(FOUND // 4, [9, 2])[:] * 0 + FOUND * 2 + 1)
    assert whole == pytest.approx(renamed)
    assert clustering_metrics(LABELS, 10 - LABELS) == {"acc": 1, "nmi": 1, "ami": 1, "ari": 1}


def test_values_by_hand():
    assert contingency(LABELS, FOUND).tolist() == [[0, 2, 1], [0, 0, 3], [3, 1, 0]]
    assert clustering_accuracy(LABELS, FOUND) == 0.8
    # NMI by its definition, with the arithmetic mean of both entropies.
    joint = contingency(LABELS, FOUND) / 10
    p, q = joint.sum(1), joint.sum(0)
    seen = joint > 0
    information = (
        joint[seen] * np.log(joint / np.outer(p, q), where=seen, out=0 * joint)[seen]
    ).sum()
    entropies = -(p * np.log(p)).sum(), -(q * np.log(q)).sum()
    metrics = clustering_metrics(LABELS, FOUND)
    assert metrics["nmi"] == pytest.approx(information / np.mean(entropies))
    assert metrics["ami"] < metrics["nmi"]


def test_one_cluster_says_nothing_and_spare_clusters_are_wrong():
    one = clustering_metrics(LABELS, np.zeros(10, int))
    assert one["acc"] == 0.4 and one["nmi"] == one["ami"] == one["ari"] == 0
    assert clustering_accuracy(LABELS, np.arange(10)) == 0.3


def test_chance_has_no_adjusted_agreement():
    rng = np.random.default_rng(1)
    values = [clustering_metrics(*rng.integers(0, 5, (2, 200))) for _ in range(20)]
    assert abs(np.mean([v["ami"] for v in values])) < 0.01
    assert abs(np.mean([v["ari"] for v in values])) < 0.01
    assert np.mean([v["nmi"] for v in values]) > 0.02


def test_modularity_of_two_triangles():
    edges = np.array([[0, 0, 1, 3, 3, 4, 2], [1, 2, 2, 4, 5, 5, 3]])
    both = np.concatenate([edges, edges[::-1]], 1)
    split = np.array([0, 0, 0, 1, 1, 1])
    assert modularity(both, split) == pytest.approx(6 / 7 - 0.5)
    assert modularity(both, 0 * split) == pytest.approx(0)
    assert modularity(both, np.arange(6)) < 0
    assert modularity(both, split, np.full(14, 3.0)) == pytest.approx(6 / 7 - 0.5)
    assert modularity(np.zeros((2, 0), int), split) == 0


def test_networkx_agrees_on_the_karate_club():
    networkx = pytest.importorskip("networkx")
    graph = networkx.karate_club_graph()
    club = np.array([graph.nodes[i]["club"] == "Officer" for i in graph]).astype(int)
    edges = np.array(graph.edges()).T
    parts = [set(np.flatnonzero(club == c)) for c in (0, 1)]
    expected = networkx.community.modularity(graph, parts, weight=None)
    assert modularity(np.concatenate([edges, edges[::-1]], 1), club) == pytest.approx(expected)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"labels \(10,\) and assignment \(3,\)"):
        clustering_accuracy(LABELS, FOUND[:3])
    with pytest.raises(ValueError, match="assignment of dtype float64"):
        clustering_accuracy(LABELS, FOUND * 0.5)
    with pytest.raises(ValueError, match="n >= 1"):
        clustering_metrics(LABELS[:0], FOUND[:0])
    with pytest.raises(ValueError, match="node 6 has no assignment"):
        modularity(np.array([[0], [6]]), np.zeros(6, int))
