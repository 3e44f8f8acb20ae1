"""How large a network is: parameters and multiply-adds of one image. Nothing is computed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def parameters(model: Any, image_shape: tuple[int, int, int]) -> int:
    """Parameters that are trained; BatchNorm's running statistics are none.

    Args:
      model: Linen module, image, train -> (logits, taps).
      image_shape: (height, width, channels).
    """
    variables, _ = _abstract(model, image_shape)
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(variables["params"]))


def multiply_adds(model: Any, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of one image's logits, as papers count them ("FLOPs" in most).

    Those of convolutions, products at the padding included, and of matrix products; not those of
    biases, BatchNorm, activations and pooling.

    Args:
      model, image_shape: see `parameters`.
    """
    variables, image = _abstract(model, image_shape)

    def logits(variables: Any, image: Any) -> Any:
        return model.apply(variables, image, train=False)[0]

    return _products(jax.make_jaxpr(logits)(variables, image).jaxpr)


def _abstract(model: Any, image_shape: tuple[int, int, int]) -> Any:
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image), image


def _products(jaxpr: Any) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        inner = [value.jaxpr for value in eqn.params.values() if hasattr(value, "jaxpr")]
        total += sum(map(_products, inner))
        # Branches are those of platforms; the one with products is what a paper counts.
        branches = eqn.params.get("branches", ())
        total += max((_products(branch.jaxpr) for branch in branches), default=0)
        dims, out = eqn.params.get("dimension_numbers"), eqn.outvars[0].aval
        if eqn.primitive.name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            total += out.size * kernel.size // kernel.shape[dims.rhs_spec[0]]
        elif eqn.primitive.name == "dot_general":
            left = eqn.invars[0].aval
            total += out.size * int(np.prod([left.shape[i] for i in dims[0][0]]))
    return total
