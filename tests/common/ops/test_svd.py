"""Truncated SVD: values, the sign rule, and derivatives where singular values meet or vanish."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from reprise.common.ops import svd

RNG = np.random.default_rng(0)


def with_spectrum(n, c, values, seed=0):
    """[n, c] of these singular values, and its right vectors."""
    rng = np.random.default_rng(seed)
    k = len(values)
    u, v = (np.linalg.qr(rng.normal(size=(size, k)))[0] for size in (n, c))
    return (u * values) @ v.T, v


def weighted(rank, seed=1, **options):
    """A scalar of the singular vectors that does not depend on their signs."""

    def f(m):
        s, v = svd.truncated_svd(m, rank, **options)
        rng = np.random.default_rng(seed)
        a = jnp.asarray(rng.normal(size=v.shape), v.dtype)
        b = jnp.asarray(rng.normal(size=s.shape), s.dtype)
        return ((a * v).sum(-2) ** 2).sum() + (b * s).sum()

    return jax.jit(f)


@functools.cache
def slope_of(rank, **options):
    """Its gradient, compiled once a shape."""
    return jax.jit(jax.grad(weighted(rank, **options)))


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (5, 5), (2, 3, 7, 4)])
def test_values_vectors_and_rank(shape):
    m = RNG.normal(size=shape).astype(np.float32)
    s, v = svd.truncated_svd(m, 3)
    _, values, vt = np.linalg.svd(m.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(s, values[..., :3], rtol=1e-5)
    cosine = np.einsum("...kc,...ck->...k", vt[..., :3, :], v)
    np.testing.assert_allclose(np.abs(cosine), 1, atol=1e-5)
    least = min(shape[-2:])
    assert svd.truncated_svd(m, 99)[1].shape == (*shape[:-2], shape[-1], least)
    left = svd.left_vectors(m, v)
    np.testing.assert_allclose(
        np.einsum("...nk,...k,...ck->...nc", left, s, v),
        m @ np.einsum("...ck,...dk->...cd", v, v),
        atol=1e-5,
    )


@pytest.mark.parametrize("shape", [(6, 3), (3, 6), (4, 4)])
@pytest.mark.parametrize("rank", [1, 3])
def test_derivative_against_finite_differences(shape, rank):
    with jax.enable_x64(True):
        m = np.random.default_rng(3).normal(size=shape)
        check_grads(weighted(rank), (m,), 1, modes=["rev"], rtol=1e-5)


def test_derivative_agrees_with_float64_at_conditioning_1e6():
    """The leading vectors' derivative, in float32, of a matrix with singular values 1 to 1e-6."""
    m, _ = with_spectrum(12, 8, np.logspace(0, -6, 8))
    low = slope_of(2)(m.astype(np.float32))
    with jax.enable_x64(True):
        exact = slope_of(2)(m)
    np.testing.assert_allclose(low, exact, atol=2e-4 * np.abs(exact).max())


SPECTRA = {
    "conditioning 1e6": np.logspace(0, -6, 6),
    "repeated": np.array([2.0, 2.0, 1.0, 1.0, 1.0, 0.5]),
    "nearly repeated": np.array([1.0, 1 - 1e-7, 0.5, 0.5 + 1e-6, 0.1, 0.1]),
    "zeros": np.array([1.0, 0.5, 0.0, 0.0, 0.0, 0.0]),
    "all zero": np.zeros(6),
    "rank one": np.array([1.0, 1e-6, 1e-7, 1e-8, 0.0, 0.0]),
    "large": 1e10 * np.logspace(0, -6, 6),
    "small": 1e-10 * np.logspace(0, -6, 6),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_finite_in_float32_whatever_the_spectrum(name):
    for n, c in ((12, 6), (6, 12)):
        m = with_spectrum(n, c, SPECTRA[name])[0].astype(np.float32)
        slope = slope_of(6)(m)
        assert np.isfinite(slope).all(), (n, c)
        if name == "all zero":
            assert (slope == 0).all()


def test_repeated_values_leave_what_is_determined():
    """A function of the plane that two equal singular values span does not care how they turn."""

    @jax.jit
    def plane(m):
        _, v = svd.truncated_svd(m, 2)
        return (v @ v.T)[0, 1]

    slope_of_plane = jax.jit(jax.grad(plane))

    m, _ = with_spectrum(7, 4, np.array([2.0, 2.0, 1.0, 0.3]))
    with jax.enable_x64(True):
        slope = slope_of_plane(m)
        step = 1e-6 * np.random.default_rng(5).normal(size=m.shape)
        difference = plane(m + step) - plane(m - step)
        np.testing.assert_allclose((slope * 2 * step).sum(), difference, rtol=1e-4)
    low = slope_of_plane(m.astype(np.float32))
    np.testing.assert_allclose(low, slope, atol=1e-4)


def test_dead_channels_and_bad_examples_stay_apart():
    m = np.abs(RNG.normal(size=(3, 8, 5))).astype(np.float32)
    m[0, :, 3] = 0.0
    m[1] = 0.0
    slope = slope_of(4)(m)
    assert np.isfinite(slope).all() and (slope[1] == 0).all() and (slope[2] != 0).any()
    alone = slope_of(4)(m[2:])
    assert np.isfinite(alone).all()


def test_gradient_rank_keeps_the_leading_rotations():
    m = RNG.normal(size=(6, 4)).astype(np.float32)
    full = slope_of(2)(m)
    np.testing.assert_allclose(slope_of(2, gradient_rank=4)(m), full, rtol=1e-5)
    assert np.abs(slope_of(2, gradient_rank=2)(m) - full).max() > 1e-2


def test_sign_rule():
    v = jnp.array([[0.9, -0.9, 0.5], [-0.1, 0.1, -0.5]])
    np.testing.assert_array_equal(svd.canonicalize_sign(v) / v, [[1, -1, 1], [1, -1, 1]])
    np.testing.assert_array_equal(svd.canonicalize_sign(-v)[:, :2], svd.canonicalize_sign(v)[:, :2])


def test_alignment_picks_the_most_parallel_and_its_sign():
    eye = np.eye(4, dtype=np.float32)
    student = np.stack([-eye[0], eye[2], eye[1]], -1)[None]
    teacher = np.stack([eye[1], eye[0], (eye[0] + 0.1 * eye[2])], -1)[None]
    out = svd.align_singular_vectors(student, teacher)
    np.testing.assert_array_equal(out[0].T, [eye[1], eye[0], eye[0]])
    tied = svd.align_singular_vectors(student, (eye[0] + eye[2])[None, :, None])
    np.testing.assert_array_equal(tied[0, :, 0], eye[0])
    to_s, to_t = jax.grad(lambda s, t: svd.align_singular_vectors(s, t)[0, 0].sum(), (0, 1))(
        jnp.asarray(student), jnp.asarray(teacher)
    )
    np.testing.assert_array_equal(to_s[0, 0], [-2, 0, 1])
    assert (to_t == 0).all()


def test_half_precision_and_bad_input():
    m = RNG.normal(size=(2, 6, 3)).astype(jnp.bfloat16)
    slope = slope_of(2)(m)
    assert slope.dtype == jnp.bfloat16 and jnp.isfinite(slope).all()
    assert svd.truncated_svd(m, 2)[0].dtype == jnp.float32
    with pytest.raises(ValueError, match=r"truncated_svd: matrix \(3,\)"):
        svd.truncated_svd(jnp.zeros(3), 1)
    with pytest.raises(ValueError, match="rank = 0"):
        svd.truncated_svd(jnp.zeros((3, 3)), 0)
    with pytest.raises(ValueError, match="same B and C"):
        svd.align_singular_vectors(jnp.zeros((2, 3, 4)), jnp.zeros((2, 4, 1)))
    with pytest.raises(ValueError, match="left_vectors"):
        svd.left_vectors(jnp.zeros((2, 3)), jnp.zeros((2, 1)))
