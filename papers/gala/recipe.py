"""How GALA is trained and judged: one module an experiment."""

from typing import Any

from ml_collections import ConfigDict

from reprise.common.studies.study import Study
from reprise.common.training.phase import Phase
from reprise.papers.gala import clustering, links

_TASKS: dict[str, Any] = {"clustering": clustering, "links": links}


def phases(config: ConfigDict) -> list[Phase]:
    """The phases of the config's experiment.

    Raises:
      ValueError: another `config.model.task`.
    """
    return _task(config).phases(config)


def study(config: ConfigDict) -> Study:
    """The arms, the claim and the figures of the config's experiment."""
    return _task(config).study(config)


def _task(config: ConfigDict) -> Any:
    task = config.model.task
    if task not in _TASKS:
        raise ValueError(f"config.model.task = {task!r}: allowed are {', '.join(_TASKS)}")
    return _TASKS[task]
