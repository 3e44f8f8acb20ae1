"""k-means finds what scikit-learn finds, and survives degenerate points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import adjusted_rand_score

from reprise.common.ops.kmeans import kmeans, squared_distances

KEY = jax.random.key(0)


def test_inertia_as_good_as_scikit_learns():
    points = load_digits().data[:400].astype(np.float32)
    ours = kmeans(KEY, points, 10, num_restarts=20)
    theirs = KMeans(10, n_init=20, random_state=0).fit(points)
    assert float(ours.inertia) <= 1.005 * theirs.inertia_
    assert adjusted_rand_score(theirs.labels_, np.asarray(ours.assignments)) > 0.8


def test_result_is_a_fixed_point_of_lloyd():
    points = np.random.default_rng(0).normal(size=(90, 3)).astype(np.float32)
    out = kmeans(KEY, points, 5, num_restarts=3)
    for k in range(5):
        np.testing.assert_allclose(
            out.centers[k], points[np.asarray(out.assignments) == k].mean(0), atol=1e-5
        )
    nearest = ((points[:, None] - np.asarray(out.centers)) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(out.assignments, nearest)


def test_separated_blobs_far_from_the_origin():
    rng = np.random.default_rng(1)
    truth = np.repeat(np.arange(4), 25)
    blobs = 1000 + 20 * rng.normal(size=(4, 6))[truth] + rng.normal(size=(100, 6))
    out = kmeans(KEY, jnp.asarray(blobs, jnp.float32), 4)
    assert adjusted_rand_score(truth, np.asarray(out.assignments)) == 1.0


def test_fewer_distinct_points_than_clusters():
    points = jnp.repeat(jnp.eye(2), 5, axis=0)
    out = kmeans(KEY, points, 4, num_restarts=2)
    assert np.isfinite(out.centers).all() and float(out.inertia) == 0.0


def test_same_key_same_result_under_vmap_and_bf16():
    points = np.random.default_rng(2).normal(size=(2, 40, 3)).astype(np.float32)
    both = jax.vmap(lambda p: kmeans(KEY, p, 3, num_restarts=2))(points)
    np.testing.assert_allclose(both.centers[1], kmeans(KEY, points[1], 3, num_restarts=2).centers)
    low = kmeans(KEY, points[0].astype(jnp.bfloat16), 3, num_restarts=2)
    assert low.centers.dtype == jnp.float32 and np.isfinite(low.inertia)


def test_distances_are_exact_and_never_negative():
    points = np.random.default_rng(3).normal(size=(30, 8)).astype(np.float32)
    direct = ((points[:, None] - points[None]) ** 2).sum(-1)
    np.testing.assert_allclose(squared_distances(points, points), direct, atol=2e-5)
    assert (squared_distances(points, points) >= 0).all()


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 2\).*num_clusters = 4"):
        kmeans(KEY, jnp.zeros((3, 2)), 4)
    with pytest.raises(ValueError, match="num_restarts = 0: must be 1 or more"):
        kmeans(KEY, jnp.zeros((3, 2)), 2, num_restarts=0)
