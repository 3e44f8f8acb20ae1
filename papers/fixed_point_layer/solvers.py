"""Forward iterations for x = f(x), one per solver, on flat float arrays [B, N].

Each example stops by itself: once its residual passes, its row is frozen, so that its result does
not depend on its batch-mates. The loop ends when every row has stopped or the cap is reached.
Nothing here is differentiated; `fixed_point` gives the solution its gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Map = Callable[[Float[Array, "batch n"]], Float[Array, "batch n"]]

SOLVERS = ("picard", "anderson", "broyden")


class Options(NamedTuple):
    """How a fixed point is sought; see `fixed_point` for the meaning of each."""

    solver: str = "picard"
    tol: float = 1e-10
    max_iter: int = 100
    history: int = 5
    ridge: float = 1e-5
    damping: float = 1.0
    relative: bool = True
    axis_name: str | None = None
    global_norm: bool = False


class Solution(NamedTuple):
    """Where the iteration ended.

    Attributes:
      x: f of the iterate with the smallest step: where the iteration converges that is its last
        one, and where it diverges not the overflow at its end.
      num_iters: evaluations of the map.
      residual: the squared step ||f(x) - x||^2 of that iterate, relative where asked.
      converged: residual <= tol.
    """

    x: Float[Array, "batch n"]
    num_iters: Int[Array, ""]
    residual: Float[Array, " batch"]
    converged: Bool[Array, " batch"]


class _Rows(NamedTuple):
    """Which rows still move, and the best each has seen."""

    turns: Int[Array, ""]
    active: Bool[Array, " batch"]
    squared: Float[Array, " batch"]
    residual: Float[Array, " batch"]
    best: Float[Array, "batch n"]


def solve(f: Map, x0: Float[Array, "batch n"], options: Options) -> Solution:
    """Iterates x <- f(x) from x0 by the chosen solver."""
    return _SOLVERS[options.solver](f, x0, options)


def _dot(
    vectors: Float[Array, "batch *m n"], v: Float[Array, "batch n"], options: Options
) -> Float[Array, "batch *m"]:
    """Inner products of each example's vectors with its v."""
    # A matrix product an example: several times faster on CPUs than reducing an elementwise one.
    # Highest precision, since the default of a product of matrices is bfloat16 on TPUs.
    rows = vectors if vectors.ndim == 3 else vectors[:, None]
    out = jnp.matmul(rows, v[..., None], precision=jax.lax.Precision.HIGHEST)[..., 0]
    out = out if vectors.ndim == 3 else out[:, 0]
    if options.global_norm and options.axis_name is not None:
        out = jax.lax.psum(out, options.axis_name)
    return out


def _combine(
    weights: Float[Array, "batch m"], vectors: Float[Array, "batch m n"]
) -> Float[Array, "batch n"]:
    """sum_i weights_i vectors_i of each example."""
    return jnp.matmul(weights[:, None], vectors, precision=jax.lax.Precision.HIGHEST)[:, 0]


def _start(x0: Float[Array, "batch n"]) -> _Rows:
    infinite = jnp.full(x0.shape[:1], jnp.inf, x0.dtype)
    active = jnp.ones(x0.shape[:1], bool)
    return _Rows(jnp.zeros((), jnp.int32), active, infinite, infinite, x0)


def _running(rows: _Rows, options: Options) -> Bool[Array, ""]:
    running = rows.active.any()
    if options.axis_name is not None:
        # Every device must take the same number of turns: the map may hold collectives.
        running = jax.lax.pmax(running.astype(jnp.int32), options.axis_name) > 0
    return running & (rows.turns < options.max_iter)


def _judge(
    rows: _Rows, x: Float[Array, "batch n"], fx: Float[Array, "batch n"], options: Options
) -> _Rows:
    """Takes note of one evaluation fx = f(x): who has arrived, who has left the finite numbers."""
    squared = _dot(fx - x, fx - x, options)
    residual = squared / (_dot(x, x, options) + 1e-30) if options.relative else squared
    arrived = residual <= options.tol
    # The best is the smallest step, not the smallest relative one: on the way to infinity the
    # relative step may well shrink. Comparisons are False where a value is NaN.
    better = rows.active & (arrived | (squared < rows.squared))
    return _Rows(
        rows.turns + 1,
        rows.active & ~arrived & jnp.isfinite(residual),
        jnp.where(better, squared, rows.squared),
        jnp.where(better, residual, rows.residual),
        jnp.where(better[:, None], fx, rows.best),
    )


def _solution(rows: _Rows, options: Options) -> Solution:
    return Solution(rows.best, rows.turns, rows.residual, rows.residual <= options.tol)


def _picard(f: Map, x0: Float[Array, "batch n"], options: Options) -> Solution:
    beta = options.damping

    def body(carry: tuple[_Rows, Any]) -> tuple[_Rows, Any]:
        rows, x = carry
        fx = f(x)
        rows = _judge(rows, x, fx, options)
        moved = fx if beta == 1.0 else (1 - beta) * x + beta * fx
        return rows, jnp.where(rows.active[:, None], moved, x)

    start = (_start(x0), x0)
    rows, _ = jax.lax.while_loop(lambda carry: _running(carry[0], options), body, start)
    return _solution(rows, options)


def solve_spd(
    a: Float[Array, "*batch m m"], b: Float[Array, "*batch m"]
) -> Float[Array, "*batch m"]:
    """Solves small symmetric positive definite systems by an unrolled LDL^T.

    For m of a few, elementwise operations that fuse beat a LAPACK call an example by far.
    """
    m = a.shape[-1]
    lower: list[list[Any]] = [[None] * m for _ in range(m)]
    diagonal: list[Any] = []
    for i in range(m):
        for j in range(i):
            inner = sum((lower[i][k] * lower[j][k] * diagonal[k] for k in range(j)), start=0.0)
            lower[i][j] = (a[..., i, j] - inner) / diagonal[j]
        inner = sum((lower[i][k] ** 2 * diagonal[k] for k in range(i)), start=0.0)
        # Rounding may eat a pivot of nearly dependent columns; their weight is then arbitrary.
        diagonal.append(jnp.maximum(a[..., i, i] - inner, 1e-6 * a[..., i, i] + 1e-37))
    z: list[Any] = []
    for i in range(m):
        z.append(b[..., i] - sum((lower[i][k] * z[k] for k in range(i)), start=0.0))
    x: list[Any] = [None] * m
    for i in reversed(range(m)):
        inner = sum((lower[k][i] * x[k] for k in range(i + 1, m)), start=0.0)
        x[i] = z[i] / diagonal[i] - inner
    return jnp.stack(x, axis=-1)


def mixing_weights(
    gram: Float[Array, "*batch m m"], rhs: Float[Array, "*batch m"], ridge: float
) -> Float[Array, "*batch m"]:
    """gamma = (D^T D + eps I)^-1 D^T f with eps = ridge * trace(D^T D) / m + 1e-30.

    A column of zeros (history not yet filled) gets a unit diagonal, so that its gamma is 0.
    """
    m = gram.shape[-1]
    diagonal = jnp.diagonal(gram, axis1=-2, axis2=-1)
    eps = ridge * diagonal.sum(-1, keepdims=True) / m + 1e-30
    added = jnp.where(diagonal > 0, eps, 1.0)
    return solve_spd(gram + added[..., None] * jnp.eye(m, dtype=gram.dtype), rhs)


def anderson_step(
    history_x: Float[Array, "m n"],
    history_g: Float[Array, "m n"],
    ridge: float = 1e-5,
    beta: float = 1.0,
) -> Float[Array, " n"]:
    """The next iterate of Anderson's type-II method from the last m.

    x = (1 - beta) (x_m - sum_i gamma_i dx_i) + beta (g_m - sum_i gamma_i dg_i), where gamma
    minimises ||f_m - sum_i gamma_i df_i|| for the residuals f = g - x and differences d of
    neighbours (Jeon et al. 2021, the official code's option; ridge relative to the Gram matrix's
    mean diagonal).

    Args:
      history_x: iterates, oldest first.
      history_g: the map at each of them.
      ridge: regularisation of the normal equations.
      beta: share of the new evaluation; 1 is undamped.

    Returns:
      The next iterate. With m = 1 the damped Picard step.

    Raises:
      ValueError: the two histories differ in shape or are not [m, n].
    """
    if history_x.ndim != 2 or history_x.shape != history_g.shape:
        raise ValueError(
            f"anderson_step: history_x {history_x.shape} and history_g {history_g.shape} must be "
            "the same [m, n]"
        )
    residual = history_g - history_x
    last = (1 - beta) * history_x[-1] + beta * history_g[-1]
    if len(history_x) == 1:
        return last
    df = residual[1:] - residual[:-1]
    gamma = mixing_weights(df @ df.T, df @ residual[-1], ridge)
    dx = history_x[1:] - history_x[:-1]
    return last - gamma @ (dx + beta * df)


def _anderson(f: Map, x0: Float[Array, "batch n"], options: Options) -> Solution:
    batch, n = x0.shape
    m, beta = options.history, options.damping

    def body(carry: Any) -> Any:
        rows, x, x_before, f_before, de, df, gram = carry
        fx = f(x)
        residual = fx - x
        judged = _judge(rows, x, fx, options)
        # Difference to the step before; there is none at the first, whose column stays zero.
        known = jnp.where(rows.turns > 0, 1.0, 0.0).astype(x.dtype)
        slot = rows.turns % m
        new_df = known * (residual - f_before)
        new_de = known * (x - x_before) + beta * new_df
        df = jax.lax.dynamic_update_index_in_dim(df, new_df, slot, 1)
        de = jax.lax.dynamic_update_index_in_dim(de, new_de, slot, 1)
        row = _dot(df, new_df, options)
        gram = jax.lax.dynamic_update_index_in_dim(gram, row, slot, 1)
        gram = jax.lax.dynamic_update_index_in_dim(gram, row, slot, 2)
        gamma = mixing_weights(gram, _dot(df, residual, options), options.ridge)
        step = beta * residual - _combine(gamma, de)
        # Frozen rows stay where they are, and a mixing that overflowed falls back to Picard.
        step = jnp.where(jnp.isfinite(step).all(-1, keepdims=True), step, beta * residual)
        moved = jnp.where(judged.active[:, None], x + step, x)
        return judged, moved, x, residual, de, df, gram

    zeros = jnp.zeros((batch, m, n), x0.dtype)
    gram = jnp.zeros((batch, m, m), x0.dtype)
    start = (_start(x0), x0, x0, jnp.zeros_like(x0), zeros, zeros, gram)
    rows, *_ = jax.lax.while_loop(lambda carry: _running(carry[0], options), body, start)
    return _solution(rows, options)


def _broyden(f: Map, x0: Float[Array, "batch n"], options: Options) -> Solution:
    batch, n = x0.shape
    m = options.history

    def times(
        left: Float[Array, "batch m n"],
        right: Float[Array, "batch m n"],
        p: Float[Array, "batch n"],
    ) -> Float[Array, "batch n"]:
        """(-I + sum_i left_i right_i^T) p."""
        return _combine(_dot(right, p, options), left) - p

    def body(carry: Any) -> Any:
        rows, x, p, f_before, u, v = carry
        fx = f(x)
        residual = fx - x
        judged = _judge(rows, x, fx, options)
        change = residual - f_before
        h_change = times(u, v, change)
        p_h = times(v, u, p)
        scale = _dot(p_h, change, options)
        # The first evaluation has no step before it: p is 0 there, and so the update is skipped.
        usable = jnp.abs(scale) >= 1e-12 * _dot(p, p, options)
        usable &= (rows.turns > 0) & jnp.isfinite(scale) & (scale != 0)
        new_u = jnp.where(
            usable[:, None], (p - h_change) / jnp.where(usable, scale, 1.0)[:, None], 0.0
        )
        new_v = jnp.where(usable[:, None], p_h, 0.0)
        slot = rows.turns % m
        u = jax.lax.dynamic_update_index_in_dim(u, new_u, slot, 1)
        v = jax.lax.dynamic_update_index_in_dim(v, new_v, slot, 1)
        p = -times(u, v, residual)
        p = jnp.where(jnp.isfinite(p).all(-1, keepdims=True), p, residual)
        p = jnp.where(judged.active[:, None], p, 0.0)
        return judged, x + p, p, residual, u, v

    zeros = jnp.zeros((batch, m, n), x0.dtype)
    start = (_start(x0), x0, jnp.zeros_like(x0), jnp.zeros_like(x0), zeros, zeros)
    rows, *_ = jax.lax.while_loop(lambda carry: _running(carry[0], options), body, start)
    return _solution(rows, options)


_SOLVERS = {"picard": _picard, "anderson": _anderson, "broyden": _broyden}
