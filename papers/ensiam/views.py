"""What the views of an image are: SimSiam's augmentations, and those for 8x8 digits."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from reprise.common.data import augment


def simsiam_view(
    key: Array,
    image: augment.Image,
    *,
    strength: float | Array = 1.0,
    crop: tuple[float, float] | None = (0.2, 1.0),
    blur: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> augment.Image:
    """One view as SimSiam draws it: crop, jitter (p 0.8), grey (p 0.2), blur (p 0.5), flip.

    Args:
      key: of the view.
      image: [S, S, C] in [0, 1].
      strength: factor on the jitter's (0.4, 0.4, 0.4, 0.1); the hue's stays at most 0.5.
      crop: range of the crop's share of the area; None where the image is a crop already.
      blur: sigma uniform in [0.1, 2]; not for CIFAR.
      mean, std: the normalisation that ends it; None: the view stays in [0, 1].
    """
    keys = jax.random.split(key, 5)
    if crop is not None:
        image = augment.random_resized_crop(keys[0], image, scale=crop)
    image = augment.color_jitter(
        keys[1],
        image,
        brightness=0.4 * strength,
        contrast=0.4 * strength,
        saturation=0.4 * strength,
        hue=jnp.minimum(0.1 * strength, 0.5),
        p=0.8,
    )
    image = augment.random_grey(keys[2], image, p=0.2)
    if blur:
        image = augment.random_gaussian_blur(keys[3], image, sigma=(0.1, 2.0), p=0.5)
    image = augment.random_flip(keys[4], image)
    return image if mean is None else augment.normalize(image, mean, std)


def digits_view(
    key: Array, image: augment.Image, *, strength: float | Array = 1.0
) -> augment.Image:
    """One view of an 8x8 digit: shift, gain, a square erased, noise.

    At strength 1: shift by up to 2 pixels, gain U(0.6, 1.4), a 3x3 square, noise of 0.1. Strength,
    at most 2, is a factor on each; shift and square are rounded to whole pixels.
    """
    keys = jax.random.split(key, 4)
    reach, square = (jnp.round(n * strength).astype(jnp.int32) for n in (2, 3))
    image = augment.random_crop(keys[0], image, padding=reach, limit=4)
    image = image * (1 + strength * jax.random.uniform(keys[1], (), minval=-0.4, maxval=0.4))
    image = augment.random_erase(keys[2], image, size=square)
    return augment.gaussian_noise(keys[3], image, std=0.1 * strength)


def augment_views(
    key: Array,
    images: Float[Array, "batch height width channels"],
    num_views: int,
    *,
    view: augment.Augment = simsiam_view,
    index: Int[Array, " batch"] | None = None,
) -> Float[Array, "views batch height width channels"]:
    """K views of every image, all from one distribution, each drawn independently: [K, B, S, S, C].

    Args:
      key: of the step.
      images: [B, S, S, C] in [0, 1].
      num_views: K.
      view: (key, image) -> image; default: SimSiam's for ImageNet, not normalised.
      index: a number an image by which its views are keyed; default: its place in the batch.

    Raises:
      ValueError: images are no batch, or K < 1.
    """
    return augment.multi_view(key, images, num_views, view, index=index)
