"""Augmentations: deterministic, in range, nothing at strength 0, and as PIL and scipy say."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from reprise.common.data import augment

KEYS = jax.random.split(jax.random.key(0), 64)
IMAGE = jnp.asarray(np.random.default_rng(0).uniform(size=(12, 10, 3)), jnp.float32)

RANDOM = {
    "random_resized_crop": functools.partial(augment.random_resized_crop, scale=(0.2, 1.0)),
    "random_crop": functools.partial(augment.random_crop, padding=2),
    "random_flip": augment.random_flip,
    "random_grey": augment.random_grey,
    "color_jitter": augment.color_jitter,
    "random_gaussian_blur": augment.random_gaussian_blur,
    "random_erase": functools.partial(augment.random_erase, size=4),
}


@pytest.fixture(scope="module")
def drawn():
    """64 draws of each, computed once."""
    return {
        name: np.asarray(jax.jit(jax.vmap(f, (0, None)))(KEYS, IMAGE)) for name, f in RANDOM.items()
    }


@pytest.mark.parametrize("name", RANDOM)
def test_draws_stay_in_range_keep_the_shape_and_differ(drawn, name):
    out = drawn[name]
    assert out.shape == (64, *IMAGE.shape) and out.dtype == np.float32
    assert out.min() >= -1e-6 and out.max() <= 1 + 1e-6
    assert len({row.tobytes() for row in out}) > 1


@pytest.mark.parametrize("name", ["random_flip", "random_erase"])
def test_a_draw_depends_on_its_key_alone(drawn, name):
    np.testing.assert_allclose(RANDOM[name](KEYS[5], IMAGE), drawn[name][5], atol=1e-6)


@pytest.mark.parametrize(
    "identity",
    [
        functools.partial(augment.random_resized_crop, scale=(1.0, 1.0), ratio=(10 / 12, 10 / 12)),
        functools.partial(augment.random_crop, padding=0),
        functools.partial(augment.random_flip, p=0.0),
        functools.partial(augment.random_grey, p=0.0),
        functools.partial(
            augment.color_jitter, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0
        ),
        functools.partial(augment.color_jitter, p=0.0),
        functools.partial(augment.random_gaussian_blur, sigma=(0.05, 0.05), p=1.0),
        functools.partial(augment.random_erase, size=0),
        functools.partial(augment.gaussian_noise, std=0.0),
    ],
)
def test_at_strength_0_nothing_changes(identity):
    np.testing.assert_allclose(identity(KEYS[0], IMAGE), IMAGE, atol=1e-5)


@pytest.mark.parametrize("box", [(0, 0, 12, 10), (3, 2, 5, 4), (1, 0, 11, 3), (4, 4, 1, 1)])
@pytest.mark.parametrize("size", [(12, 10), (5, 7), (24, 3)])
def test_crop_and_resize_is_pils(box, size):
    top, left, height, width = box
    found = augment.crop_and_resize(IMAGE, top, left, height, width, size)
    for channel in range(3):
        whole = Image.fromarray(np.asarray(IMAGE[..., channel]))
        crop = whole.crop((left, top, left + width, top + height))
        expected = crop.resize(size[::-1], Image.Resampling.BILINEAR)
        np.testing.assert_allclose(found[..., channel], np.asarray(expected), atol=2e-6)


def test_boxes_have_the_areas_and_ratios_asked_for():
    # Positions as pixel values: the corners of a crop say where it lies.
    rows, columns = np.mgrid[:64, :48].astype(np.float32)
    where = jnp.stack([rows / 64, columns / 64], -1)
    crop = functools.partial(augment.random_resized_crop, scale=(0.2, 0.6), size=(32, 32))
    out = np.asarray(jax.jit(jax.vmap(crop, (0, None)))(KEYS, where)) * 64
    height = (out[:, -1, 0, 0] - out[:, 0, 0, 0]) * 32 / 31
    width = (out[:, 0, -1, 1] - out[:, 0, 0, 1]) * 32 / 31
    share = height * width / (64 * 48)
    assert 0.15 < share.min() < 0.3 and 0.5 < share.max() < 0.66
    assert 0.7 < (width / height).min() < 0.85 and 1.15 < (width / height).max() < 1.45


def test_a_box_that_never_fits_becomes_the_central_one():
    out = augment.random_resized_crop(KEYS[0], IMAGE, scale=(2.0, 2.0), ratio=(0.5, 2.0), tries=2)
    np.testing.assert_allclose(out, IMAGE, atol=1e-5)
    wide = jnp.broadcast_to(jnp.arange(16.0)[None, :, None] / 16, (4, 16, 1))
    out = augment.random_resized_crop(
        KEYS[0], wide, scale=(9.0, 9.0), size=(4, 4), ratio=(1.0, 1.0)
    )
    np.testing.assert_allclose(out[0, :, 0] * 16, [6, 7, 8, 9], atol=1e-4)


def test_adjustments_are_pils():
    from PIL import ImageEnhance

    eight = np.asarray(np.round(IMAGE * 255), np.uint8)
    image = jnp.asarray(eight, jnp.float32) / 255
    pairs = {
        "Brightness": augment.adjust_brightness,
        "Contrast": augment.adjust_contrast,
        "Color": augment.adjust_saturation,
    }
    for name, ours in pairs.items():
        for factor in (0.0, 0.6, 1.4):
            expected = getattr(ImageEnhance, name)(Image.fromarray(eight)).enhance(factor)
            # PIL rounds, the mean luminance included.
            np.testing.assert_allclose(
                ours(image, factor) * 255, np.asarray(expected), atol=1.6, err_msg=name
            )


def test_the_hue_turns_as_in_colorsys():
    import colorsys

    image = IMAGE.at[0, 0].set(0.4)  # a grey pixel
    for shift in (-0.3, 0.1, 0.5):
        found = np.asarray(augment.adjust_hue(image, shift))
        for pixel, got in zip(image.reshape(-1, 3).tolist(), found.reshape(-1, 3), strict=True):
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            np.testing.assert_allclose(got, colorsys.hsv_to_rgb((h + shift) % 1, s, v), atol=1e-5)


def test_blur_is_scipys():
    for sigma in (0.5, 2.0):
        found = augment.gaussian_blur(IMAGE, sigma, radius=6)
        expected = scipy.ndimage.gaussian_filter(
            np.asarray(IMAGE), (sigma, sigma, 0), mode="nearest", radius=(6, 6, 0)
        )
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(augment.gaussian_blur(IMAGE, 0.0, radius=2), IMAGE)


def test_jitter_is_the_adjustments_in_some_order(drawn):
    # Each draw must be one of the 24 orders of the four adjustments with its own factors.
    adjust = [
        augment.adjust_brightness,
        augment.adjust_contrast,
        augment.adjust_saturation,
        augment.adjust_hue,
    ]
    seen = set()
    for i in range(12):
        u = jax.random.uniform(KEYS[i], (9,))
        amounts = [*(0.6 + 0.8 * u[:3]), 0.2 * u[3] - 0.1]
        fits = []
        for order in itertools.permutations(range(4)):
            image = IMAGE
            for which in order:
                image = adjust[which](image, amounts[which])
            fits.append(float(np.abs(image - drawn["color_jitter"][i]).max()))
        assert min(fits) < 1e-5
        seen.add(int(np.argmin(fits)))
    assert len(seen) > 3


def test_an_erased_square_is_a_square(drawn):
    out = drawn["random_erase"]
    gone = (out == 0).all(-1)
    for mask in gone:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask.sum() == len(rows) * len(columns) and len(rows) <= 4 and len(columns) <= 4
    assert (gone.sum((1, 2)) == 16).any() and gone.any(0).mean() > 0.9


def test_traced_strengths_are_the_same():
    image = IMAGE[:8, :8]
    fixed = augment.random_crop(KEYS[3], image, padding=2)
    traced = jax.jit(lambda n: augment.random_crop(KEYS[3], image, padding=n, limit=4))(2)
    np.testing.assert_array_equal(fixed, traced)
    fixed = augment.random_erase(KEYS[3], image, size=3)
    traced = jax.jit(lambda n: augment.random_erase(KEYS[3], image, size=n))(3)
    np.testing.assert_array_equal(fixed, traced)


def test_views_are_keyed_by_index_and_view_not_by_place():
    images = jnp.stack([IMAGE, 1 - IMAGE, IMAGE**2])
    noisy = functools.partial(augment.gaussian_noise, std=0.1)
    index = jnp.asarray([7, 3, 11])
    views = augment.multi_view(KEYS[0], images, 3, noisy, index=index)
    assert views.shape == (3, *images.shape)
    swapped = augment.multi_view(KEYS[0], images[::-1], 2, noisy, index=index[::-1])
    np.testing.assert_array_equal(swapped[:, ::-1], views[:2])
    key = jax.random.fold_in(jax.random.fold_in(KEYS[0], 3), 2)
    np.testing.assert_allclose(views[2, 1], noisy(key, images[1]), atol=1e-6)


def test_composed_augmentations_have_keys_of_their_own():
    noisy = functools.partial(augment.gaussian_noise, std=1.0)
    twice = augment.compose(noisy, noisy)(KEYS[0], jnp.zeros((4, 4, 1)))
    once = noisy(jax.random.fold_in(KEYS[0], 0), jnp.zeros((4, 4, 1)))
    assert np.abs(twice - 2 * once).max() > 0.1


def test_normalization():
    out = augment.normalize(IMAGE, (0.1, 0.2, 0.3), (0.5, 0.5, 2.0))
    np.testing.assert_allclose(out[..., 2], (IMAGE[..., 2] - 0.3) / 2, atol=1e-6)
    with pytest.raises(ValueError, match="normalize: image"):
        augment.normalize(IMAGE, (0.1, 0.2), (0.5, 0.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: augment.random_flip(KEYS[0], IMAGE[None]), r"random_flip: image float32\[1, 12"),
        (lambda: augment.to_grey(IMAGE[..., :2]), "must have 1 or 3 channels"),
        (lambda: augment.random_erase(KEYS[0], jnp.zeros((4, 4, 3), jnp.uint8), size=2), "uint8"),
        (lambda: augment.color_jitter(KEYS[0], IMAGE, hue=0.6), "hue <= 0.5"),
        (lambda: augment.random_resized_crop(KEYS[0], IMAGE, scale=(0.0, 1.0)), "scale"),
        (lambda: augment.random_crop(KEYS[0], IMAGE, padding=-1), "padding = -1"),
        (lambda: augment.multi_view(KEYS[0], IMAGE, 2, augment.random_flip), "must be"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
