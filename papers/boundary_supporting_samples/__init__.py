"""Boundary supporting samples (Heo, Lee, Yun, Choi, AAAI 2019): ask the teacher at its boundary.

from reprise.papers.boundary_supporting_samples import boundary_supporting_samples

near = boundary_supporting_samples(teacher_logits, images, target_class)  # then KD on them, too
"""

from reprise.common.ops.distillation import soft_cross_entropy
from reprise.papers.boundary_supporting_samples.losses import boundary_similarity, bss_loss_weights
from reprise.papers.boundary_supporting_samples.samples import (
    boundary_supporting_samples,
    sample_target_class,
    select_base_samples,
    target_class_from_uniform,
)

__all__ = [
    "boundary_similarity",
    "boundary_supporting_samples",
    "bss_loss_weights",
    "sample_target_class",
    "select_base_samples",
    "soft_cross_entropy",
    "target_class_from_uniform",
]
