"""KD-SVD (Lee, Kim, Song, ECCV 2018): teach how singular vectors of layers relate, without labels.

from reprise.papers.svd_distillation import svd_distillation_loss

loss = svd_distillation_loss(student_taps, teacher_taps).sum()  # clip its gradient, see the card
"""

from reprise.common.ops.distillation import clip_to_reference_norm
from reprise.common.ops.svd import align_singular_vectors, canonicalize_sign, truncated_svd
from reprise.papers.svd_distillation.losses import rbf_relation, svd_distillation_loss

__all__ = [
    "align_singular_vectors",
    "canonicalize_sign",
    "clip_to_reference_norm",
    "rbf_relation",
    "svd_distillation_loss",
    "truncated_svd",
]
