"""Measures of frozen features against scikit-learn and numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from reprise.common.evaluation.representation import (
    collapse_std,
    effective_rank,
    features_over_set,
    few_labels,
    knn_accuracy,
    linear_probe,
)

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(5, 16))


def clusters(count, noise=1.2):
    labels = RNG.integers(0, 5, count)
    return (CENTRES[labels] + noise * RNG.normal(size=(count, 16))).astype(np.float32), labels


TRAIN, TEST = clusters(200), clusters(90)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 5, 20])
def test_plain_knn_is_scikit_learns(k):
    model = KNeighborsClassifier(k).fit(unit(TRAIN[0]), TRAIN[1])
    expected = model.score(unit(TEST[0]), TEST[1])
    assert knn_accuracy(*TRAIN, *TEST, k=k, chunk=32) == pytest.approx(expected)
    assert 0.5 < expected < 1


def test_weighted_knn_by_hand():
    cosine = unit(TEST[0]) @ unit(TRAIN[0]).T
    found = []
    for row in cosine:
        near = np.argsort(-row)[:30]
        votes = np.bincount(TRAIN[1][near], np.exp(row[near] / 0.1), minlength=5)
        found.append(votes.argmax())
    expected = (np.asarray(found) == TEST[1]).mean()
    assert knn_accuracy(*TRAIN, *TEST, k=30, temperature=0.1) == pytest.approx(expected)


def test_knn_at_its_limits():
    nearest = knn_accuracy(*TRAIN, *TEST, k=1)
    assert knn_accuracy(*TRAIN, *TEST, k=50, temperature=1e-4) == pytest.approx(nearest, abs=0.02)
    most = np.bincount(TRAIN[1]).argmax()
    assert knn_accuracy(*TRAIN, *TEST, k=1000) == pytest.approx((TEST[1] == most).mean())
    assert knn_accuracy(*TRAIN, *TRAIN, k=1) == 1.0


def test_the_probe_is_logistic_regression_on_unit_features():
    expected = LogisticRegression(C=10.0, max_iter=1000).fit(unit(TRAIN[0]), TRAIN[1])
    found = linear_probe(*TRAIN, *TEST, c=10.0)
    assert found == pytest.approx(expected.score(unit(TEST[0]), TEST[1]), abs=0.012)
    moved = tuple(x * 100 for x in (TRAIN[0], TEST[0]))
    assert linear_probe(moved[0], TRAIN[1], moved[1], TEST[1], c=10.0) == pytest.approx(found)
    scaled = linear_probe(*TRAIN, *TEST, normalize=False, standardize=True)
    assert 0.5 < scaled <= 1


def test_few_labels():
    chosen = few_labels(TRAIN[1], 3, seed=1)
    assert np.bincount(TRAIN[1][chosen]).tolist() == [3] * 5 and len(set(chosen)) == 15
    assert (few_labels(TRAIN[1], 3, seed=1) == chosen).all()
    assert (few_labels(TRAIN[1], 3, seed=2) != chosen).any()
    with pytest.raises(ValueError, match="few_labels: class"):
        few_labels(TRAIN[1], 500, seed=0)


def test_effective_rank():
    z = RNG.normal(size=(40, 8)).astype(np.float32)
    values = np.linalg.svd(z - z.mean(0), compute_uv=False)
    share = values / values.sum()
    assert effective_rank(jnp.asarray(z)) == pytest.approx(
        np.exp(-(share * np.log(share)).sum()), rel=1e-4
    )
    orthogonal = jnp.eye(6)
    assert effective_rank(orthogonal, center=False) == pytest.approx(6, rel=1e-5)
    assert effective_rank(jnp.outer(jnp.arange(5.0), jnp.arange(1.0, 4.0))) == pytest.approx(
        1, abs=1e-3
    )
    assert effective_rank(jnp.ones((5, 3))) == pytest.approx(1, abs=1e-3)
    assert np.isfinite(float(effective_rank(jnp.asarray(z, jnp.bfloat16))))


def test_collapse_std():
    z = RNG.normal(size=(30, 8)).astype(np.float32)
    assert collapse_std(jnp.asarray(z)) == pytest.approx(unit(z).std(0).mean(), rel=1e-5)
    spread = jnp.asarray(RNG.normal(size=(2000, 64)), jnp.float32)
    assert collapse_std(spread, scaled=True) == pytest.approx(1, abs=0.02)
    assert collapse_std(jnp.ones((5, 4))) == pytest.approx(0, abs=1e-6)
    assert collapse_std(jnp.zeros((5, 4))) == 0


@pytest.mark.parametrize("count", [1, 7, 8, 20])
def test_features_come_in_order_and_without_padding(count):
    x = RNG.normal(size=(count, 3)).astype(np.float32)

    def apply(scale, batch):
        return {"twice": scale * batch["x"], "sum": batch["x"].sum(1)}

    found = features_over_set(apply, {"x": x}, 8)(jnp.float32(2.0))
    np.testing.assert_allclose(found["twice"], 2 * x, rtol=1e-6)
    np.testing.assert_allclose(found["sum"], x.sum(1), rtol=1e-5, atol=1e-6)


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="features_over_set: no examples"):
        features_over_set(lambda s, b: b, {"x": np.zeros((0, 2))}, 4)
    with pytest.raises(ValueError, match=r"knn_accuracy: features \(200, 16\) and \(90, 15\)"):
        knn_accuracy(*TRAIN, TEST[0][:, 1:], TEST[1])
    with pytest.raises(ValueError, match="k = 0"):
        knn_accuracy(*TRAIN, *TEST, k=0)
    with pytest.raises(ValueError, match="linear_probe"):
        linear_probe(TRAIN[0], TRAIN[1][:3], *TEST)
    for judge in (knn_accuracy, linear_probe):
        name, features = judge.__name__, TEST[0].copy()
        features[3, 1] = np.nan
        with pytest.raises(ValueError, match=f"{name}: test features of row 3 are not finite"):
            judge(*TRAIN, features, TEST[1])
        with pytest.raises(ValueError, match=f"{name}: the training set is empty"):
            judge(TRAIN[0][:0], TRAIN[1][:0], *TEST)
        with pytest.raises(ValueError, match=f"{name}: training labels hold -1"):
            judge(TRAIN[0], TRAIN[1] - 1, *TEST)
    with pytest.raises(ValueError, match="collapse_std"):
        collapse_std(jnp.zeros(3))
    with pytest.raises(ValueError, match="effective_rank"):
        effective_rank(jnp.zeros(3))
