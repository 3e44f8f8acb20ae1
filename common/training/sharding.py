"""One mesh, and where the arrays lie on it.

The batch is split over both axes, `data` and `fsdp`. Parameters and optimiser state are split over
`fsdp` by shape alone. Axes are of type Auto: the compiler inserts the collectives, and a loss
written for the global batch needs none.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

BATCH_AXES = ("data", "fsdp")

# Smaller arrays are cheaper to keep whole on every device than to gather.
MIN_SHARDED_SIZE = 2**14


def make_mesh(section: ConfigDict, devices: Any = None) -> Mesh:
    """The mesh of `config.mesh` over `devices` (default: all there are)."""
    devices = jax.devices() if devices is None else devices
    data = len(devices) // section.fsdp if section.data == -1 else section.data
    return jax.make_mesh(
        (data, section.fsdp), BATCH_AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def batched(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """The axis after the `leading` ones is split over all devices."""
    return NamedSharding(mesh, P(*(None,) * leading, BATCH_AXES))


def state_shardings(mesh: Mesh, abstract: Any) -> Any:
    """Splits the largest axis of every large array over `fsdp`, where it divides.

    The rule looks at the shape alone, so a parameter, its gradient, its moments and its average
    are split alike.
    """
    fsdp = mesh.shape["fsdp"]

    def rule(x: jax.ShapeDtypeStruct) -> NamedSharding:
        if fsdp == 1 or jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            return replicated(mesh)
        axes = [i for i in range(x.ndim) if x.shape[i] % fsdp == 0]
        if int(np.prod(x.shape)) < MIN_SHARDED_SIZE or not axes:
            return replicated(mesh)
        axis = max(axes, key=lambda i: x.shape[i])
        return NamedSharding(mesh, P(*(None,) * axis, "fsdp"))

    return jax.tree.map(rule, abstract)


def put(local: Any, sharding: NamedSharding) -> Any:
    """Puts this process's rows of a global batch on the devices."""
    if jax.process_count() == 1:
        return jax.device_put(local, sharding)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), local)


def put_whole(arrays: Any, sharding: Any) -> Any:
    """Puts arrays that every process holds whole on the devices."""
    if jax.process_count() == 1:
        return jax.device_put(arrays, sharding)

    def one(x: Any, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    if isinstance(sharding, NamedSharding):
        return jax.tree.map(lambda x: one(x, sharding), arrays)
    return jax.tree.map(one, arrays, sharding)
