"""The memory bank: one entry a position, whatever the number of training images."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from reprise.common.ops.kmeans import kmeans


def running_mean(
    mean: Float[Array, "height width d"],
    count: Int[Array, ""] | int,
    phi: Float[Array, "batch height width d"],
) -> Float[Array, "height width d"]:
    """C <- (i C + mean over the batch of phi) / (i + 1), i the batches seen before: [H, W, D].

    Raises:
      ValueError: shapes that do not fit.
    """
    if phi.ndim != 4 or phi.shape[1:] != mean.shape:
        raise ValueError(
            f"running_mean: phi {phi.shape} must be [B, H, W, D] for a mean of {mean.shape}"
        )
    wide = jnp.promote_types(phi.dtype, jnp.float32)
    return (count * mean + phi.astype(wide).mean(0)) / (count + 1)


def compress(
    mean: Float[Array, "height height d"], *, gamma_c: int = 1, key: Array
) -> Float[Array, "m d"]:
    """The H H entries as rows, or for gamma_c > 1 the centres of H H // gamma_c clusters: [M, D].

    Raises:
      ValueError: a mean that is not square, gamma_c below 1, or no entry left.

    Source: Lee, Lee, Song, IEEE Access 2022, memory bank compression.
    """
    if mean.ndim != 3 or mean.shape[0] != mean.shape[1]:
        raise ValueError(f"compress: mean {mean.shape} must be [H, H, D], of square images")
    entries = mean.reshape(-1, mean.shape[-1])
    if not 1 <= gamma_c <= len(entries):
        raise ValueError(f"compress: gamma_c = {gamma_c}: must be in 1..{len(entries)}")
    if gamma_c == 1:
        return entries
    return kmeans(key, entries, len(entries) // gamma_c, num_restarts=1, num_iters=3000).centers


def build_memory_bank(
    apply_descriptor: Callable[[Any], Float[Array, "batch height height d"]],
    batches: Iterable[Any],
    *,
    gamma_c: int = 1,
    key: Array,
) -> Float[Array, "m d"]:
    """The memory bank C of a stream of batches, before any training: [M, D].

    The mean is over batches, so batches of unequal size weigh their images unequally. In a recipe
    the loop streams the batches and `running_mean` is the step of a phase.

    Args:
      apply_descriptor: one of `batches` -> [B, H, H, D], with the descriptor's initial parameters.
      batches: of defect-free images, or anything the descriptor takes.
      gamma_c: compression; M = H H // gamma_c.
      key: of the clustering, for gamma_c > 1.

    Raises:
      ValueError: no batch, descriptors that are not finite (named by their batch), or shapes that
        do not fit.

    Source: Lee, Lee, Song, IEEE Access 2022, Algorithm 1 as its authors run it: without updates
    of C during training.
    """
    mean: Any = None
    for i, batch in enumerate(batches):
        phi = apply_descriptor(batch)
        if phi.ndim != 4:
            raise ValueError(f"build_memory_bank: descriptors {phi.shape} must be [B, H, W, D]")
        mean = running_mean(jnp.zeros(phi.shape[1:]) if mean is None else mean, i, phi)
        if not isinstance(mean, jax.core.Tracer) and not math.isfinite(np.sum(mean)):
            raise ValueError(f"build_memory_bank: batch {i} has descriptors that are not finite")
    if mean is None:
        raise ValueError("build_memory_bank: no batches")
    return compress(mean, gamma_c=gamma_c, key=key)
