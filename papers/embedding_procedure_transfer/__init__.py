"""IEP (Lee, Song, AAAI 2021): transfer how a network embeds a batch, step by step, as messages.

from reprise.papers.embedding_procedure_transfer import embedding_procedure_losses

interim, alteration = embedding_procedure_losses(params, s_back, s_front, t_back, t_front)
"""

from reprise.papers.embedding_procedure_transfer.black_box import (
    black_box_estimation_loss,
    black_box_init,
    black_box_knowledge_loss,
)
from reprise.papers.embedding_procedure_transfer.layers import (
    message_passing,
    message_passing_init,
)
from reprise.papers.embedding_procedure_transfer.losses import (
    affinity_kl,
    alteration_knowledge_loss,
    embedding_procedure_losses,
    interim_knowledge_loss,
)
from reprise.papers.embedding_procedure_transfer.projections import (
    batch_pca,
    cosine_affinity,
    incremental_pca_init,
    incremental_pca_project,
    incremental_pca_update,
    sphere_to_plane,
    stacked_pca_vectors,
)

__all__ = [
    "affinity_kl",
    "alteration_knowledge_loss",
    "batch_pca",
    "black_box_estimation_loss",
    "black_box_init",
    "black_box_knowledge_loss",
    "cosine_affinity",
    "embedding_procedure_losses",
    "incremental_pca_init",
    "incremental_pca_project",
    "incremental_pca_update",
    "interim_knowledge_loss",
    "message_passing",
    "message_passing_init",
    "sphere_to_plane",
    "stacked_pca_vectors",
]
