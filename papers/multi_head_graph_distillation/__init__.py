"""MHGD (Lee, Song, BMVC 2019): teach how a batch moves from layer to layer, as attention graphs.

from reprise.papers.multi_head_graph_distillation import multi_head_graph_distillation_loss

loss = multi_head_graph_distillation_loss(params_per_pair, student_vectors, teacher_vectors)
"""

from reprise.papers.multi_head_graph_distillation.layers import (
    attention_logits,
    estimate_back_vectors,
    init_params,
    sample_head_mask,
    split_statistics,
)
from reprise.papers.multi_head_graph_distillation.losses import (
    attention_graph_loss,
    multi_head_graph_distillation_loss,
    principal_vectors,
    vector_estimation_loss,
)

__all__ = [
    "attention_graph_loss",
    "attention_logits",
    "estimate_back_vectors",
    "init_params",
    "multi_head_graph_distillation_loss",
    "principal_vectors",
    "sample_head_mask",
    "split_statistics",
    "vector_estimation_loss",
]
