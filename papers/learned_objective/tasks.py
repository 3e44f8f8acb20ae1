"""Generated problems: 1-D registration under a change of illumination, and textured motion."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LENGTH = 24  # samples of a signal
TEXTURES = 6  # waves that make one


def registration(key: Array, count: int) -> dict[str, Float[Array, "..."]]:
    """Pairs of signals that differ by a shift, gain, bias, ramp and noise.

    I1(t) = s(t), I2(t) = gain s(t - d) + bias + ramp linspace(-1, 1), both + N(0, 0.05); s is a
    sum of 6 cosines of 0.02 to 0.12 cycles a sample; d ~ U(-3, 3).

    Returns:
      {"first": [count, 24], "second": [count, 24], "shift": [count]}.
    """
    keys = jax.random.split(key, 9)
    amplitude = jax.random.normal(keys[0], (count, 1, TEXTURES)) / np.sqrt(TEXTURES)
    frequency = jax.random.uniform(keys[1], (count, 1, TEXTURES), minval=0.02, maxval=0.12)
    phase = jax.random.uniform(keys[2], (count, 1, TEXTURES), maxval=2 * np.pi)
    shift = jax.random.uniform(keys[3], (count,), minval=-3.0, maxval=3.0)
    gain = jax.random.uniform(keys[4], (count, 1), minval=0.4, maxval=1.6)
    bias = jax.random.uniform(keys[5], (count, 1), minval=-1.0)
    ramp = jax.random.uniform(keys[6], (count, 1), minval=-1.0)

    def signal(u: Array) -> Array:
        waves = jnp.cos(2 * np.pi * frequency * u[:, :, None] + phase)
        return (amplitude * waves).sum(-1)

    t = jnp.broadcast_to(jnp.arange(LENGTH, dtype=jnp.float32), (count, LENGTH))
    second = gain * signal(t - shift[:, None]) + bias + ramp * jnp.linspace(-1, 1, LENGTH)
    noise = 0.05 * jax.random.normal(keys[7], (2, count, LENGTH))
    return {"first": signal(t) + noise[0], "second": second + noise[1], "shift": shift}


def textured_motion(
    key: Array, count: int, size: int, *, max_motion: float = 3.0, waves: int = 24
) -> dict[str, Float[Array, "..."]]:
    """Pairs of images of a moving texture, with the flow that explains them.

    The flow is affine plus, in half of the pairs, another affine motion inside a soft-edged disc.
    I1(p) = s(p), and I2 shows the same texture moved, so that I1(p) = I2(p + flow(p)) up to a
    change of gain, bias and shading, and noise. s is a sum of plane waves of 4 to 20 pixels. I2 is
    drawn by inverting the flow with five fixed-point iterations.

    Returns:
      {"first", "second": [count, size, size, 1], "flow": [count, size, size, 2]}; flow channel 0
      horizontal, in pixels.
    """
    keys = iter(jax.random.split(key, 12))
    grid = jnp.stack(jnp.meshgrid(jnp.arange(size), jnp.arange(size), indexing="xy"), -1)
    grid = grid.astype(jnp.float32)
    centred = (grid - (size - 1) / 2) / (size / 2)

    def affine(key: Array) -> tuple[Array, Array]:
        one, two = jax.random.split(key)
        shift = jax.random.uniform(one, (count, 2), minval=-1.0) * max_motion * 0.75
        matrix = jax.random.uniform(two, (count, 2, 2), minval=-1.0) * max_motion * 0.25
        return shift, matrix

    background, inside = affine(next(keys)), affine(next(keys))
    centre = jax.random.uniform(next(keys), (count, 2), minval=0.25, maxval=0.75) * size
    radius = jax.random.uniform(next(keys), (count, 1, 1), minval=0.15, maxval=0.35) * size
    has_disc = jax.random.bernoulli(next(keys), 0.5, (count, 1, 1))

    def flow_at(p: Array) -> Array:
        where = (p - (size - 1) / 2) / (size / 2)

        def of(motion: tuple[Array, Array]) -> Array:
            shift, matrix = motion
            return shift[:, None, None] + jnp.einsum("bij,bhwj->bhwi", matrix, where)

        distance = jnp.linalg.norm(p - centre[:, None, None], axis=-1)
        weight = (has_disc * jax.nn.sigmoid(radius - distance))[..., None]
        return (1 - weight) * of(background) + weight * of(inside)

    angle = jax.random.uniform(next(keys), (count, waves), maxval=2 * np.pi)
    period = jax.random.uniform(next(keys), (count, waves), minval=4.0, maxval=20.0)
    phase = jax.random.uniform(next(keys), (count, waves), maxval=2 * np.pi)
    amplitude = jax.random.normal(next(keys), (count, waves)) / np.sqrt(waves)
    wave = jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1) * (2 * np.pi / period)[..., None]

    def texture(p: Array) -> Array:
        inner = jnp.einsum("bhwi,bki->bhwk", p, wave) + phase[:, None, None]
        return jnp.einsum("bhwk,bk->bhw", jnp.cos(inner), amplitude)

    p = jnp.broadcast_to(grid, (count, size, size, 2))
    source = p
    for _ in range(5):
        source = p - flow_at(source)
    one, two, three, four = jax.random.split(next(keys), 4)
    gain = jax.random.uniform(one, (count, 1, 1), minval=0.6, maxval=1.4)
    bias = jax.random.uniform(two, (count, 1, 1), minval=-0.5, maxval=0.5)
    slope = jax.random.uniform(three, (count, 2), minval=-0.4, maxval=0.4)
    shading = jnp.einsum("hwi,bi->bhw", centred, slope)
    noise = 0.05 * jax.random.normal(four, (2, count, size, size))
    first = texture(p) + noise[0]
    second = gain * texture(source) + bias + shading + noise[1]
    return {"first": first[..., None], "second": second[..., None], "flow": flow_at(p)}
