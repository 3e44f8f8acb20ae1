"""From feature maps to points of low dimension: stacked PCA with a plane between its two stages."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.common.ops.dtypes import wide
from reprise.common.ops.svd import canonicalize_sign, left_vectors, truncated_svd

State = dict[str, Array]  # mean [1, C], singular_values [1, C / 2], components [C, C / 2]

_einsum = functools.partial(jnp.einsum, precision="highest")


def _unit(x: Array) -> Array:
    """x / |x|; of 0 it is 0, and its derivative finite."""
    return x * jax.lax.rsqrt(jnp.maximum((x**2).sum(-1, keepdims=True), 1e-12))


def stacked_pca_vectors(
    student_features: Float[Array, "batch h w c"], teacher_features: Float[Array, "batch h w c"]
) -> tuple[Float[Array, "batch c"], Float[Array, "batch c"]]:
    """One unit vector an example: the teacher's first singular vector, and the student's for it.

    With M the map as [HW, C] and M_T ~ s u_T v_T^T: v_T, its sign by `canonicalize_sign`, and
    v_S = M_S^T u_T / |M_S^T u_T|. The student needs no decomposition: its derivative is that of a
    product and a norm. No gradient passes to the teacher. Where either map is 0, v_S is 0.

    Args:
      student_features: F_S [B, H, W, C].
      teacher_features: F_T, the same shape.

    Returns:
      (student [B, C], teacher [B, C]), in float32 at least.

    Raises:
      ValueError: shapes that differ or are not [B, H, W, C].

    Source: Lee, Song, AAAI 2021, the first PCA.
    """
    if student_features.ndim != 4 or student_features.shape != teacher_features.shape:
        raise ValueError(
            f"stacked_pca_vectors: student_features {student_features.shape} and teacher_features "
            f"{teacher_features.shape} must be the same [B, H, W, C]"
        )
    batch, *_, channels = student_features.shape
    student = wide(student_features).reshape(batch, -1, channels)
    teacher = jax.lax.stop_gradient(wide(teacher_features)).reshape(batch, -1, channels)
    v = canonicalize_sign(truncated_svd(teacher, 1)[1])
    u = left_vectors(teacher, v)
    return _unit(_einsum("bnc,bn->bc", student, u[..., 0])), v[..., 0]


def sphere_to_plane(x: Float[Array, "*batch c"], eps: float = 1e-6) -> Float[Array, "*batch c"]:
    """Stereographic projection of unit vectors onto the plane that touches the sphere at c.

    With c = (1, ..., 1) / sqrt(C): p = (x + c) 2 / (1 + x . c) - 2 c. Then p . c = 0, and p = 0 at
    x = c. The authors' code writes 1 / cos^2(arccos(x . c) / 2) for the factor: the same number,
    with an infinite derivative at x = c.

    Args:
      x: [..., C], of length 1.
      eps: least value of 1 + x . c, which is 0 opposite to c.

    Raises:
      ValueError: x without an axis of channels.

    Source: Lee, Song, AAAI 2021, the sphere-to-plane map.
    """
    if not jnp.ndim(x) or not jnp.shape(x)[-1]:
        raise ValueError(f"sphere_to_plane: x {jnp.shape(x)} must be [..., C]")
    x = wide(x)
    c = x.shape[-1] ** -0.5
    factor = 2 / jnp.maximum(1 + c * x.sum(-1, keepdims=True), eps)
    return (x + c) * factor - 2 * c


def incremental_pca_init(channels: int) -> State:
    """The state before the first batch: zeros, so that every projection is 0.

    Raises:
      ValueError: channels that are not even and positive.
    """
    if channels < 2 or channels % 2:
        raise ValueError(f"incremental_pca_init: channels = {channels}: must be even, 2 or more")
    half = channels // 2
    shapes = {
        "mean": (1, channels),
        "singular_values": (1, half),
        "components": (channels, half),
    }
    return {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes.items()}


def incremental_pca_update(
    state: State, x: Float[Array, "batch c"], momentum: float = 0.9
) -> State:
    """The principal axes of all batches so far, from the old axes and one more batch.

    With m the batch's mean, the SVD of the rows [x - m; (sv Q)^T; mu - m] gives the new sv and
    Q; the first batch has no old mean, and that row is 0. The mean becomes
    (1 - momentum) mu + momentum m. Old singular values do not decay, so the axes settle. All of it
    is read from the old state. Nothing of it has a gradient.

    Args:
      state: see `incremental_pca_init`.
      x: points of the teacher, [B, C].
      momentum: of the mean, on the new batch.

    Raises:
      ValueError: shapes that do not fit.

    Source: Lee, Song, AAAI 2021, the second PCA; the mean's row has the weight 1 of the authors'
    code, not the sqrt(n m / (n + m)) of the usual incremental PCA.
    """
    _fits("incremental_pca_update", state, x)
    state, x = jax.lax.stop_gradient((state, wide(x)))
    mean = x.mean(0, keepdims=True)
    old = state["singular_values"] * state["components"]
    before = jnp.where((old != 0).any(), state["mean"], mean)
    values, components = truncated_svd(
        jnp.concatenate([x - mean, old.T, before - mean]), old.shape[-1]
    )
    return {
        "mean": (1 - momentum) * state["mean"] + momentum * mean,
        "singular_values": values[None],
        "components": canonicalize_sign(components),
    }


def batch_pca(x: Float[Array, "batch c"]) -> State:
    """The state of `incremental_pca_update` from one batch alone: mean, and axes about the mean.

    Where the batch has fewer than C / 2 points the missing axes are 0. No gradient.

    Raises:
      ValueError: not [B, C] with an even C.

    Source: Lee, Song, AAAI 2021, what the incremental PCA is compared with.
    """
    if jnp.ndim(x) != 2 or jnp.shape(x)[-1] % 2:
        raise ValueError(f"batch_pca: x {jnp.shape(x)} must be [B, C] with an even C")
    x = jax.lax.stop_gradient(wide(x))
    mean, half = x.mean(0, keepdims=True), x.shape[-1] // 2
    values, components = truncated_svd(x - mean, half)
    missing = (0, half - values.shape[-1])
    return {
        "mean": mean,
        "singular_values": jnp.pad(values, missing)[None],
        "components": jnp.pad(canonicalize_sign(components), ((0, 0), missing)),
    }


def incremental_pca_project(
    state: State, x: Float[Array, "batch c"]
) -> Float[Array, "batch half_c"]:
    """(x - mean) components: [B, C / 2]. No gradient passes to the state.

    Raises:
      ValueError: shapes that do not fit.

    Source: Lee, Song, AAAI 2021, the second PCA.
    """
    _fits("incremental_pca_project", state, x)
    state = jax.lax.stop_gradient(state)
    return _einsum("bc,cd->bd", wide(x) - state["mean"], state["components"])


def cosine_affinity(x: Float[Array, "batch d"]) -> Float[Array, "batch batch"]:
    """Cosine between every two points, in float32 at least: [B, B]; a point of 0 has 0 with all.

    Raises:
      ValueError: not [B, D].

    Source: Lee, Song, AAAI 2021, the affinity of the teacher's points.
    """
    if jnp.ndim(x) != 2:
        raise ValueError(f"cosine_affinity: x {jnp.shape(x)} must be [B, D]")
    unit = _unit(wide(x))
    return _einsum("id,jd->ij", unit, unit)


def _fits(name: str, state: State, x: Array) -> None:
    shape, mean = jnp.shape(x), jnp.shape(state["mean"])
    if len(shape) != 2 or mean != (1, shape[-1]):
        raise ValueError(f"{name}: x {shape} must be [B, C] as the state's mean {mean} [1, C]")
