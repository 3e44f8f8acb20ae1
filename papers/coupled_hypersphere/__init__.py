"""CFA (Lee, Lee, Song, 2022): features adapted to a target by coupled hyperspheres.

from reprise.papers.coupled_hypersphere import coupled_hypersphere_loss

loss = coupled_hypersphere_loss(phi, memory_bank, radius)  # [B]
"""

from reprise.common.evaluation.anomaly import image_auroc, per_region_overlap, pixel_auroc
from reprise.papers.coupled_hypersphere.layers import PatchDescriptor, add_coords, patch_features
from reprise.papers.coupled_hypersphere.losses import (
    anomaly_map,
    attraction_and_repulsion,
    coupled_hypersphere_loss,
    coupled_hypersphere_score,
    squared_distances,
)
from reprise.papers.coupled_hypersphere.memory import build_memory_bank, compress, running_mean

__all__ = [
    "PatchDescriptor",
    "add_coords",
    "anomaly_map",
    "attraction_and_repulsion",
    "build_memory_bank",
    "compress",
    "coupled_hypersphere_loss",
    "coupled_hypersphere_score",
    "image_auroc",
    "patch_features",
    "per_region_overlap",
    "pixel_auroc",
    "running_mean",
    "squared_distances",
]
