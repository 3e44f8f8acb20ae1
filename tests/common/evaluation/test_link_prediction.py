"""AUC and AP of scored pairs."""

import numpy as np
import pytest

from reprise.common.evaluation.link_prediction import link_prediction_metrics, pair_scores


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    positive, negative = rng.normal(1, 1, 30), rng.normal(0, 1, 40)
    found = link_prediction_metrics(positive, negative)
    assert found["auc"] == pytest.approx((positive[:, None] > negative).mean())
    moved = link_prediction_metrics(np.exp(positive), np.exp(negative))
    assert found == pytest.approx(moved)


def test_perfect_inverted_and_tied_scores():
    one, zero = np.ones(4), np.zeros(4)
    assert link_prediction_metrics(one, zero) == {"auc": 1, "ap": 1}
    assert link_prediction_metrics(zero, one)["auc"] == 0
    assert link_prediction_metrics(one, one) == {"auc": 0.5, "ap": 0.5}


def test_average_precision_by_hand():
    found = link_prediction_metrics(np.array([3.0, 1.0]), np.array([2.0]))
    assert found["ap"] == pytest.approx((1 + 2 / 3) / 2)


def test_scores_are_inner_products():
    latent = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    np.testing.assert_array_equal(pair_scores(latent, np.array([[0, 1], [1, 2]])), [11, 39])


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"negative \(0,\) must be"):
        link_prediction_metrics(np.ones(2), np.ones(0))
    with pytest.raises(ValueError, match="1 of 2 positive scores are not finite"):
        link_prediction_metrics(np.array([1.0, np.nan]), np.ones(2))
    with pytest.raises(ValueError, match="2 of 2 negative scores are not finite"):
        link_prediction_metrics(np.ones(2), np.array([np.inf, -np.inf]))
    with pytest.raises(ValueError, match=r"pairs \(3,\)"):
        pair_scores(np.ones((3, 2)), np.arange(3))
    for node in (-1, 3):
        with pytest.raises(ValueError, match=rf"pair 1 = \[2, {node}\]: nodes must be in 0..2"):
            pair_scores(np.ones((3, 2)), np.array([[0, 2], [1, node]]))
