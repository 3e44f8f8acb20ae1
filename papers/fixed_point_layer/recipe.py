"""How the fixed-point layer is trained and judged: one module an experiment."""

from typing import Any

from ml_collections import ConfigDict

from reprise.common.studies.study import Study
from reprise.common.training.phase import Phase
from reprise.papers.fixed_point_layer import denoising, mazes, multilabel

_TASKS: dict[str, Any] = {"denoise": denoising, "maze": mazes, "bibtex": multilabel}


def phases(config: ConfigDict) -> list[Phase]:
    """One phase: train the layer, or with `model.unroll` the same module applied that often."""
    return [_task(config).phase(config)]


def study(config: ConfigDict) -> Study:
    """The arms, the claim and the figures of the config's experiment."""
    return _task(config).study(config)


def _task(config: ConfigDict) -> Any:
    task = config.model.task
    if task not in _TASKS:
        raise ValueError(f"config.model.task = {task!r}: allowed are {', '.join(_TASKS)}")
    if task == "bibtex" and config.model.form not in multilabel.FORMS:
        allowed = ", ".join(multilabel.FORMS)
        raise ValueError(f"config.model.form = {config.model.form!r}: allowed are {allowed}")
    if task == "maze" and config.precision != "float32":
        raise ValueError(f"config.precision = {config.precision!r}: mazes run in float32")
    return _TASKS[task]
