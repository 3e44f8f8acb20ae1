"""Images with and without defects: generated on textures, magnetic tiles, MVTec AD."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from reprise.common import data

SIZE = 48  # pixels a side of the texture crops
PHOTOS = {"brick": 1, "gravel": 3}  # places among the bundled photographs
MVTEC_TRAIN = {
    "bottle": 209,
    "cable": 224,
    "capsule": 219,
    "carpet": 280,
    "grid": 264,
    "hazelnut": 391,
    "leather": 245,
    "metal_nut": 220,
    "pill": 267,
    "screw": 320,
    "tile": 230,
    "toothbrush": 60,
    "transistor": 213,
    "wood": 247,
    "zipper": 240,
}  # training images of each class of MVTec AD

Examples = dict[str, np.ndarray]


def check_images(name: str, image: np.ndarray) -> np.ndarray:
    """The images [N, S, S, C], if they are finite and square.

    Raises:
      ValueError: they are not; the first bad one is named.
    """
    if image.ndim != 4 or image.shape[1] != image.shape[2]:
        raise ValueError(f"{name}: images {image.shape} must be [N, S, S, C]")
    finite = np.isfinite(image).all((1, 2, 3))
    if not finite.all():
        raise ValueError(f"{name}: image {int(np.argmin(finite))} has pixels that are not finite")
    return image


def textures(name: str, count: int, seed: int, *, part: str, defects: bool) -> Examples:
    """Crops of a photographed texture; with `defects` every second one has a dull ellipse.

    Each crop is scaled by 1 + 0.05 N(0, 1) and gets noise of 0.02. Inside the ellipse (semi-axes 6
    and 3 pixels, any angle, away from the border) the image is blurred and drawn to its mean.

    Args:
      name: "brick" or "gravel".
      count: crops.
      seed: of all random numbers.
      part: "upper" or "lower" half of the photograph, so that training and test share no pixel.
      defects: put them in.

    Returns:
      {"image": [count, 48, 48, 1] float32 in about [0, 1], "mask": [count, 48, 48] bool,
      "label": [count] int32}.
    """
    from scipy import ndimage

    if name not in PHOTOS:
        raise ValueError(f"config.data.name = {name!r}: textures are {', '.join(PHOTOS)}")
    rng = np.random.default_rng((seed, 0 if part == "upper" else 1))
    photo = data.load("photos", "train")[PHOTOS[name]]["image"][..., 0] / 255.0
    half = np.split(photo, 2)[part == "lower"]
    rows, columns = np.mgrid[:SIZE, :SIZE]
    images, masks = [], []
    for i in range(count):
        top, left = (rng.integers(0, extent - SIZE + 1) for extent in half.shape)
        image = half[top : top + SIZE, left : left + SIZE] * (1 + 0.05 * rng.normal())
        image = image + 0.02 * rng.normal(size=image.shape)
        mask = np.zeros(image.shape, bool)
        if defects and i % 2:
            y, x = rng.uniform(8, SIZE - 8, 2)
            angle = rng.uniform(0, np.pi)
            along = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
            across = (rows - y) * np.cos(angle) - (columns - x) * np.sin(angle)
            mask = (along / 6) ** 2 + (across / 3) ** 2 <= 1
            dull = image.mean() + 0.3 * (ndimage.gaussian_filter(image, 2) - image.mean())
            image = np.where(mask, dull, image)
        images.append(image[..., None].astype(np.float32))
        masks.append(mask)
    mask = np.stack(masks)
    label = np.asarray(mask.any((1, 2)), np.int32)
    return {"image": check_images(name, np.stack(images)), "mask": mask, "label": label}


def photographed(example: Examples, rng: np.random.Generator, config: ConfigDict) -> Examples:
    """One photograph as the network takes it: [S, S, 3] float32 in [0, 1], and its mask [S, S].

    The image is resized (antialiased; the mask to the nearest pixel): as a whole to a square where
    `config.data.resize` is 0, else its shorter side to that size, before a crop of the middle or,
    with `config.data.unaligned`, a rotation by at most 10 degrees and a random crop. With
    `config.data.standardize` it then gets a mean of 0.5 and a standard deviation of 0.25.
    """
    from PIL import Image

    d = config.data
    pixels = np.asarray(example["image"])
    pixels = np.repeat(pixels, 3, -1) if pixels.shape[-1] == 1 else pixels
    image = Image.fromarray(pixels)
    mask = Image.fromarray(np.asarray(example["mask"])[..., 0].astype(np.uint8))
    scale = d.resize / min(image.size)
    size = tuple(round(n * scale) for n in image.size) if d.resize else (d.size, d.size)
    image = image.resize(size, Image.Resampling.BILINEAR)
    mask = mask.resize(size, Image.Resampling.NEAREST)
    free = [n - d.size for n in size]
    corner = [n // 2 for n in free]
    if d.unaligned:
        angle = rng.uniform(-10, 10)
        image = image.rotate(angle, Image.Resampling.BILINEAR)
        mask = mask.rotate(angle, Image.Resampling.NEAREST)
        corner = [int(rng.integers(0, n + 1)) for n in free]
    box = (*corner, corner[0] + d.size, corner[1] + d.size)
    pixels = np.asarray(image.crop(box), np.float32) / 255
    if d.standardize:
        pixels = 0.5 + 0.25 * (pixels - pixels.mean()) / max(float(pixels.std()), 1e-3)
    return {
        "image": pixels,
        "mask": np.asarray(mask.crop(box)) > 0,
        "label": np.asarray(example["label"], np.int32),
    }


def train_source(config: ConfigDict) -> tuple[data.Source, Any]:
    """Defect-free images, and the transform that makes them the network's (None where they are).

    Raises:
      ValueError: `config.data.train` is not the number of images of a class of MVTec AD.
    """
    d = config.data
    count = MVTEC_TRAIN.get(d.train_split.removesuffix("_train"), d.train)
    if d.name == "mvtec_ad" and d.train != count:
        raise ValueError(
            f"config.data.train = {d.train}: {d.train_split} has {count} images, from which the "
            f"epochs follow; give --config.data.train={count}"
        )
    if d.name in PHOTOS:
        made = textures(d.name, d.train, config.seed, part="upper", defects=False)
        return data.from_arrays(f"{d.name} crops", {"image": made["image"]}), None
    source = data.load(d.name, d.train_split, data_dir=config.data_dir or None)

    def transform(example: Examples, rng: np.random.Generator) -> Examples:
        return {"image": photographed(example, rng, config)["image"]}

    return source, transform


def test_set(config: ConfigDict) -> Examples:
    """Every test image: {"image": [N, S, S, C], "mask": [N, S, S] bool, "label": [N]}."""
    d = config.data
    if d.name in PHOTOS:
        return textures(d.name, d.test, config.seed, part="lower", defects=True)
    source = data.load(d.name, d.test_split, data_dir=config.data_dir or None)
    examples = [
        photographed(source[i], np.random.default_rng((1, i)), config) for i in range(len(source))
    ]
    stacked = {key: np.stack([e[key] for e in examples]) for key in examples[0]}
    stacked["image"] = check_images(d.name, stacked["image"])
    return stacked
