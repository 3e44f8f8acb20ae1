"""What is lifted: generated classes of shapes, and sequences of motion capture.

Every set is {"points2d" [S, N, P, 2], "mask" [S, N, P], "target" [S, N, P, 3]}: S classes or
sequences of N frames. Points are centred, 0 where not seen; targets are centred, of the same scale.
"""

import functools
from typing import Any

import numpy as np

from reprise.common import data

CLASS_SEED = 1234  # the class of shapes is one for every seed of a study


def class_of_shapes(num_points: int, num_bases: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean shape N(0, 1) [P, 3], centred, and bases 0.35 N(0, 1) [K, P, 3]."""
    rng = np.random.default_rng(CLASS_SEED)
    mean = rng.normal(size=(num_points, 3))
    bases = 0.35 * rng.normal(size=(num_bases, num_points, 3))
    return mean - mean.mean(0), bases


def skeleton(num_points: int, num_bases: int) -> np.ndarray:
    """Edges [P - 1, 2] that make a class of shapes a figure: the shortest tree of its mean."""
    import scipy.sparse.csgraph
    import scipy.spatial

    mean, _ = class_of_shapes(num_points, num_bases)
    distance = scipy.spatial.distance_matrix(mean, mean)
    tree = scipy.sparse.csgraph.minimum_spanning_tree(distance)
    return np.stack(tree.nonzero(), 1)


@functools.lru_cache(maxsize=16)
def generated(
    split: str,
    count: int,
    *,
    num_points: int = 12,
    num_bases: int = 3,
    distance: float = 0.0,
    missing: float = 0.0,
) -> dict[str, np.ndarray]:
    """Frames of one class: the mean plus N(0, 1) times each basis, seen from all around.

    Azimuth U(-pi, pi) about y, then elevation U(-30, 30) degrees about x; xy of it is seen, centred
    and of unit norm. The target is the turned shape divided by the norm of its own xy where the
    view is perspective, else by the one that the points were divided by.

    Args:
      split: "train" or "test": other frames of the same class.
      count: N.
      num_points, num_bases: P and K.
      distance: of a pinhole camera to the centre, in the shape's unit; 0: orthographic.
      missing: probability that a point is not seen.
    """
    rng = np.random.default_rng((CLASS_SEED, {"train": 1, "test": 2}[split]))
    mean, bases = class_of_shapes(num_points, num_bases)
    shapes = mean + np.einsum("nk,kpi->npi", rng.normal(size=(count, num_bases)), bases)
    azimuth, elevation = rng.uniform(-np.pi, np.pi, count), rng.uniform(-1, 1, count) * np.pi / 6
    seen = rng.uniform(size=(count, num_points)) >= missing
    shapes = np.einsum("nij,npj->npi", _turn(azimuth, elevation), shapes)
    shapes -= shapes.mean(1, keepdims=True)
    points2d = shapes[..., :2]
    if distance:
        points2d = distance * points2d / (distance + shapes[..., 2:])
    points2d, scale = _normalized(points2d, seen)
    if distance:
        scale = np.linalg.norm(shapes[..., :2], axis=(1, 2))
    return _set(points2d[None], seen[None], (shapes / scale[:, None, None])[None])


def _turn(azimuth: np.ndarray, elevation: np.ndarray) -> np.ndarray:
    """R_x(elevation) R_y(azimuth): [N, 3, 3]."""
    zero, one = np.zeros_like(azimuth), np.ones_like(azimuth)
    c, s = np.cos(azimuth), np.sin(azimuth)
    y = np.stack([c, zero, s, zero, one, zero, -s, zero, c], -1).reshape(-1, 3, 3)
    c, s = np.cos(elevation), np.sin(elevation)
    x = np.stack([one, zero, zero, zero, c, -s, zero, s, c], -1).reshape(-1, 3, 3)
    return x @ y


def _centred(points2d: np.ndarray, seen: np.ndarray) -> np.ndarray:
    count = np.maximum(seen.sum(-1), 1)[..., None, None]
    centre = np.where(seen[..., None], points2d, 0).sum(-2, keepdims=True) / count
    return np.where(seen[..., None], points2d - centre, 0)


def _normalized(points2d: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """As `normalize_points`, in numpy: data are made on the host."""
    size = np.abs(np.where(seen[..., None], points2d, 0)).max((-2, -1))
    points2d = _centred(points2d, seen)
    scale = np.linalg.norm(points2d, axis=(-2, -1))
    same = scale <= points2d.shape[-2] * np.finfo(points2d.dtype).eps * size
    points2d = np.where(same[..., None, None], 0, points2d)
    scale = np.where(same, 1, scale)
    return points2d / scale[..., None, None], scale


def _set(points2d: Any, seen: Any, target: Any, **more: Any) -> dict[str, np.ndarray]:
    arrays = {"points2d": points2d, "mask": seen, "target": target, **more}
    return {name: np.asarray(value, np.float32) for name, value in arrays.items()}


@functools.lru_cache(maxsize=16)
def sequences(
    names: tuple[str, ...], frames: int, *, missing: float, seed: int, data_dir: str
) -> dict[str, np.ndarray]:
    """Sequences of the data set nrsfm, `frames` of each at equal distances.

    Points are centred frame by frame and divided by one number a sequence, so that the mean square
    norm of its frames is 1. Targets are in the frame of the camera.

    Args:
      names: drink, pickup, yoga, stretch; dance has no cameras, so no depth to compare with.
      frames: N.
      missing: share of the points of every frame that are not seen, drawn by `seed`.
      data_dir: where the prepared copy lies; "": tfds's own default.

    Returns:
      A set, with "camera" [S, N, 3, 3] beside: its axes as rows.

    Raises:
      ValueError: a sequence without cameras, or shorter than `frames`, or of other points than the
        first, or with a seen point or a target that is not finite.
    """
    rng = np.random.default_rng((seed, 7))
    each: list[dict[str, np.ndarray]] = []
    for name in names:
        example = data.load("nrsfm", name, data_dir=data_dir or None)[0]
        shape, camera = example["shape"], example["camera"].astype(np.float64)
        if not camera.any():
            raise ValueError(f"sequence {name}: it has no cameras, so no depth to compare with")
        if len(shape) < frames:
            raise ValueError(f"data.frames = {frames}: sequence {name} has {len(shape)}")
        at = np.linspace(0, len(shape) - 1, frames).round().astype(int)
        third = np.cross(camera[:, 0], camera[:, 1])[:, None]
        camera = np.concatenate([camera, third], 1)[at]
        target = np.einsum("fij,fjp->fpi", camera, shape[at].astype(np.float64))
        points = target.shape[1]
        if each and points != each[0]["mask"].shape[1]:
            raise ValueError(
                f"sequence {name} has {points} points, {names[0]} {each[0]['mask'].shape[1]}"
            )
        order = rng.permuted(np.broadcast_to(np.arange(points), (frames, points)), axis=1)
        seen = order >= round(missing * points)
        points2d = _centred(example["observed"][at].swapaxes(1, 2).astype(np.float64), seen)
        for what, values in (("seen points", points2d), ("shapes", target)):
            bad = ~np.isfinite(values).all((1, 2))
            if bad.any():
                raise ValueError(f"sequence {name}: {what} of frame {at[bad][0]} are not finite")
        scale = np.sqrt((points2d**2).sum() / seen.mean() / frames)
        target = (target - target.mean(1, keepdims=True)) / scale
        each.append(_set(points2d / scale, seen, target, camera=camera))
    return {key: np.stack([one[key] for one in each]) for key in each[0]}


def edges(name: str, data_dir: str) -> np.ndarray:
    """Pairs of points to draw lines between, of a sequence."""
    return data.load("nrsfm", name, data_dir=data_dir or None)[0]["edges"]
