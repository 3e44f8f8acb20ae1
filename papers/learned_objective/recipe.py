"""How learned objectives are trained and judged: one module an experiment."""

from typing import Any

from ml_collections import ConfigDict

from reprise.common.studies.study import Study
from reprise.common.training.phase import Phase
from reprise.papers.learned_objective import optical_flow, registration

_TASKS: dict[str, Any] = {"registration": registration, "flow": optical_flow}


def phases(config: ConfigDict) -> list[Phase]:
    """One phase; a hand-crafted objective has no steps, only an evaluation."""
    return [_task(config).phase(config)]


def study(config: ConfigDict) -> Study:
    """The arms, the claim and the figures of the config's experiment."""
    return _task(config).study(config)


def _task(config: ConfigDict) -> Any:
    task, arm = config.model.task, config.model.arm
    if task not in _TASKS:
        raise ValueError(f"config.model.task = {task!r}: allowed are {', '.join(_TASKS)}")
    if arm not in _TASKS[task].ARMS:
        allowed = ", ".join(_TASKS[task].ARMS)
        raise ValueError(f"config.model.arm = {arm!r}: allowed are {allowed}")
    if config.precision != "float32":
        raise ValueError(
            f"config.precision = {config.precision!r}: the inner process runs in float32"
        )
    return _TASKS[task]
