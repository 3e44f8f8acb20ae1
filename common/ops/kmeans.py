"""k-means: seeding by k-means++ and Lloyd's iterations, all restarts in one program."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class KMeans(NamedTuple):
    """The best of all restarts.

    Attributes:
      centers: [k, d].
      assignments: int32 [n], the nearest center of each point.
      inertia: [], sum over points of the squared distance to it.
    """

    centers: Float[Array, "k d"]
    assignments: Int[Array, " n"]
    inertia: Float[Array, ""]


def squared_distances(
    points: Float[Array, "... n d"], centers: Float[Array, "... k d"]
) -> Float[Array, "... n k"]:
    """||x - c||^2 of every pair, never below 0, from one matrix product in full precision."""
    wide = jnp.promote_types(jnp.result_type(points, centers), jnp.float32)
    x, c = points.astype(wide), centers.astype(wide)
    cross = jnp.matmul(x, jnp.swapaxes(c, -1, -2), precision="highest")
    squares = (x**2).sum(-1)[..., :, None] + (c**2).sum(-1)[..., None, :]
    return jnp.maximum(squares - 2 * cross, 0.0)


@functools.partial(jax.jit, static_argnames=("num_clusters", "num_restarts", "num_iters"))
def kmeans(
    key: Array,
    points: Float[Array, "n d"],
    num_clusters: int,
    *,
    num_restarts: int = 20,
    num_iters: int = 300,
) -> KMeans:
    """Clusters points; no gradient is meant to pass.

    Each restart is seeded by k-means++ and iterated until no assignment changes; the one with the
    smallest inertia is returned. A cluster that loses all its points keeps its center.

    Args:
      key: of the seeding.
      points: [n, d], finite.
      num_clusters: k, at most n.
      num_restarts: independent seedings, run one after another.
      num_iters: cap on Lloyd's iterations of each.

    Raises:
      ValueError: points that are no matrix, fewer points than clusters, or no restart.

    Source: Lloyd, IEEE Trans. Inf. Theory 1982; Arthur, Vassilvitskii, SODA 2007.
    """
    if points.ndim != 2 or not 1 <= num_clusters <= points.shape[0]:
        raise ValueError(
            f"kmeans: points {points.shape} must be [n, d] with n >= num_clusters = {num_clusters}"
        )
    if num_restarts < 1:
        raise ValueError(f"kmeans: num_restarts = {num_restarts}: must be 1 or more")
    x = points.astype(jnp.promote_types(points.dtype, jnp.float32))
    # Distances cancel where points lie far from the origin.
    mean = x.mean(0)
    x = x - mean

    def seed(key: Array) -> Array:
        first, rest = jax.random.split(key)
        start = x[jax.random.randint(first, (), 0, len(x))]
        centers = jnp.broadcast_to(start, (num_clusters, x.shape[1]))

        def add(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            centers, nearest = carry
            chosen = jax.random.categorical(jax.random.fold_in(rest, i), jnp.log(nearest))
            # Where every point is a center already, any will do.
            center = x[jnp.where(nearest.max() > 0, chosen, 0)]
            closer = jnp.minimum(nearest, ((x - center) ** 2).sum(-1))
            return centers.at[i].set(center), closer

        nearest = ((x - start) ** 2).sum(-1)
        return jax.lax.fori_loop(1, num_clusters, add, (centers, nearest))[0]

    def assign(centers: Array) -> Array:
        return squared_distances(x, centers).argmin(-1).astype(jnp.int32)

    def lloyd(key: Array) -> KMeans:
        def move(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
            centers, assignments, _, count = carry
            sums = jax.ops.segment_sum(x, assignments, num_clusters)
            sizes = jax.ops.segment_sum(jnp.ones_like(x[:, 0]), assignments, num_clusters)
            mean = sums / jnp.maximum(sizes, 1.0)[:, None]
            centers = jnp.where((sizes > 0)[:, None], mean, centers)
            new = assign(centers)
            return centers, new, (new != assignments).any(), count + 1

        def go_on(carry: tuple[Array, Array, Array, Array]) -> Array:
            return carry[2] & (carry[3] < num_iters)

        centers = seed(key)
        start = (centers, assign(centers), jnp.array(True), jnp.array(0))
        centers, assignments, _, _ = jax.lax.while_loop(go_on, move, start)
        return KMeans(centers, assignments, ((x - centers[assignments]) ** 2).sum())

    each = jax.lax.map(lloyd, jax.random.split(key, num_restarts))
    best = jax.tree.map(lambda leaf: leaf[each.inertia.argmin()], each)
    return best._replace(centers=best.centers + mean)
