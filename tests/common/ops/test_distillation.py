"""Shared distillation losses against plain computations of the same formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from reprise.common.ops import distillation as ops

RNG = np.random.default_rng(0)
Z_S, Z_T = RNG.normal(size=(2, 4, 6)).astype(np.float32)
F_S, F_T = RNG.normal(size=(2, 3, 4, 4, 5)).astype(np.float32)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_divergence_is_cross_entropy_minus_entropy():
    p, q = softmax(Z_T / 3), softmax(Z_S / 3)
    kl = (p * np.log(p / q)).sum(-1)
    np.testing.assert_allclose(ops.kd_kl_divergence(Z_S, Z_T, 3.0, False), kl, rtol=1e-5)
    np.testing.assert_allclose(ops.kd_kl_divergence(Z_S, Z_T, 3.0), 9 * kl, rtol=1e-5)
    soft = ops.soft_cross_entropy(Z_S, Z_T, 3.0)
    np.testing.assert_allclose(soft, kl - (p * np.log(p)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(ops.kd_kl_divergence(Z_T, Z_T, 3.0), 0.0, atol=1e-6)


def test_no_gradient_to_the_teacher():
    for loss, (s, t) in (
        (ops.kd_kl_divergence, (Z_S, Z_T)),
        (ops.soft_cross_entropy, (Z_S, Z_T)),
        (ops.squared_feature_loss, (F_S, F_T)),
        (ops.attention_transfer_loss, (F_S, F_T)),
    ):
        to_s, to_t = jax.grad(lambda s, t, f=loss: f(s, t).sum(), (0, 1))(s, t)
        assert (to_s != 0).any() and (to_t == 0).all(), loss.__name__


def test_attention_ignores_scale_and_channel_order_and_survives_zeros():
    each = ops.attention_transfer_loss(F_S, F_T)
    np.testing.assert_allclose(
        ops.attention_transfer_loss(7 * F_S, F_T[..., ::-1]), each, rtol=1e-4
    )
    a = (F_S**2).mean(-1).reshape(3, -1)
    b = (F_T**2).mean(-1).reshape(3, -1)
    a, b = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (a, b))
    np.testing.assert_allclose(each, ((a - b) ** 2).mean(-1), rtol=1e-5)
    slope = jax.grad(lambda s: ops.attention_transfer_loss(s, F_T).sum())(jnp.zeros_like(F_S))
    assert np.isfinite(slope).all()


def test_flow_matrix_pools_the_larger_map():
    front = RNG.normal(size=(2, 4, 4, 3)).astype(np.float32)
    back = RNG.normal(size=(2, 2, 2, 5)).astype(np.float32)
    pooled = front.reshape(2, 2, 2, 2, 2, 3).max((2, 4))
    expected = np.einsum("bhwn,bhwm->bnm", pooled, back) / 4
    np.testing.assert_allclose(ops.flow_matrix(front, back), expected, rtol=1e-5)
    with pytest.raises(ValueError, match="whole multiple"):
        ops.flow_matrix(front, RNG.normal(size=(2, 3, 3, 5)))
    with pytest.raises(ValueError, match="same channels"):
        ops.flow_loss(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3, 5)))


def test_clipping_leaf_by_leaf():
    grads = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([0.3, 0.4]), "c": jnp.zeros(2)}
    reference = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([1.0, 0.0]), "c": jnp.zeros(2)}
    out = ops.clip_to_reference_norm(grads, reference, 0.5)
    np.testing.assert_allclose(out["a"], [0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(out["b"], [0.3, 0.4], rtol=1e-6)
    assert (out["c"] == 0).all()
    with pytest.raises(ValueError, match="one structure"):
        ops.clip_to_reference_norm(grads, {"a": reference["a"]})


def test_gradients_in_float64():
    with jax.enable_x64(True):
        s, t = RNG.normal(size=(2, 2, 5))
        check_grads(lambda s: ops.kd_kl_divergence(s, t, 3.0), (s,), 1, modes=["rev"])
        f, g = RNG.normal(size=(2, 2, 3, 3, 4))
        check_grads(lambda f: ops.attention_transfer_loss(f, g), (f,), 1, modes=["rev"])
        check_grads(lambda f: ops.flow_matrix(f, g), (f,), 1, modes=["rev"])
