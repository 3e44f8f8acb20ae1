"""AdamW with amsgrad as PyTorch computes it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AmsgradState(NamedTuple):
    """Steps so far, first and second moment, and the largest second moment yet, all uncorrected."""

    step: jax.Array
    mu: Any
    nu: Any
    nu_max: Any


def scale_by_amsgrad(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam's scaling by the largest second moment, the bias corrected after the maximum.

    `optax.scale_by_amsgrad` corrects it before: the first gradients, which are the largest here,
    would then hold the step down for good.
    """

    def init(params: Any) -> AmsgradState:
        def zeros() -> Any:
            return jax.tree.map(jnp.zeros_like, params)

        return AmsgradState(jnp.zeros((), jnp.int32), zeros(), zeros(), zeros())

    def update(grads: Any, state: AmsgradState, params: Any = None) -> tuple[Any, AmsgradState]:
        step = state.step + 1
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)
        mu_hat = optax.tree.bias_correction(mu, b1, step)
        nu_hat = optax.tree.bias_correction(nu_max, b2, step)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu_hat, nu_hat)
        return scaled, AmsgradState(step, mu, nu, nu_max)

    return optax.GradientTransformation(init, update)


def adamw_amsgrad(
    learning_rate: optax.ScalarOrSchedule, weight_decay: float
) -> optax.GradientTransformation:
    """`torch.optim.AdamW(lr, weight_decay=..., amsgrad=True)`; decays every parameter."""
    return optax.chain(
        scale_by_amsgrad(),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
