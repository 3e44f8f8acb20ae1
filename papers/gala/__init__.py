"""GALA: symmetric graph convolutional autoencoder (Park et al., ICCV 2019).

from reprise.papers.gala import GALA, smoothing_operator, sharpening_operator

latent, reconstruction = GALA((800, 700)).apply(variables, features, smoothing, sharpening)
"""

from reprise.common.evaluation.clustering import clustering_accuracy
from reprise.papers.gala.losses import (
    edge_link_reconstruction_loss,
    feature_reconstruction_loss,
    latent_affinity,
    link_reconstruction_loss,
    subspace_clustering_cost,
)
from reprise.papers.gala.models import GALA, GraphAutoencoder, gaussian_kl, smoothed_features
from reprise.papers.gala.operators import (
    edge_sharpening_weights,
    edge_smoothing_weights,
    knn_affinity,
    knn_edges,
    sharpening_operator,
    smoothing_operator,
)

__all__ = [
    "GALA",
    "GraphAutoencoder",
    "clustering_accuracy",
    "edge_link_reconstruction_loss",
    "edge_sharpening_weights",
    "edge_smoothing_weights",
    "feature_reconstruction_loss",
    "gaussian_kl",
    "knn_affinity",
    "knn_edges",
    "latent_affinity",
    "link_reconstruction_loss",
    "sharpening_operator",
    "smoothed_features",
    "smoothing_operator",
    "subspace_clustering_cost",
]
