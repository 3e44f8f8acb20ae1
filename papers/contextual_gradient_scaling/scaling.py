"""Scales of the backbone's gradients, generated from a context, and how they act."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Generator = Mapping[str, Mapping[str, Array]]


def context_gradient_scales(
    context: Float[Array, " c"], generator: Generator
) -> Float[Array, " layers"]:
    """gamma(phi) = softplus(relu(phi A1 + a1) A2 + a2), one scale a layer.

    Lee, Lee, Song, "Contextual Gradient Scaling for Few-Shot Learning" (WACV 2022); the two dense
    layers and the softplus are those of its code.

    Args:
      context: phi, of one task.
      generator: {"dense0": {"kernel" [c, h], "bias" [h]}, "dense1": {"kernel" [h, L], "bias" [L]}}.

    Returns:
      gamma [L] > 0, float32 or wider. Differentiable in everything.

    Raises:
      ValueError: an entry is missing, or shapes do not fit.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("dense0/kernel", "dense0/bias", "dense1/kernel", "dense1/bias"):
        layer, _, leaf = name.partition("/")
        if layer not in generator or leaf not in generator[layer]:
            raise ValueError(f"context_gradient_scales: the generator has no {name}")
        shapes[name] = jnp.shape(generator[layer][leaf])
    first, second = shapes["dense0/kernel"], shapes["dense1/kernel"]
    fits = len(first) == len(second) == 2 and first[1] == second[0]
    fits = fits and shapes["dense0/bias"] == first[1:] and shapes["dense1/bias"] == second[1:]
    if not fits or context.shape != first[:1]:
        raise ValueError(
            f"context_gradient_scales: context {context.shape} must be [c], the generator "
            f"[c, h], [h], [h, L], [L]; it is {shapes}"
        )
    wide = jnp.promote_types(context.dtype, jnp.float32)
    one, two = (jax.tree.map(lambda x: x.astype(wide), generator[k]) for k in ("dense0", "dense1"))
    hidden = jax.nn.relu(context.astype(wide) @ one["kernel"] + one["bias"])
    return jax.nn.softplus(hidden @ two["kernel"] + two["bias"])


def rescale_to_norm(
    kernels: Sequence[Float[Array, "..."]], gammas: Float[Array, " layers"]
) -> list[Float[Array, "..."]]:
    """S(W, gamma)_l = gamma_l W_l / ||W_l||, the Frobenius norm over the whole kernel.

    Behind a normalisation layer the network's output does not depend on ||W_l||, while the gradient
    is inversely proportional to it: rescaling W_l to norm gamma_l scales its gradient by
    ||W_l|| / gamma_l. There is no epsilon: a kernel of zeros gives NaN.

    Args:
      kernels: L arrays of any shapes.
      gammas: gamma [L].

    Returns:
      Arrays like `kernels`. Gradients flow to both, through the norm as well.

    Raises:
      ValueError: not one scale a kernel.
    """
    if jnp.shape(gammas) != (len(kernels),):
        raise ValueError(
            f"rescale_to_norm: gammas {jnp.shape(gammas)} must be [{len(kernels)}], one a kernel"
        )

    def rescaled(kernel: Array, gamma: Array) -> Array:
        wide = jnp.promote_types(kernel.dtype, jnp.float32)
        values = kernel.astype(wide)
        norm = jnp.sqrt((values**2).sum())
        return (gamma.astype(wide) * values / norm).astype(kernel.dtype)

    return [rescaled(kernel, gammas[i]) for i, kernel in enumerate(kernels)]


def init_generator(
    key: Array, *, context_size: int = 100, num_scales: int = 4
) -> dict[str, dict[str, Any]]:
    """A generator c -> c -> L with uniform +-1/sqrt(c) entries, PyTorch's default for dense layers.

    Raises:
      ValueError: a size below 1.
    """
    if context_size < 1 or num_scales < 1:
        raise ValueError(
            f"init_generator: context_size = {context_size}, num_scales = {num_scales}: must be 1 "
            "or more"
        )
    bound = context_size**-0.5
    keys = iter(jax.random.split(key, 4))

    def dense(outputs: int) -> dict[str, Any]:
        def draw(*shape: int) -> Array:
            return jax.random.uniform(next(keys), shape, minval=-bound, maxval=bound)

        return {"kernel": draw(context_size, outputs), "bias": draw(outputs)}

    return {"dense0": dense(context_size), "dense1": dense(num_scales)}
