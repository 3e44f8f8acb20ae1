"""The inner loop on explicit parameters: one task, K steps, differentiable to any order.

MAML, ANIL and CxGrad are the same loop: MAML adapts every convolution and the head, ANIL the head
alone, CxGrad adapts what MAML does and rescales the backbone before every step.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from reprise.papers.contextual_gradient_scaling.scaling import (
    Generator,
    context_gradient_scales,
    rescale_to_norm,
)

Params = Any  # any pytree of arrays
ApplyFn = Callable[[Params, Array], Float[Array, "n ways"]]
Rate = float | Float[Array, "..."]


class Trace(NamedTuple):
    """What happened in an inner loop.

    Attributes:
      contexts: phi_0 ... phi_K [K + 1, c]; None without contexts.
      gammas: gamma(phi_0) ... gamma(phi_K) [K + 1, L]; None without contexts.
      losses: support loss before each step [K].
      gradient_norms: path -> norm of the gradient of each step [K].
      relative_changes: path -> norm of each update over that of what it updates [K].
    """

    contexts: Any
    gammas: Any
    losses: Array
    gradient_norms: dict[str, Array]
    relative_changes: dict[str, Array]


def cross_entropy(logits: Float[Array, "n ways"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
    """-log softmax(logits)[label], one value an example, float32 or wider.

    A label outside 0..ways-1 gives NaN, not a silent 0.

    Raises:
      ValueError: shapes that do not fit.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"cross_entropy: logits {logits.shape} and labels {labels.shape} must be [n, ways], [n]"
        )
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    known = (labels >= 0) & (labels < logits.shape[1])
    # On the logits, so that the gradient is NaN too and an inner loop cannot swallow it.
    poison = jnp.where(known, 0.0, jnp.nan).astype(wide)[:, None]
    log_p = jax.nn.log_softmax(logits.astype(wide) + poison)
    # A product, not a gather: its gradients are products too, of every order.
    return -(jax.nn.one_hot(labels, logits.shape[1], dtype=wide) * log_p).sum(-1)


def cxgrad_adapt(
    apply_fn: ApplyFn,
    params: Params,
    generator: Generator,
    support_images: Float[Array, "n ..."],
    support_labels: Int[Array, " n"],
    *,
    num_steps: int = 5,
    inner_learning_rate: Rate = 0.01,
    context_learning_rate: float = 1.0,
    context_size: int = 100,
    scaled_paths: Sequence[Any],
    second_order: bool = True,
    adapted_paths: Sequence[Any] | None = None,
    checkpoint: bool = False,
) -> tuple[Params, dict[str, Array]]:
    """Adapts a network to one task by gradient descent with contextual gradient scaling.

    Lee, Lee, Song, "Contextual Gradient Scaling for Few-Shot Learning" (WACV 2022), as its code
    does it: phi_0 = 0 and one first-order update of phi alone; then for k = 1..K

        W <- S(W, gamma(phi_k)),  head untouched             (the scaling stays)
        W <- W - a dl/dW,  head <- head - a dl/dhead,  phi_{k+1} <- phi_k - a_c dl/dphi_k

    with l the mean cross-entropy on the support set, dl/dW with respect to the scaled W and
    dl/dphi through gamma. Vmap over tasks for a meta-batch.

    Args:
      apply_fn: (params, images) -> logits [n, ways]; it must normalise by the statistics of its
        images, and carry nothing from call to call.
      params: pytree; neither changed nor rescaled in place.
      generator: see `context_gradient_scales`.
      support_images, support_labels: the task's examples; labels 0..ways-1, another one makes the
        loss NaN.
      num_steps: K.
      inner_learning_rate: a; a scalar, or one a step [K]. May be traced, and gets its gradient.
      context_learning_rate: a_c.
      context_size: c.
      scaled_paths: where the L kernels W_l lie in `params`: "conv0/kernel" or ("conv0", "kernel").
      second_order: differentiate through the inner gradients. Without, they are constants.
      adapted_paths: what to update, as prefixes of paths; default: `scaled_paths` and everything
        else but normalisation layers (modules that hold a `scale`), which are only meta-learned.
      checkpoint: recompute each step in the outer backward pass instead of keeping it.

    Returns:
      (params after K updates, {"contexts" [K + 1, c], "gammas" [K + 1, L]}). The first update of
      phi is not differentiated.

    Raises:
      ValueError: shapes, rates, sizes or paths that do not fit.
    """
    expected = jnp.shape(generator["dense0"]["kernel"])[:1] if "dense0" in generator else ()
    if expected != (context_size,):
        raise ValueError(
            f"cxgrad_adapt: context_size = {context_size}: the generator takes contexts {expected}"
        )
    adapted, trace = adapt(
        apply_fn,
        params,
        support_images,
        support_labels,
        generator=generator,
        num_steps=num_steps,
        inner_learning_rate=inner_learning_rate,
        context_learning_rate=context_learning_rate,
        scaled_paths=scaled_paths,
        second_order=second_order,
        adapted_paths=adapted_paths,
        checkpoint=checkpoint,
    )
    return adapted, {"contexts": trace.contexts, "gammas": trace.gammas}


def maml_adapt(
    apply_fn: ApplyFn,
    params: Params,
    support_images: Float[Array, "n ..."],
    support_labels: Int[Array, " n"],
    *,
    num_steps: int = 5,
    inner_learning_rate: Rate = 0.01,
    second_order: bool = True,
    adapted_paths: Sequence[Any] | None = None,
    checkpoint: bool = False,
) -> Params:
    """Adapts a network to one task by plain gradient descent (Finn, Abbeel, Levine, 2017).

    `adapted_paths=("linear",)` is ANIL (Raghu et al., 2020): the head alone. Arguments and errors
    are those of `cxgrad_adapt`.
    """
    return adapt(
        apply_fn,
        params,
        support_images,
        support_labels,
        num_steps=num_steps,
        inner_learning_rate=inner_learning_rate,
        second_order=second_order,
        adapted_paths=adapted_paths,
        checkpoint=checkpoint,
    )[0]


def adapt(
    apply_fn: ApplyFn,
    params: Params,
    support_images: Float[Array, "n ..."],
    support_labels: Int[Array, " n"],
    *,
    generator: Generator | None = None,
    num_steps: int = 5,
    inner_learning_rate: Rate = 0.01,
    context_learning_rate: float = 1.0,
    scaled_paths: Sequence[Any] = (),
    second_order: bool = True,
    adapted_paths: Sequence[Any] | None = None,
    checkpoint: bool = False,
) -> tuple[Params, Trace]:
    """The loop behind `cxgrad_adapt` and, with `generator=None`, `maml_adapt`; with its trace."""
    rates = _rates(inner_learning_rate, num_steps)
    flat, treedef = _flatten(params)
    scaled = [_name(path) for path in scaled_paths] if generator is not None else []
    _check(support_images, support_labels, flat, scaled, generator)
    moving = _adapted(flat, scaled, adapted_paths)
    # What is not updated in the loop is kept out of what it carries.
    fixed = {name: value for name, value in flat.items() if name not in {*moving, *scaled}}

    def support_loss(working: dict[str, Array]) -> Array:
        whole = {**fixed, **working}
        logits = apply_fn(treedef.unflatten([whole[name] for name in flat]), support_images)
        return cross_entropy(logits, support_labels).mean()

    def rescaled(working: dict[str, Array], phi: Array) -> dict[str, Array]:
        kernels = rescale_to_norm(
            [working[name] for name in scaled], context_gradient_scales(phi, generator)
        )
        return {**working, **dict(zip(scaled, kernels, strict=True))}

    def step(working: dict[str, Array], phi: Any, rate: Array) -> Any:
        # One backward pass serves both: dl/dphi is dl/d(scaled W) pulled back through gamma.
        if generator is not None:
            working, pull = jax.vjp(lambda phi: rescaled(working, phi), phi)
        loss, slopes = jax.value_and_grad(support_loss)(working)
        after = phi
        if generator is not None:
            (d_phi,) = pull(slopes)
            d_phi = d_phi if second_order else jax.lax.stop_gradient(d_phi)
            after = phi - context_learning_rate * d_phi
        if not second_order:
            slopes = jax.lax.stop_gradient(slopes)
        moved, norms, changes = dict(working), {}, {}
        for name in moving:
            update = rate.astype(working[name].dtype) * slopes[name]
            moved[name] = working[name] - update
            norms[name] = _norm(slopes[name])
            changes[name] = _norm(update) / jnp.maximum(_norm(working[name]), 1e-12)
        return (moved, after), (phi, loss, norms, changes)

    working = {name: flat[name] for name in dict.fromkeys([*moving, *scaled])}
    phi = None
    if generator is not None:
        wide = jnp.promote_types(generator["dense0"]["kernel"].dtype, jnp.float32)
        first = jnp.zeros(generator["dense0"]["kernel"].shape[0], wide)
        d_phi = jax.grad(lambda phi: support_loss(rescaled(working, phi)))(first)
        phi = first - context_learning_rate * jax.lax.stop_gradient(d_phi)
    body = jax.checkpoint(step) if checkpoint else step
    # Few steps: unrolled they are faster on CPUs, and with `checkpoint` memory is what counts.
    (working, _), (used, losses, norms, changes) = jax.lax.scan(
        lambda carry, rate: body(*carry, rate),
        (working, phi),
        rates,
        unroll=1 if checkpoint else num_steps,
    )
    contexts = gammas = None
    if generator is not None:
        contexts = jnp.concatenate([first[None], used])
        gammas = jax.vmap(lambda phi: context_gradient_scales(phi, generator))(contexts)
    whole = {**fixed, **working}
    adapted = treedef.unflatten([whole[name] for name in flat])
    return adapted, Trace(contexts, gammas, losses, norms, changes)


def _norm(x: Array) -> Array:
    """For reports alone: not differentiated, so that a zero has no bad slope."""
    x = jax.lax.stop_gradient(x)
    return jnp.sqrt((x.astype(jnp.promote_types(x.dtype, jnp.float32)) ** 2).sum())


def _name(path: Any) -> str:
    return path if isinstance(path, str) else "/".join(map(str, path))


def _flatten(params: Params) -> tuple[dict[str, Array], Any]:
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    values = [jnp.asarray(leaf) for _, leaf in leaves]
    return dict(zip(names, values, strict=True)), treedef


def _rates(rate: Rate, num_steps: int) -> Array:
    if num_steps < 1:
        raise ValueError(f"num_steps = {num_steps}: must be 1 or more")
    rates = jnp.asarray(rate, jnp.result_type(float))
    if rates.shape not in ((), (num_steps,)):
        raise ValueError(
            f"inner_learning_rate {rates.shape}: must be a scalar or one a step, [{num_steps}]"
        )
    return jnp.broadcast_to(rates, (num_steps,))


def _check(
    images: Array, labels: Array, flat: dict[str, Array], scaled: list[str], generator: Any
) -> None:
    integer = jnp.issubdtype(labels.dtype, jnp.integer)
    if labels.ndim != 1 or not integer or images.ndim < 2 or len(images) != len(labels):
        raise ValueError(
            f"support_images {images.shape} and support_labels {labels.dtype}{labels.shape}: must "
            "be [n, ...] and integers [n]"
        )
    if generator is None:
        return
    for name in scaled:
        if name not in flat:
            raise ValueError(f"scaled_paths: params have no {name!r}; they have {', '.join(flat)}")
    if not scaled or len(set(scaled)) != len(scaled):
        raise ValueError(f"scaled_paths = {scaled}: must name one kernel or more, each once")
    count = jnp.shape(generator["dense1"]["bias"])
    if count != (len(scaled),):
        raise ValueError(
            f"scaled_paths = {scaled}: the generator makes {count} scales, one a kernel is needed"
        )


def _adapted(
    flat: dict[str, Array], scaled: list[str], adapted_paths: Sequence[Any] | None
) -> list[str]:
    """The paths that the loop updates, in the order of `flat`."""
    if adapted_paths is None:

        def normalisation(name: str) -> bool:
            return f"{name[: name.rfind('/') + 1]}scale" in flat

        return [name for name in flat if name in scaled or not normalisation(name)]
    chosen: set[str] = set()
    for prefix in map(_name, adapted_paths):
        found = {n for n in flat if n == prefix or n.startswith(f"{prefix}/")}
        if not found:
            raise ValueError(
                f"adapted_paths: params have nothing at {prefix!r}; they have {', '.join(flat)}"
            )
        chosen |= found
    if not chosen:
        raise ValueError("adapted_paths is empty: there is nothing to adapt")
    return [name for name in flat if name in chosen]
