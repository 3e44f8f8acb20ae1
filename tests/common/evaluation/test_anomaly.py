"""Metrics of anomaly detection against independent computations."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprise.common.evaluation.anomaly import image_auroc, per_region_overlap, pixel_auroc


def pairs_in_order(scores, labels):
    """AUROC as the share of (anomalous, normal) pairs in the right order, ties half."""
    bad, good = scores[labels > 0], scores[labels == 0]
    return ((bad[:, None] > good) + 0.5 * (bad[:, None] == good)).mean()


@given(st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_aurocs_count_pairs_in_order(seed):
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, 6, (4, 5, 5)).astype(np.float32)  # with ties
    masks = rng.random((4, 5, 5)) < 0.3
    masks[0] = False
    masks[1, 0, 0] = True
    expected = pairs_in_order(maps.ravel(), masks.ravel())
    assert pixel_auroc(maps, masks) == pytest.approx(expected, abs=1e-6)
    labels, scores = masks.any((1, 2)).astype(int), maps.max((1, 2))
    assert image_auroc(scores, labels) == pytest.approx(pairs_in_order(scores, labels), abs=1e-6)


def test_scores_of_16_bits_are_taken():
    masks = np.array([[[0, 1], [0, 0]]])
    maps = np.array([[[0.1, 0.9], [0.5, 0.2]]], jnp.bfloat16)
    assert pixel_auroc(maps, masks) == 1.0 and per_region_overlap(maps, masks) == 1.0
    assert image_auroc(maps[0, 0], np.array([1, 0])) == 0.0


def regions_by_flood_fill(mask):
    """8-connected components, written without scipy."""
    left, regions = set(zip(*np.nonzero(mask), strict=True)), []
    while left:
        stack, region = [left.pop()], []
        while stack:
            y, x = stack.pop()
            region.append((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            stack += near
        regions.append(tuple(np.array(region).T))
    return regions


def slow_overlap(maps, masks, max_fpr=0.3, num_thresholds=200):
    points = []
    for threshold in np.linspace(maps.max(), maps.min(), num_thresholds):
        above = maps > threshold
        overlap = [
            above[i][region].mean()
            for i in range(len(maps))
            for region in regions_by_flood_fill(masks[i])
        ]
        points.append((above[~masks].mean(), np.mean(overlap)))
    x, y = np.array([p for p in points if p[0] <= max_fpr]).T
    x, y = ((v - v.min()) / (v.max() - v.min()) for v in (x, y))
    return ((y[1:] + y[:-1]) / 2 * np.diff(x)).sum()


def test_per_region_overlap_is_that_of_a_slow_computation():
    rng = np.random.default_rng(0)
    masks = rng.random((3, 12, 12)) < 0.15
    maps = rng.normal(size=(3, 12, 12)) + 1.5 * masks
    for arguments in ({}, {"max_fpr": 0.1, "num_thresholds": 50}):
        found = per_region_overlap(maps, masks, **arguments)
        assert found == pytest.approx(slow_overlap(maps, masks, **arguments), abs=1e-9)


def test_perfect_maps_and_small_regions_weigh_as_much_as_large_ones():
    masks = np.zeros((1, 16, 16), bool)
    masks[0, :8, :8] = True  # 64 pixels
    masks[0, 12, 12] = True  # one
    perfect = masks.astype(float) + 0.01 * np.random.default_rng(0).random(masks.shape)
    assert pixel_auroc(perfect, masks) == 1.0
    assert per_region_overlap(perfect, masks) == pytest.approx(1.0, abs=0.01)
    noise = np.random.default_rng(1).random(masks.shape)
    without_small = np.where(masks & (np.arange(16) < 9)[None, :, None], 2.0, noise)
    assert pixel_auroc(without_small, masks) > 0.98
    assert slow_overlap(without_small, masks) == pytest.approx(
        per_region_overlap(without_small, masks)
    )


def test_what_cannot_be_measured_is_refused_by_name():
    maps, masks = np.zeros((2, 3, 3)), np.zeros((2, 3, 3), bool)
    masks[1, 0, 0] = True
    with pytest.raises(ValueError, match=r"pixel_auroc: scores \(2, 3\)"):
        pixel_auroc(maps[..., 0], masks[..., 0])
    with pytest.raises(ValueError, match=r"per_region_overlap: scores \(1, 3, 3\) and truth"):
        per_region_overlap(maps[:1], masks)
    with pytest.raises(ValueError, match="pixel_auroc: all of the truth is normal"):
        pixel_auroc(maps, masks & False)
    with pytest.raises(ValueError, match="image_auroc: all of the truth is anomalous"):
        image_auroc(np.zeros(2), np.ones(2))
    maps[1, 2, 2] = np.nan
    with pytest.raises(ValueError, match="per_region_overlap: scores of image 1 are not finite"):
        per_region_overlap(maps, masks)
