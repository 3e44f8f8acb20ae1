"""What a phase costs: parameters, FLOPs a step, and the share of the chip's peak it uses."""

import logging
from typing import Any, NamedTuple

import jax
import numpy as np

from reprise.common.training.program import Program

log = logging.getLogger("reprise")


class Chip(NamedTuple):
    """Peaks of one device as its maker states them.

    Attributes:
      flops: bf16 floating-point operations a second, dense.
      memory: bytes of device memory.
      bandwidth: bytes a second to that memory.
      interconnect: bytes a second to the other chips, all links and one direction.
    """

    flops: float
    memory: float
    bandwidth: float
    interconnect: float


CHIPS = {
    "TPU v4": Chip(275e12, 32 * 2**30, 1228e9, 300e9),
    "TPU v5 lite": Chip(197e12, 16 * 2**30, 819e9, 200e9),
    "TPU v5": Chip(459e12, 95 * 2**30, 2765e9, 600e9),
    "TPU v6 lite": Chip(918e12, 32 * 2**30, 1640e9, 448e9),
    "NVIDIA A100": Chip(312e12, 80e9, 2039e9, 300e9),
    "NVIDIA H100": Chip(989e12, 80e9, 3350e9, 450e9),
    "NVIDIA H200": Chip(989e12, 141e9, 4800e9, 450e9),
}


def chip(device: Any) -> Chip | None:
    """The peaks of a device, or None where they are not known (CPUs)."""
    kind = device.device_kind
    names = [name for name in CHIPS if kind.startswith(name)]
    return CHIPS[max(names, key=len)] if names else None


def parameter_table(params: Any) -> str:
    """One line a parameter: path, shape, dtype, size; then the sum."""
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(str(getattr(key, "key", getattr(key, "name", key))) for key in path)
        rows.append((name, str(list(leaf.shape)), str(leaf.dtype), int(np.prod(leaf.shape))))
    width = max((len(row[0]) for row in rows), default=4)
    lines = [
        f"{name:<{width}}  {shape:>20}  {dtype:>9}  {n:>12,}" for name, shape, dtype, n in rows
    ]
    total = sum(row[3] for row in rows)
    return "\n".join([*lines, f"{'sum':<{width}}  {'':>20}  {'':>9}  {total:>12,}"])


def step_flops(compiled: Program, keys: Any) -> float:
    """FLOPs of one step over all devices, as XLA counts them before it optimises.

    The body of a data-dependent loop (a fixed point, a scan) is counted once.
    """
    steps = jax.ShapeDtypeStruct((1,), np.int32)
    lowered = compiled.dispatch.lower(compiled.state, compiled.batch, keys, steps)
    analysis = lowered.cost_analysis() or {}
    return float(analysis.get("flops", 0.0))


def utilisation(flops_per_second: float) -> float | None:
    """Share of the present devices' bf16 peak, or None where it is not known."""
    peak = chip(jax.devices()[0])
    return None if peak is None else flops_per_second / (peak.flops * jax.device_count())


def describe(phase: str, state: Any, flops: float) -> None:
    """Logs the parameters and the FLOPs of a phase, from process 0."""
    if jax.process_index() != 0:
        return
    params = getattr(state, "params", None)
    if params is not None:
        log.debug("phase %s: parameters\n%s", phase, parameter_table(params))
        count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
        log.info("phase %s: %s parameters, %.3g FLOPs a step", phase, f"{count:,}", flops)
