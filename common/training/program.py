"""The compiled form of a phase: shapes, shardings, `init` and the dispatch of K steps.

The loop runs it; `compile_for` compiles it for a machine that is not here.
"""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from reprise.common.training import sharding
from reprise.common.training.phase import Phase


class Program(NamedTuple):
    """A phase for one or several seeds, on one mesh.

    With several seeds every leaf of the state has a leading seed axis, and so has a streamed
    batch (before its batch axis). With K steps a dispatch a streamed batch has a leading K axis
    before all others.

    Attributes:
      metrics: names of the step's metrics, sorted: the last axis of what dispatch returns.
      state: the state's shapes, with their shardings.
      batch: shapes of one step's batch, with their shardings; resident arrays are handed whole.
      init: (keys, previous) -> state.
      dispatch: (state, batch, keys, steps [K] int32) -> (state, [K, (seeds,) metrics] float32).
        Donates the state.
    """

    metrics: tuple[str, ...]
    state: Any
    batch: Any
    init: Any
    dispatch: Any


def phase_keys(phase: Phase, seeds: Sequence[int]) -> jax.Array:
    """The key of each seed for this phase: [seeds], or [] for a single one."""
    name = zlib.crc32(phase.name.encode()) & 0x7FFFFFFF
    keys = [jax.random.fold_in(jax.random.key(seed), name) for seed in seeds]
    return jnp.stack(keys) if len(keys) > 1 else keys[0]


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


def _with(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
    )


def build(
    phase: Phase,
    mesh: Mesh,
    *,
    num_seeds: int = 1,
    over_seeds: str = "vmap",
    shared_batch: bool = False,
    previous: Any = None,
) -> Program:
    """Compiles nothing yet: traces the shapes and wraps `init` and `step` in jit.

    Args:
      phase: the phase; `init` and `step` serve every seed.
      mesh: the devices.
      num_seeds: how many seeds run in the program.
      over_seeds: "vmap", or "map" for one seed after another.
      shared_batch: resident arrays are the same for all seeds, and are kept once.
      previous: final state of the phase before, or its shapes.

    Raises:
      ValueError: a metric of the step is no scalar, or its state changes shape or dtype.
    """
    many = num_seeds > 1
    streamed = phase.is_streamed()
    spec = phase.batches.spec if streamed else _abstract(phase.batches)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), num_seeds))
    keys = keys if many else jax.ShapeDtypeStruct((), keys.dtype)
    batch_axis = None if shared_batch and not streamed else 0

    def init_one(key: jax.Array, previous: Any) -> Any:
        return phase.init(jax.random.fold_in(key, 0), previous)

    def step_one(state: Any, batch: Any, key: jax.Array, step: jax.Array) -> Any:
        state, metrics = phase.step(state, batch, jax.random.fold_in(key, step + 1))
        values = [jnp.asarray(metrics[name], jnp.float32) for name in sorted(metrics)]
        return state, jnp.stack(values) if values else jnp.zeros((0,), jnp.float32)

    def init_all(keys: jax.Array, previous: Any) -> Any:
        # No weak types: the state that a step returns has none, and would compile it once more.
        return jax.tree.map(_strong, (jax.vmap(init_one) if many else init_one)(keys, previous))

    def step_all(state: Any, batch: Any, keys: jax.Array, step: jax.Array) -> Any:
        if not many:
            return step_one(state, batch, keys, step)
        if over_seeds == "vmap":
            return jax.vmap(step_one, (0, batch_axis, 0, None))(state, batch, keys, step)
        if batch_axis is None:
            return jax.lax.map(lambda xs: step_one(xs[0], batch, xs[1], step), (state, keys))
        return jax.lax.map(lambda xs: step_one(xs[0], xs[1], xs[2], step), (state, batch, keys))

    def dispatch(state: Any, batch: Any, keys: jax.Array, steps: jax.Array) -> Any:
        if steps.shape == (1,):
            one = jax.tree.map(lambda x: x[0], batch) if streamed else batch
            state, metrics = step_all(state, one, keys, steps[0])
            return state, metrics[None]

        def body(state: Any, xs: Any) -> Any:
            step, streamed_batch = xs
            return step_all(state, streamed_batch if streamed else batch, keys, step)

        return jax.lax.scan(body, state, (steps, batch if streamed else None))

    state = jax.eval_shape(init_all, keys, previous)
    one_state, one_key = state, keys
    if many:
        one_state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state)
        one_key = jax.ShapeDtypeStruct((), keys.dtype)
    after, metrics = jax.eval_shape(phase.step, one_state, spec, one_key)
    _check_unchanged(phase.name, one_state, after)
    for name, value in metrics.items():
        if value.shape:
            raise ValueError(
                f"phase {phase.name!r}: metric {name!r} has shape {value.shape}; the loop takes "
                "scalars (did the step forget a mean?)"
            )

    shardings = sharding.state_shardings(mesh, state)
    whole = sharding.replicated(mesh)
    if streamed:
        leading: tuple[int, ...] = (1, num_seeds) if many else (1,)
        where = sharding.batched(mesh, len(leading))
    else:
        leading = (num_seeds,) if many and batch_axis == 0 else ()
        where = whole
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(leading + x.shape, x.dtype, sharding=where), spec
    )
    batch_shardings = jax.tree.map(lambda x: x.sharding, batch)
    # It runs once: on CPUs compiling it well costs far more than running it plainly.
    plainly = {"xla_backend_optimization_level": 1}
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return Program(
        metrics=tuple(sorted(metrics)),
        state=_with(state, shardings),
        batch=batch,
        init=jax.jit(
            init_all, out_shardings=shardings, compiler_options=plainly if on_cpu else None
        ),
        dispatch=jax.jit(
            dispatch,
            donate_argnums=0,
            in_shardings=(shardings, batch_shardings, whole, whole),
            out_shardings=(shardings, whole),
        ),
    )


def _strong(x: Any) -> jax.Array:
    x = jnp.asarray(x)
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.extended)
    return x if is_key else jax.lax.convert_element_type(x, x.dtype)


def _check_unchanged(name: str, before: Any, after: Any) -> None:
    expected, found = jax.tree.structure(before), jax.tree.structure(after)
    if str(expected) != str(found):
        raise ValueError(
            f"phase {name!r}: step returns a state of another structure than init: "
            f"{found} instead of {expected}"
        )

    def check(path: Any, a: Any, b: Any) -> None:
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise ValueError(
                f"phase {name!r}: step turns state{jax.tree_util.keystr(path)} from "
                f"{a.dtype}{list(a.shape)} into {b.dtype}{list(b.shape)}"
            )

    jax.tree_util.tree_map_with_path(check, before, after)
