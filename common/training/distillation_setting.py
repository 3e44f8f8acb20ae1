"""Settings of the distillation papers from their configs: networks by name, data, the teacher."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reprise.common import data
from reprise.common.data import digits8
from reprise.common.models.cifar_resnet import CifarResNet
from reprise.common.models.mobilenet import MobileNet
from reprise.common.models.pyramidnet import PyramidNet
from reprise.common.models.resnet import ResNet
from reprise.common.models.small_cnn import SmallCNN
from reprise.common.models.vgg import VGG
from reprise.common.models.wrn import WRN
from reprise.common.training import distillation
from reprise.common.training.distillation import Setting
from reprise.common.training.phase import Phase

_NAME = re.compile(r"[a-z]+(-\d+(\.\d+)?)+").fullmatch
# Of the training images in [0, 1], by data set.
STATISTICS = {
    "cifar10": ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)),
    "cifar10_30k": ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)),
    "cifar100": ((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)),
}


def network(name: str, num_classes: int, dtype: Any = jnp.float32) -> Any:
    """A backbone by name.

    cnn-WIDTH; pooled-WIDTH-REPEATS, the same with max-pooling for strides; wrn-DEPTH-WIDTH;
    resnet-18, -34, -50, -101, -152 of ImageNet; resnet-DEPTH of CIFAR with zeros for new channels,
    resnetb-DEPTH and resnetb-DEPTH-WIDTH with 1x1 convolutions;
    vgg-DEPTH, plainvgg-DEPTH; mobilenet-WIDTH of ImageNet, mobilenet-WIDTH-BLOCKS of CIFAR;
    pyramidnet-DEPTH-ALPHA, of bottlenecks from depth 164 on, as in the paper.

    Raises:
      ValueError: any other name. Depths that do not exist are refused where the model is used.
    """
    kind, *sizes = name.split("-")
    numbers = [float(s) if "." in s else int(s) for s in sizes] if _NAME(name) else []
    parts: list[Any] = [kind, *numbers]
    match parts:
        case ["cnn", int(width)]:
            return SmallCNN(width, num_classes=num_classes, dtype=dtype)
        case ["pooled", int(width), int(repeats)]:
            return SmallCNN(width, repeats, pool=True, num_classes=num_classes, dtype=dtype)
        case ["wrn", int(depth), int(width)]:
            return WRN(depth, width, num_classes, dtype=dtype)
        case ["resnet", (18 | 34 | 50 | 101 | 152) as depth]:
            return ResNet(depth, num_classes, dtype=dtype)
        case ["resnet", int(depth)]:
            return CifarResNet(depth, num_classes=num_classes, dtype=dtype)
        case ["resnetb", int(depth)]:
            return CifarResNet(depth, 1, "B", num_classes, dtype)
        case ["resnetb", int(depth), int(width)]:
            return CifarResNet(depth, width, "B", num_classes, dtype)
        case [("vgg" | "plainvgg"), int(depth)]:
            return VGG(depth, kind == "plainvgg", num_classes=num_classes, dtype=dtype)
        case ["mobilenet", width]:
            return MobileNet(width, num_classes=num_classes, dtype=dtype)
        case ["mobilenet", width, int(blocks)]:
            return MobileNet(width, blocks, num_classes, dtype)
        case ["pyramidnet", int(depth), int(alpha)]:
            return PyramidNet(depth, alpha, depth >= 164, num_classes, dtype)
    raise ValueError(
        f"network {name!r}: allowed are cnn-WIDTH, pooled-WIDTH-REPEATS, wrn-DEPTH-WIDTH, "
        "resnet-DEPTH, resnetb-DEPTH, resnetb-DEPTH-WIDTH, vgg-DEPTH, plainvgg-DEPTH, "
        "mobilenet-WIDTH, mobilenet-WIDTH-BLOCKS, pyramidnet-DEPTH-ALPHA"
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
    `image` and `label`, normalised, cropped and mirrored, and halved in size where `data.half` says
    so.

    Raises:
      ValueError: a shared field of the config that these recipes do not follow.
    """
    for field, only in (("accumulate", 1), ("remat", False)):
        if config[field] != only:
            raise ValueError(
                f"config.{field} = {config[field]!r}: recipes with a teacher take {only} alone"
            )
    name, dtype = config.data.name, jnp.dtype(config.precision)
    augment: distillation.Augment | None
    if name in ("digits", "digits_pool"):
        split = digits8.split if name == "digits" else digits8.pool_split
        parts = split(config.seed, config.data.count)
        teacher, student, evaluation = parts.teacher, parts.student, {"": parts.test}
        classes, augment = 10, (None if name == "digits" else shift)
    else:
        classes, augment = data.describe(name).num_classes, crop_and_flip
        splits = {"": "test", "val_": "validation", "official_": "official_test"}
        known = {k: v for k, v in splits.items() if v in data.describe(name).splits}
        smaller = _halved if config.data.get("half", False) else dict
        teacher = smaller(_normalised(name, "train", config.data_dir))
        student = {k: v[: config.data.count] for k, v in teacher.items()}
        evaluation = {k: smaller(_normalised(name, v, config.data_dir)) for k, v in known.items()}
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


def _halved(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    count, height, width, channels = rows["image"].shape
    cells = rows["image"].reshape(count, height // 2, 2, width // 2, 2, channels)
    return {**rows, "image": cells.mean((2, 4))}


def teacher_phase(setting: Setting, config: ConfigDict) -> Phase:
    """The teacher's phase, kept for every paper and student that asks for the same one."""
    section = config.teacher
    made_from = {"model": config.model.teacher, "data": config.data.name}
    if config.data.get("half", False):
        made_from["half"] = True
    return distillation.teacher_phase(
        setting, section, {**made_from, "precision": config.precision}
    )
