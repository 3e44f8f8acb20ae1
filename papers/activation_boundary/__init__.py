"""Activation boundaries (Heo, Lee, Yun, Choi, AAAI 2019): match on which side each unit fires.

from reprise.papers.activation_boundary import multilayer_activation_boundary_loss

loss = multilayer_activation_boundary_loss(student_taps, teacher_taps).mean()  # before the ReLUs
"""

from reprise.common.models.connector import FeatureConnector
from reprise.common.ops.distillation import kd_kl_divergence
from reprise.papers.activation_boundary.losses import (
    activation_boundary_loss,
    activation_mismatch,
    centered_logit_loss,
    multilayer_activation_boundary_loss,
)

__all__ = [
    "FeatureConnector",
    "activation_boundary_loss",
    "activation_mismatch",
    "centered_logit_loss",
    "kd_kl_divergence",
    "multilayer_activation_boundary_loss",
]
