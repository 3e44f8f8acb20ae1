"""The fields that every recipe shares, what they mean, and which values they take.

A paper's `configs/<slug>.py` starts from `defaults` and adds its own `model` and `data` sections.
Unknown fields and wrong types are refused by ml_collections; `validate` refuses wrong values, one
line each: field, value, what is allowed.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

PRECISIONS = ("float32", "bfloat16")
OVER_SEEDS = ("vmap", "map")

# Fields that change where and how a run is watched, not what it computes: they may differ between
# the run that wrote a workdir and the one that continues it.
FREE_FIELDS = (
    "cache_dir",
    "checkpoint",
    "compilation_cache",
    "data_dir",
    "distributed",
    "log",
    "max_in_flight",
    "mesh",
    "profile_steps",
    "steps_per_dispatch",
)


def defaults(paper: str, variant: str, variants: Sequence[str]) -> ConfigDict:
    """The shared fields with their default values.

    Args:
      paper: slug of the paper, the name of its folder under papers/.
      variant: the one asked for.
      variants: those the paper has; the first is the one on embedded data.

    Raises:
      ValueError: `variant` is not one of them.
    """
    if variant not in variants:
        raise ValueError(f"variant {variant!r} of {paper}: allowed are {', '.join(variants)}")
    config = ConfigDict()
    config.paper = paper
    config.variant = variant
    config.seed = 0  # every random number of the run follows from it
    config.num_steps = 1000  # updates
    config.batch_size = 32  # examples a step, over all devices and hosts
    config.eval_every = 0  # steps between evaluations; 0: only after the last step
    config.datasets = ()  # names of the data sets that the recipe loads, for `--list`
    config.data_dir = ""  # where prepared data sets lie; "": tfds's own default
    config.cache_dir = "~/.cache/reprise/phases"  # results of reusable phases; "": not kept
    config.compilation_cache = "~/.cache/reprise/xla"  # compiled programs; "": not kept

    config.optimizer = optimizer()

    config.precision = "float32"  # of the computation, or "bfloat16"; parameters stay float32
    config.accumulate = 1  # microbatches a step; batch_size must divide by it
    config.remat = False  # recompute activations in the backward pass to save memory
    # Share of the parameters' average kept each step; 0: no average, else it is what is evaluated.
    config.ema_decay = 0.0
    config.max_nonfinite = 10  # stop after so many skipped updates in a row

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices over which the batch is split; -1: all that are left
    config.mesh.fsdp = 1  # devices over which batch, parameters and optimiser state are split

    config.steps_per_dispatch = 1  # steps in one compiled program (lax.scan): for tiny steps
    config.max_in_flight = 2  # dispatches that may wait on the device at once

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1000  # steps between checkpoints; 0: only after the last step
    config.checkpoint.keep = 3  # how many of a phase stay on disk

    config.log = ConfigDict()
    config.log.every = 50  # steps between rows of metrics.jsonl
    config.log.tensorboard = False  # also write TensorBoard files
    config.log.wandb = ""  # also log to this Weights & Biases project
    config.log.progress = True  # progress bar on a terminal or in a notebook
    config.profile_steps = (0, 0)  # first and last step of a profiler trace; (0, 0): none
    config.distributed = False  # call jax.distributed.initialize even where no cluster is detected

    config.study = ConfigDict()
    config.study.seeds = (0, 1, 2)
    config.study.over_seeds = "vmap"  # all seeds in one program; or one after another in it: "map"
    config.study.columns = ()  # metrics that the card's table shows; (): all. results/ has all
    return config


def optimizer(name: str = "adam", learning_rate: float = 1e-3, **args: Any) -> ConfigDict:
    """The section of an optimiser; see `reprise.common.training.optimizers.make`."""
    section = ConfigDict()
    section.name = name  # a function of optax
    section.learning_rate = learning_rate  # the schedule's initial or peak value
    section.args = ConfigDict(args)  # further arguments of that function
    section.schedule = ConfigDict()
    section.schedule.name = "constant"  # or a schedule of optax
    section.schedule.args = ConfigDict()  # its arguments; decay_steps is num_steps unless given
    section.clip_norm = 0.0  # largest global norm of the gradient; 0: no limit
    section.l2 = 0.0  # weight * l2 is added to the gradient (weight decay as SGD papers mean it)
    return section


def _require(field: str, value: Any, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"config.{field} = {value!r}: {allowed}")


def validate(config: ConfigDict, num_devices: int, num_processes: int = 1) -> None:
    """Checks every shared field before anything is computed.

    Raises:
      ValueError: one line with the field, its value and what is allowed.
    """
    from reprise.common.training import optimizers

    for field in ("num_steps", "eval_every", "seed"):
        _require(field, config[field], config[field] >= 0, "must be 0 or more")
    for field in ("batch_size", "accumulate", "steps_per_dispatch", "max_in_flight"):
        _require(field, config[field], config[field] >= 1, "must be 1 or more")
    _require("max_nonfinite", config.max_nonfinite, config.max_nonfinite >= 1, "must be 1 or more")
    _require("ema_decay", config.ema_decay, 0 <= config.ema_decay < 1, "must be in [0, 1)")
    _one_of("precision", config.precision, PRECISIONS)
    _one_of("study.over_seeds", config.study.over_seeds, OVER_SEEDS)
    _require("study.seeds", config.study.seeds, len(config.study.seeds) > 0, "needs a seed")
    _require("study.seeds", config.study.seeds, min(config.study.seeds) >= 0, "must be 0 or more")
    _require(
        "study.seeds",
        config.study.seeds,
        len(set(config.study.seeds)) == len(config.study.seeds),
        "must not repeat a seed",
    )
    _require("checkpoint.every", config.checkpoint.every, config.checkpoint.every >= 0, "0 or more")
    _require("checkpoint.keep", config.checkpoint.keep, config.checkpoint.keep >= 1, "1 or more")
    _require("log.every", config.log.every, config.log.every >= 1, "must be 1 or more")
    _require(
        "log.wandb",
        config.log.wandb,
        not config.log.wandb or importlib.util.find_spec("wandb") is not None,
        "needs the package wandb: pip install wandb",
    )
    profile = config.profile_steps
    in_order = len(profile) == 2 and 0 <= profile[0] <= profile[1]
    _require("profile_steps", profile, in_order, "must be (first, last)")

    fsdp, data = config.mesh.fsdp, config.mesh.data
    _require("mesh.fsdp", fsdp, fsdp >= 1 and num_devices % fsdp == 0, _divides(num_devices))
    _require("mesh.data", data, data == -1 or data >= 1, "must be -1 (all devices) or more than 0")
    _require(
        "mesh.data",
        data,
        data == -1 or data * fsdp == num_devices,
        f"data * fsdp must be the {num_devices} devices present; -1 takes what is left",
    )
    rows = num_devices * config.accumulate
    _require(
        "batch_size",
        config.batch_size,
        config.batch_size % rows == 0,
        f"must divide by {num_devices} devices x {config.accumulate} microbatches",
    )
    _require(
        "batch_size",
        config.batch_size,
        config.batch_size % num_processes == 0,
        f"must divide by the {num_processes} processes",
    )
    optimizers.make(config.optimizer, max(config.num_steps, 1))


def _divides(num_devices: int) -> str:
    return f"must divide the {num_devices} devices present"


def _one_of(field: str, value: str, allowed: Iterable[str]) -> None:
    _require(field, value, value in allowed, f"allowed are {', '.join(allowed)}")


def to_plain(config: Any) -> Any:
    """The config as dicts, lists and scalars, ready for JSON."""
    if isinstance(config, ConfigDict | Mapping):
        return {str(key): to_plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(value) for value in config]
    return config


def apply_overrides(config: ConfigDict, overrides: Mapping[str, Any]) -> ConfigDict:
    """A copy of `config` with `{"optimizer.learning_rate": 0.1, ...}` set.

    Raises:
      KeyError, TypeError: a field that the config does not have, or a value of another type.
    """
    config = ConfigDict(config.copy_and_resolve_references())
    config.lock()
    config.update_from_flattened_dict(dict(overrides))
    return config


def identity(config: ConfigDict) -> dict[str, Any]:
    """The plain fields on which a run's numbers depend; its seeds are named beside them."""
    plain = {k: v for k, v in to_plain(config).items() if k not in FREE_FIELDS}
    return plain | {"study": {"over_seeds": config.study.over_seeds}}


def digest(plain: Any) -> str:
    """Short hash of plain data."""
    text = json.dumps(to_plain(plain), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Names the fields in which two plain configs differ, as `field: one -> other`."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys())
        parts = (differences(one.get(k), other.get(k), f"{path}.{k}".lstrip(".")) for k in keys)
        return [line for part in parts for line in part]
    return [] if one == other else [f"{path}: {one!r} -> {other!r}"]
