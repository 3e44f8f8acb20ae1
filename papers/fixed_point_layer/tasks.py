"""The data of the three experiments: noisy photographs, mazes, and tags of Bibtex."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from reprise.common import data


def at_least(image: np.ndarray, size: int) -> np.ndarray:
    """A uint8 image [H, W, C], enlarged where its shorter side has less than `size` pixels."""
    height, width, channels = image.shape
    short = min(height, width)
    if short >= size:
        return image
    from PIL import Image

    larger = (round(width * size / short), round(height * size / short))
    resized = Image.fromarray(image.squeeze(-1) if channels == 1 else image).resize(
        larger, Image.Resampling.BILINEAR
    )
    return np.asarray(resized).reshape(larger[1], larger[0], channels)


def crop(size: int, channels: int) -> Any:
    """A transform: random square of a photograph, flipped at random, float32 in [0, 1].

    A photograph that is smaller than the square is enlarged to it first.
    """

    def transform(example: dict[str, np.ndarray], rng: np.random.Generator) -> dict[str, Any]:
        image = at_least(example["image"], size)
        top, left = (rng.integers(0, n - size + 1) for n in image.shape[:2])
        patch = image[top : top + size, left : left + size].astype(np.float32) / 255
        if channels == 1:
            patch = patch.mean(-1, keepdims=True, dtype=np.float32)
        if rng.random() < 0.5:
            patch = patch[:, ::-1]
        return {"clean": np.ascontiguousarray(patch)}

    return transform


def grid_of_crops(source: data.Source, size: int, channels: int, each: int) -> np.ndarray:
    """`each` crops a photograph, evenly spread: [N, size, size, channels] float32 in [0, 1].

    A photograph that is smaller than a crop is enlarged to it first.
    """
    crops = []
    for index in range(len(source)):
        image = at_least(source[index]["image"], size).astype(np.float32) / 255
        if channels == 1:
            image = image.mean(-1, keepdims=True)
        side = int(np.ceil(np.sqrt(each)))
        tops = np.linspace(0, image.shape[0] - size, side).astype(int)
        lefts = np.linspace(0, image.shape[1] - size, side).astype(int)
        corners = [(top, left) for top in tops for left in lefts][:each]
        crops += [image[top : top + size, left : left + size] for top, left in corners]
    return np.stack(crops)


def with_noise(clean: np.ndarray, sigma: float, seed: int = 0) -> dict[str, np.ndarray]:
    """The same noise for every method."""
    noise = np.random.default_rng(seed).normal(size=clean.shape).astype(np.float32)
    return {"clean": clean, "noisy": clean + sigma * noise}


def psnr(
    estimate: Float[Array, "batch h w c"], clean: Float[Array, "batch h w c"]
) -> Float[Array, " batch"]:
    """Peak signal-to-noise ratio in dB of images in [0, 1]; the estimate is clipped to it."""
    error = (jnp.clip(estimate, 0, 1) - clean).astype(jnp.float32) ** 2
    return -10 * jnp.log10(error.mean((1, 2, 3)))


@functools.lru_cache(maxsize=8)
def mazes(count: int, size: int, seed: int) -> dict[str, np.ndarray]:
    """Discounted reachability: V = free * max(source, 0.9 * max of V over the 4 neighbours).

    Each cell of the size x size grid is free with probability 0.7; one free cell is the source.

    Returns:
      {"y": [count, size, size, 2] (free, source), "value": [count, size, size, 1]}, float32.
    """
    rng = np.random.default_rng(seed)
    free = (rng.random((count, size, size)) < 0.7).astype(np.float32)
    source = np.zeros_like(free)
    for maze in range(count):
        cells = np.flatnonzero(free[maze])
        if len(cells) == 0:
            free[maze, 0, 0], cells = 1.0, np.array([0])
        source[maze].flat[rng.choice(cells)] = 1.0
    value = np.zeros_like(free)
    while True:
        padded = np.pad(value, ((0, 0), (1, 1), (1, 1)))
        around = np.maximum.reduce(
            [padded[:, :-2, 1:-1], padded[:, 2:, 1:-1], padded[:, 1:-1, :-2], padded[:, 1:-1, 2:]]
        )
        after = free * np.maximum(source, np.float32(0.9) * around)
        if np.array_equal(after, value):
            return {"y": np.stack([free, source], -1), "value": value[..., None]}
        value = after


@functools.lru_cache(maxsize=8)
def bibtex(split: str, data_dir: str) -> dict[str, np.ndarray]:
    """{"features": [N, 1836], "labels": [N, 159]}, float32 zeros and ones.

    Validation is the last tenth of the training rows, which training does not see.
    """
    slices = {"train": "train[:90%]", "validation": "train[90%:]", "test": "test"}
    rows = data.load("bibtex", slices[split], data_dir=data_dir or None).arrays()
    return {name: values.astype(np.float32) for name, values in rows.items()}
