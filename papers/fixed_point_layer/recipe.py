"""How the fixed-point layer is trained and judged: one module an experiment."""

from typing import Any

from ml_collections import ConfigDict

from reprise.common.studies.study import Study
from reprise.common.training.phase import Phase
from reprise.papers.fixed_point_layer import denoising, mazes, multilabel

_TASKS: dict[str, Any] = {"denoise": denoising, "maze": mazes, "bibtex": multilabel}


def phases(config: ConfigDict) -> list[Phase]:
    """One phase: train the layer, or with `model.unroll` the same module applied that often."""
    return [_TASKS[config.model.task].phase(config)]


def study(config: ConfigDict) -> Study:
    """The arms, the claim and the figures of the config's experiment."""
    return _TASKS[config.model.task].study(config)
