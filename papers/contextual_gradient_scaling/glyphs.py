"""Generated drawings: a class is a pair of strokes, an example a shaky copy of them."""

import numpy as np
from jaxtyping import Float, Int

CANVAS = 16  # pixels a side
STROKES = (4, 2)  # control points of the two open polylines of a class


def glyphs(
    num_classes: int, *, seed: int, per_class: int = 20
) -> dict[str, Float[np.ndarray, "..."] | Int[np.ndarray, " n"]]:
    """Classes of two polylines with control points uniform in [2.5, 12.5]^2, and examples of them.

    An example moves every control point by N(0, 0.5^2), turns the drawing by U(-0.25, 0.25) rad and
    stretches it by U(0.85, 1.15) about the centre, and shifts it by U(-1.5, 1.5) pixels. A pixel is
    the largest over segments of exp(-distance^2 / (2 0.8^2)), plus N(0, 0.1^2).

    Returns:
      {"image": [num_classes per_class, 16, 16, 1] float32, "label": int32}.
    """
    rng = np.random.default_rng(seed)
    points = rng.uniform(2.5, 12.5, (num_classes, 1, sum(STROKES), 2))
    shape = (num_classes, per_class)
    points = points + rng.normal(0, 0.5, (*shape, sum(STROKES), 2))
    angle, scale = rng.uniform(-0.25, 0.25, shape), rng.uniform(0.85, 1.15, shape)
    turn = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], -1)
    turn = scale[..., None, None] * turn.reshape(*shape, 2, 2)
    centre = (CANVAS - 1) / 2
    points = np.einsum("cnij,cnpj->cnpi", turn, points - centre) + centre
    points = points + rng.uniform(-1.5, 1.5, (*shape, 1, 2))

    pixels = np.stack(np.meshgrid(np.arange(CANVAS), np.arange(CANVAS), indexing="ij"), -1)
    image = np.zeros((*shape, CANVAS, CANVAS))
    first = 0
    for count in STROKES:
        for p in range(first, first + count - 1):
            start, stop = points[:, :, p, None, None], points[:, :, p + 1, None, None]
            along = stop - start
            share = ((pixels - start) * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-12)
            nearest = start + np.clip(share, 0, 1)[..., None] * along
            squared = ((pixels - nearest) ** 2).sum(-1)
            image = np.maximum(image, np.exp(-squared / (2 * 0.8**2)))
        first += count
    image = image + rng.normal(0, 0.1, image.shape)
    return {
        "image": image.reshape(-1, CANVAS, CANVAS, 1).astype(np.float32),
        "label": np.arange(num_classes, dtype=np.int32).repeat(per_class),
    }
