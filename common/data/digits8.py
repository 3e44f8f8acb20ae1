"""The 8x8 digits as the distillation papers' embedded proofs use them."""

from typing import NamedTuple

import numpy as np


class Split(NamedTuple):
    """Each {"image": float32 [n, 8, 8, 1], "label": int32 [n]}."""

    teacher: dict[str, np.ndarray]
    student: dict[str, np.ndarray]
    test: dict[str, np.ndarray]


def split(seed: int, count: int) -> Split:
    """897 digits teach, the first `count` of a permutation of them by `seed` are the student's.

    Images / 16, minus the mean and over the standard deviation of all 1797; the other 900 test.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    image = (data.images / 16).astype(np.float64)
    image = ((image - image.mean()) / image.std()).astype(np.float32)[..., None]
    label = data.target.astype(np.int32)
    order = np.random.default_rng(0).permutation(len(image))
    train, test = order[:897], order[897:]
    few = train[np.random.default_rng(50 + seed).permutation(len(train))[:count]]

    def take(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": image[rows], "label": label[rows]}

    return Split(take(train), take(few), take(test))


BACKGROUND = -0.3  # of `pool_split`: a black pixel


def pool_split(seed: int, count: int) -> Split:
    """1200 of a permutation by `seed` teach and are the student's pool; the other 597 test.

    The student's labelled examples are the first `count` of the 1200; `student` also has "pool",
    the images of all of them. Images / 16 - 0.3.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(1000 + seed).permutation(len(data.images))
    image = (data.images[order] / 16 + BACKGROUND).astype(np.float32)[..., None]
    label = data.target[order].astype(np.int32)

    def take(rows: slice) -> dict[str, np.ndarray]:
        return {"image": image[rows], "label": label[rows]}

    student = {**take(slice(count)), "pool": image[:1200]}
    return Split(take(slice(1200)), student, take(slice(1200, None)))
