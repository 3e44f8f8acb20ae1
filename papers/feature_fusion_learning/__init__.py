"""Feature fusion learning (Kim, Hyun, Chung, Kwak, ICPR 2020): networks that teach each other.

from reprise.papers.feature_fusion_learning import FusionModule, mutual_distillation_loss

loss = mutual_distillation_loss(sub_logits, fused_logits, labels, weight).mean()  # no teacher
"""

from reprise.papers.feature_fusion_learning.layers import FusionModule
from reprise.papers.feature_fusion_learning.losses import (
    deep_mutual_learning_loss,
    ensemble_logits,
    mutual_distillation_loss,
    sigmoid_rampup,
    soft_target_kl,
)
from reprise.papers.feature_fusion_learning.models import (
    FeatureFusion,
    ParallelNetworks,
    ParallelResNet,
)

__all__ = [
    "FeatureFusion",
    "FusionModule",
    "ParallelNetworks",
    "ParallelResNet",
    "deep_mutual_learning_loss",
    "ensemble_logits",
    "mutual_distillation_loss",
    "sigmoid_rampup",
    "soft_target_kl",
]
