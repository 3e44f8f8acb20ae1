"""The inner process: gradient descent on a learned objective, and its gradient.

Forward, a while loop keeps the iterates and nothing of the network. Backward, they are replayed
from the last to the first: each step's vector-Jacobian product is one Hessian-vector and one mixed
product of the objective. The result is the exact gradient of the unrolled process.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from reprise.papers.fixed_point_layer import fixed_point

PyTree = Any
Objective = Callable[[PyTree, PyTree, PyTree], Float[Array, " batch"]]

MODES = ("unrolled", "implicit", "truncated")


class _Spec(NamedTuple):
    """What is static in a call."""

    num_steps: int
    momentum: float
    clip: float | None
    tol: float


def inner_minimize(
    objective: Objective,
    params: PyTree,
    x0: PyTree,
    context: PyTree,
    *,
    num_steps: int,
    step_size: float | Float[Array, ""],
    momentum: float = 0.0,
    clip: float | None = None,
    tol: float = 0.0,
    mode: str = "unrolled",
    truncate: int | None = None,
    checkpoint: bool = False,
    return_trajectory: bool = False,
) -> Any:
    """Minimises a learned objective over x by T steps of gradient descent; differentiable.

    Jeon, Lee, Choi, "Neuro-Optimization: Learning Objective Functions Using Neural Networks"
    (2019):

        g_t = d(sum_b f(params, x_t, context))/dx_t,  v_{t+1} = momentum v_t + g_t,  v_0 = 0
        x_{t+1} = x_t - step_size clip(v_{t+1}, -clip, clip)

    Args:
      objective: (params, x, context) -> [B], one scalar an example, twice differentiable in x, no
        terms across examples. It may close over traced values; they get their gradient too.
      params: pytree.
      x0: pytree of floating arrays [B, ...].
      context: pytree.
      num_steps: T.
      step_size: alpha; a traced scalar gets its gradient.
      momentum: share of the last step's velocity.
      clip: largest size of an element of the velocity in a step; None: no limit.
      tol: an example stops where its step has an element-wise largest size <= tol; 0: never.
      mode: "unrolled": the exact gradient through all steps. "truncated": through the last
        `truncate` steps, what comes before is detached. "implicit": the gradient of the minimum
        itself, -C^T H^-1 dL/dx, by the backward fixed-point iteration of
        `reprise.papers.fixed_point_layer`; right where the process has converged, and off by the
        order of the last step where not. It gives none to x0 and step_size.
      truncate: k of "truncated".
      checkpoint: keep every sqrt(T)-th iterate and recompute the others; "unrolled" alone.
      return_trajectory: also return all iterates.

    Returns:
      x_T, like x0, the same in every mode; with `return_trajectory` (x_T, trajectory
      [B, T + 1, ...]). In the modes "unrolled" and "truncated" gradients flow to params, context,
      step_size and (unrolled) x0. Memory: T iterates; none of the network's activations are kept.
      Reverse mode only; it may be differentiated again where tol is 0.

    Raises:
      ValueError: a wrong option, or an objective that does not return [B].
    """
    _check(objective, params, x0, context, num_steps, clip, tol, mode, truncate)
    if checkpoint and (tol or return_trajectory or mode != "unrolled"):
        raise ValueError(
            "inner_minimize: checkpoint works without tol and return_trajectory, in mode "
            f"'unrolled'; mode = {mode!r}"
        )
    pure, closed = jax.closure_convert(objective, params, x0, context)

    def f(params_closed: PyTree, x: PyTree, context: PyTree) -> Float[Array, " batch"]:
        params, closed = params_closed
        return pure(params, x, context, *closed)

    params = (params, tuple(closed))
    step_size = jnp.asarray(step_size, jnp.result_type(float))
    start = (x0, jax.tree.map(jnp.zeros_like, x0)) if momentum else (x0,)

    def run(state: Any, steps: int) -> Any:
        spec = _Spec(steps, momentum, clip, tol)
        return _states(f, spec, params, step_size, state, context)

    if mode == "unrolled":
        if checkpoint:
            return _checkpointed(run, start, num_steps)[0]
        states = run(start, num_steps)
    else:
        head = 0 if mode == "implicit" else truncate
        states = jax.lax.stop_gradient(run(start, num_steps - head))
        if mode == "truncated":
            tail = run(_last(states), head)
            states = jax.tree.map(lambda a, b: jnp.concatenate([a[:-1], b]), states, tail)
        else:
            x = _at_minimum(f, params, step_size, _last(states)[0], context, num_steps)
            states = (jax.tree.map(lambda s, x: s.at[-1].set(x), states[0], x),)
    if not return_trajectory:
        return _last(states)[0]
    return _last(states)[0], jax.tree.map(lambda s: jnp.moveaxis(s, 0, 1), states[0])


def _check(
    objective: Objective,
    params: PyTree,
    x0: PyTree,
    context: PyTree,
    num_steps: int,
    clip: float | None,
    tol: float,
    mode: str,
    truncate: int | None,
) -> None:
    if mode not in MODES:
        raise ValueError(f"inner_minimize: mode = {mode!r}: allowed are {', '.join(MODES)}")
    if num_steps < 0 or tol < 0 or (clip is not None and clip <= 0):
        raise ValueError(
            f"inner_minimize: num_steps = {num_steps}, tol = {tol}, clip = {clip}: must not be "
            "negative, and clip not 0"
        )
    if mode == "truncated" and not (truncate is not None and 0 < truncate <= num_steps):
        raise ValueError(
            f"inner_minimize: truncate = {truncate}: must be in 1..num_steps = {num_steps}"
        )
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(x0)]
    out = jax.eval_shape(objective, params, x0, context)
    batch = {shape[:1] for shape in shapes}
    if len(batch) != 1 or out.shape != batch.pop():
        raise ValueError(
            f"inner_minimize: the objective must return one scalar an example: got {out.shape} for "
            f"x0 of shapes {shapes}"
        )


def _step(
    f: Objective, spec: _Spec, params: PyTree, step_size: Array, state: Any, context: PyTree
) -> Any:
    """One step of the inner process, (x, v) -> (x, v), or (x,) -> (x,) without momentum."""
    slope = jax.grad(lambda x: f(params, x, context).sum())(state[0])
    if spec.momentum:
        slope = jax.tree.map(lambda v, g: spec.momentum * v + g, state[1], slope)
    moved = slope
    if spec.clip is not None:
        moved = jax.tree.map(lambda v: jnp.clip(v, -spec.clip, spec.clip), slope)
    x = jax.tree.map(lambda x, v: x - (step_size * v).astype(x.dtype), state[0], moved)
    return (x, slope) if spec.momentum else (x,)


def _last(states: Any) -> Any:
    return jax.tree.map(lambda s: s[-1], states)


def _where(mask: Array, one: PyTree, other: PyTree) -> PyTree:
    """Rows of `one` where the mask [B] holds, else of `other`."""
    return jax.tree.map(
        lambda a, b: jnp.where(mask.reshape(-1, *(1,) * (a.ndim - 1)), a, b), one, other
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _states(
    f: Objective, spec: _Spec, params: PyTree, step_size: Array, start: Any, context: PyTree
) -> Any:
    """All states [T + 1, B, ...] of the process."""
    return _forward(f, spec, params, step_size, start, context)[0]


def _forward(
    f: Objective, spec: _Spec, params: PyTree, step_size: Array, start: Any, context: PyTree
) -> tuple[Any, Array]:
    """(all states, how many steps each example took [B])."""
    total = spec.num_steps
    batch = jax.tree.leaves(start)[0].shape[0]
    buffer = jax.tree.map(lambda s: jnp.zeros((total + 1, *s.shape), s.dtype).at[0].set(s), start)

    def body(carry: Any) -> Any:
        t, state, buffer, count, active = carry
        after = _step(f, spec, params, step_size, state, context)
        if spec.tol:
            after = _where(active, after, state)
            largest = [
                jnp.abs(a - b).reshape(batch, math.prod(a.shape[1:])).max(-1)
                for a, b in zip(jax.tree.leaves(after[0]), jax.tree.leaves(state[0]), strict=True)
            ]
            count = count + active
            active = active & (jnp.stack(largest).max(0) > spec.tol)
        buffer = jax.tree.map(
            lambda b, s: jax.lax.dynamic_update_index_in_dim(b, s, t + 1, 0), buffer, after
        )
        return t + 1, after, buffer, count, active

    def running(carry: Any) -> Array:
        t, _, _, _, active = carry
        return (t < total) & (active.any() if spec.tol else True)

    t, state, buffer, count, _ = jax.lax.while_loop(
        running,
        body,
        (0, start, buffer, jnp.zeros((batch,), jnp.int32), jnp.ones((batch,), bool)),
    )
    if spec.tol:
        # Where all have stopped before T, the rest of the trajectory stands still.
        index = jnp.arange(total + 1)
        buffer = jax.tree.map(
            lambda b, s: jnp.where(index.reshape(-1, *(1,) * s.ndim) > t, s, b), buffer, state
        )
    return buffer, count


def _states_fwd(
    f: Objective, spec: _Spec, params: PyTree, step_size: Array, start: Any, context: PyTree
) -> Any:
    if spec.tol:
        states, count = _forward(f, spec, params, step_size, start, context)
    else:
        # Through the custom rule again, so that it can be differentiated a second time.
        states, count = _states(f, spec, params, step_size, start, context), None
    return states, (params, step_size, states, context, count)


def _states_bwd(f: Objective, spec: _Spec, residuals: Any, cotangents: Any) -> Any:
    params, step_size, states, context, count = residuals
    floating = [jnp.issubdtype(jnp.result_type(leaf), jnp.floating) for leaf in _flat(context)]

    def pull_back(t: Array, lam: Any, sums: Any) -> tuple[Any, Any]:
        """lambda_t from lambda_{t+1}, and what step t adds to the other gradients."""
        state = jax.tree.map(lambda s: s[t], states)
        _, pull = jax.vjp(
            lambda params, step_size, state, context: _step(
                f, spec, params, step_size, state, context
            ),
            params,
            step_size,
            state,
            context,
        )
        active = None if count is None else t < count
        through = lam if active is None else _where(active, lam, jax.tree.map(jnp.zeros_like, lam))
        d_params, d_step, d_state, d_context = pull(through)
        if active is not None:
            d_state = _where(active, d_state, lam)
        d_state = jax.tree.map(lambda d, c: d + c[t], d_state, cotangents)
        added = (d_params, d_step, _keep(d_context, floating))
        return d_state, jax.tree.map(jnp.add, sums, added)

    zero_context = _keep(jax.tree.map(jnp.zeros_like, context), floating)
    sums = (jax.tree.map(jnp.zeros_like, params), jnp.zeros_like(step_size), zero_context)
    lam = jax.tree.map(lambda c: c[-1], cotangents)

    def body(carry: Any, t: Array) -> Any:
        return pull_back(t, *carry), None

    (lam, sums), _ = jax.lax.scan(body, (lam, sums), jnp.arange(spec.num_steps), reverse=True)
    d_params, d_step, kept = sums
    return d_params, d_step, lam, _restore(context, kept, floating)


# Integer leaves of the context have no cotangent to sum.


def _flat(tree: PyTree) -> list[Any]:
    return jax.tree.leaves(tree)


def _keep(tree: PyTree, floating: list[bool]) -> list[Any]:
    return [leaf for leaf, keep in zip(_flat(tree), floating, strict=True) if keep]


def _restore(like: PyTree, kept: list[Any], floating: list[bool]) -> PyTree:
    leaves, structure = jax.tree.flatten(like)
    remaining = iter(kept)
    out = [
        next(remaining) if keep else jnp.zeros(jnp.shape(leaf), jax.dtypes.float0)
        for leaf, keep in zip(leaves, floating, strict=True)
    ]
    return jax.tree.unflatten(structure, out)


_states.defvjp(_states_fwd, _states_bwd)


def _checkpointed(run: Callable[[Any, int], Any], start: Any, num_steps: int) -> Any:
    """The last state, with every sqrt(T)-th kept for the backward pass."""
    length = max(1, math.isqrt(num_steps))
    segments, rest = divmod(num_steps, length)

    @jax.checkpoint
    def segment(state: Any) -> Any:
        return _last(run(state, length))

    state, _ = jax.lax.scan(lambda state, _: (segment(state), None), start, None, segments)
    return _last(run(state, rest)) if rest else state


def _at_minimum(
    f: Objective, params: PyTree, step_size: Array, x: PyTree, context: PyTree, num_steps: int
) -> PyTree:
    """x itself, with the gradient of the minimum it stands for: x = x - step_size df/dx."""

    def g(params_step: PyTree, x: PyTree, context: PyTree) -> PyTree:
        params, step_size = params_step
        spec = _Spec(1, 0.0, None, 0.0)
        moved = _step(f, spec, params, jax.lax.stop_gradient(step_size), (x,), context)[0]
        # The slope of the step at the value of x: x_T is the last iterate, not one step beyond.
        return jax.tree.map(
            lambda x, m: jax.lax.stop_gradient(x) + (m - jax.lax.stop_gradient(m)), x, moved
        )

    x, _ = fixed_point(
        g,
        (params, step_size),
        context,
        x,
        max_iter=1,
        backward_solver="anderson",
        backward_tol=1e-12,
        backward_max_iter=max(num_steps, 1),
    )
    return x
