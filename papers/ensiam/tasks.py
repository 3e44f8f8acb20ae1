"""The images of each experiment, and how views are drawn from them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from reprise.common import data
from reprise.common.data.augment import Augment, normalize
from reprise.papers.ensiam import views

Arrays = dict[str, np.ndarray]


@functools.cache
def digits() -> tuple[Arrays, Arrays]:
    """1297 digits to learn from and 500 to test on, of all 1797 in a fixed random order."""
    parts = [data.load("digits", split).arrays() for split in ("train", "test")]
    order = np.random.default_rng(0).permutation(1797)
    mixed = {name: np.concatenate([p[name] for p in parts])[order] for name in parts[0]}
    return ({k: v[:1297] for k, v in mixed.items()}, {k: v[-500:] for k, v in mixed.items()})


@functools.cache
def small_images(name: str, split: str, data_dir: str, size: int) -> Arrays:
    """A split in memory, reduced to size x size by averaging squares of pixels; uint8."""
    arrays = data.load(name, split, data_dir=data_dir or None).arrays()
    image = arrays["image"]
    factor = image.shape[1] // size
    if factor > 1:
        blocks = image.reshape(len(image), size, factor, size, factor, image.shape[-1])
        image = np.round(blocks.mean((2, 4), dtype=np.float32)).astype(np.uint8)
    return {"image": image, "label": arrays["label"]}


def sets(config: ConfigDict) -> tuple[Arrays, Arrays]:
    """(images to learn from, images to test on), each with the labels that evaluation uses."""
    d = config.data
    if d.name == "digits":
        return digits()
    train, test = (small_images(d.name, s, config.data_dir, d.size) for s in (d.train, d.test))
    return train, test


def to_float(images: jax.Array) -> jax.Array:
    """uint8 in 0..255 becomes float32 in [0, 1]; what is floating stays."""
    return images / jnp.float32(255) if images.dtype == jnp.uint8 else images


def view_of(config: ConfigDict, strength: Any) -> Augment:
    """How one view is drawn."""
    d = config.data
    if d.name == "digits":
        return functools.partial(views.digits_view, strength=strength)
    return functools.partial(
        views.simsiam_view,
        strength=strength,
        crop=None if d.crops_on_host else d.crop,
        blur=d.blur,
        mean=d.mean,
        std=d.std,
    )


def plain(config: ConfigDict, images: jax.Array) -> jax.Array:
    """Images as the network sees them outside training: no augmentation, the same normalisation."""
    images = to_float(images)
    return (
        images
        if config.data.name == "digits"
        else normalize(images, config.data.mean, config.data.std)
    )


def stream(config: ConfigDict) -> Any:
    """Batches to learn from: {"image", "index"}, an image's number in the set.

    Images are [B, S, S, C], or [B, K, S, S, C] where the host crops.
    """
    d = config.data
    if d.crops_on_host:
        source = data.load(d.name, d.train, data_dir=config.data_dir or None)
        return crop_stream(config, source, config.batch_size, config.model.num_views, d.crop)
    if d.name != "digits" and not data.available(d.name, config.data_dir or None)[0]:
        # Its shapes are known without it; the loop says what is missing when it asks for a batch.
        unseen = _Numbered(data.load(d.name, d.train, data_dir=config.data_dir or None))
        return data.stream(unseen, config.batch_size, seed=config.seed, transform=_without_label)
    images = sets(config)[0]["image"]
    index = np.arange(len(images), dtype=np.int32)
    source = data.from_arrays(d.name, {"image": images, "index": index})
    return data.stream(source, config.batch_size, seed=config.seed)


class _Numbered:
    """A source whose examples hold their place in it, by which their views are keyed."""

    def __init__(self, source: data.Source):
        self.source = source
        features = {**source.info.features, "index": ((), "int32")}
        self.info = source.info._replace(features=features)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        return self.source[index] | {"index": np.int32(index)}


def _without_label(example: Any, rng: np.random.Generator) -> Any:
    return {name: example[name] for name in ("image", "index")}


def crop_stream(
    config: ConfigDict, source: Any, batch_size: int, count: int, scale: tuple[float, float]
) -> Any:
    """`count` random crops of every photograph, cut on the host as photographs vary in size."""
    size = config.data.size
    shapes = {
        "image": ((batch_size, count, size, size, 3), jnp.uint8),
        "label": ((batch_size,), jnp.int32),
        "index": ((batch_size,), jnp.int32),
    }
    spec = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    cut = random_crops(count, size, scale)
    return data.stream(_Numbered(source), batch_size, seed=config.seed, transform=cut, spec=spec)


def random_crops(count: int, size: int, scale: tuple[float, float]) -> Callable[..., Any]:
    """(example, rng) -> `count` crops as torchvision's RandomResizedCrop draws them."""

    def transform(example: Any, rng: np.random.Generator) -> Any:
        from PIL import Image

        image = Image.fromarray(example["image"])
        crops = [
            image.resize((size, size), Image.Resampling.BILINEAR, _box(image.size, scale, rng))
            for _ in range(count)
        ]
        return {
            "image": np.stack([np.asarray(crop) for crop in crops]),
            "label": np.int32(example["label"]),
            "index": example["index"],
        }

    return transform


def _box(shape: tuple[int, int], scale: tuple[float, float], rng: np.random.Generator) -> Any:
    columns, rows = shape
    for _ in range(10):
        area, aspect = (
            rng.uniform(*scale) * rows * columns,
            np.exp(rng.uniform(*np.log((3 / 4, 4 / 3)))),
        )
        width, height = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
        if 0 < width <= columns and 0 < height <= rows:
            left, top = rng.integers(columns - width + 1), rng.integers(rows - height + 1)
            return (left, top, left + width, top + height)
    side = min(columns, rows)
    left, top = (columns - side) // 2, (rows - side) // 2
    return (left, top, left + side, top + side)


def centre_crop(size: int) -> Callable[[Any], Any]:
    """example -> its central square: the shorter side becomes 8/7 size, then size x size is cut."""

    def cut(example: Any) -> Any:
        from PIL import Image

        image = Image.fromarray(example["image"])
        part = min(image.size) * 7 / 8
        left, top = ((n - part) / 2 for n in image.size)
        box = (left, top, left + part, top + part)
        crop = image.resize((size, size), Image.Resampling.BILINEAR, box)
        return {"image": np.asarray(crop), "label": np.int32(example["label"])}

    return cut
