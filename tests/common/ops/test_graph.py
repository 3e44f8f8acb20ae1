"""Graph operators: cleaning, degrees, sparse against dense."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprise.common.ops.graph import (
    SparseOperator,
    check_features,
    clean_edges,
    degrees,
    dense,
    dense_normalized_operator,
    normalized_operator,
    propagate,
    row_sums,
)

N = 7


def graph(seed, count=12):
    rng = np.random.default_rng(seed)
    edges, weights = clean_edges(rng.integers(0, N, (2, count)), N, rng.uniform(0.5, 2, count))
    adjacency = np.zeros((N, N), np.float32)
    adjacency[edges[0], edges[1]] = weights
    return edges, weights, adjacency


def test_cleaning_makes_edges_simple_and_symmetric():
    edges = np.array([[3, 0, 1, 2, 2], [1, 1, 3, 2, 0]])
    found, weights = clean_edges(edges, 5, np.array([1.0, 2.0, 5.0, 1.0, 0.0]))
    assert found.tolist() == [[0, 1, 1, 3], [1, 0, 3, 1]]
    assert weights.tolist() == [2, 2, 5, 5]
    again, same = clean_edges(found, 5, weights)
    assert again.tolist() == found.tolist() and same.tolist() == weights.tolist()


def test_a_graph_without_edges_is_a_graph():
    edges, weights = clean_edges(np.zeros((2, 0), int), 3)
    assert edges.shape == (2, 0) and weights.shape == (0,)
    x = jnp.ones((3, 2))
    np.testing.assert_array_equal(propagate(normalized_operator(edges, weights, 3), x), x)
    nothing = normalized_operator(edges, weights, 3, self_loop=0.0)
    np.testing.assert_array_equal(propagate(nothing, x), 0 * x)


@pytest.mark.parametrize(
    ("edges", "weights", "message"),
    [
        (np.zeros((3, 2), int), None, r"edges \(3, 2\) must be \[2, e\]"),
        (np.array([[0, 1], [1, 9]]), None, r"edge 1 = \[1, 9\]: nodes must be in 0..3"),
        (np.array([[0, -1], [1, 2]]), None, r"edge 1 = \[-1, 2\]"),
        (np.array([[0.5], [1.0]]), None, "must be integers"),
        (np.array([[0, 1], [1, 2]]), np.array([1, np.nan]), "weight 1 = nan"),
        (np.array([[0, 1], [1, 2]]), np.array([-1.0, 1]), r"weight 0 = -1.0"),
        (np.array([[0, 1], [1, 2]]), np.ones(3), r"weights \(3,\) must be \[e\] = \(2,\)"),
    ],
)
def test_edges_that_are_none_are_named(edges, weights, message):
    with pytest.raises(ValueError, match=message):
        clean_edges(edges, 4, weights)


def test_no_nodes_and_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="num_nodes = 0"):
        clean_edges(np.zeros((2, 0), int), 0)
    features = np.ones((3, 2), np.float32)
    check_features(features)
    features[2, 1] = np.nan
    with pytest.raises(ValueError, match="node 2, channel 1 = nan; 1 values of 6"):
        check_features(features)
    with pytest.raises(ValueError, match=r"features \(0, 2\)"):
        check_features(features[:0])


@given(st.integers(0, 100), st.sampled_from(["both", "row"]), st.sampled_from([0.0, 1.0, 2.0]))
@settings(max_examples=12, deadline=None)
def test_sparse_and_dense_agree(seed, side, loop):
    edges, weights, adjacency = graph(seed)
    options = dict(self_loop=loop, edge_sign=-1.0, side=side)
    sparse = normalized_operator(edges, weights, N, **options)
    matrix = dense_normalized_operator(adjacency, **options)
    np.testing.assert_allclose(dense(sparse), matrix, atol=1e-6)
    np.testing.assert_allclose(row_sums(sparse), row_sums(matrix), atol=1e-5)
    np.testing.assert_allclose(degrees(edges, weights, N), adjacency.sum(1), atol=1e-5)
    x = jnp.asarray(np.random.default_rng(seed).normal(size=(N, 3)), jnp.float32)
    np.testing.assert_allclose(propagate(sparse, x), matrix @ x, atol=1e-5)
    slope = jax.grad(lambda x: (propagate(sparse, x) ** 2).sum())(x)
    np.testing.assert_allclose(slope, 2 * matrix.T @ (matrix @ x), atol=1e-4)


def test_rows_of_a_random_walk_sum_to_one():
    edges, weights, _ = graph(3)
    np.testing.assert_allclose(row_sums(normalized_operator(edges, weights, N, side="row")), 1.0)


def test_self_loops_in_the_input_do_not_count():
    edges, weights, adjacency = graph(1)
    looped = np.concatenate([edges, [[2], [2]]], 1)
    with_loop = normalized_operator(looped, np.append(weights, 5.0), N)
    np.testing.assert_allclose(dense(with_loop), dense(normalized_operator(edges, weights, N)))
    np.testing.assert_allclose(
        dense_normalized_operator(adjacency + 5 * np.eye(N, dtype=np.float32)),
        dense_normalized_operator(adjacency),
    )


def test_sums_are_float32_whatever_comes_in():
    star = np.stack([np.zeros(400, int), np.arange(1, 401)])
    edges, weights = clean_edges(star, 401)
    operator = normalized_operator(edges, weights.astype(jnp.bfloat16), 401, side="row")
    out = propagate(operator, jnp.ones((401, 1), jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32), 1.0, atol=1e-2)


def test_an_operator_passes_through_jit_and_vmap():
    edges, weights, _ = graph(2)
    operator = jax.tree.map(jnp.asarray, normalized_operator(edges, weights, N))
    x = jnp.arange(2 * N * 3.0).reshape(2, N, 3)
    found = jax.jit(jax.vmap(propagate, (None, 0)))(operator, x)
    np.testing.assert_allclose(found[1], propagate(operator, x[1]), rtol=1e-6)


def test_wrong_shapes_are_named():
    edges, weights, adjacency = graph(0)
    with pytest.raises(ValueError, match="degrees: edges"):
        degrees(edges, weights[:-1], N)
    with pytest.raises(ValueError, match=r"adjacency \(7, 6\) must be \[n, n\]"):
        dense_normalized_operator(adjacency[:, :6])
    with pytest.raises(ValueError, match="with the operator's 7 nodes"):
        propagate(SparseOperator(jnp.ones(7), edges, weights), jnp.ones((6, 2)))
    with pytest.raises(ValueError, match="side = 'left'"):
        normalized_operator(edges, weights, N, side="left")
