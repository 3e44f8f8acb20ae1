"""Dtypes of the computation."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array


def wide(x: Any) -> Array:
    """x as an array in float32, or in float64 where it is that: for norms, softmax and sums."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
