"""How well anomalies are detected and localised; computed on the host."""

import numpy as np


def image_auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Area under the ROC curve of one score an image.

    Args:
      scores: [N], larger for what is less normal.
      labels: [N], 0 or False where normal.

    Raises:
      ValueError: shapes that differ, scores that are not finite, or only one kind of label.
    """
    return _auroc("image_auroc", np.asarray(scores), np.asarray(labels), 1)


def pixel_auroc(maps: np.ndarray, masks: np.ndarray) -> float:
    """Area under the ROC curve over all pixels of all images.

    Args:
      maps: [N, H, W], larger for what is less normal.
      masks: [N, H, W], 0 or False where normal.

    Raises:
      ValueError: shapes that differ, maps that are not finite, or only one kind of pixel.
    """
    return _auroc("pixel_auroc", np.asarray(maps), np.asarray(masks), 3)


def _check(name: str, scores: np.ndarray, truth: np.ndarray, ndim: int) -> None:
    if scores.ndim != ndim or scores.shape != truth.shape:
        axes = "[N, H, W]" if ndim == 3 else "[N]"
        raise ValueError(f"{name}: scores {scores.shape} and truth {truth.shape} must be {axes}")
    finite = np.isfinite(scores).reshape(len(scores), -1).all(1)
    if not finite.all():
        raise ValueError(f"{name}: scores of image {int(np.argmin(finite))} are not finite")
    if truth.astype(bool).all() or not truth.any():
        kind = "anomalous" if truth.any() else "normal"
        raise ValueError(f"{name}: all of the truth is {kind}; both kinds are needed")


def _auroc(name: str, scores: np.ndarray, truth: np.ndarray, ndim: int) -> float:
    from sklearn.metrics import roc_auc_score

    scores = scores.astype(np.float64)  # scikit-learn takes no bfloat16
    _check(name, scores, truth, ndim)
    return float(roc_auc_score(truth.astype(bool).ravel(), scores.ravel()))


def per_region_overlap(
    maps: np.ndarray, masks: np.ndarray, *, max_fpr: float = 0.3, num_thresholds: int = 200
) -> float:
    """Area under the per-region overlap (PRO) over the false-positive rate, up to `max_fpr`.

    At each threshold, from the largest value down to the smallest in equal steps, the overlap is
    the share of a region that lies above it, averaged over all regions (8-connected components of
    the masks), and the rate is the share of normal pixels above it. What lies below `max_fpr` is
    kept, both axes are stretched to [0, 1], and the area is taken by the trapezoid rule. Where an
    axis has no extent (maps so good that no threshold has a rate between 0 and `max_fpr`), it is
    the largest overlap that was kept.

    Args:
      maps: [N, H, W], larger for what is less normal.
      masks: [N, H, W], 0 or False where normal.
      max_fpr: largest false-positive rate that counts.
      num_thresholds: how many.

    Raises:
      ValueError: shapes that differ, maps that are not finite, or only one kind of pixel.

    Source: Bergmann et al., CVPR 2020; the stretched axes are of the code that CFA was measured by.
    """
    from scipy import ndimage

    maps, masks = np.asarray(maps), np.asarray(masks).astype(bool)
    _check("per_region_overlap", maps, masks, 3)
    thresholds = np.linspace(maps.max(), maps.min(), num_thresholds)

    def share_above(values: np.ndarray) -> np.ndarray:
        ordered = np.sort(values)
        return 1 - np.searchsorted(ordered, thresholds, side="right") / len(ordered)

    overlaps = []
    for values, mask in zip(maps, masks, strict=True):
        regions, count = ndimage.label(mask, np.ones((3, 3)))
        overlaps += [share_above(values[regions == i]) for i in range(1, count + 1)]
    overlap, rate = np.mean(overlaps, 0), share_above(maps[~masks])
    kept = rate <= max_fpr
    overlap, rate = overlap[kept], rate[kept]
    if np.ptp(rate) == 0 or np.ptp(overlap) == 0:
        return float(overlap.max())
    return float(np.trapezoid(_stretch(overlap), _stretch(rate)))


def _stretch(x: np.ndarray) -> np.ndarray:
    return (x - x.min()) / np.ptp(x)
