"""The differentiable fixed-point layer: forward and backward fixed-point iterations."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from reprise.papers.fixed_point_layer import solvers
from reprise.papers.fixed_point_layer.solvers import Options

PyTree = Any
Map = Callable[[PyTree, PyTree, PyTree], PyTree]  # (params, x, y) -> like x


class FixedPointStats(NamedTuple):
    """How the forward iteration ended. Carries no gradient.

    Attributes:
      num_iters: evaluations of g.
      residual: ||g(x) - x||^2 of each example, over ||x||^2 where relative; float32. The lowest
        of the iteration.
      converged: residual <= tol.
    """

    num_iters: Int[Array, ""]
    residual: Float[Array, " batch"]
    converged: Bool[Array, " batch"]


class _Spec(NamedTuple):
    """What is static in a call."""

    forward: Options
    backward: Options


def fixed_point(
    g: Map,
    params: PyTree,
    y: PyTree,
    x0: PyTree,
    *,
    solver: str = "picard",
    tol: float = 1e-10,
    max_iter: int = 100,
    history: int = 5,
    ridge: float = 1e-5,
    damping: float = 1.0,
    backward_solver: str | None = None,
    backward_tol: float | None = None,
    backward_max_iter: int | None = None,
    relative: bool = True,
    per_example: bool = True,
    axis_name: str | None = None,
    differentiation: str = "implicit",
) -> tuple[PyTree, FixedPointStats]:
    """The limit x* = g(params, x*, y) of x <- g(params, x, y), with its exact gradient.

    Jeon, Lee, Choi, "Differentiable Forward and Backward Fixed-Point Iteration Layers" (2021).
    Forward: iterate from x0, nothing is recorded. Backward: with v = dL/dx*, the limit c of
    c <- J^T c + v, J = dg/dx at x*, sought by the same kind of iteration from c = v; then
    dL/dy = (dg/dy)^T c and dL/dparams = (dg/dparams)^T c. J^T c is one vector-Jacobian product on
    one linearisation; memory does not grow with the iterations. The backward iteration is a
    fixed-point layer too: derivatives of any order are right, in reverse over reverse.

    Args:
      g: (params, x, y) -> like x. It must treat each example of the leading axis by itself and be
        deterministic. It may close over traced values; they get their gradient too.
      params: pytree.
      y: pytree of arrays [B, ...].
      x0: pytree of floating arrays [B, ...], where the iteration starts.
      solver: "picard" (x <- g(x)), "anderson" (type II, per example) or "broyden" (limited-memory
        good Broyden on g(x) - x, no line search).
      tol: an example stops when ||g(x) - x||^2 <= tol (* (||x||^2 + 1e-30) where `relative`), over
        all leaves. Squared: 1e-10 means a relative step of 1e-5. In float32 below about 1e-13 it
        may never be reached.
      max_iter: cap on the evaluations of g, forward.
      history: differences that anderson, or rank-one updates that broyden, keeps.
      ridge: of anderson's normal equations, relative to their mean diagonal.
      damping: beta in (0, 1]: picard and anderson move by beta (g(x) - x). Keeps the fixed point.
      backward_solver, backward_tol, backward_max_iter: the same for the backward iteration;
        default as forward.
      relative: measure the residual against ||x||^2.
      per_example: each example stops by itself and its result does not depend on its batch-mates.
        False measures, and accelerates, the batch as one vector, as the official code does.
      axis_name: mesh axis over which the batch is split, inside `jax.shard_map`: all devices then
        take the same number of iterations.
      differentiation: "implicit" (reverse mode), or "root" (`jax.lax.custom_root`: forward and
        reverse mode).

    Returns:
      (x*, stats). x* has the structure, shapes and dtypes of x0; computed at least in float32
      between the evaluations of g. Its gradient goes to params and y; it is zero for x0. Where an
      example does not converge, x* is its iterate with the lowest residual, converged is False,
      and the gradient is off by the order of the residual.

    Raises:
      ValueError: a wrong option, leaves of x0 without a common batch axis, or a g that does not
        return what looks like x0.
    """
    _check_options(solver, backward_solver, max_iter, history, damping, differentiation)
    batch = _batch_size(x0)
    _check_map(g, params, x0, y)
    forward = Options(
        solver, tol, max_iter, history, ridge, damping, relative, axis_name, not per_example
    )
    backward = forward._replace(
        solver=backward_solver or solver,
        tol=tol if backward_tol is None else backward_tol,
        max_iter=max_iter if backward_max_iter is None else backward_max_iter,
    )
    # Values that g closes over would silently get no gradient under custom_vjp.
    pure, closed = jax.closure_convert(g, params, x0, y)

    def g_explicit(params_closed: PyTree, x: PyTree, y: PyTree) -> PyTree:
        params, closed = params_closed
        return pure(params, x, y, *closed)

    spec = _Spec(forward, backward)
    run = _implicit if differentiation == "implicit" else _root
    x, stats = run(g_explicit, spec, (params, tuple(closed)), y, x0)
    if not per_example:
        stats = stats._replace(
            residual=jnp.broadcast_to(stats.residual, (batch,)),
            converged=jnp.broadcast_to(stats.converged, (batch,)),
        )
    return x, jax.lax.stop_gradient(stats)


def _check_options(
    solver: str,
    backward_solver: str | None,
    max_iter: int,
    history: int,
    damping: float,
    differentiation: str,
) -> None:
    for name, value in (("solver", solver), ("backward_solver", backward_solver or solver)):
        if value not in solvers.SOLVERS:
            raise ValueError(
                f"fixed_point: {name} = {value!r}: allowed are {', '.join(solvers.SOLVERS)}"
            )
    if differentiation not in ("implicit", "root"):
        raise ValueError(
            f"fixed_point: differentiation = {differentiation!r}: allowed are implicit, root"
        )
    if max_iter < 1 or history < 1:
        raise ValueError(
            f"fixed_point: max_iter = {max_iter}, history = {history}: must be 1 or more"
        )
    if not 0 < damping <= 1:
        raise ValueError(f"fixed_point: damping = {damping!r}: must be in (0, 1]")


def _batch_size(x0: PyTree) -> int:
    leaves = jax.tree.leaves(x0)
    shapes = [jnp.shape(leaf) for leaf in leaves]
    if not leaves or any(not shape for shape in shapes) or len({s[0] for s in shapes}) > 1:
        raise ValueError(f"fixed_point: the leaves of x0 need one common batch axis, got {shapes}")
    for leaf in leaves:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise ValueError(f"fixed_point: x0 must be floating, got {jnp.result_type(leaf)}")
    return shapes[0][0]


def _check_map(g: Map, params: PyTree, x0: PyTree, y: PyTree) -> None:
    out = jax.eval_shape(g, params, x0, y)
    expected = jax.tree.map(jnp.shape, x0)
    found = jax.tree.map(jnp.shape, out)
    same: bool = str(jax.tree.structure(out)) == str(jax.tree.structure(x0))
    if not same or expected != found:
        raise ValueError(f"fixed_point: g returns {found}, which must look like x0: {expected}")


# Between evaluations of g everything is one array [B, N], or [1, B N] where the batch is measured
# as a whole.


def _width(leaf: Array) -> int:
    """Numbers an example; -1 in a shape can't say it of a batch without examples."""
    return math.prod(leaf.shape[1:])


def _flatten(tree: PyTree, options: Options) -> Float[Array, "batch n"]:
    leaves = jax.tree.leaves(tree)
    dtype = jnp.result_type(jnp.float32, *leaves)
    rows = [leaf.reshape(leaf.shape[0], _width(leaf)).astype(dtype) for leaf in leaves]
    flat = rows[0] if len(rows) == 1 else jnp.concatenate(rows, axis=1)
    return flat.reshape(1, -1) if options.global_norm else flat


def _unflatten(flat: Float[Array, "batch n"], like: PyTree) -> PyTree:
    leaves, structure = jax.tree.flatten(like)
    flat = flat.reshape(leaves[0].shape[0], sum(map(_width, leaves)))
    out, start = [], 0
    for leaf in leaves:
        size = _width(leaf)
        out.append(flat[:, start : start + size].reshape(leaf.shape).astype(leaf.dtype))
        start += size
    return jax.tree.unflatten(structure, out)


def _iterate(
    f: Callable[[PyTree], PyTree], x0: PyTree, options: Options
) -> tuple[PyTree, FixedPointStats]:
    def flat_map(flat: Float[Array, "batch n"]) -> Float[Array, "batch n"]:
        return _flatten(f(_unflatten(flat, x0)), options)

    found = solvers.solve(flat_map, _flatten(x0, options), options)
    stats = FixedPointStats(found.num_iters, found.residual.astype(jnp.float32), found.converged)
    return _unflatten(found.x, x0), stats


def _neumann(times: Callable[[PyTree], PyTree], v: PyTree, options: Options) -> PyTree:
    """The limit c of c <- A c + v from c = v; `times` is c -> A c."""
    if not options.relative:
        return _linear_limit(times, v, options)
    # Squares of a tiny v would vanish beside the floors of the iteration, or altogether. By a
    # power of two, so that an ordinary v gives the same numbers as without.
    flat = _flatten(v, options)
    largest = jnp.abs(flat).max(-1, initial=0.0)
    if options.global_norm and options.axis_name is not None:
        largest = jax.lax.pmax(largest, options.axis_name)
    usable = (largest > 0) & jnp.isfinite(largest)
    exponent = jnp.where(usable, jnp.frexp(largest)[1], 0)[:, None]
    c = _linear_limit(times, _unflatten(jnp.ldexp(flat, -exponent), v), options)
    return _unflatten(jnp.ldexp(_flatten(c, options), exponent), v)


def _linear_limit(times: Callable[[PyTree], PyTree], v: PyTree, options: Options) -> PyTree:
    return _iterate(lambda c: jax.tree.map(jnp.add, times(c), v), v, options)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _implicit(
    g: Map, spec: _Spec, params: PyTree, y: PyTree, x0: PyTree
) -> tuple[PyTree, FixedPointStats]:
    return _iterate(lambda x: g(params, x, y), x0, spec.forward)


def _implicit_fwd(g: Map, spec: _Spec, params: PyTree, y: PyTree, x0: PyTree) -> Any:
    # Through the custom rule again, not the bare loop: this is what is differentiated a second
    # time.
    x, stats = _implicit(g, spec, params, y, x0)
    return (x, stats), (params, y, x)


def _implicit_bwd(g: Map, spec: _Spec, residuals: Any, cotangents: Any) -> Any:
    params, y, x = residuals
    v, _ = cotangents
    c = _linear(g, spec.backward, True, params, y, x, v)
    _, pull = jax.vjp(lambda params, y: g(params, x, y), params, y)
    return (*pull(c), jax.tree.map(jnp.zeros_like, x))


_implicit.defvjp(_implicit_fwd, _implicit_bwd)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _linear(
    g: Map, options: Options, transpose: bool, params: PyTree, y: PyTree, x: PyTree, v: PyTree
) -> PyTree:
    """The limit c of c <- A c + v from c = v, with A = J^T (transpose) or J, J = dg/dx at x."""
    return _neumann(_jacobian(g, transpose, params, y, x), v, options)


def _jacobian(
    g: Map, transpose: bool, params: PyTree, y: PyTree, x: PyTree
) -> Callable[[PyTree], PyTree]:
    """c -> J^T c or J c, on one linearisation."""

    def of_x(x: PyTree) -> PyTree:
        return g(params, x, y)

    pull = jax.vjp(of_x, x)[1]
    if transpose:
        return lambda c: pull(c)[0]
    return _transposed(lambda c: pull(c)[0], x)


def _transposed(linear: Callable[[PyTree], PyTree], like: PyTree) -> Callable[[PyTree], PyTree]:
    """The transpose of a linear map, by its vector-Jacobian product.

    J u by transposing c -> J^T c asks of g reverse mode alone, so that maps with a custom VJP work.
    """
    push = jax.vjp(linear, jax.tree.map(jnp.zeros_like, like))[1]
    return lambda u: push(u)[0]


def _linear_fwd(
    g: Map, options: Options, transpose: bool, params: PyTree, y: PyTree, x: PyTree, v: PyTree
) -> Any:
    c = _linear(g, options, transpose, params, y, x, v)
    return c, (params, y, x, c)


def _linear_bwd(g: Map, options: Options, transpose: bool, residuals: Any, w: PyTree) -> Any:
    # c = (I - A)^-1 v, so v gets d = (I - A^T)^-1 w, and whatever A depends on gets the
    # derivative of <d, A c>.
    params, y, x, c = residuals
    d = _linear(g, options, not transpose, params, y, x, w)
    _, pull = jax.vjp(lambda params, y, x: _jacobian(g, transpose, params, y, x)(c), params, y, x)
    return (*pull(d), d)


_linear.defvjp(_linear_fwd, _linear_bwd)


def _root(
    g: Map, spec: _Spec, params: PyTree, y: PyTree, x0: PyTree
) -> tuple[PyTree, FixedPointStats]:
    def displacement(x: PyTree) -> PyTree:
        return jax.tree.map(jnp.subtract, g(params, x, y), x)

    def solve(_: Any, x0: PyTree) -> tuple[PyTree, PyTree]:
        x, stats = _iterate(lambda x: g(params, x, y), x0, spec.forward)
        # custom_root takes floating auxiliary outputs only.
        return x, jax.tree.map(lambda s: s.astype(jnp.float32), stats)

    def tangent_solve(minus_i_plus_j: Callable[[PyTree], PyTree], b: PyTree) -> PyTree:
        # (J - I) u = b  <=>  u = J u - b. A bare loop could not be transposed.
        def neumann(matvec: Callable[[PyTree], PyTree], b: PyTree) -> PyTree:
            def times(u: PyTree) -> PyTree:
                return jax.tree.map(jnp.add, matvec(u), u)

            return _neumann(times, jax.tree.map(jnp.negative, b), spec.backward)

        return jax.lax.custom_linear_solve(
            minus_i_plus_j, b, solve=neumann, transpose_solve=neumann
        )

    x0 = jax.lax.stop_gradient(x0)
    x, stats = jax.lax.custom_root(displacement, x0, solve, tangent_solve, has_aux=True)
    stats = jax.lax.stop_gradient(stats)
    return x, FixedPointStats(
        stats.num_iters.astype(jnp.int32), stats.residual, stats.converged > 0.5
    )


def neumann_vjp(
    vjp_fn: Callable[[PyTree], PyTree], v: PyTree, *, tol: float = 1e-10, max_iter: int = 100
) -> PyTree:
    """The backward FPI alone: the limit c of c <- vjp_fn(c) + v from c = v.

    Args:
      vjp_fn: c -> J^T c, one vector-Jacobian product of g with respect to x at x*.
      v: pytree of arrays [B, ...], the incoming cotangent dL/dx*.
      tol: on the squared relative step, per example.
      max_iter: cap on the products.

    Returns:
      c = (I - J^T)^-1 v, like v. Not differentiable in reverse mode; `fixed_point` is.
    """
    _batch_size(v)
    return _neumann(vjp_fn, v, Options(tol=tol, max_iter=max_iter))


def gradient_step_map(
    energy: Callable[[PyTree, PyTree, PyTree], Float[Array, " batch"]], step_size: float
) -> Map:
    """FPI_GD: g(x, y) = x - step_size * d(sum_b E_b)/dx, one gradient step on a learnable energy.

    The energies are summed before they are differentiated, so the step does not depend on the
    batch size. A contraction iff 0 < step_size * lambda < 2 for every eigenvalue lambda of the
    energy's Hessian at x*.

    Args:
      energy: (params, x, y) -> [B], one scalar an example.
      step_size: alpha.

    Returns:
      g for `fixed_point`.
    """

    def g(params: PyTree, x: PyTree, y: PyTree) -> PyTree:
        slope = jax.grad(lambda x: energy(params, x, y).sum())(x)
        return jax.tree.map(lambda x, s: x - step_size * s, x, slope)

    return g


def spectral_radius(
    g: Map, params: PyTree, x: PyTree, y: PyTree, key: Array, num_iters: int = 20
) -> Float[Array, " batch"]:
    """Estimates the spectral radius of dg/dx of each example by power iteration with JVPs.

    Below 1 near x* the iteration contracts. The estimate is the growth ||J u|| / ||u|| of the last
    of `num_iters` products; for a J that is not normal it may differ from the radius at few of
    them. Differentiable, to serve as a penalty.

    Args:
      g: as for `fixed_point`.
      params, x, y: where; x is usually the fixed point.
      key: for the random start.
      num_iters: products.

    Returns:
      [B] float32 (float64 for float64 x).
    """
    _batch_size(x)
    options = Options()
    leaves, structure = jax.tree.flatten(x)
    keys = jax.random.split(key, len(leaves))
    noise = [jax.random.normal(k, l.shape, l.dtype) for k, l in zip(keys, leaves, strict=True)]
    times = _jacobian(g, False, params, y, x)

    def norm(u: PyTree) -> Float[Array, " batch"]:
        squared = (_flatten(u, options) ** 2).sum(-1)
        # The gradient of sqrt at 0 is infinite; a J of zeros has radius and gradient 0.
        return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)

    def scaled(u: PyTree, by: Float[Array, " batch"]) -> PyTree:
        by = jnp.where(by > 0, by, 1.0)
        return jax.tree.map(lambda u: u / by.reshape(-1, *(1,) * (u.ndim - 1)).astype(u.dtype), u)

    def body(carry: Any, _: None) -> Any:
        u, _ = carry
        u = times(scaled(u, norm(u)))
        return (u, norm(u)), None

    start = jax.tree.unflatten(structure, noise)
    (_, radius), _ = jax.lax.scan(body, (start, norm(start)), None, length=num_iters)
    return radius
