"""Overhaul of feature distillation (Heo et al., ICCV 2019): pre-ReLU features, margin, partial L2.

from reprise.papers.overhaul_distillation import margin_from_batchnorm, overhaul_feature_loss

margin = margin_from_batchnorm(bn_scale, bn_bias)  # of the teacher's BatchNorm before the ReLU
loss = overhaul_feature_loss(connected_student_features, teacher_features, margin).mean()
"""

from reprise.common.models.connector import FeatureConnector
from reprise.papers.overhaul_distillation.losses import (
    margin_relu,
    multilayer_overhaul_loss,
    overhaul_feature_loss,
    partial_l2_loss,
)
from reprise.papers.overhaul_distillation.margins import (
    margin_from_batchnorm,
    margin_from_features,
)

__all__ = [
    "FeatureConnector",
    "margin_from_batchnorm",
    "margin_from_features",
    "margin_relu",
    "multilayer_overhaul_loss",
    "overhaul_feature_loss",
    "partial_l2_loss",
]
