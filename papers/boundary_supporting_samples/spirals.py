"""Three spiral arms in the plane: generated data whose boundaries can be looked at."""

import numpy as np

Rows = dict[str, np.ndarray]


def generate(seed: int, counts: tuple[int, ...] = (2000, 30, 3000)) -> tuple[Rows, ...]:
    """Independent sets of points, by default for teacher, student and test.

    Class k is uniform in {0, 1, 2}, r in [0.15, 1); the point lies at distance 2 r and angle
    2.6 r + 2 pi k / 3 + Normal(0, 0.12).

    Returns:
      For each count {"image": float32 [n, 1, 1, 2], "label": int32 [n]}: points as images of one
      pixel, so that they pass where images do.
    """
    rng = np.random.default_rng(seed)
    sets = []
    for count in counts:
        label = rng.integers(0, 3, count)
        r = rng.uniform(0.15, 1.0, count)
        angle = 2.6 * r + 2 * np.pi * label / 3 + rng.normal(0.0, 0.12, count)
        point = 2 * r[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        image = point.astype(np.float32)[:, None, None]
        sets.append({"image": image, "label": label.astype(np.int32)})
    return tuple(sets)


def grid(size: int = 80, reach: float = 2.0) -> np.ndarray:
    """The points of a size x size grid over [-reach, reach]^2, as images: [size^2, 1, 1, 2]."""
    axis = np.linspace(-reach, reach, size, dtype=np.float32)
    return np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 1, 1, 2)
