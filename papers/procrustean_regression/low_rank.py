"""A factorisation baseline: orthographic cameras by metric upgrade, then shapes of low rank.

1. Missing observations are completed by a matrix of low rank.
2. W = Pi B of rank 3K; the corrective triplet G [3K, 3] that makes the rows of every camera
   Pi_t G orthonormal, by least squares from the rigid solution (Tomasi, Kanade 1992; Akhter,
   Sheikh, Khan, Kanade, "Nonrigid Structure from Motion in Trajectory Space", NIPS 2008).
3. With the cameras known, the depths that minimise the nuclear norm of the shapes as a matrix
   [F, 3P], subject to W = R S (Dai, Li, He, "A Simple Prior-Free Method for Non-rigid
   Structure-from-Motion Factorization", CVPR 2012, the block matrix method), by ADMM.

Plain numpy on the host: it is what the paper's method is compared with, and is not differentiated.
"""

import numpy as np


def low_rank_shapes(
    points2d: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    num_bases: int = 3,
    num_iters: int = 300,
) -> np.ndarray:
    """Shapes [F, P, 3] in the frames of their cameras, centred; the sign of all depths is open.

    Args:
      points2d: [F, P, 2] orthographic observations of one scale.
      mask: [F, P], 1 where a point is seen.
      num_bases: K, of the factorisation that finds the cameras.
      num_iters: of the ADMM.

    Raises:
      ValueError: shapes that do not fit, a seen point that is not finite, or fewer frames or points
        than 3K.
    """
    points2d = np.asarray(points2d, np.float64)
    if points2d.ndim != 3 or points2d.shape[-1] != 2:
        raise ValueError(f"low_rank_shapes: points2d {points2d.shape} must be [F, P, 2]")
    frames, points = points2d.shape[:2]
    seen = np.ones((frames, points), bool) if mask is None else np.asarray(mask) > 0
    if seen.shape != points2d.shape[:2]:
        raise ValueError(f"low_rank_shapes: mask {seen.shape} must be {points2d.shape[:2]}")
    if not np.isfinite(points2d[seen]).all():
        raise ValueError("low_rank_shapes: a seen point of points2d is not finite")
    if 3 * num_bases > min(2 * frames, points):
        raise ValueError(
            f"low_rank_shapes: num_bases = {num_bases} needs {3 * num_bases} points and half as "
            f"many frames, got {points} and {frames}"
        )
    observed = np.swapaxes(points2d, 1, 2).reshape(2 * frames, points)  # W
    observed = complete(observed, np.repeat(seen, 2, 0), 3 * num_bases + 1)
    observed = observed - observed.mean(1, keepdims=True)
    return depths(observed.reshape(frames, 2, points), cameras(observed, num_bases), num_iters)


def complete(matrix: np.ndarray, seen: np.ndarray, rank: int, num_iters: int = 300) -> np.ndarray:
    """Fills entries in by the matrix of a rank that fits the others best (alternating)."""
    if seen.all():
        return matrix
    count = np.maximum(seen.sum(1, keepdims=True), 1)
    centre = np.where(seen, matrix, 0).sum(1, keepdims=True) / count
    filled = np.where(seen, matrix, centre)
    for _ in range(num_iters):
        u, s, vt = np.linalg.svd(filled, full_matrices=False)
        filled = np.where(seen, matrix, (u[:, :rank] * s[:rank]) @ vt[:rank])
    return filled


def cameras(observed: np.ndarray, num_bases: int) -> np.ndarray:
    """The cameras' axes as rows [F, 3, 3], from W [2F, P]."""
    import scipy.optimize

    u, s, _ = np.linalg.svd(observed, full_matrices=False)
    motion = u[:, : 3 * num_bases] * s[: 3 * num_bases]
    one, two = motion[0::2], motion[1::2]
    # Q = G G^T of the rigid part from |i|^2 - |j|^2 = 0, i . j = 0 and a mean |i|^2 of 1.
    upper = np.triu_indices(3)
    double = np.where(upper[0] == upper[1], 1.0, 2.0)

    def products(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        both = (a[:, :3, None] * b[:, None, :3] + b[:, :3, None] * a[:, None, :3]) / 2
        return both[:, upper[0], upper[1]] * double

    ii, jj, ij = products(one, one), products(two, two), products(one, two)
    rows = np.concatenate([ii - jj, ij, ii + jj])
    right = np.concatenate([np.zeros(2 * len(ii)), 2 * np.ones(len(ii))])
    # The scale of orthographic cameras is one for all frames: the last rows fix it.
    solution = np.linalg.lstsq(rows, right, rcond=None)[0]
    q = np.zeros((3, 3))
    q[upper] = solution
    values, vectors = np.linalg.eigh(q + np.triu(q, 1).T)
    upgrade = np.zeros((3 * num_bases, 3))
    upgrade[:3] = vectors * np.sqrt(np.maximum(values, 1e-6 * np.abs(values).max()))

    def residuals(flat: np.ndarray) -> np.ndarray:
        i, j = one @ flat.reshape(-1, 3), two @ flat.reshape(-1, 3)
        return np.concatenate([(i * i).sum(1) - 1, (j * j).sum(1) - 1, (i * j).sum(1)])

    if num_bases > 1:
        upgrade = scipy.optimize.least_squares(residuals, upgrade.ravel()).x.reshape(-1, 3)
    axes = np.stack([one @ upgrade, two @ upgrade], 1)
    u, _, vt = np.linalg.svd(axes, full_matrices=False)
    axes = u @ vt
    return np.concatenate([axes, np.cross(axes[:, :1], axes[:, 1:])], 1)


def depths(observed: np.ndarray, rotations: np.ndarray, num_iters: int) -> np.ndarray:
    """min ||S||_* over the depths along the optical axes, S the shapes as a matrix [F, 3P].

    Args:
      observed: [F, 2, P], complete and centred.
      rotations: [F, 3, 3], rows the cameras' axes.

    Returns:
      [F, P, 3] in the frames of the cameras.
    """
    frames, _, points = observed.shape
    flat = np.einsum("fai,fap->fip", rotations[:, :2], observed)
    axis = rotations[:, 2]
    depth = np.zeros((frames, points))
    dual = np.zeros((frames, 3 * points))
    # The threshold follows the size of the data, and falls.
    threshold = np.linalg.norm(flat.reshape(frames, -1), 2) / 10
    for _ in range(num_iters):
        shapes = (flat + axis[:, :, None] * depth[:, None]).reshape(frames, -1)
        u, s, vt = np.linalg.svd(shapes + dual, full_matrices=False)
        low = (u * np.maximum(s - threshold, 0)) @ vt
        dual += shapes - low
        depth = np.einsum("fi,fip->fp", axis, (low - dual).reshape(frames, 3, points))
        smaller = threshold * 0.98
        dual *= smaller / threshold  # it is scaled by the penalty
        threshold = smaller
    return np.concatenate([observed, depth[:, None]], 1).swapaxes(1, 2)
