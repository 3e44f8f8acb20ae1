"""Compiles a config's real step for a TPU topology that is not here, and says what it needs.

Needs the extra `[tpu]` (libtpu compiles without a TPU) and runs nothing.
"""

import importlib.util
import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from reprise.common import config as configs
from reprise.common.studies import summary
from reprise.common.training import cost, program, run, sharding

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

# `%x = (bf16[8,128]{1,0}, f32[4]) all-reduce(...)`; an asynchronous one is counted at its start.
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
_SHAPE = re.compile(r"(pred|[suf]\d+|bf16|f8\w+)\[([\d,]*)\]")

_SMALLER = (
    "use more chips, a smaller config.batch_size, config.mesh.fsdp, config.remat or "
    "config.accumulate"
)


class Compiled(NamedTuple):
    """One phase on one topology; every number is of one chip and one step.

    The body of a loop with a data-dependent length is counted once.
    """

    phase: str
    num_chips: int
    argument_bytes: int
    temporary_bytes: int
    flops: float
    bytes_accessed: float
    collective_bytes: dict[str, int]
    placement: list[tuple[str, str, str]]

    @property
    def peak_bytes(self) -> int:
        return self.argument_bytes + self.temporary_bytes


def libtpu_installed() -> bool:
    """Whether the compiler for TPUs is here."""
    return importlib.util.find_spec("libtpu") is not None


def topology_devices(topology: str) -> list[Any]:
    """The devices of a topology such as "v5p:4x4x4".

    Raises:
      ValueError: libtpu is not installed, or does not know the topology.
    """
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    except Exception as error:
        first = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(
            f"--compile-for={topology}: {first}. It needs libtpu (pip install "
            "'reprise[tpu]') and a topology such as v4:2x2x1, v5e:4x4, v6e:4x4 or v5p:4x4x4"
        ) from error
    return list(described.devices)


def compile_phases(config: ConfigDict, devices: list[Any]) -> list[Compiled]:
    """Lowers and compiles the step of every phase of a config for these devices.

    Raises:
      ValueError: the batch does not divide by the chips, or a phase does not fit their memory.
    """
    configs.validate(config, len(devices))
    mesh = sharding.make_mesh(config.mesh, devices)
    out, previous = [], None
    for phase in run.recipe(config).phases(config):
        built = program.build(phase, mesh, previous=previous)
        previous = built.state
        if not phase.num_steps:
            continue
        key = jax.eval_shape(lambda: jax.random.key(0))
        whole = sharding.replicated(mesh)
        key = jax.ShapeDtypeStruct((), key.dtype, sharding=whole)
        steps = jax.ShapeDtypeStruct((1,), np.int32, sharding=whole)
        lowered = built.dispatch.lower(built.state, built.batch, key, steps)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            first = str(error).splitlines()[0].rstrip(".")
            if not first.startswith("RESOURCE_EXHAUSTED"):
                raise
            raise ValueError(
                f"phase {phase.name!r} does not fit {len(devices)} x {devices[0].device_kind}: "
                f"{first}: {_SMALLER}"
            ) from error
        out.append(_measure(phase.name, built, compiled, len(devices)))
    return out


def _measure(name: str, built: program.Program, compiled: Any, num_chips: int) -> Compiled:
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis()
    return Compiled(
        phase=name,
        num_chips=num_chips,
        # Donated arguments are the outputs' memory too: counted once.
        argument_bytes=memory.argument_size_in_bytes
        + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes),
        temporary_bytes=memory.temp_size_in_bytes,
        flops=float(analysis.get("flops", 0.0)),
        bytes_accessed=float(analysis.get("bytes accessed", 0.0)),
        collective_bytes=collective_bytes(compiled.as_text()),
        placement=[*_placement("state", built.state), *_placement("batch", built.batch)],
    )


def collective_bytes(hlo: str) -> dict[str, int]:
    """Bytes that each kind of collective yields on one chip, from the compiled program's text."""
    total: dict[str, int] = {}
    for shapes, kind, _ in _COLLECTIVE.findall(hlo):
        size = 0
        for dtype, dims in _SHAPE.findall(shapes):
            bits = 8 if dtype == "pred" else int(re.sub(r"\D", " ", dtype).split()[0])
            size += math.prod(int(d) for d in dims.split(",") if d) * max(bits, 8) // 8
        total[kind] = total.get(kind, 0) + size
    return total


def _placement(prefix: str, tree: Any) -> list[tuple[str, str, str]]:
    """(path, shape, axes) of every leaf that is split."""
    rows = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if any(axis is not None for axis in leaf.sharding.spec):
            axes = ", ".join(
                "-" if axis is None else "+".join(np.atleast_1d(axis))
                for axis in leaf.sharding.spec
            )
            shape = f"{leaf.dtype}{list(leaf.shape)}"
            rows.append((prefix + jax.tree_util.keystr(path), shape, axes))
    return rows


def report(config: ConfigDict, topology: str) -> str:
    """What `--compile-for` prints.

    Raises:
      ValueError: the batch does not divide by the chips, or a phase does not fit their memory.
    """
    devices = topology_devices(topology)
    chip = cost.chip(devices[0])
    lines = [
        f"{config.paper}:{config.variant} on {topology} ({len(devices)} x "
        f"{devices[0].device_kind}); per chip and step:"
    ]
    too_large = []
    for phase in compile_phases(config, devices):
        lines += ["", *_phase_lines(phase, chip)]
        if chip and phase.peak_bytes > chip.memory:
            too_large.append(f"phase {phase.phase!r} needs {_size(phase.peak_bytes)}")
    if too_large:
        raise ValueError(
            "\n".join(lines)
            + f"\n\n{'; '.join(too_large)}, a chip has {_size(chip.memory)}: {_SMALLER}"
        )
    return "\n".join(lines)


def _phase_lines(phase: Compiled, chip: cost.Chip | None) -> list[str]:
    wire = sum(phase.collective_bytes.values())
    kinds = ", ".join(f"{k} {_size(v)}" for k, v in sorted(phase.collective_bytes.items()))
    rows = [
        [f"phase {phase.phase}", ""],
        [
            "memory",
            f"{_size(phase.peak_bytes)} (state and batch {_size(phase.argument_bytes)}, "
            f"temporary {_size(phase.temporary_bytes)})"
            + (f" of {_size(chip.memory)}" if chip else ""),
        ],
        ["FLOPs", f"{phase.flops:.4g} (loops of unknown length counted once)"],
        ["collectives", f"{_size(wire)}" + (f": {kinds}" if kinds else "")],
    ]
    if chip:
        times = {
            "arithmetic": phase.flops / chip.flops,
            "memory": phase.bytes_accessed / chip.bandwidth,
            "interconnect": wire / chip.interconnect,
        }
        slowest = max(times, key=times.__getitem__)
        parts = ", ".join(f"{name} {seconds * 1e3:.3g} ms" for name, seconds in times.items())
        rows.append(
            [
                "roofline",
                f"at least {times[slowest] * 1e3:.3g} ms a step, bound by {slowest} "
                f"({parts}); an estimate from peak rates, not a measurement",
            ]
        )
    if phase.placement:
        table = summary.table([["split over chips", "shape", "axes"], *map(list, phase.placement)])
    else:
        table = "nothing is split over chips"
    return [summary.table(rows), "", table]


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"
