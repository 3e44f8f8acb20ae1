"""EnSiam (Han, Lee, 2023): the mean of K views as the target of a Siamese network.

from reprise.papers.ensiam import augment_views, ensiam_loss

loss = ensiam_loss(predictions, projections).mean()  # [K, B, d] each; the mean gets no gradient
"""

from reprise.common.evaluation.representation import collapse_std, knn_accuracy, linear_probe
from reprise.papers.ensiam.losses import (
    ensemble_target,
    ensiam_loss,
    simsiam_pairwise_loss,
    target_variance,
)
from reprise.papers.ensiam.models import Predictor, Projector
from reprise.papers.ensiam.views import augment_views

__all__ = [
    "Predictor",
    "Projector",
    "augment_views",
    "collapse_std",
    "ensemble_target",
    "ensiam_loss",
    "knn_accuracy",
    "linear_probe",
    "simsiam_pairwise_loss",
    "target_variance",
]
