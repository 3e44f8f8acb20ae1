"""Random augmentations of images as pure functions of a key, usable inside a jitted step.

from reprise.common.data.augment import compose, random_flip, random_resized_crop, multi_view

Every function takes one image [H, W, C], floating, in [0, 1]; `jax.vmap` makes batches of it, and
`multi_view` several views of a batch. Random ones take the key first. Random numbers depend on the
key alone, so results do not depend on the number of devices or hosts. The definitions, and the
order of random decisions, are torchvision's; the streams of random numbers are JAX's.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Image = Float[Array, "height width channels"]
Augment = Callable[[Array, Image], Image]

GREY = (0.299, 0.587, 0.114)  # ITU-R 601 weights, as PIL and torchvision have them


def _check(name: str, image: Array, channels: tuple[int, ...] = ()) -> None:
    if image.ndim != 3 or not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(
            f"{name}: image {image.dtype}{list(image.shape)} must be one floating [H, W, C] in "
            "[0, 1]; use jax.vmap for a batch"
        )
    if channels and image.shape[-1] not in channels:
        allowed = " or ".join(map(str, channels))
        raise ValueError(f"{name}: image {image.shape} must have {allowed} channels")


def _uniform(key: Array, count: int, dtype: jnp.dtype = jnp.float32) -> Array:
    """All random numbers of one augmentation: one draw compiles much faster than several."""
    return jax.random.uniform(key, (count,), jnp.promote_types(dtype, jnp.float32))


def _whole(u: Array, count: Array | int) -> Array:
    """Uniform in 0 .. count - 1 from a uniform in [0, 1)."""
    return jnp.minimum(jnp.floor(u * count).astype(jnp.int32), jnp.asarray(count, jnp.int32) - 1)


def _between(u: Array, low: Array | float, high: Array | float) -> Array:
    return low + u * (high - low)


def compose(*augments: Augment) -> Augment:
    """One augmentation after another; each gets a key of its own."""

    def composed(key: Array, image: Image) -> Image:
        for i, augment in enumerate(augments):
            image = augment(jax.random.fold_in(key, i), image)
        return image

    return composed


def multi_view(
    key: Array,
    images: Float[Array, "batch height width channels"],
    num_views: int,
    augment: Augment,
    *,
    index: Int[Array, " batch"] | None = None,
) -> Float[Array, "views batch height_out width_out channels"]:
    """K independently drawn views of every image of a batch.

    View k of image b is `augment(fold_in(fold_in(key, index[b]), k), images[b])`.

    Args:
      key: of the step, or of the run where `index` says which image it is.
      images: the batch.
      num_views: K.
      augment: (key, image) -> image.
      index: a number an image; default: its position in the batch.

    Raises:
      ValueError: no batch of images, or K below 1.
    """
    if images.ndim != 4 or num_views < 1:
        raise ValueError(
            f"multi_view: images {images.shape} must be [B, H, W, C], num_views = {num_views} >= 1"
        )
    index = jnp.arange(len(images)) if index is None else index
    if index.shape != images.shape[:1]:
        raise ValueError(f"multi_view: index {index.shape} must be {images.shape[:1]}")
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)

    def view(k: Array) -> Array:
        return jax.vmap(lambda key, image: augment(jax.random.fold_in(key, k), image))(keys, images)

    return jax.vmap(view)(jnp.arange(num_views))


def normalize(image: Array, mean: Sequence[float], std: Sequence[float]) -> Array:
    """(image - mean) / std by channel; the last step of a pipeline."""
    if len(mean) not in (1, image.shape[-1]) or len(std) != len(mean):
        raise ValueError(f"normalize: image {image.shape}, mean {tuple(mean)}, std {tuple(std)}")
    return (image - jnp.asarray(mean, image.dtype)) / jnp.asarray(std, image.dtype)


def _resampling(start: Array, length: Array, size_in: int, size_out: int) -> Array:
    """Weights [size_out, size_in] of PIL's antialiased bilinear resize of a crop along one axis."""
    scale = length / size_out
    centre = start + (jnp.arange(size_out)[:, None] + 0.5) * scale - 0.5
    where = jnp.arange(size_in)[None]
    weight = jnp.maximum(0.0, 1.0 - jnp.abs(where - centre) / jnp.maximum(scale, 1.0))
    weight = jnp.where((where >= start) & (where < start + length), weight, 0.0)
    return weight / weight.sum(1, keepdims=True)


def crop_and_resize(
    image: Image, top: Array, left: Array, height: Array, width: Array, size: tuple[int, int]
) -> Image:
    """The box of an image, resized bilinearly with antialiasing, as PIL does it.

    Args:
      image: [H, W, C].
      top, left, height, width: the box in whole pixels, inside the image; may be traced.
      size: (height, width) of the result, static.
    """
    _check("crop_and_resize", image)
    rows = _resampling(jnp.asarray(top), jnp.asarray(height), image.shape[0], size[0])
    columns = _resampling(jnp.asarray(left), jnp.asarray(width), image.shape[1], size[1])
    dot = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return dot("jw,iwc->ijc", columns, dot("ih,hwc->iwc", rows, image)).astype(image.dtype)


def random_resized_crop(
    key: Array,
    image: Image,
    *,
    size: tuple[int, int] | None = None,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    tries: int = 10,
) -> Image:
    """A box of random area and aspect ratio, resized; torchvision's RandomResizedCrop.

    Up to `tries` boxes are drawn and the first that fits is taken; where none does, the largest
    central box within the ratios.

    Args:
      key: of the draw.
      image: [H, W, C].
      size: of the result; default: the image's.
      scale: range of the box's share of the area, uniform.
      ratio: range of width / height, uniform in the logarithm.
      tries: boxes drawn.
    """
    _check("random_resized_crop", image)
    if not (0 < scale[0] <= scale[1] and 0 < ratio[0] <= ratio[1] and tries >= 1):
        raise ValueError(f"random_resized_crop: scale {scale}, ratio {ratio}, tries {tries}")
    rows, columns = image.shape[:2]
    u = _uniform(key, 2 * tries + 2)
    area = rows * columns * _between(u[:tries], *scale)
    aspect = jnp.exp(_between(u[tries:-2], jnp.log(ratio[0]), jnp.log(ratio[1])))
    width = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    height = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (width > 0) & (width <= columns) & (height > 0) & (height <= rows)
    first = jnp.argmax(fits)
    # The central box, as large as the ratios allow.
    inside = min(max(columns / rows, ratio[0]), ratio[1])
    central = (
        (rows, round(rows * inside))
        if inside < columns / rows
        else (round(columns / inside), columns)
    )
    height = jnp.where(fits.any(), height[first], central[0])
    width = jnp.where(fits.any(), width[first], central[1])
    top = _whole(u[-2], rows - height + 1)
    left = _whole(u[-1], columns - width + 1)
    top = jnp.where(fits.any(), top, (rows - height) // 2)
    left = jnp.where(fits.any(), left, (columns - width) // 2)
    return crop_and_resize(image, top, left, height, width, size or (rows, columns))


def random_crop(
    key: Array,
    image: Image,
    *,
    padding: Any,
    limit: int | None = None,
    value: float = 0.0,
) -> Image:
    """Pads every side by `padding` with `value` and cuts a random box of the image's size.

    Args:
      key: of the draw.
      image: [H, W, C].
      padding: largest shift in pixels, each way.
      limit: the most that `padding` can be, where it is traced.
      value: of what is padded.
    """
    _check("random_crop", image)
    limit = padding if limit is None else limit
    if limit < 0:
        raise ValueError(f"random_crop: padding = {limit}: must be 0 or more")
    padded = jnp.pad(image, ((limit,) * 2, (limit,) * 2, (0, 0)), constant_values=value)
    top, left = limit - padding + _whole(_uniform(key, 2), 2 * padding + 1)
    return jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)


def random_flip(key: Array, image: Image, *, p: float = 0.5) -> Image:
    """Mirrors left and right with probability p."""
    _check("random_flip", image)
    return jnp.where(_uniform(key, 1)[0] < p, image[:, ::-1], image)


def to_grey(image: Image) -> Image:
    """The luminance in every channel; one channel stays as it is."""
    _check("to_grey", image, (1, 3))
    if image.shape[-1] == 1:
        return image
    grey = (image * jnp.asarray(GREY, image.dtype)).sum(-1, keepdims=True)
    return jnp.broadcast_to(grey, image.shape)


def random_grey(key: Array, image: Image, *, p: float = 0.2) -> Image:
    """`to_grey` with probability p."""
    return jnp.where(_uniform(key, 1)[0] < p, to_grey(image), image)


def _blend(image: Array, other: Array, factor: Array | float) -> Array:
    return jnp.clip(factor * image + (1 - factor) * other, 0.0, 1.0)


def adjust_brightness(image: Image, factor: Array | float) -> Image:
    """factor * image, clipped to [0, 1]."""
    _check("adjust_brightness", image)
    return _blend(image, jnp.zeros_like(image), factor)


def adjust_contrast(image: Image, factor: Array | float) -> Image:
    """Away from (factor > 1) or towards (< 1) the image's mean luminance, clipped to [0, 1]."""
    return _blend(image, to_grey(image).mean((0, 1)), factor)


def adjust_saturation(image: Image, factor: Array | float) -> Image:
    """Away from (factor > 1) or towards (< 1) each pixel's luminance, clipped to [0, 1]."""
    return _blend(image, to_grey(image), factor)


def adjust_hue(image: Image, shift: Array | float) -> Image:
    """Turns the hue of HSV by `shift` of the circle; one channel stays as it is."""
    _check("adjust_hue", image, (1, 3))
    if image.shape[-1] == 1:
        return image
    largest, smallest = image.max(-1), image.min(-1)
    spread = largest - smallest
    grey = spread == 0
    safe = jnp.where(grey, 1.0, spread)
    red, green, blue = jnp.moveaxis(image, -1, 0)
    sixths = jnp.where(
        largest == red,
        (green - blue) / safe,
        jnp.where(largest == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = jnp.where(grey, 0.0, sixths / 6) + shift
    # Each channel of a hue at full brightness: a trapezoid, a third of the circle apart.
    offset = jnp.asarray([5.0, 3.0, 1.0], image.dtype)
    k = jnp.mod(offset + 6 * hue[..., None], 6)
    dip = jnp.clip(jnp.minimum(k, 4 - k), 0.0, 1.0)
    return largest[..., None] - spread[..., None] * dip


def color_jitter(
    key: Array,
    image: Image,
    *,
    brightness: float | Array = 0.4,
    contrast: float | Array = 0.4,
    saturation: float | Array = 0.4,
    hue: float | Array = 0.1,
    p: float = 1.0,
) -> Image:
    """torchvision's ColorJitter: the four adjustments in a random order, with probability p.

    Factors are uniform in [max(0, 1 - x), 1 + x], the shift of the hue in [-hue, hue]; the order is
    a uniformly random permutation of the four, drawn for every image. Strengths may be traced.

    Raises:
      ValueError: a negative strength, or a hue above 0.5.
    """
    _check("color_jitter", image, (1, 3))
    strengths = (brightness, contrast, saturation, hue)
    known = [x for x in strengths if isinstance(x, int | float)]
    if min(known, default=0) < 0 or (isinstance(hue, int | float) and hue > 0.5):
        raise ValueError(f"color_jitter: {strengths} must be >= 0, and hue <= 0.5")
    u = _uniform(key, 9, image.dtype).astype(image.dtype)
    amount = jnp.stack([jnp.asarray(x, image.dtype) for x in strengths[:3]])
    factors = _between(u[:3], jnp.maximum(0.0, 1 - amount), 1 + amount)
    shift = _between(u[3], -jnp.asarray(hue, image.dtype), jnp.asarray(hue, image.dtype))
    # A permutation of four is one of three and the place of the hue among them. So the hue, which
    # costs most, is computed once whatever the order.
    order, place = jnp.argsort(u[4:7]), _whole(u[7], 4)

    def blends(x: Array, active: Callable[[int], Array]) -> Array:
        for turn in range(3):
            which = order[turn]
            grey = to_grey(x)
            mean = jnp.broadcast_to(grey.mean((0, 1)), x.shape)
            other = jnp.where(which == 0, 0.0, jnp.where(which == 1, mean, grey))
            x = jnp.where(active(turn), _blend(x, other, factors[which]), x)
        return x

    x = blends(image, lambda turn: turn < place)
    x = adjust_hue(x, shift)
    x = blends(x, lambda turn: turn >= place)
    return jnp.where(u[8] < p, x, image)


def gaussian_blur(image: Image, sigma: Array | float, *, radius: int) -> Image:
    """Convolution with a Gaussian cut off at `radius` pixels; the border is repeated outwards.

    Sigma 0 leaves the image as it is.
    """
    _check("gaussian_blur", image)
    offsets = jnp.arange(-radius, radius + 1)
    kernel = jnp.exp(-0.5 * (offsets / jnp.maximum(sigma, 1e-6)) ** 2)
    kernel = (kernel / kernel.sum()).astype(image.dtype)

    def along(x: Array, axis: int) -> Array:
        pads = [(radius, radius) if i == axis else (0, 0) for i in range(3)]
        padded, size = jnp.pad(x, pads, mode="edge"), x.shape[axis]
        parts = [
            kernel[i] * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
            for i in range(2 * radius + 1)
        ]
        return sum(parts[1:], parts[0])

    return along(along(image, 0), 1)


def random_gaussian_blur(
    key: Array, image: Image, *, sigma: tuple[float, float] = (0.1, 2.0), p: float = 0.5
) -> Image:
    """`gaussian_blur` of uniform sigma with probability p; the kernel reaches 3 of the largest.

    SimCLR's and SimSiam's own blur is PIL's approximation of it by box filters.
    """
    u = _uniform(key, 2)
    blurred = gaussian_blur(image, _between(u[0], *sigma), radius=max(1, round(3 * sigma[1])))
    return jnp.where(u[1] < p, blurred, image)


def random_erase(
    key: Array, image: Image, *, size: int | Array, value: float = 0.0, p: float = 1.0
) -> Image:
    """Cutout: a square of `size` pixels round a random pixel becomes `value`, with probability p.

    The square is cut off at the border, as in DeVries and Taylor (2017); of an even size it reaches
    one pixel further up and left. The size may be traced.
    """
    _check("random_erase", image)
    rows, columns = image.shape[:2]
    u = _uniform(key, 3)
    low = _whole(u[:2], jnp.asarray([rows, columns])) - size // 2

    def inside(axis: int, count: int) -> Array:
        where = jnp.arange(count)
        return (where >= low[axis]) & (where < low[axis] + size)

    square = inside(0, rows)[:, None, None] & inside(1, columns)[None, :, None]
    return jnp.where(square & (u[2] < p), value, image)


def gaussian_noise(key: Array, image: Image, *, std: float | Array) -> Image:
    """Adds independent normal noise; the result is not clipped."""
    _check("gaussian_noise", image)
    return image + std * jax.random.normal(key, image.shape, image.dtype)
