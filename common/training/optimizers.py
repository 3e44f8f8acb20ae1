"""Optimisers and schedules by their optax names."""

import inspect
from typing import Any

import optax
from ml_collections import ConfigDict

# They want more than a gradient, take no schedule, are deprecated, or are no whole optimiser.
_EXCLUDED = {"lbfgs", "noisy_sgd", "optimistic_adam", "rprop", "scale_by_rprop", "sm3"}


def optimizer_names() -> list[str]:
    """Names that `config.optimizer.name` accepts."""
    return sorted(
        name
        for name, function in vars(optax).items()
        if inspect.isfunction(function)
        and name not in _EXCLUDED
        and not name.startswith("_")
        and "learning_rate" in inspect.signature(function).parameters
    )


def schedule_names() -> list[str]:
    """Names that `config.optimizer.schedule.name` accepts."""
    names = ["constant", "piecewise_constant_schedule"]
    for name, function in vars(optax.schedules).items():
        public = name.endswith(("_schedule", "_decay")) and not name.startswith("_")
        # Without such a value it is made of several others (sgdr_schedule).
        if public and {"init_value", "peak_value"} & set(inspect.signature(function).parameters):
            names.append(name)
    return sorted(set(names))


def _check_args(field: str, function: Any, args: dict[str, Any]) -> None:
    allowed = list(inspect.signature(function).parameters)
    for name in args:
        if name not in allowed:
            raise ValueError(
                f"config.{field}.{name} = {args[name]!r}: {function.__name__} has no such "
                f"argument; it takes {', '.join(allowed)}"
            )


def make_schedule(section: ConfigDict, learning_rate: float, num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step.

    `piecewise_constant_schedule` takes `boundaries` (steps) and `scale` (the factor at each of
    them); every other name takes the arguments of the optax schedule of that name. The initial,
    or where there is a warm-up the peak, value is `learning_rate`; `decay_steps` and
    `transition_steps` are `num_steps` unless given.
    """
    name, args = section.name, dict(section.args)
    if name == "constant":
        return optax.schedules.constant_schedule(learning_rate)
    if name not in schedule_names():
        raise ValueError(
            f"config.optimizer.schedule.name = {name!r}: allowed are {', '.join(schedule_names())}"
        )
    if name == "piecewise_constant_schedule":
        unknown = set(args) - {"boundaries", "scale"}
        if unknown or "boundaries" not in args:
            raise ValueError(
                f"config.optimizer.schedule.args = {args!r}: piecewise_constant_schedule takes "
                "boundaries (a tuple of steps) and scale (a factor)"
            )
        scales = {int(step): args.get("scale", 0.1) for step in args["boundaries"]}
        return optax.schedules.piecewise_constant_schedule(learning_rate, scales)
    function = getattr(optax.schedules, name)
    _check_args("optimizer.schedule.args", function, args)
    parameters = inspect.signature(function).parameters
    peak = "peak_value" if "peak_value" in parameters else "init_value"
    filled: dict[str, Any] = {peak: learning_rate}
    if peak == "peak_value" and "init_value" in parameters:
        filled["init_value"] = 0.0
    for steps in ("decay_steps", "transition_steps"):
        if steps in parameters:
            filled[steps] = num_steps
    missing = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty and key not in filled | args
    ]
    if missing:
        raise ValueError(
            f"config.optimizer.schedule.args = {args!r}: {name} also needs {', '.join(missing)}"
        )
    return function(**(filled | args))


def make(section: ConfigDict, num_steps: int) -> optax.GradientTransformation:
    """Builds `config.optimizer`: clipping, weight decay, then the optimiser with its schedule.

    Args:
      section: see `reprise.common.config.optimizer` for its fields.
      num_steps: length of the training, for schedules that decay over all of it.

    Raises:
      ValueError: an unknown name or argument, or a value out of range, with what is allowed.
    """
    if section.name not in optimizer_names():
        raise ValueError(
            f"config.optimizer.name = {section.name!r}: allowed are {', '.join(optimizer_names())}"
        )
    for field in ("learning_rate", "clip_norm", "l2"):
        if not section[field] >= 0:
            raise ValueError(f"config.optimizer.{field} = {section[field]!r}: must be 0 or more")
    function = getattr(optax, section.name)
    args = dict(section.args)
    _check_args("optimizer.args", function, args)
    parts = []
    if section.clip_norm:
        parts.append(optax.clip_by_global_norm(section.clip_norm))
    if section.l2:
        parts.append(optax.add_decayed_weights(section.l2))
    schedule = make_schedule(section.schedule, section.learning_rate, num_steps)
    parts.append(function(schedule, **args))
    return optax.chain(*parts)
