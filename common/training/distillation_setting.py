"""Settings of the distillation papers from their configs: networks by name, data, the teacher."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reprise.common import data
from reprise.common.data import digits8
from reprise.common.models.small_cnn import SmallCNN
from reprise.common.models.wrn import WRN
from reprise.common.training import distillation
from reprise.common.training.distillation import Setting
from reprise.common.training.phase import Phase

# Of the training images in [0, 1], by data set.
STATISTICS = {
    "cifar10": ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)),
    "cifar10_30k": ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)),
}


def network(name: str, num_classes: int, dtype: Any = jnp.float32) -> Any:
    """A backbone by name: `cnn-WIDTH`, `pooled-WIDTH-REPEATS`, or `wrn-DEPTH-WIDTH`.

    `cnn` has strided convolutions, `pooled` max-pooling between its stages.
    """
    kind, *sizes = name.split("-")
    if kind == "cnn" and len(sizes) == 1:
        return SmallCNN(int(sizes[0]), num_classes=num_classes, dtype=dtype)
    if kind == "pooled" and len(sizes) == 2:
        width, repeats = map(int, sizes)
        return SmallCNN(width, repeats, pool=True, num_classes=num_classes, dtype=dtype)
    if kind == "wrn" and len(sizes) == 2:
        return WRN(int(sizes[0]), int(sizes[1]), num_classes, dtype=dtype)
    raise ValueError(
        f"network {name!r}: allowed are cnn-WIDTH, pooled-WIDTH-REPEATS, wrn-DEPTH-WIDTH"
    )


def crop_and_flip(key: jax.Array, image: jax.Array, *, pad: int = 4) -> jax.Array:
    """Reflects `pad` pixels around each image, crops it at random and mirrors half of them."""
    count, height, width, _ = image.shape
    rows, columns, mirror = jax.random.split(key, 3)
    padded = jnp.pad(image, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    top = jax.random.randint(rows, (count,), 0, 2 * pad + 1)
    left = jax.random.randint(columns, (count,), 0, 2 * pad + 1)
    flip = jax.random.bernoulli(mirror, 0.5, (count,))

    def one(image: jax.Array, top: jax.Array, left: jax.Array, flip: jax.Array) -> jax.Array:
        cut = jax.lax.dynamic_slice(image, (top, left, 0), (height, width, image.shape[-1]))
        return jnp.where(flip, cut[:, ::-1], cut)

    return jax.vmap(one)(padded, top, left, flip)


def shift(key: jax.Array, image: jax.Array, *, most: int = 1) -> jax.Array:
    """Moves all images of a batch by the same -most .. most pixels in either direction.

    What comes in is the background of `digits8.pool_split`.
    """
    top, left = jax.random.randint(key, (2,), 0, 2 * most + 1)
    edge = ((0, 0), (most, most), (most, most), (0, 0))
    padded = jnp.pad(image, edge, constant_values=digits8.BACKGROUND)
    return jax.lax.dynamic_slice(padded, (0, top, left, 0), image.shape)


def build(config: ConfigDict, *, num_teachers: int = 1) -> Setting:
    """The setting of a config: `model.teacher`, `model.student`, `data.name`, `data.count`.

    `digits` are the embedded 8x8 digits of `digits8`, `digits_pool` the same with a pool of images
    without labels beside the student's examples; other names are data sets of the catalog with
    `image` and `label`, normalised, cropped and mirrored.
    """
    name, dtype = config.data.name, jnp.dtype(config.precision)
    if name in ("digits", "digits_pool"):
        split = digits8.split if name == "digits" else digits8.pool_split
        parts = split(config.seed, config.data.count)
        teacher, student, evaluation = parts.teacher, parts.student, {"": parts.test}
        classes, augment = 10, None if name == "digits" else shift
    else:
        classes, augment = data.describe(name).num_classes, crop_and_flip
        splits = data.describe(name).splits
        teacher = _normalised(name, "train", config.data_dir)
        student = {k: v[: config.data.count] for k, v in teacher.items()}
        evaluation = {"": _normalised(name, "test", config.data_dir)}
        if "validation" in splits:
            evaluation["val_"] = _normalised(name, "validation", config.data_dir)
    return Setting(
        network(config.model.teacher, classes, dtype),
        network(config.model.student, classes, dtype),
        teacher,
        student,
        evaluation,
        num_teachers,
        augment,
    )


def _normalised(name: str, split: str, data_dir: str) -> dict[str, np.ndarray]:
    rows = data.load(name, split, data_dir=data_dir or None).arrays()
    mean, std = (np.asarray(s, np.float32) for s in STATISTICS[name])
    image = (rows["image"].astype(np.float32) / 255 - mean) / std
    return {"image": image, "label": rows["label"].astype(np.int32)}


def teacher_phase(setting: Setting, config: ConfigDict) -> Phase:
    """The teacher's phase, kept for every paper and student that asks for the same one."""
    section = config.teacher
    made_from = {"model": config.model.teacher, "data": config.data.name}
    return distillation.teacher_phase(
        setting, section, {**made_from, "precision": config.precision}
    )
