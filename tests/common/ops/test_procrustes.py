"""common/ops/procrustes: against scipy, gradients, degenerate point sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.test_util import check_grads
from scipy.spatial.transform import Rotation

from reprise.common.ops.procrustes import (
    apply_rigid,
    nearest_rotation,
    orthogonal_procrustes,
    rigid_transform,
)


def points(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def by_svd(matrix):
    u, _, vt = np.linalg.svd(matrix)
    sign = np.where(np.linalg.det(u @ vt) < 0, -1.0, 1.0)
    return (u * np.stack([sign * 0 + 1, sign * 0 + 1, sign], -1)[..., None, :]) @ vt


def test_the_best_rotation_is_scipys():
    a, b = points(0, 5, 9, 3), points(1, 5, 9, 3)
    weights = np.random.default_rng(2).uniform(size=(5, 9))
    found = jax.jit(orthogonal_procrustes)(a, b, weights)
    for i in range(5):
        expected, _ = Rotation.align_vectors(b[i], a[i], weights[i])
        np.testing.assert_allclose(found[i], expected.as_matrix(), atol=1e-5)


@pytest.mark.parametrize("d", [2, 4])
def test_orthogonal_matrices_are_scipys(d):
    a, b = points(0, 9, d), points(1, 9, d)
    found = orthogonal_procrustes(a, b, reflection=True)
    np.testing.assert_allclose(found, scipy.linalg.orthogonal_procrustes(a, b)[0].T, atol=1e-5)
    proper = nearest_rotation(points(3, 6, d, d))
    np.testing.assert_allclose(np.linalg.det(proper), 1, atol=1e-5)


def test_quaternions_give_what_the_svd_gives():
    with jax.enable_x64(True):
        matrices = points(0, 300, 3, 3) * 10.0 ** np.arange(-150, 150)[:, None, None]
        np.testing.assert_allclose(nearest_rotation(matrices), by_svd(matrices), atol=1e-10)


def test_rigid_motion_is_recovered():
    rotation = Rotation.random(4, random_state=0).as_matrix()
    a = points(1, 4, 7, 3)
    b = 1.7 * np.einsum("bij,bpj->bpi", rotation, a) + points(2, 4, 1, 3)
    b[:, 0] = np.nan  # of weight 0
    weights = np.ones((4, 7))
    weights[:, 0] = 0
    found = rigid_transform(a, b, weights, scaled=True)
    np.testing.assert_allclose(found.rotation, rotation, atol=1e-5)
    np.testing.assert_allclose(found.scale, 1.7, atol=1e-5)
    np.testing.assert_allclose(apply_rigid(found, a)[:, 1:], b[:, 1:], atol=1e-5)
    mirrored = rigid_transform(a, a * [1, 1, -1], reflection=True)
    np.testing.assert_allclose(
        mirrored.rotation, np.diag([1, 1, -1.0]) + np.zeros((4, 3, 3)), atol=1e-5
    )


def test_derivatives_of_both_modes_and_second_order():
    cases = [(3.0, 2, 1), (1, 1, 1), (2, 1, 0), (3, 2, -1)]
    with jax.enable_x64(True):
        u, v = Rotation.random(2, random_state=1).as_matrix()
        matrices = jnp.stack([jnp.asarray(u @ np.diag(s) @ v.T) for s in cases])
        check_grads(jax.jit(nearest_rotation), (matrices,), order=2, atol=1e-5, rtol=1e-5)


def test_orthogonal_derivatives_in_other_dimensions():
    with jax.enable_x64(True):
        for d in (2, 4):
            check_grads(
                jax.jit(nearest_rotation), (points(d, d, d),), order=1, atol=1e-6, rtol=1e-6
            )

        @jax.jit
        def loss(a, b):
            moved = apply_rigid(rigid_transform(a, b, scaled=True), a)
            return ((moved - b) ** 2).sum()

        check_grads(
            loss, (points(0, 5, 3), points(1, 5, 3)), 1, modes=["rev"], atol=1e-6, rtol=1e-6
        )


def test_what_is_not_unique_stays_finite():
    line = np.outer([1, 2, 3.0], [1, 0, 0])
    tied = np.diag([3.0, 1.0, -1.0])
    turn = jax.jit(nearest_rotation)
    for matrix in (np.zeros((3, 3)), line, tied, 1e-30 * tied):
        rotation, vjp = jax.vjp(turn, jnp.asarray(matrix, jnp.float32))
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
        assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-5)
        assert np.isfinite(vjp(jnp.ones((3, 3)))[0]).all()
    same = np.full((17, 3), 123.4)  # whose mean is rounded
    still = rigid_transform(same, line.mean(0) + 0 * same, scaled=True)
    assert float(still.scale) == 1
    np.testing.assert_allclose(apply_rigid(still, same)[0], line.mean(0), atol=1e-3)
    empty = rigid_transform(line, line, np.zeros(3))
    np.testing.assert_allclose(empty.rotation, np.eye(3))


def test_bfloat16_and_wrong_shapes():
    low = orthogonal_procrustes(jnp.ones((5, 3), jnp.bfloat16), jnp.ones((5, 3), jnp.bfloat16))
    assert low.dtype == jnp.float32 and np.isfinite(low).all()
    with pytest.raises(ValueError, match=r"nearest_rotation: matrix \(2, 3\)"):
        nearest_rotation(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"source \(4, 3\) and target \(5, 3\)"):
        rigid_transform(np.zeros((4, 3)), np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"weights \(3,\) must be \(4,\)"):
        orthogonal_procrustes(np.zeros((4, 3)), np.zeros((4, 3)), np.zeros(3))
