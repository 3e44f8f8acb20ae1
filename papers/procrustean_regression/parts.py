"""Training and judging that generated classes and real sequences share.

Sets have a leading axis of S classes or sequences: one network each, trained side by side. A batch
is [G, S, F, ...], G groups of F frames.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from reprise.common.training import optimizers, sharding, state
from reprise.common.training.phase import Phase
from reprise.papers.procrustean_regression.fit import start_shapes, with_depth
from reprise.papers.procrustean_regression.losses import (
    procrustean_regression_loss,
    reprojection_error,
)
from reprise.papers.procrustean_regression.low_rank import low_rank_shapes
from reprise.papers.procrustean_regression.models import PRNFCN

ALIGNMENTS = ("exact", "detached", "none")
Predict = Callable[[Any], np.ndarray]


def check(config: ConfigDict) -> None:
    """Refuses what the shared checks do not know of."""
    m = config.model
    for field, value, holds, allowed in (
        ("model.alignment", m.alignment, m.alignment in ALIGNMENTS, ", ".join(ALIGNMENTS)),
        ("model.group", m.group, m.group >= 2, "alignment needs 2 frames or more"),
        (
            "batch_size",
            config.batch_size,
            config.batch_size % m.group == 0,
            f"must divide by model.group = {m.group} frames",
        ),
        ("model.reg_weight", m.reg_weight, m.reg_weight >= 0, "must be 0 or more"),
        ("data.missing", config.data.missing, 0 <= config.data.missing < 1, "must be in [0, 1)"),
    ):
        if not holds:
            raise ValueError(f"config.{field} = {value!r}: allowed are {allowed}")


def group_cost(config: ConfigDict) -> Any:
    """(shapes, points2d, mask), each [..., F, P, :] -> (cost, reprojection), summed over groups."""
    m = config.model
    num_iters = 0 if m.alignment == "none" or not m.reg_weight else m.num_iters

    def one(shapes: jax.Array, points2d: jax.Array, mask: jax.Array) -> jax.Array:
        return procrustean_regression_loss(
            shapes,
            points2d,
            mask,
            m.reg_weight,
            num_iters=num_iters,
            tol=m.tol,
            rotation_gradient=m.alignment == "exact",
        )

    def cost(shapes: jax.Array, points2d: jax.Array, mask: jax.Array) -> Any:
        shapes, points2d = (x.reshape(-1, *x.shape[-3:]) for x in (shapes, points2d))
        mask = mask.reshape(-1, *mask.shape[-2:])
        reprojection = jax.vmap(reprojection_error)(shapes, points2d, mask).sum()
        return jax.vmap(one)(shapes, points2d, mask).sum(), reprojection

    return cost


def network(config: ConfigDict, num_points: int) -> PRNFCN:
    m = config.model
    return PRNFCN(num_points, m.width, m.momentum, jnp.dtype(config.precision))


def network_phase(
    config: ConfigDict, name: str, num_steps: int, train: Any, evaluate: Any, *, frozen: bool
) -> Phase:
    """PRN; `frozen` goes on from the phase before with BatchNorm's running statistics."""
    net: Any = network(config, train["mask"].shape[2])
    tx = optimizers.make(config.optimizer, max(num_steps, 1))
    cost = group_cost(config)
    sets, count = train["mask"].shape[:2]
    resident = {key: train[key] for key in ("points2d", "mask")}

    def init(key: jax.Array, previous: Any) -> state.TrainState:
        if frozen:
            return state.create(previous.params, tx, previous.model_state)
        blank = jnp.zeros((2, *train["points2d"].shape[2:]))
        variables = jax.vmap(lambda key: net.init(key, blank))(jax.random.split(key, sets))
        return state.create(variables["params"], tx, {"batch_stats": variables["batch_stats"]})

    def apply(params: Any, model_state: Any, points2d: jax.Array) -> Any:
        variables = {"params": params, **model_state}
        if frozen:
            return net.apply(variables, points2d), model_state
        return net.apply(variables, points2d, train=True, mutable=["batch_stats"])

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        points2d = jnp.swapaxes(batch["points2d"], 0, 1)  # [S, G, F, P, 2]
        flat = points2d.reshape(sets, -1, *points2d.shape[3:])
        shapes, model_state = jax.vmap(apply)(params, model_state, flat)
        shapes = jnp.swapaxes(shapes.reshape(*points2d.shape[:-1], 3), 0, 1)
        value, reprojection = cost(shapes, batch["points2d"], batch["mask"])
        return value, (model_state, {"reprojection": reprojection})

    update = state.gradient_step(loss, tx, accumulate=config.accumulate, remat=config.remat)
    groups, group = config.batch_size // config.model.group, config.model.group

    def step(current: Any, resident: Any, key: jax.Array) -> Any:
        draw, key = jax.random.split(key)
        chosen = jax.random.randint(draw, (groups, sets, group), 0, count)
        batch = jax.tree.map(
            lambda x: jax.vmap(jax.vmap(lambda rows, at: rows[at]), (None, 0))(x, chosen), resident
        )
        return update(current, by_group(batch), key)

    examples = config.batch_size * sets
    return Phase(name, num_steps, init, step, resident, evaluate, examples_per_step=examples)


def by_group(batch: Any) -> Any:
    """Splits the group axis over the devices: a group must live on one."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or len(jax.tree.leaves(batch)[0]) % mesh.size:
        return batch
    where = PartitionSpec(sharding.BATCH_AXES)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, where), batch)


def fit_phase(config: ConfigDict, train: Any, evaluate: Any) -> Phase:
    """The shapes of the training frames themselves: `fit_shapes`, all sequences side by side."""
    tx = optimizers.make(config.optimizer, max(config.num_steps, 1))
    cost = group_cost(config)
    shape = train["mask"].shape
    resident = {key: train[key] for key in ("points2d", "mask")}

    def init(key: jax.Array, previous: Any) -> state.TrainState:
        return state.create(start_shapes(key, shape, jnp.float32), tx)

    def loss(params: Any, model_state: Any, batch: Any, key: jax.Array) -> Any:
        shapes = with_depth(batch["points2d"], params)
        value, reprojection = cost(shapes, batch["points2d"], batch["mask"])
        return value, (model_state, {"reprojection": reprojection})

    step = state.gradient_step(loss, tx, remat=config.remat)
    examples = int(np.prod(shape[:2]))
    return Phase("fit", config.num_steps, init, step, resident, evaluate, None, examples)


def low_rank_phase(evaluate: Any) -> Phase:
    """The baseline has no steps: all is done where it is judged."""

    def step(current: Any, batch: Any, key: jax.Array) -> Any:
        return current, {}

    return Phase("low_rank", 0, lambda key, previous: jnp.zeros(()), step, None, evaluate)


def predictor(config: ConfigDict, test: Any) -> Predict:
    """state -> centred shapes [S, N, P, 3] of a set, by the config's method."""
    points2d, mask = test["points2d"], test["mask"]
    net: Any = network(config, mask.shape[2])

    @jax.jit
    def lift(current: state.TrainState) -> jax.Array:
        variables = {"params": current.params, **current.model_state}
        return jax.vmap(net.apply)(variables, points2d)

    def predict(current: Any) -> np.ndarray:
        if config.model.method == "prn":
            shapes = np.asarray(lift(current))
        elif config.model.method == "fit":
            shapes = np.asarray(with_depth(jnp.asarray(points2d), current.params))
        else:
            bases, iters = config.model.num_bases, config.model.low_rank_iters
            shapes = np.stack(
                [
                    low_rank_shapes(u, m, num_bases=bases, num_iters=iters)
                    for u, m in zip(points2d, mask, strict=True)
                ]
            )
        # Nothing fixes the distance to the camera, and with points missing not xy's centre either.
        return shapes - shapes.mean(-2, keepdims=True)

    return predict
