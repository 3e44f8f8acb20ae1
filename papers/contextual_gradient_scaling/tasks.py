"""The tasks of each data set: what is trained on, validated on and tested on."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from reprise.common import data
from reprise.common.data.episodes import EpisodeStream, episodes
from reprise.papers.contextual_gradient_scaling.glyphs import glyphs

PARTS = ("train", "validation", "test")
GLYPH_CLASSES = {"train": (100, 1), "validation": (40, 3), "test": (60, 2)}  # how many, seed

# Every fifth character of small1 is kept for validation. Of small2, Greek and Latin are in small1
# too: only Japanese (katakana), Sanskrit and Tagalog are tested on.
OMNIGLOT = {
    "train": tuple(i for i in range(136) if i % 5 != 4),
    "validation": tuple(range(4, 136, 5)),
    "test": (*range(24, 71), *range(97, 156)),
}
DIGITS = {"train": (0, 1, 2, 3), "validation": (4, 5, 6), "test": (7, 8, 9)}
# CIFAR-FS (Bertinetto et al., 2019): the classes of CIFAR-100, numbered in alphabetical order.
_CIFAR_VALIDATION = (4, 7, 14, 15, 19, 26, 27, 32, 40, 47, 48, 55, 71, 73, 87, 89)
_CIFAR_TEST = (2, 5, 8, 21, 34, 42, 46, 58, 60, 62, 69, 70, 77, 83, 84, 86, 94, 95, 98, 99)
CIFAR_FS = {
    "train": tuple(sorted(set(range(100)) - {*_CIFAR_VALIDATION, *_CIFAR_TEST})),
    "validation": _CIFAR_VALIDATION,
    "test": _CIFAR_TEST,
}

# Mean and standard deviation of the channels of images in [0, 1].
STATISTICS = {
    "cifar100": ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276)),
    "mini_imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "tiered_imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def _joined(name: str, data_dir: str | None) -> data.Source:
    """All examples of a set, whatever its own splits: here the classes are split."""
    parts = [data.load(name, split, data_dir=data_dir) for split in ("train", "test")]
    info = parts[0].info._replace(splits={"all": sum(len(part) for part in parts)})

    def both() -> dict[str, np.ndarray]:
        arrays = [part.arrays() for part in parts]
        return {key: np.concatenate([a[key] for a in arrays]) for key in info.features}

    return data.Source(info, "all", both)


def _quarter(images: np.ndarray) -> np.ndarray:
    """Drawings [n, 105, 105, 1] of ink 1 as [n, 28, 28, 1]: white margin, then means of 4 x 4."""
    padded = np.pad(images, ((0, 0), (3, 4), (3, 4), (0, 0))).astype(np.float32)
    return padded.reshape(len(images), 28, 4, 28, 4, 1).mean((2, 4))


def _source(config: ConfigDict, part: str) -> tuple[data.Source, Sequence[int] | None]:
    name, data_dir = config.data.name, config.data_dir or None
    if name == "glyphs":
        count, seed = GLYPH_CLASSES[part]
        return data.from_arrays("glyphs", glyphs(count, seed=seed)), None
    if name == "omniglot":
        half = "omniglot_small2" if part == "test" else "omniglot_small1"
        return data.load(half, "train", data_dir=data_dir), OMNIGLOT[part]
    if name == "digits":
        return _joined(name, data_dir), DIGITS[part]
    if name == "cifar100":
        return _joined(name, data_dir), CIFAR_FS[part]
    return data.load(name, part, data_dir=data_dir), None  # the classes of a split are its own


def stream(config: ConfigDict, part: str) -> EpisodeStream:
    """Tasks of a part; those of validation and test are the same for every seed."""
    d = config.data
    source, classes = _source(config, part)
    return episodes(
        source,
        ways=d.ways,
        shots=d.shots,
        queries=d.queries,
        tasks=config.batch_size,
        seed=1000 + config.seed if part == "train" else PARTS.index(part),
        classes=classes,
        transform=_quarter if d.name == "omniglot" else None,
    )


def prepared(
    config: ConfigDict, images: Float[Array, "..."], *, training: bool
) -> Float[Array, "..."]:
    """Images as the network sees them: floats, in [0, 1] or standardised by channel."""
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    if config.data.name not in STATISTICS:
        return images
    if config.data.reference_preprocessing and not training and config.data.name != "cifar100":
        return images
    mean, std = (jnp.asarray(row, jnp.float32) for row in STATISTICS[config.data.name])
    return (images - mean) / std


def held_out(config: ConfigDict, part: str, count: int) -> data.Source:
    """The first `count` tasks of a part, as random-access examples."""
    drawn = stream(config, part)
    return data.generated(f"tasks of {config.data.name}", drawn.episode, count)


def first(config: ConfigDict, part: str, count: int) -> dict[str, Array]:
    """The first `count` tasks of a part, stacked."""
    tasks = held_out(config, part, count)
    each = [tasks[i] for i in range(count)]
    return jax.tree.map(lambda *xs: jnp.stack(xs), *each)
