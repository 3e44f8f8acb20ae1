"""From the taps of teacher and student to points in the teacher's principal axes."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from reprise.papers.embedding_procedure_transfer import projections

Points = dict[str, jax.Array]  # tap -> [B, C], or [B, C / 2]

TAPS = ("stage1", "stage2", "stage3")  # after the ReLU that ends each stage
PAIRS = {f"{front}_{back}": (front, back) for front, back in itertools.pairwise(TAPS)}


def planes(
    taps: Mapping[str, jax.Array], targets: Mapping[str, jax.Array]
) -> tuple[Points, Points]:
    """(student's, teacher's) points on the plane at each tap: [B, C]."""
    ours, theirs = {}, {}
    for name in TAPS:
        pair = projections.stacked_pca_vectors(taps[name], targets[name])
        ours[name], theirs[name] = map(projections.sphere_to_plane, pair)
    return ours, theirs


def axes(config: ConfigDict, pca: Any, theirs: Points) -> Any:
    """The state of either PCA at each tap: what phase 1 gathered, or of the teacher's batch."""
    return pca if config.model.incremental else {n: projections.batch_pca(theirs[n]) for n in TAPS}


def project(pca: Any, points: Points) -> Points:
    """Points on the plane -> their coordinates, at each tap: [B, C / 2]."""
    return {name: projections.incremental_pca_project(pca[name], points[name]) for name in TAPS}
