"""Procrustean Regression Networks (Park, Lee, Kwak, 2020): 3D shapes from 2D points alone.

from reprise.papers.procrustean_regression import procrustean_regression_loss

loss = procrustean_regression_loss(shapes, points2d, mask)  # one group; jax.vmap for several
"""

from reprise.common.evaluation.pose import mpjpe, normalized_error
from reprise.papers.procrustean_regression.alignment import procrustes_align
from reprise.papers.procrustean_regression.fit import fit_shapes
from reprise.papers.procrustean_regression.losses import (
    normalize_points,
    nuclear_norm,
    procrustean_regression_loss,
    reprojection_error,
)
from reprise.papers.procrustean_regression.models import PRNFCN

__all__ = [
    "PRNFCN",
    "fit_shapes",
    "mpjpe",
    "normalize_points",
    "normalized_error",
    "nuclear_norm",
    "procrustean_regression_loss",
    "procrustes_align",
    "reprojection_error",
]
