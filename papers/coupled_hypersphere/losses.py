"""The coupled hyperspheres: attraction to near memory entries, repulsion from the next ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.blur import gaussian_blur


def squared_distances(
    phi: Float[Array, "*positions d"], memory_bank: Float[Array, "m d"]
) -> Float[Array, "*positions m"]:
    """||x||^2 + ||c||^2 - 2 <x, c> of every descriptor and memory entry: [..., T, M].

    Rounding may leave a distance of about 0 slightly negative.

    Args:
      phi: descriptors [..., T, D].
      memory_bank: C, [M, D].

    Raises:
      ValueError: shapes that do not fit.
    """
    if memory_bank.ndim != 2 or phi.ndim < 1 or phi.shape[-1] != memory_bank.shape[1]:
        raise ValueError(
            f"squared_distances: phi {phi.shape} and memory_bank {memory_bank.shape} must be "
            "[..., D] and [M, D] of the same D"
        )
    wide = jnp.promote_types(jnp.result_type(phi, memory_bank), jnp.float32)
    x, c = phi.astype(wide), memory_bank.astype(wide)
    # Full precision everywhere: the differences are small against the squares they come from.
    cross = jnp.matmul(x, c.T, precision="highest")
    return (x**2).sum(-1, keepdims=True) + (c**2).sum(-1) - 2 * cross


def _nearest(
    name: str, phi: Array, memory_bank: Array, count: int
) -> Float[Array, "batch height width count"]:
    """The `count` smallest squared distances of each descriptor, ascending: [B, H, W, count]."""
    if phi.ndim != 4:
        raise ValueError(f"{name}: phi {phi.shape} must be [B, H, W, D]")
    if len(memory_bank) < count:
        raise ValueError(
            f"{name}: memory_bank {memory_bank.shape} has fewer entries than the {count} neighbours"
        )
    batch, height, width, features = phi.shape
    distances = squared_distances(phi.reshape(-1, features), memory_bank)
    return -jax.lax.top_k(-distances, count)[0].reshape(batch, height, width, count)


def attraction_and_repulsion(
    phi: Float[Array, "batch height width d"],
    memory_bank: Float[Array, "m d"],
    radius: Float[Array, ""] | float,
    *,
    num_attract: int = 3,
    num_repel: int = 3,
    nu: float = 1e-3,
    alpha: float = 0.1,
) -> tuple[Float[Array, " batch"], Float[Array, " batch"]]:
    """L_att and L_rep of each image, [B] each; see `coupled_hypersphere_loss`."""
    if num_attract < 1 or num_repel < 0:
        raise ValueError(
            f"coupled_hypersphere_loss: num_attract = {num_attract} must be 1 or more, num_repel = "
            f"{num_repel} 0 or more"
        )
    if jnp.shape(radius):
        raise ValueError(f"coupled_hypersphere_loss: radius {jnp.shape(radius)} must be a scalar")
    near = _nearest("coupled_hypersphere_loss", phi, memory_bank, num_attract + num_repel)
    squared = jnp.asarray(radius, near.dtype) ** 2
    attract = jax.nn.relu(near[..., :num_attract] - squared).mean((1, 2, 3))
    if not num_repel:
        return attract / nu, jnp.zeros_like(attract)
    # The released code starts at index J; the neighbours after the attracted ones start at K.
    repel = jax.nn.relu(squared - near[..., num_attract:] - alpha).mean((1, 2, 3))
    return attract / nu, repel / nu


def coupled_hypersphere_loss(
    phi: Float[Array, "batch height width d"],
    memory_bank: Float[Array, "m d"],
    radius: Float[Array, ""] | float,
    *,
    num_attract: int = 3,
    num_repel: int = 3,
    nu: float = 1e-3,
    alpha: float = 0.1,
) -> Float[Array, " batch"]:
    """L_att + L_rep over the K + J memory entries nearest to each descriptor: [B].

    L_att = 1/nu mean over t, k <= K of max(0, d_k - r^2), L_rep = 1/nu mean over t, K < j <= K + J
    of max(0, r^2 - d_j - alpha), where d_1 <= d_2 <= ... are squared distances. The choice of
    neighbours is not differentiated. Below r = sqrt(alpha) the repulsion is 0, and so is its
    gradient.

    Args:
      phi: descriptors x of every position.
      memory_bank: C, a constant of the training.
      radius: r; its gradient is proportional to r, so r = 0 never moves.
      num_attract: K.
      num_repel: J; 0 leaves the repulsion out.
      nu: divides both terms, as in the released code.
      alpha: margin between the two spheres.

    Raises:
      ValueError: shapes that do not fit, or fewer memory entries than K + J.

    Source: Lee, Lee, Song, IEEE Access 2022, L_att and L_rep.
    """
    attract, repel = attraction_and_repulsion(
        phi,
        memory_bank,
        radius,
        num_attract=num_attract,
        num_repel=num_repel,
        nu=nu,
        alpha=alpha,
    )
    return attract + repel


def coupled_hypersphere_score(
    phi: Float[Array, "batch height width d"],
    memory_bank: Float[Array, "m d"],
    *,
    num_neighbors: int = 3,
) -> Float[Array, "batch height width"]:
    """Distance to the nearest memory entry, weighted by its share of a softmin over K: [B, H, W].

    s = delta_1 exp(-delta_1) / sum over k <= K of exp(-delta_k), with delta the distance itself.

    Args:
      phi: descriptors.
      memory_bank: C.
      num_neighbors: K.

    Raises:
      ValueError: shapes that do not fit, fewer memory entries than K, or K below 1.

    Source: Lee, Lee, Song, IEEE Access 2022, the anomaly score.
    """
    if num_neighbors < 1:
        raise ValueError(f"coupled_hypersphere_score: num_neighbors = {num_neighbors}: 1 or more")
    near = _nearest("coupled_hypersphere_score", phi, memory_bank, num_neighbors)
    positive = near > 0
    # The slope at distance 0 is taken as 0.
    delta = jnp.where(positive, jnp.sqrt(jnp.where(positive, near, 1.0)), 0.0)
    return delta[..., 0] * jax.nn.softmax(-delta, -1)[..., 0]


def anomaly_map(
    score: Float[Array, "batch height height"], image_size: int, *, sigma: float = 4.0
) -> Float[Array, "batch size size"]:
    """Scores at the size of the image: bilinear with half-pixel centres, then smoothed.

    Args:
      score: [B, H, H].
      image_size: S, pixels a side.
      sigma: of the Gaussian in pixels, cut off at 4 sigma, images reflected at their border; 0
        leaves it out.

    Returns:
      [B, S, S]. Rescaling all maps of a test set by one minimum and maximum, as the released code
      does, changes no area under a curve.

    Raises:
      ValueError: score is not square.
    """
    if score.ndim != 3 or score.shape[1] != score.shape[2]:
        raise ValueError(f"anomaly_map: score {score.shape} must be [B, H, H], of square images")
    wide = jnp.promote_types(score.dtype, jnp.float32)
    shape = (len(score), image_size, image_size)
    resized = jax.image.resize(score.astype(wide), shape, "linear", antialias=False)
    return gaussian_blur(resized[..., None], sigma)[..., 0]
